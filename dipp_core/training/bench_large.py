"""Steps at true size on the CPU: SD1.5 and PixArt-alpha at 512 pixels, random weights, float32, adapters, ImageReward.

    python -m dipp_core.training.bench_large                      # all of PLAN
    python -m dipp_core.training.bench_large sd15.dipp pixart.dipp     # some of it, the rest stays as it was measured

Every measurement has a process of its own, and is published as soon as it is there: a run that is stopped loses the
measurement it was in. One that would take the machine's last memory is given up.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dipp_core.book import config, pipeline, report
from dipp_core.training import full_size
from dipp_core.training.full_size import GIB, Case

STAGE, NOT_RUN = "30_full_scale", "not run here"
SD15, PIXART = "stable-diffusion-v1-5/stable-diffusion-v1-5", "PixArt-alpha/PixArt-XL-2-512x512"
# Two terms have large graphs at once in DI* alone, DI++ has no graph of scores; and where the reward's is kept whole
KEPT = {"checkpoint_vae": False, "checkpoint_reward": False}
PLAN = {
    "sd15.dipp": Case(reference=SD15),
    "sd15.dipp_joint": Case(reference=SD15, joint=True),
    "pixart.dipp": Case(reference=PIXART),
    "sd15.distar_in": Case(reference=SD15, method="distar_in"),
    "pixart.distar_in": Case(reference=PIXART, method="distar_in"),
    "sd15.distar_in_kept": Case(reference=SD15, method="distar_in", switches=KEPT),
    "sd15.distar_in_kept_joint": Case(reference=SD15, method="distar_in", switches=KEPT, joint=True),
}
LEAST_FREE = 3 * GIB  # that a measurement leaves to the rest of the machine
LONGEST = 3600  # seconds


# ------------------------------------------------------------------------------------------- a measurement in a process


def alone(case: Case, *, least_free: float = LEAST_FREE, longest: float = LONGEST) -> dict[str, Any]:
    """`full_size_step.measure` in a process of its own; where it comes to nothing, {"failed": why}, one line."""
    command = [sys.executable, "-m", "dipp_core.training.full_size_step", json.dumps(dataclasses.asdict(case))]
    code = str(pathlib.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complaints:
        child = subprocess.Popen(
            command, stdout=printed, stderr=complaints, text=True, env=os.environ | {"PYTHONPATH": paths}
        )
        try:
            stopped = _watch(child, least_free, time.monotonic() + longest)
        finally:
            child.kill()
            child.wait()
        lines, why = ([line.strip() for line in _lines(file)] for file in (printed, complaints))
    if stopped:
        return {"failed": stopped}
    if child.returncode:
        killed = f"its process was killed by signal {-child.returncode}" if child.returncode < 0 else ""
        return {"failed": killed or (why or ["it failed without a word"])[-1][:200]}
    return json.loads(lines[-1])


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return [line for line in file if line.strip()]


def _watch(child: subprocess.Popen, least_free: float, end: float) -> str:
    """Wait for a process; "" when it has ended by itself, else why it must not go on."""
    import psutil

    while child.poll() is None:
        if (free := psutil.virtual_memory().available) < least_free:
            return f"stopped: {free / GIB:.1f} GiB of memory were left, less than {least_free / GIB:.0f}"
        if time.monotonic() > end:
            return "stopped: it took too long"
        time.sleep(0.2)
    return ""


# --------------------------------------------------------------------------------------------------------- what is said


def numbers(case: Case, found: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement as it is published, the estimate of the preflight beside it."""
    if "failed" in found:
        return dict(found)
    seen, estimate, peak = found["gradients"].values(), full_size.estimate(case), found["memory"]["peak"]
    tensors, finite, moves = (sum(one[name] for one in seen) for name in ("tensors", "finite", "not_zero"))
    return {
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "threads": found["threads"],
        "batch": found["batch"],
        "peak_gib": peak,
        "estimate_gib": estimate,
        "estimate_over_peak": estimate / peak,
        "tensors": tensors,
        "tensors_finite": finite,
        "tensors_not_zero": moves,
        "gradients_finite": finite == tensors > 0,
    }


