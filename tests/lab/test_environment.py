"""The set-up of `.venv`: what it refuses, what it repairs, and that it does nothing when there is nothing to do."""

import ast
import collections
import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import tomllib
from packaging.requirements import Requirement

from dipp_core.lab import environment

FILES = ("requirements.lock", "dipp_core/lab/environment.py", "dipp_core/lab/repair.py")
Disk = collections.namedtuple("Disk", "total used free")


def disk(gib):
    return lambda _: Disk(0, 0, gib * environment.GIB)


def stopped(call, *arguments, **options) -> str:
    """The one line with which a call stops the set-up."""
    with pytest.raises(SystemExit) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("environment: ")


# -------------------------------------------------------------------------------------------------- what it starts from


def test_it_needs_the_standard_library_alone(checkout):
    tree = ast.parse((checkout / FILES[1]).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_it_can_be_read_by_the_oldest_python_that_may_start_it(checkout):
    ast.parse((checkout / FILES[1]).read_text(), feature_version=environment.OLDEST_BOOTSTRAP)


def test_a_good_host_is_accepted_in_silence(capsys):
    environment.check_host(version=(3, 11), disk_usage=disk(50))
    assert capsys.readouterr().out == ""


def test_an_old_python_is_refused():
    line = stopped(environment.check_host, version=(3, 8))
    assert line == "Python 3.8 is too old: use 3.9 or newer, e.g. `make PYTHON=python3.11 ...`"


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_without_venv_is_refused(missing):
    line = stopped(environment.check_host, find_spec=lambda name: None if name == missing else object())
    assert line.startswith("this Python has no venv module: `sudo apt install python3-venv`")


def test_too_little_disk_is_refused():
    line = stopped(environment.check_host, disk_usage=disk(1.5))
    assert line.startswith("too little disk: 1.5 GB free under ")
    assert line.endswith("3 GB needed; free some")


def test_little_disk_is_mentioned_where_torch_may_come_with_cuda(capsys, monkeypatch):
    monkeypatch.setattr(environment.platform, "system", lambda: "Linux")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    environment.check_host(disk_usage=disk(5))
    assert "only 5.0 GB free; a CUDA build of torch would need 8 GB" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- what failed, in one line

OUTPUTS = {
    "uv without network": (
        "error: Request failed after 3 retries\n  Caused by: Failed to fetch: `https://index.example/simple/torch/`\n"
        "  Caused by: error sending request for url (https://index.example/simple/torch/)\n"
        "  Caused by: client error (Connect)\n  Caused by: dns error: failed to lookup address information: "
        "Temporary failure in name resolution\n",
        "no network: ",
    ),
    "pip without network": (
        "WARNING: Retrying (Retry(total=1, connect=None, read=None, redirect=None, status=None)) after connection "
        "broken by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to "
        "establish a new connection: [Errno 101] Network is unreachable')': /simple/uv/\n"
        "ERROR: Could not find a version that satisfies the requirement uv>=0.5 (from versions: none)\n",
        "no network: ",
    ),
    "pip behind a proxy that is down": (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'ProxyError('Cannot connect to proxy.', "
        "ConnectionRefusedError(111, 'Connection refused'))': /simple/uv/\n",
        "no network: ",
    ),
    "uv on a full disk": (
        "error: Failed to install: torch-2.13.0-cp311-none-manylinux_2_28_x86_64.whl (torch==2.13.0)\n"
        "  Caused by: failed to copy file from /home/me/.cache/uv to /x/.venv: No space left on device (os error 28)\n",
        "the disk is full: ",
    ),
    "pip on a full disk": ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
        "the disk is full: "),
    "uv without Python 3.11": (
        "error: No interpreter found for Python 3.11 in managed installations or search path\n",
        "no Python 3.11 here",
    ),
    "uv that cannot download Python": (
        "error: Failed to download https://github.com/astral-sh/python-build-standalone/releases/download/2025/"
        "cpython-3.11.13-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz\n  Caused by: HTTP status 403\n",
        "no Python 3.11 here",
    ),
    "uv that reaches the index but not the Python downloads": (
        "error: Failed to download https://index.example/python-build-standalone/cpython-3.11.13.tar.gz\n"
        "  Caused by: error sending request for url\n  Caused by: dns error: failed to lookup address\n",
        "no Python 3.11 here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_known_failure_is_named(name):
    output, beginning = OUTPUTS[name]
    assert stopped(environment.fail_if_known, output).startswith(beginning)


@pytest.mark.parametrize(
    "output",
    [
        "  × No solution found when resolving dependencies:\n  ╰─▶ Because torch==9 has no wheels\n",
        "error: Failed to build `hpsv2==1.2.0`\n  Caused by: Build backend failed to determine requirements\n",
    ],
)
def test_an_unknown_failure_is_not_given_a_wrong_name(output):
    environment.fail_if_known(output)


def test_a_failing_command_of_an_unknown_kind_is_shown_with_its_output(capsys):
    line = stopped(environment.must, sys.executable, "-c", "print('all I know'); raise SystemExit(3)")
    assert line.endswith("ended with code 3 (its output is above)")
    assert "all I know" in capsys.readouterr().out


def test_a_quiet_command_is_shown_only_when_it_fails(capsys):
    environment.must(sys.executable, "-c", "print('all is well')", quiet=True)
    assert capsys.readouterr().out == ""
    stopped(environment.must, sys.executable, "-c", "print('why'); raise SystemExit(3)", quiet=True)
    assert "why" in capsys.readouterr().err


def test_the_list_of_230_packages_is_not_shown(capsys):
    code, output = environment.run(sys.executable, "-c", "print('Installed 2 packages\\n + torch==2\\n + numpy==2')")
    assert (code, output.count("\n")) == (0, 3)
    assert capsys.readouterr().out == "  Installed 2 packages\n"


def test_settings_of_pip_are_handed_to_uv_and_those_of_uv_win(monkeypatch):
    for name in ("UV_FIND_LINKS", "UV_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://other/simple")
    found = environment.command_environment()
    assert (found["UV_FIND_LINKS"], found["UV_DEFAULT_INDEX"]) == ("/wheels", "https://other/simple")


def test_another_environment_does_not_leak_in(monkeypatch):
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    for name in names:
        monkeypatch.setenv(name, "/elsewhere")
    assert not set(names) & set(environment.command_environment())


# ------------------------------------------------------------------------------------------------------------- set up


@pytest.fixture
def host(checkout, tmp_path, monkeypatch):
    """A checkout without `.venv`, in a path with spaces; the packages of the lock are left out of its installation."""
    root = tmp_path / "a paper companion"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkout / name, root / name)
    venv = root / ".venv"
    places = {"ROOT": root, "VENV": venv, "OLD_VENV": root / ".venv.old", "READY": venv / ".ready"}
    places |= {"UNFINISHED": venv / ".unfinished", "PYTHON": venv / "bin/python", "UV": venv / "bootstrap/bin/uv"}
    for name, place in places.items():
        monkeypatch.setattr(environment, name, place)
    monkeypatch.setattr(environment, "__file__", str(root / FILES[1]))
    monkeypatch.setattr(environment, "install_with_uv", install)
    return root


def install():
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment.VENV], check=True)
    return True


