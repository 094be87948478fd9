"""The one environment: make `.venv` from `requirements.lock` and keep it true to the lock.

Only the standard library is imported, because this file runs before the environment exists:

    python3 -I dipp_core/lab/environment.py      (a second call does nothing, in a fraction of a second)

The lock is for Python 3.11. Where `python3` is another version, uv provides 3.11; where uv itself cannot be had, pip
installs the same lock, provided that a Python 3.11 is at hand.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV, OLD_VENV = ROOT / ".venv", ROOT / ".venv.old"
READY, UNFINISHED = VENV / ".ready", VENV / ".unfinished"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bootstrap" / "bin" / "uv"
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)  # not the environment that is about to be replaced
LOCKED_PYTHON = (3, 11)
OLDEST_BOOTSTRAP = (3, 9)
GIB = 2**30
DISK_NEEDED = 3 * GIB  # measured: 2.3 GB with CPU torch
DISK_CUDA = 8 * GIB  # measured: 5.5 GB with the CUDA build of torch that Linux users get from PyPI

# whatever is started from .venv finds the rest of it (`.venv/bin/dvc` starts `python`), so nothing needs activation;
# and threads that spin while they wait make small networks ten times slower on a machine that does other work too
START_UP = (
    "import os, sys; os.environ['PATH'] = os.path.join(sys.prefix, 'bin') + os.pathsep + os.environ.get('PATH', ''); "
    "os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')\n"
)

SYMPTOMS = (
    (
        r"No space left on device|os error 28|Errno 28",
        "the disk is full: free at least 3 GB (8 GB with CUDA torch), then run the same command again",
    ),
    (
        r"No interpreter found|Failed to download.*python|python-build-standalone|No download found",
        "no Python 3.11 here and uv could not fetch one; install Python 3.11 (the lock is tested on no other), "
        "then run `make PYTHON=python3.11 ...`",
    ),
    (
        r"dns error|error sending request|tcp connect error|client error \(Connect\)|operation timed out|"
        r"NewConnectionError|Network is unreachable|name resolution|Connection refused|ProxyError|ConnectTimeout",
        "no network: the package index cannot be reached; connect (or set PIP_INDEX_URL to a mirror), "
        "then run the same command again",
    ),
)


def fail(message):
    """Stop with one clear line."""
    sys.exit(f"environment: {message}")


def say(message):
    print(f"environment: {message}", flush=True)


def check_host(version=sys.version_info[:2], find_spec=importlib.util.find_spec, disk_usage=shutil.disk_usage):
    """Refuse a machine on which the set-up cannot work, with one line that says what to do."""
    if version < OLDEST_BOOTSTRAP:
        fail(f"Python {version[0]}.{version[1]} is too old: use 3.9 or newer, e.g. `make PYTHON=python3.11 ...`")
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        fail("this Python has no venv module: `sudo apt install python3-venv` (Debian, Ubuntu), then the same command")
    free = disk_usage(ROOT).free
    if free < DISK_NEEDED:
        fail(f"too little disk: {free / GIB:.1f} GB free under {ROOT}, {DISK_NEEDED / GIB:.0f} GB needed; free some")
    if free < DISK_CUDA and platform.system() == "Linux" and platform.machine() == "x86_64":
        say(f"only {free / GIB:.1f} GB free; a CUDA build of torch would need {DISK_CUDA / GIB:.0f} GB")


def fingerprint():
    """What the environment was made from: a change of any of it means that it must be made again."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("requirements.lock", "dipp_core/lab/environment.py", "dipp_core/lab/repair.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def is_ready():
    return PYTHON.exists() and READY.is_file() and READY.read_text() == fingerprint()


