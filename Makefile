# Every target first sets up .venv (once, see dipp_core/lab/environment.py); nothing needs activation.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup repro test lint strip lab slides bench bench-large bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup:
	@$(PYTHON) -I dipp_core/lab/environment.py

repro: setup  ## set up, then regenerate every figure and table that is out of date
	@$(BIN)/python -m dipp_core.book.config
	$(BIN)/python -m dvc repro
	@$(BIN)/python -m dipp_core.book.manifest

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

slides: setup  ## make a lecture of the theory chapters: reports/slides/index.html
	$(BIN)/python -m dipp_core.book.pipeline slides

bench: setup  ## measure what a training step costs against the network passes it is made of
	$(BIN)/python -m dipp_core.training.bench

bench-large: setup  ## true-size steps on the CPU, random weights: 16 GB, about 30 minutes
	$(BIN)/python -m dipp_core.training.bench_large

bench-gpu: setup  ## true-size steps on a GPU, random weights; without a GPU the table says so
	$(BIN)/python -m dipp_core.training.bench_gpu

clean:  ## remove caches and unfinished work; keeps .venv, notebooks and reports
	rm -rf .work/runs .work/failed .work/sources .pytest_cache .ruff_cache .mypy_cache dvc_plots reports/scratch ./*.egg-info
	find dipp_core tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
