"""Numbers with their origin: what the papers report, and what the notebooks measured, each found by its source.

A source is text that names where a number stands, so that a test (or a reader) can look there:

    24_miniature_results:table.unet.dipp.gold          a key of reports/metrics/24_miniature_results.json
    reported:distar_readme / table 3 / DI++-SDXL / 0 / 7.5 / image_reward       a row of data/reported/reported.csv
    A less B                                           of two such sources, without an interval

An interval is 95% and comes with the metric: that of a difference is made where both can be paired.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dipp_core.files import InputError, read_json, root

# the metrics that the tables read; those of full scale may say that nothing was run, or not be there
METRICS = (
    "04_guidance_is_a_reward",
    "10_distillation_2d",
    "11_alignment_2d",
    "12_pareto_2d",
    "13_reward_hacking_2d",
    "22_distillation",
    "23_alignment",
    "24_miniature_results",
)
FULL = ("30_sd15", "31_pixart", "40_evaluation")
REPORTED = ("source", "table", "model", "alpha_rew", "alpha_cfg", "metric")  # what names a reported number
MISSING = "not run here"
LESS = " less "
LEAST_DIGITS = {"seconds_per_10_images": 0, "pickscore_x100": 1, "pickscore": 4}  # of reported numbers; others have 2
# in the source of a number that is a difference
GAIN = (LESS, "gains.", "gain.", "gained.", "less_", "change.", "settling.", "against_", "over_start.")


METRIC_NAMES = {
    "image_reward": "ImageReward",
    "aesthetic": "Aesthetic",
    "pickscore": "PickScore",
    "pickscore_x100": "PickScore x 100",
    "clipscore": "CLIPScore",
    "hpsv2_0": "HPSv2.0",
    "hpsv2_1": "HPSv2.1",
    "hpsv2_1_of_1": "HPSv2.1, of 1",
    "clipscore_of_1": "CLIPScore, of 1",
    "hpsv3": "HPSv3",
    "geneval": "GenEval",
    "geneval2": "GenEval2",
    "ocr": "OCR",
    "fid": "FID",
    "seconds_per_10_images": "seconds per 10 images",
    "reward": "learned reward",
    "gold": "gold score",
    "style": "share outlined",
    "accuracy": "caption accuracy",
    "frechet_data": "Fréchet to the data",
    "frechet_clean": "Fréchet to clean data",
    "diversity": "diversity",
}


@dataclass(frozen=True)
class Number:
    """A value, both ends of its 95% interval where one is known, and where it stands."""

    value: float
    low: float | None = None
    high: float | None = None
    source: str = ""

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Book:
    """All that the tables read. metrics: stage -> content; scales: stage -> scale of the run that made it."""

    metrics: Mapping[str, dict]
    scales: Mapping[str, str]
    reported: pd.DataFrame
    origins: Mapping[str, str]  # of the reported numbers: source -> what it is


def _read(path: pathlib.Path, stage: str) -> dict:
    content = read_json(path, f"run `make repro STAGE={stage}`")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no table of numbers; run `make repro STAGE={stage}`")
    return content


def read() -> Book:
    """The whole book. Missing metrics are an error that names their stage; at full scale they mean "not run here".

    Results of this run of the pipeline (DIPP_RESULTS) come before those that are published.
    """
    published = root() / "reports"
    places = list(dict.fromkeys([pathlib.Path(os.environ.get("DIPP_RESULTS") or published), published]))
    metrics, scales = {}, {}
    for stage in (*METRICS, *FULL):
        reports = next((place for place in places if (place / f"metrics/{stage}.json").is_file()), published)
        path, manifest = reports / f"metrics/{stage}.json", reports / f"manifests/{stage}.json"
        if stage in METRICS or path.is_file():
            metrics[stage] = _read(path, stage)
            scales[stage] = str(_read(manifest, stage).get("scale", "unknown")) if manifest.is_file() else "unknown"
    folder = root() / "data" / "reported"
    reported = pd.read_csv(folder / "reported.csv", dtype=str, keep_default_na=False)
    origins = pd.read_csv(folder / "sources.csv").set_index("source")["what"].to_dict()
    return Book(metrics, scales, reported, origins)


def look_up(content: Any, key: str) -> Any:
    """What stands under "a.b.c" in nested mappings, None if nothing does; a key may itself hold dots."""
    if not key:
        return content
    if not isinstance(content, Mapping):
        return None
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        inner = content.get(".".join(parts[:count]))
        found = None if inner is None else look_up(inner, ".".join(parts[count:]))
        if found is not None:
            return found
    return None


def as_number(found: Any, source: str) -> Number | None:
    """A number of the metrics: plain, {value, low, high} or [value, low, high]."""
    if isinstance(found, bool) or found is None:
        return None
    if isinstance(found, int | float):
        return Number(float(found), source=source)
    if isinstance(found, Mapping):
        found = [found.get(end) for end in ("value", "low", "high")]
    if isinstance(found, list) and len(found) == 3 and all(isinstance(end, int | float) for end in found):
        value, low, high = map(float, found)
        return Number(value, low, high, source)
    return None


def _reported(book: Book, key: str, source: str) -> Number | None:
    parts = key.split(" / ")
    if len(parts) != len(REPORTED):
        raise ValueError(f"{source!r}: a reported number is named by {' / '.join(REPORTED)}")
    rows = book.reported
    for column, part in zip(REPORTED, parts, strict=True):
        rows = rows[rows[column] == part]
    if len(rows) > 1:
        raise ValueError(f"{source!r} names {len(rows)} rows of data/reported/reported.csv")
    return Number(float(rows["value"].iloc[0]), source=source) if len(rows) else None


def reported_source(row: Mapping[str, str]) -> str:
    """The source of a row of reported.csv."""
    return "reported:" + " / ".join(row[column] for column in REPORTED)


def number(book: Book, source: str) -> Number | None:
    """The number that a source names, None where nothing stands."""
    if LESS in source:
        a, b = (number(book, part) for part in source.split(LESS))
        return None if a is None or b is None else Number(a.value - b.value, source=source)
    stage, _, key = source.partition(":")
    if stage == "reported":
        return _reported(book, key, source)
    return as_number(look_up(book.metrics.get(stage, {}), key), source)


def leaves(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every mapping in nested mappings, with the path to it."""
    if isinstance(content, Mapping):
        yield path, content
        for key, inner in content.items():
            yield from leaves(inner, (*path, str(key)))