@contextlib.contextmanager
def one_at_a_time():
    """Hold a lock, so that two set-ups of one checkout do not write into each other."""
    with open(ROOT / ".venv.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def command_environment():
    """The caller's variables, and pip's own settings under the names that uv reads."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    names = {
        "PIP_FIND_LINKS": "UV_FIND_LINKS",
        "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
        "PIP_EXTRA_INDEX_URL": "UV_INDEX",
        "PIP_CERT": "SSL_CERT_FILE",
    }
    for pip_name, uv_name in names.items():
        if env.get(pip_name):
            env.setdefault(uv_name, env[pip_name])
    env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # as pip does: the best version of all indexes
    return env


def run(*command, quiet=False):
    """Run a command; its output is shown as it comes and returned with the exit code."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not quiet and not re.match(r"\s*[+-] ", line):  # uv lists every package: 230 lines that help nobody
            print("  " + line, end="", flush=True)
    return process.wait(), "".join(lines)


def fail_if_known(output):
    """Stop with the line that names the cause, where the output of a failed command shows one of the known ones."""
    for pattern, message in SYMPTOMS:
        if re.search(pattern, output, re.IGNORECASE):
            fail(message)


def must(*command, quiet=False):
    """Run a command that has to succeed."""
    code, output = run(*command, quiet=quiet)
    if code:
        fail_if_known(output)
        print(output if quiet else "", file=sys.stderr)
        fail(f"`{' '.join(map(str, command))}` ended with code {code} (its output is above)")


@contextlib.contextmanager
def heartbeat(what):
    """A progress line: on a terminal it counts the seconds in place; in a log it says when the work begins."""
    stop, start = threading.Event(), time.monotonic()

    def beat():
        while not stop.wait(1.0):
            print(f"\r  {what}: {time.monotonic() - start:.0f} s ", end="", flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    if sys.stdout.isatty():
        thread.start()
    else:
        say(f"{what} ..")
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
            print("\r\033[K", end="")
    say(f"{what}: {time.monotonic() - start:.0f} s")


def install_with_uv():
    """Make the environment with uv. False where uv itself cannot be had on this platform."""
    must(BASE_PYTHON, "-m", "venv", VENV / "bootstrap", quiet=True)
    pip = (VENV / "bootstrap/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
    code, output = run(*pip, "--retries", "2", "--timeout", "20", "uv>=0.5", quiet=True)
    if code:
        fail_if_known(output)
        return False
    locked = BASE_PYTHON if sys.version_info[:2] == LOCKED_PYTHON else ".".join(map(str, LOCKED_PYTHON))
    must(UV, "venv", "--quiet", "--allow-existing", "--python", locked, VENV)
    with heartbeat("uv installs the packages of requirements.lock"):
        must(UV, "pip", "install", "--python", PYTHON, "--compile-bytecode", "-r", ROOT / "requirements.lock")
    must(UV, "pip", "install", "--quiet", "--python", PYTHON, "--no-deps", "--no-build-isolation", "-e", ROOT)
    must(UV, "pip", "check", "--python", PYTHON, quiet=True)
    return True


def install_with_pip():
    """The same with pip, several times slower; pip cannot provide another Python."""
    python = BASE_PYTHON if sys.version_info[:2] == LOCKED_PYTHON else shutil.which("python3.11")
    if python is None:
        version = platform.python_version()
        fail(f"Python {version} is untested and uv is not available here; install Python 3.11, then the same command")
    must(python, "-m", "venv", VENV, quiet=True)
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check")
    with heartbeat("pip installs the packages of requirements.lock (a few minutes)"):
        must(*pip, "install", "-q", "-r", ROOT / "requirements.lock")
    must(*pip, "install", "-q", "--no-deps", "--no-build-isolation", "-e", ROOT)
    must(*pip, "check", quiet=True)


def set_up():
    """Bring `.venv` to the state of the lock; nothing to do is the common case."""
    if is_ready():
        return
    with one_at_a_time():
        if is_ready():
            return
        shutil.rmtree(OLD_VENV, ignore_errors=True)
        if VENV.exists():
            if any(VENV.iterdir()) and not (READY.exists() or UNFINISHED.exists()):
                fail(".venv exists and was not made by this set-up; move it away or delete it, then the same command")
            say(
                "the environment is out of date" if READY.exists() else "an interrupted set-up was found; starting over"
            )
            VENV.rename(OLD_VENV)  # atomic: an interrupted removal never leaves half an environment behind
        shutil.rmtree(OLD_VENV, ignore_errors=True)
        check_host()
        say(f"making {VENV}")
        VENV.mkdir()
        UNFINISHED.touch()
        if not install_with_uv():
            say("uv is not available here; falling back to pip")
            install_with_pip()
        must(PYTHON, ROOT / "dipp_core/lab/repair.py")
        (site_packages,) = VENV.glob("lib/python*/site-packages")
        (site_packages / "_dipp_start_up.pth").write_text(START_UP)
        READY.write_text(fingerprint())
        UNFINISHED.unlink()
        say("ready")


if __name__ == "__main__":
    try:
        set_up()
    except KeyboardInterrupt:
        fail("interrupted; the same command starts it again")
