"""Where a published number comes from: the manifest that accompanies the results of every stage.

Times, dates and the machine live here and only here, and nothing in the pipeline depends on it.
"""

import datetime
import hashlib
import json
import pathlib
import platform
import resource
import sys
import time

from dipp_core.lab import machine

INPUTS = ("dipp_core", "notebooks", "data", "params.yaml", "requirements.lock", "dvc.yaml")
PACKAGES = ("torch", "numpy", "matplotlib", "pandas", "diffusers", "transformers")


def peak_memory_mib() -> int:
    """The largest resident size that any finished process of this run had."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)


def write(stage: str, state: dict, start: float, path: pathlib.Path) -> None:
    """One JSON file: commit, parameters and their hash, sources and their hashes, versions, machine, cost."""
    params = json.dumps(state["params"], sort_keys=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    content = {
        "stage": stage,
        "commit": machine.command_output("git", "rev-parse", "--verify", "--quiet", "HEAD") or None,
        "uncommitted_changes": bool(machine.command_output("git", "status", "--porcelain", "--", *INPUTS)),
        "scale": state["params"]["scale"],
        "seed": state["params"]["seed"],
        "params": state["params"],
        "params_sha256": hashlib.sha256(params.encode()).hexdigest()[:16],
        "sources_sha256": state["sources"],
        "versions": {"python": platform.python_version()} | {name: machine.version(name) for name in PACKAGES},
        "device": "cpu",
        "machine": machine.describe(),
        "system": platform.system(),
        "threads": state["threads"],
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": peak_memory_mib(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
