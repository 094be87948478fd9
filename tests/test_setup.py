"""The set-up of `.venv` by setup.sh: in scratch checkouts, with a uv that only pretends. And what the lock holds."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from packaging.requirements import Requirement

FILES = ("Makefile", "setup.sh", "requirements.lock", "dipp_core/repair.py")

# writes down how it was called; makes an environment whose python says what it was given
UV = r"""#!/bin/sh
echo "$* | ${UV_DEFAULT_INDEX:-} ${UV_FIND_LINKS:-} ${PYTHONPATH:-}" >>../calls
[ -z "${SAY:-}" ] || [ "$1 $2" != "$FAILS" ] || { echo "$SAY"; exit 1; }
[ "$1" != venv ] || mkdir -p .venv/bin .venv/lib/python3.11/site-packages
[ "$1" != venv ] || { cat >.venv/bin/python && chmod +x .venv/bin/python; } <<'END'
#!/bin/sh
[ "$1" != -m ] || echo "$*" in "${PATH%%:*}"
END
[ "$*" = --version ] || sleep "${TAKES:-0}"
[ "$5" != -r ] || printf ' + torch==2\n + numpy==2\nInstalled 2 packages\n'
"""


class Host:
    """A checkout without `.venv`, and a machine of a few programs: coreutils, this Python and the uv above."""

    def __init__(self, checkout: pathlib.Path, folder: pathlib.Path):
        self.root, self.bin, self.calls = folder / "a paper's $HOME é", folder / "bin", folder / "calls"
        for name in FILES:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / name, self.root / name)
        self.bin.mkdir()
        self.program("uv", UV)
        self.program("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self.venv = self.root / ".venv"

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *words: str, **variables: str) -> subprocess.Popen:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "MAKE", "MFLAGS"))}
        env = kept | {"PATH": f"{self.bin}:/usr/bin:/bin"} | variables
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        return subprocess.Popen(["make", "-s", *(words or ["setup"])], cwd=self.root, env=env, **pipes)

    def make(self, *words: str, **variables: str) -> str:
        return self.start(*words, **variables).communicate(timeout=120)[0]

    def installs(self) -> int:
        return self.calls.read_text().count("-r requirements.lock") if self.calls.exists() else 0


@pytest.fixture
def host(checkout, tmp_path):
    return Host(checkout, tmp_path)


# ------------------------------------------------------------------------------------------------------------- set up


def test_it_is_made_once(host):
    first = host.make(PIP_INDEX_URL="https://mirror/simple", PIP_FIND_LINKS="/wheels", PYTHONPATH="/elsewhere")
    assert first.startswith("setup: making .venv")
    assert first.endswith("  Installed 2 packages\nsetup: ready\n")
    assert "torch" not in first  # a list of 240 packages helps nobody
    assert "-r requirements.lock | https://mirror/simple /wheels \n" in host.calls.read_text()
    assert host.make() == ""
    assert host.installs() == 1


@pytest.mark.parametrize("name", FILES[1:])
def test_a_changed_lock_or_recipe_makes_it_anew(host, name):
    host.make()
    (host.venv / "leftover").touch()
    with (host.root / name).open("a") as handle:
        handle.write("# changed\n")
    assert host.make().startswith("setup: the environment is out of date\n")
    assert host.installs() == 2
    assert not (host.venv / "leftover").exists()


def test_a_moved_checkout_or_a_lost_python_makes_it_anew(host):
    host.make()
    (host.venv / "bin/python").unlink()
    assert "out of date" in host.make()
    host.root = host.root.rename(host.root.with_name("moved"))  # scripts of an environment know its path
    assert "out of date" in host.make()


def test_a_killed_set_up_starts_over(host):
    killed = host.start(TAKES="60")
    while not (host.venv / "bin").exists():
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert host.make().startswith("setup: an interrupted set-up was found; starting over\n")
    assert host.make() == ""


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock here")
def test_a_second_set_up_waits_for_the_first(host):
    first, second = host.start(TAKES="0.5"), host.start(TAKES="0.5")
    said = sorted([first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]])
    assert said[0] == "setup: another set-up of this checkout is running; waiting for it\n"
    assert said[1].endswith("setup: ready\n")
    assert host.installs() == 1


def test_what_others_made_stays(host):
    (host.venv / "bin").mkdir(parents=True)
    assert ".venv exists and was not made by this set-up; move it away" in host.make()
    assert (host.venv / "bin").exists()


def test_targets_find_the_environment_in_any_path(host):
    """What a stage starts as `python` is the environment's; the checkout's path has a space, a quote, a dollar."""
    assert host.make("repro", "STAGE=21_reference").endswith(f"repro 21_reference in {host.venv}/bin\n")


# ------------------------------------------------------------------------------------------- what fails, in one line

NETWORK, DISK = "no network: the package index cannot be reached", "the disk is full: free at least 3 GB"


@pytest.mark.parametrize(
    ("at", "output", "line"),
    [
        ("pip install", "error: Request failed\n  Caused by: dns error: failed to lookup address", NETWORK),
        ("pip install", "NewConnectionError('<pip>: [Errno 101] Network is unreachable')", NETWORK),
        ("pip install", "ProxyError('Cannot connect to proxy.')", NETWORK),
        ("pip install", "failed to copy file: No space left on device (os error 28)", DISK),
        ("pip install", "No solution found: torch==9 has no wheels", "this command failed, its output is above: "),
        ("venv --quiet", "Failed to download https://x/cpython-3.11.13", "no Python 3.11 here"),
    ],
)
def test_a_failure_is_named(host, at, output, line):
    host.program("python3", "#!/bin/sh\nexit 1\n")  # of another version
    said = host.make(FAILS=at, SAY=output)
    assert output.splitlines()[-1].strip() in said
    assert [text for text in said.splitlines() if text.startswith("setup: ")][-1].startswith(f"setup: {line}")
    assert not (host.venv / ".ready").exists()


def test_without_uv_a_python_with_venv_is_asked_for(host):
    host.program("uv", "#!/bin/sh\nexit 1\n")
    host.program("python3", "#!/bin/sh\nexit 1\n")  # too old, or without venv: Debian's, stock
    assert "Python 3.9 or newer with its venv module is needed (Debian, Ubuntu: `sudo apt install" in host.make()


@pytest.mark.parametrize("version", ["(3, 10, 13)", "(3, 11, 2)", "(3, 12, 1)", "(3, 11, 7)"])
def test_uv_is_asked_for_a_python_that_the_lock_can_take(host, version):
    """Debian 12's own, 3.11.2, is one."""
    pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[2])"
    host.program("python3", f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$@"\n')
    host.make()
    asked = "python3" if version.startswith("(3, 11") else ">=3.11,<3.12"
    assert f"--python {asked} .venv" in host.calls.read_text()


# --------------------------------------------------------------------------------------------------- lock and repair


@pytest.fixture(scope="module")
def lock(checkout):
    """Version by name; every line pins one package, and none a build for one machine (`torch==2.x+cpu`)."""
    lines = (checkout / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line)] == []
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    return pins


