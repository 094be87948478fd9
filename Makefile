# Every target first sets up .venv (once, see setup.sh); nothing needs activation.
# PATH: what a stage, a kernel or a terminal of JupyterLab starts as `python` is the environment's, too. OMP_WAIT_POLICY:
# threads that spin while they wait make small networks ten times slower on a machine that does other work.
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(value PATH)
export OMP_WAIT_POLICY ?= PASSIVE
.DEFAULT_GOAL := help
.PHONY: help setup repro repro-long times keep exp test lint strip lab slides bench bench-large bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup:  ## make .venv from requirements.lock; every other target does so first
	@sh setup.sh

repro: setup  ## set up, then regenerate every figure and table that is out of date (STAGE=21_reference: of one stage)
	@$(BIN)/python -m dipp_core.book.pipeline repro $(STAGE)

repro-long: setup  ## the same for many seeds, into reports/long: hours; what is done already is not done again
	@$(BIN)/python -m dipp_core.book.pipeline long
times: setup  ## what the last run of every stage took, and all of them together
	@$(BIN)/python -m dipp_core.book.pipeline times

keep: setup  ## after a whole run: put the networks of 91 and 92 into data/networks, in half precision
	$(BIN)/python -m dipp_core.book.pipeline keep

exp: setup  ## try a number, e.g. SET=scores_and_one_step_generators.lr=0.01; `git checkout params.yaml` leads back
	$(BIN)/python -m dvc exp run -S $(SET)

test: setup lint  ## set up, then lint and run every test, two at a time
	$(BIN)/python -m pytest -n 2 --dist loadscope

lint: setup  ## check style, formatting, types, and that notebooks are committed without outputs
	$(BIN)/ruff check && $(BIN)/ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/python -m dipp_core.book.pipeline lint

strip: setup  ## remove outputs from notebooks before a commit
	$(BIN)/python -m dipp_core.book.pipeline strip

lab: setup  ## open JupyterLab in the environment
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab --ServerApp.root_dir=. notebooks/00_start_here.ipynb

slides: setup  ## make a deck for every session of TEACHING.md: reports/slides/index.html
	$(BIN)/python -m dipp_core.book.pipeline slides

bench: setup  ## measure what a training step costs against the network passes it is made of
	$(BIN)/python -m dipp_core.training.bench

bench-large: setup  ## true-size steps on the CPU, random weights: 16 GB, about 30 minutes
	$(BIN)/python -m dipp_core.training.bench --size full

bench-gpu: setup  ## true-size steps on a GPU, random weights
	$(BIN)/python -m dipp_core.training.bench --size full --device cuda

clean:  ## remove caches and unfinished work; keeps .venv, notebooks and reports
	rm -rf .work/runs .work/failed .work/sources .work/code .pytest_cache .ruff_cache .mypy_cache dvc_plots reports/scratch ./*.egg-info
	find dipp_core tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