def must_not_install():
    raise AssertionError("installed, though there was nothing to do")


def test_a_new_checkout_is_set_up(host):
    environment.set_up()
    assert environment.is_ready()
    assert not environment.UNFINISHED.exists()


def test_a_second_call_does_nothing_and_says_nothing(host, monkeypatch, capsys):
    environment.set_up()
    capsys.readouterr()
    monkeypatch.setattr(environment, "install_with_uv", must_not_install)
    environment.set_up()
    assert capsys.readouterr() == ("", "")


def test_the_script_itself_does_nothing_when_all_is_ready(host):
    environment.set_up()
    before = environment.READY.stat().st_mtime_ns
    script = host / "dipp_core/lab/environment.py"
    done = subprocess.run([sys.executable, "-I", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert environment.READY.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", FILES)
def test_a_changed_lock_or_recipe_makes_it_anew(host, name, capsys):
    environment.set_up()
    (environment.VENV / "leftover").touch()
    with (host / name).open("a") as handle:
        handle.write("# changed\n")
    assert not environment.is_ready()
    environment.set_up()
    assert environment.is_ready()
    assert not (environment.VENV / "leftover").exists()
    assert "the environment is out of date" in capsys.readouterr().out


def test_a_moved_checkout_is_set_up_anew(host, monkeypatch):
    """Scripts in an environment know its path."""
    before = environment.fingerprint()
    monkeypatch.setattr(environment, "ROOT", shutil.copytree(host, host.parent / "moved"))
    assert environment.fingerprint() != before


def test_an_environment_without_its_python_is_not_ready(host):
    environment.set_up()
    environment.PYTHON.unlink()
    assert not environment.is_ready()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit("environment: no network"), OSError("killed")])
def test_an_interrupted_set_up_is_recognised_and_started_over(host, monkeypatch, capsys, interruption):
    def half():
        (environment.VENV / "half").touch()
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(environment, "install_with_uv", half)
        with pytest.raises(BaseException):  # noqa: B017, PT011
            environment.set_up()
    assert not environment.is_ready()
    environment.set_up()
    assert environment.is_ready()
    assert not (environment.VENV / "half").exists()
    assert "an interrupted set-up was found; starting over" in capsys.readouterr().out


def test_an_interrupted_removal_leaves_nothing_behind(host):
    environment.OLD_VENV.mkdir()
    (environment.OLD_VENV / "half").touch()
    environment.set_up()
    assert not environment.OLD_VENV.exists()