def row(name: str, case: Case, known: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table; what was not measured says so."""
    wanted = {
        "seconds a step": "seconds",
        "CPU seconds": "cpu_seconds",
        "threads": "threads",
        "peak, GiB": "peak_gib",
        "estimate, GiB": "estimate_gib",
        "tensors that learn": "tensors",
        "finite gradient": "tensors_finite",
        "not zero": "tensors_not_zero",
    }
    said = {"model": name.split(".")[0], "method": case.method, "backward": "joint" if case.joint else "staged"}
    said["recomputed"] = "everything" if case.turned.checkpoint_vae else "the denoiser"
    said |= {column: report.plain(known.get(key, NOT_RUN)) for column, key in wanted.items()}
    return said | {"note": known.get("failed", "")}


def staged_over_joint(measured: Mapping[str, Any]) -> dict[str, float]:
    """By method, where both were measured: the peak memory of a step that goes backward in stages over one that not."""
    pairs = {
        name.removesuffix("_joint"): (measured.get(name.removesuffix("_joint"), {}).get("peak_gib"), one["peak_gib"])
        for name, one in measured.items()
        if name.endswith("_joint") and "peak_gib" in one
    }
    return {name: staged / joint for name, (staged, joint) in pairs.items() if staged}


def published() -> report.Report:
    """Where the results go: `reports/`, or where DIPP_REPORTS says."""
    return report.Report(STAGE, pathlib.Path(os.environ.get("DIPP_REPORTS") or config.root() / "reports"))


def metrics(place: report.Report) -> dict[str, Any]:
    """What was measured before."""
    path = place.root / "metrics" / f"{STAGE}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def publish(place: report.Report, plan: Mapping[str, Case], new: Mapping[str, dict]) -> dict[str, Any]:
    """Metrics and table, with these measurements beside those that were there."""
    import pandas

    whole = metrics(place)
    cpu = whole.setdefault("cpu", {})
    for name, value in new.items():
        model, what = name.split(".")
        cpu.setdefault(model, {})[what] = value
    for measured in cpu.values():
        if ratios := staged_over_joint(measured):
            measured["staged_over_joint"] = ratios
    rows = [row(name, case, _at(cpu, name)) for name, case in plan.items()]
    place.table(pandas.DataFrame(rows), "cpu")
    return place.metrics(whole)


def _at(cpu: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return functools.reduce(lambda found, part: found.get(part, {}), name.split("."), cpu)


def measure_all(
    plan: Mapping[str, Case], wanted: Sequence[str], say: Callable[[str], None], **limits: float
) -> dict[str, Any]:
    """Measure what is wanted of a plan, publishing after each; a manifest at the end."""
    place, start = published(), time.time()
    for name in wanted:
        say(f"{name}: ..")
        found = numbers(plan[name], alone(plan[name], **limits))
        publish(place, plan, {name: found})
        short = ("seconds", "peak_gib", "estimate_gib", "tensors_finite", "tensors")
        say(f"{name}: {found.get('failed') or ', '.join(f'{key} {found[key]:.4g}' for key in short)}")
    write_manifest(place, "cpu", list(wanted), start)
    return metrics(place)


def write_manifest(place: report.Report, kind: str, measured: list[str], start: float) -> None:
    """Beside the manifests of the pipeline, in a folder of their own: these are no stages of it."""
    params = {"scale": "full", "seed": 0, "measured": measured, "numbers": full_size.NUMBERS}
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    path = place.root / "manifests" / "bench" / f"{STAGE}_{kind}.json"
    pipeline.write_manifest(path, f"{STAGE}_{kind}", params, threads, start, "")


def main(wanted: Sequence[str]) -> None:
    if unknown := [name for name in wanted if name not in PLAN]:
        raise SystemExit(f"there is no measurement {unknown[0]!r}: {', '.join(PLAN)}")
    found = measure_all(PLAN, wanted or list(PLAN), functools.partial(print, flush=True))["cpu"]
    if failed := [name for name in wanted or PLAN if "failed" in _at(found, name)]:
        raise SystemExit(f"not measured: {', '.join(failed)}; why stands in the table, what was measured is kept")


if __name__ == "__main__":
    main(sys.argv[1:])