def test_the_lock_holds_what_the_package_declares(checkout, lock):
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    for requirement in map(Requirement, wanted):
        if requirement.name != "dipp-core":
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert requirement.specifier.contains(lock[name], prereleases=True), requirement


def test_this_environment_is_the_one_of_the_lock(lock):
    assert {name: importlib.metadata.version(name).split("+")[0] for name in lock} == lock


def test_repair_mends_what_is_broken_and_only_once(checkout, tmp_path):
    clip, open_clip = tmp_path / "clip", tmp_path / "hpsv2/src/open_clip"
    for folder in (clip, open_clip, tmp_path / "torchvision"):
        folder.mkdir(parents=True)
    for package in ("clip", "hpsv2", "torchvision"):
        (tmp_path / package / "__init__.py").touch()
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(pathlib.Path(importlib.util.find_spec("clip").origin).with_name(vocabulary), clip)
    (open_clip / "factory.py").write_text("import os\nfrom turtle import forward\nimport re\n")
    command = [sys._base_executable, checkout / "dipp_core/repair.py"]  # nothing but the standard library
    options = {"env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True, "check": True}
    assert subprocess.run(command, **options).stdout.count("hpsv2: ") == 2
    assert (open_clip / "factory.py").read_text() == "import os\nimport re\n"
    assert (open_clip / vocabulary).exists()
    assert subprocess.run(command, **options).stdout == ""


def test_make_alone_lists_the_targets(checkout):
    listed = subprocess.run(["make", "-s"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    targets = {"setup", "repro", "test", "lint", "lab", "bench", "clean"}
    assert targets <= set(re.findall(r"^  make (\w+) +\S", listed, re.MULTILINE))