def test_a_foreign_environment_is_refused_and_left_alone(host):
    (environment.VENV / "bin").mkdir(parents=True)
    (environment.VENV / "bin/precious").touch()
    line = stopped(environment.set_up)
    assert line.startswith(".venv exists and was not made by this set-up; move it away or delete it")
    assert (environment.VENV / "bin/precious").exists()


def test_where_uv_cannot_be_had_pip_takes_over(host, monkeypatch, capsys):
    monkeypatch.setattr(environment, "install_with_uv", lambda: False)
    monkeypatch.setattr(environment, "install_with_pip", install)
    environment.set_up()
    assert environment.is_ready()
    assert "uv is not available here; falling back to pip" in capsys.readouterr().out


def test_pip_without_python_3_11_is_one_line(host, monkeypatch):
    monkeypatch.setattr(environment, "LOCKED_PYTHON", (3, 99))
    monkeypatch.setattr(environment.shutil, "which", lambda _: None)
    assert "uv is not available here; install Python 3.11" in stopped(environment.install_with_pip)


def test_a_second_set_up_waits_for_the_first(host, capsys):
    with open(host / ".venv.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        second = threading.Thread(target=environment.set_up)
        second.start()
        said = ""
        while "another set-up of this checkout is running; waiting for it" not in said and second.is_alive():
            said += capsys.readouterr().out
        assert second.is_alive()
        assert not environment.VENV.exists()
    second.join()
    assert environment.is_ready()


# ------------------------------------------------------------------------------------------------------------ the lock


def test_the_lock_pins_every_package_once(checkout):
    lines = [line for line in (checkout / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line)] == []
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert len(set(names)) == len(names)


def test_the_lock_has_no_build_for_one_machine(checkout):
    """`torch==2.x+cpu` can be had from one index only, and would take the GPU away."""
    assert "+" not in (checkout / "requirements.lock").read_text()


def test_the_lock_holds_what_the_package_declares(checkout):
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    lock = dict(line.split("==") for line in (checkout / "requirements.lock").read_text().split() if "==" in line)
    lock = {name.lower().replace("_", "-"): version for name, version in lock.items()}
    for requirement in map(Requirement, wanted):
        if requirement.name != "dipp-core":
            assert requirement.specifier.contains(lock[requirement.name.lower()], prereleases=True), requirement


def test_this_environment_is_the_one_of_the_lock(checkout):
    lock = dict(line.split("==") for line in (checkout / "requirements.lock").read_text().split() if "==" in line)
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in lock}
    assert installed == lock


def test_make_alone_lists_the_targets(checkout):
    listed = subprocess.run(["make", "-s"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    targets = {"repro", "test", "lint", "lab", "bench", "clean"}
    assert targets <= set(re.findall(r"^  make (\w+) +\S", listed, re.MULTILINE))


# ------------------------------------------------------------------------------------------------------ the real thing


@pytest.mark.clone
def test_a_new_clone_makes_its_environment_and_all_results(checkout, tmp_path, stages_run):
    """What a newcomer does, in a path with spaces, after a first try that was killed."""
    clone = new_clone(checkout, tmp_path / "the work" / "a paper companion")
    variables = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH") and k[:4] != "DIPP"}
    variables["PATH"] = os.pathsep.join(p for p in variables["PATH"].split(os.pathsep) if ".venv" not in p)

    def make(*targets):
        done = subprocess.run(["make", *targets], cwd=clone, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    first = subprocess.Popen(
        ["make", "setup"], cwd=clone, env=variables, stdout=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 120
    while not list(clone.glob(".venv/bootstrap/bin/*")) and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    params = clone / "params.yaml"
    params.write_text(re.sub(r"^scale: \w+", "scale: smoke", params.read_text(), flags=re.MULTILINE))
    output = make("repro")
    notebooks = sorted(path.stem for path in clone.glob("notebooks/*.ipynb"))
    assert "an interrupted set-up was found; starting over" in output
    assert stages_run(output) == ["sources", *notebooks]
    for stage in notebooks:
        assert '"scale": "smoke"' in (clone / f"reports/manifests/{stage}.json").read_text()

    assert stages_run(make("repro")) == []
    packages = "torchvision, diffusers, transformers, ImageReward, hpsv2, hpsv2.src.open_clip, dipp_core"
    code = f"import {packages}; print(dipp_core.__file__)"
    imported = subprocess.run([clone / ".venv/bin/python", "-c", code], cwd="/", capture_output=True, text=True)
    assert imported.stdout.splitlines()[-1:] == [str(clone / "dipp_core/__init__.py")], imported.stderr


def new_clone(checkout: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A clone of what the next commit would hold."""
    source = folder.parent / "origin"
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=checkout, stdout=subprocess.PIPE)
    for name in filter(None, listed.stdout.decode().split("\0")):
        with contextlib.suppress(FileNotFoundError):  # deleted, and not yet committed
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / name, source / name)
    who = ["-c", "user.name=test", "-c", "user.email=test@test"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"], ["clone", "-q", ".", str(folder)]):
        subprocess.run(["git", *command], cwd=source, check=True)
    return folder
