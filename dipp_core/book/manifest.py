"""Where a published number comes from: the manifest that accompanies the results of every stage.

Times, dates and the machine live here and only here, and nothing in the pipeline depends on it.

    python -m dipp_core.book.manifest        print what every stage took, and its share of the whole
"""

import datetime
import hashlib
import json
import pathlib
import platform
import resource
import sys
import time

from dipp_core.book import config, machine

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
        "device": "cuda" if machine.gpus() else "cpu",
        "machine": machine.describe(),
        "system": platform.system(),
        "threads": state["threads"],
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": peak_memory_mib(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def shares(folder: pathlib.Path) -> str:
    """A line for every stage that has a manifest: wall time of its last run, share of the sum, CPU time, memory."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    total = sum(one["wall_seconds"] for one in found)
    lines = [f"{'last run of each stage':36s} {'wall':>8s} {'share':>6s} {'CPU':>8s} {'memory':>9s}  scale"]
    for one in found:
        share, wall, cpu = 100 * one["wall_seconds"] / total, one["wall_seconds"], one["cpu_seconds"]
        memory = f"{one['peak_memory_mib'] / 1024:5.1f} GiB"
        lines.append(f"{one['stage']:36s} {wall:6.0f} s {share:4.1f} % {cpu:6.0f} s {memory}  {one['scale']}")
    return "\n".join([*lines, f"{'together':36s} {total / 60:5.1f} min"])


if __name__ == "__main__":
    print(shares(config.root() / "reports" / "manifests"))