def digits_of(found: Number) -> int:
    """Digits after the point: as many as the interval deserves, else three significant ones."""
    if found.half_width is None:
        return min(max(2 - math.floor(math.log10(abs(found.value))), 0), 6) if found.value else 0
    return min(max(1 - math.floor(math.log10(max(found.half_width, 5e-13))), 0), 6)


def in_words(found: Number | None) -> str:
    """A number as text: "0.763 (0.735 to 0.785)", "1.24", "6e-15"; a difference has a sign, "+0.024"."""
    if found is None:
        return MISSING
    plus = "+" if any(mark in found.source for mark in GAIN) else ""
    if found.source.startswith("reported:") and LESS not in found.source:
        metric = found.source.rsplit(" / ", 1)[1]
        short, fewest = f"{found.value:{plus}.6g}", LEAST_DIGITS.get(metric, 2)
        return short if len(short.partition(".")[2]) > fewest else f"{found.value:{plus}.{fewest}f}"
    if found.low is None and found.value and abs(found.value) < 1e-4:
        return f"{found.value:{plus}.1e}"
    if found.low is None and found.value == round(found.value) and LESS not in found.source:
        return f"{found.value:{plus}.0f}"
    if found.source.startswith("reported:"):
        return f"{found.value:{plus}.4g}"
    n = digits_of(found)
    value, *ends = (f"{round(x, n) + 0.0:{plus}.{n}f}" for x in (found.value, found.low, found.high) if x is not None)
    return f"{value} ({ends[0]} to {ends[1]})" if ends else value


def metric_name(metric: str) -> str:
    """A metric as a heading of a table: "HPSv2.1, concept art"; what is no metric stays as it is."""
    name, *rest = metric.split(", ")
    if name not in METRIC_NAMES:
        known = next((known for known in METRIC_NAMES if name.startswith(f"{known}_")), None)
        if known:
            name, rest = known, [name.removeprefix(f"{known}_").replace("_", " "), *rest]
    return ", ".join([METRIC_NAMES.get(name, name), *rest])
