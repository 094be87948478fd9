"""What this machine is and what it can run; shown by the first notebook and recorded in every manifest."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess

from dipp_core.lab import config

GPU_MEMORY_GB = 24  # the smallest card that the full scale is meant for


def command_output(*command: str) -> str:
    """What a command prints, empty where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=config.root(), timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpus() -> list[tuple[str, float]]:
    """Name and memory in GB of every NVIDIA GPU."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    lines = command_output(*query).splitlines() if shutil.which("nvidia-smi") else []
    return [(name.strip(), float(mib) / 1024) for name, _, mib in (line.rpartition(",") for line in lines)]


def device() -> str:
    """The accelerators where there are any, else the processor."""
    return " + ".join(name for name, _ in gpus()) or f"CPU, {platform.machine()}, {os.cpu_count()} cores"


def memory_gb() -> int:
    """Main memory in GB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def packages(names: list[str]) -> list[dict]:
    """Locked and installed version of each package; `+cpu` and the like are builds of the same version."""
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", (config.root() / "requirements.lock").read_text(), re.M))
    rows = []
    for name in names:
        installed = version(name)
        same = installed is not None and installed.split("+")[0] == lock.get(name)
        verdict = "as locked" if same else "missing: run `make`" if installed is None else "differs from the lock"
        rows.append({"package": name, "locked": lock.get(name), "installed": installed, "verdict": verdict})
    return rows


def scales() -> list[dict]:
    """What every scale needs, and whether this machine has it."""
    largest = max((memory for _, memory in gpus()), default=0.0)
    full = "yes" if largest >= GPU_MEMORY_GB else f"no: {f'{largest:.0f} GB' if largest else 'no GPU'} here"
    return [
        {"scale": "smoke", "meant for": "the tests; seconds a notebook", "needs": "any CPU", "this machine": "yes"},
        {"scale": "mini", "meant for": "reading and teaching; minutes", "needs": "2 cores", "this machine": "yes"},
        {"scale": "full", "meant for": "more samples", "needs": f"a GPU, {GPU_MEMORY_GB} GB", "this machine": full},
    ]
