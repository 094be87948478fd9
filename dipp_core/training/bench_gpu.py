"""Steps at true size on a GPU, at 512 pixels: seconds, samples a second, memory, and what every memory switch does.

    python -m dipp_core.training.bench_gpu

DI++ and DI*, SD1.5 and PixArt-alpha, by the profiles gpu24 and gpu80 with their own batch; for SD1.5 also with one
switch turned at a time. Random weights, in bfloat16 as the profiles say, ImageReward at its full size. Every
measurement has a process of its own, and what runs out of memory is a line that says so. Without a
GPU the table says so too.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from dipp_core.book import report
from dipp_core.training import bench_large, full_size
from dipp_core.training.bench_large import NOT_RUN, PIXART, SD15, alone, metrics, published, write_manifest
from dipp_core.training.full_size import Case

METHODS, PROFILES = ("dipp", "distar_in"), ("gpu24", "gpu80")
WARM_UP, ROUNDS = 3, 10
SHORT = {SD15: "sd15", PIXART: "pixart"}
MEASURED = {
    "seconds a step": "seconds",
    "samples a second": "samples_per_second",
    "peak allocated, GiB": "peak_gib",
    "peak reserved, GiB": "reserved_gib",
    "estimate, GiB": "estimate_gib",
    "step over raw passes": "step_over_passes",
}


def turns(profile: str) -> dict[str, dict[str, Any]]:
    """The memory switches, each turned away from what the profile has."""
    found = full_size.preflight.PROFILES[profile]
    names = ("checkpoint_denoiser", "checkpoint_vae", "checkpoint_reward", "tiny_vae", "eight_bit_adam")
    changes = [{name: not getattr(found, name)} for name in names]
    changes += [{"dtype": "float32"}, {"roles": "full" if found.roles == "lora" else "lora"}]
    return {" ".join(f"{name} = {str(value).lower()}" for name, value in one.items()): one for one in changes}


def new_plan() -> dict[tuple[str, str, str, str], Case]:
    """(model, profile, method, what is turned) -> its measurement."""
    plan, often = {}, {"device": "cuda", "warm_up": WARM_UP, "rounds": ROUNDS}
    for profile in PROFILES:
        for reference, method in [(reference, method) for reference in SHORT for method in METHODS]:
            base = Case(reference=reference, method=method, profile=profile, **often)
            here = (SHORT[reference], profile, method)
            plan[(*here, "nothing")] = replace(base, passes=True)
            if reference == SD15:
                plan |= {(*here, name): replace(base, switches=change) for name, change in turns(profile).items()}
                plan[(*here, "backward = joint")] = replace(base, joint=True)
    return plan


def numbers(case: Case, found: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement as it is published, the estimate of the preflight beside it."""
    estimate = {"estimate_gib": full_size.estimate(case)}
    if "failed" in found:
        return dict(found) | estimate
    named = {"step_over_passes": found.get("over_passes"), "reserved_gib": found["memory"].get("reserved")}
    return {
        "seconds": found["seconds"],
        "batch": found["batch"],
        "samples_per_second": found["batch"] / found["seconds"],
        "peak_gib": found["memory"]["peak"],
        "gradients_finite": all(one["finite"] == one["tensors"] for one in found["gradients"].values()),
        **{name: value for name, value in named.items() if value is not None},
        **({"note": found["passes_failed"]} if "passes_failed" in found else {}),
        **estimate,
    }


def table(plan: Mapping[tuple, Case], known: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    """A line for every measurement; known: those that are there, by their name."""
    rows = []
    for key, case in plan.items():
        found = known.get(name_of(key), {})
        missing = "" if found and "failed" not in found else NOT_RUN if not found else found["failed"]
        rows.append(
            dict(zip(("model", "profile", "method", "turned"), key, strict=True)) | {"batch": case.turned.batch}
        )
        rows[-1] |= {column: report.plain(found.get(name, missing)) for column, name in MEASURED.items()}
        rows[-1] |= {"note": found.get("note", "")}
    return rows


def name_of(key: tuple[str, ...]) -> str:
    return ", ".join(key)


def publish(place: report.Report, plan: Mapping[tuple, Case], gpu: Mapping[str, Any]) -> None:
    """Metrics and table; `gpu`: the device, and the measurements by their name."""
    import pandas

    place.table(pandas.DataFrame(table(plan, gpu.get("measured", {}))), "gpu")
    place.metrics(metrics(place) | {"gpu": dict(gpu)})


def measure_all(plan: Mapping[tuple, Case], device: str, say: Callable[[str], None], **limits: float) -> None:
    """Measure a plan, publishing after each; a manifest at the end."""
    place, start, measured = published(), time.time(), {}
    for key, case in plan.items():
        measured[name_of(key)] = found = numbers(case, alone(case, **limits))
        publish(place, plan, {"run": True, "device": device, "measured": measured})
        short = found.get("failed") or f"{found['seconds']:.3g} s a step, {found['peak_gib']:.3g} GiB"
        say(f"{name_of(key)}: {short}")
    write_manifest(place, "gpu", list(measured), start)


def main() -> None:
    place, plan = published(), new_plan()
    if torch.cuda.is_available():
        print(f"{len(plan)} measurements on {torch.cuda.get_device_name()}, about a minute each", flush=True)
        measure_all(plan, torch.cuda.get_device_name(), functools.partial(print, flush=True), least_free=0)
    elif (known := metrics(place).get("gpu", {})).get("run"):
        print(f"there is no GPU that torch can use; the table stays as it was measured on {known['device']}")
    else:
        publish(place, plan, {"run": False})
        print(f"there is no GPU that torch can use: {place.root / 'tables' / bench_large.STAGE / 'gpu.csv'} says so")


if __name__ == "__main__":
    main()
