"""What this machine is and what it can run; shown by the first notebook and recorded in every manifest."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess

from dipp_core.files import root


def command_output(*command: str) -> str:
    """What a command prints, empty where it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=root(), timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.strip()


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpus() -> list[tuple[str, float]]:
    """Name and memory in GB of every NVIDIA GPU."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    printed = command_output(*query) if shutil.which("nvidia-smi") else ""
    return [(name.strip(), int(mib) / 1024) for name, mib in re.findall(r"^(.+), (\d+)$", printed, re.M)]


def describe() -> str:
    """Processor and accelerators."""
    return ", ".join([f"{platform.machine()} CPU, {os.cpu_count()} cores", *(name for name, _ in gpus())])


def memory_gb() -> int:
    """Main memory in GB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def packages(names: list[str]) -> list[dict]:
    """Locked and installed version of each package; `+cpu` and the like are builds of the same version."""
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", (root() / "requirements.lock").read_text(), re.M))
    rows = []
    for name in names:
        installed = version(name)
        same = installed is not None and installed.split("+")[0] == lock.get(name)
        verdict = "as locked" if same else "missing: run `make`" if installed is None else "differs from the lock"
        rows.append({"package": name, "locked": lock.get(name), "installed": installed, "verdict": verdict})
    return rows


def scales() -> list[dict]:
    """The scales and what they ask of a machine."""
    return [
        {"scale": "smoke", "meant for": "the tests", "time a notebook": "seconds", "needs": "any CPU"},
        {"scale": "mini", "meant for": "reading, teaching", "time a notebook": "up to 20 minutes", "needs": "2 cores"},
        {"scale": "long", "meant for": "many seeds, long runs", "time a notebook": "up to hours", "needs": "2 cores"},
        {"scale": "full", "meant for": "more samples, steps", "time a notebook": "hours", "needs": "a GPU from 30 on"},
    ]
