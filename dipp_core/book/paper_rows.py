"""Rows of the tables, by kind: what the papers report, the miniature on either network, and full scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dipp_core.book import paper_numbers
from dipp_core.book.paper_claims import LAST, NETS
from dipp_core.book.paper_numbers import Book, Number

PAPERS = ("dipp", "distar_v1", "distar_readme")  # the authors' own sources; the others are of other people
NUMBERS = ("reward", "gold", "accuracy", "frechet_data", "diversity")
NAMES = {
    "reference": "reference in many steps",
    "start": "one-step start",
    "diff_instruct": "control: Diff-Instruct continued",
    "dipp": "DI++",
    "sim": "control: SIM continued",
    "distar_in": "DI*",
    "reward_only": "reward alone, no leash",
}
GAINS = {
    "diff_instruct over start": "no reward: Diff-Instruct continued less start",
    "dipp over diff_instruct": "DI++ less its control",
    "sim over start": "no reward: SIM continued less start",
    "distar_in over sim": "DI* less its control",
    "distar_in over diff_instruct": "DI* less Diff-Instruct continued",
    "reward_only over diff_instruct": "reward alone less Diff-Instruct continued",
}
CAPTIONS = {"test": "test captions", "held out": "held out", "reordered": "reordered", "unknown words": "unknown words"}
# what was found here beyond the claims: text, (label, source) of its numbers, notebooks
PLANE = "11_alignment_2d:"
BEYOND = (
    (
        "The optimum of the integral KL with a reward is not the tilted law of RLHF",
        (
            (
                "distance to its own optimum, w ~ sigma^2, beta 2",
                f"{PLANE}dipp_sw2_to_exact_optimum.sigma2.beta_2.mean",
            ),
            ("distance to the tilted law, w ~ sigma^2, beta 2", f"{PLANE}sw2_to_tilted.sigma2.beta_2.mean"),
        ),
        ("06_where_is_the_optimum", "11_alignment_2d"),
    ),
    (
        "Aimed at the diffused tilted law, training does reach it",
        (("largest mean distance to the tilted law", f"{PLANE}exact_tilt_sw2_to_tilted.worst_mean"),),
        ("11_alignment_2d",),
    ),
    (
        "Guidance in distillation is sharper than the sharpened law of sampling",
        (
            ("distance to its own optimum", f"{PLANE}cfg_sw2_to_cfg_optimum.mean"),
            ("distance to the sharpened law", f"{PLANE}cfg_sw2_to_sharpened.mean"),
        ),
        ("04_guidance_is_a_reward", "11_alignment_2d"),
    ),
    (
        "Below a critical beta, DI* with pseudo-Huber has no optimum",
        (("beta predicted", f"{PLANE}distar_threshold.predicted"), ("beta seen", f"{PLANE}distar_threshold.observed")),
        ("06_where_is_the_optimum", "11_alignment_2d"),
    ),
)
FULL_NAMES = {"hpsv2": "hpsv2_0", "hpsv2.0": "hpsv2_0", "hpsv2.1": "hpsv2_1"} | {
    name: name for name in ("image_reward", "aesthetic", "pickscore", "clipscore", "hpsv2_0", "hpsv2_1", "fid")
}


@dataclass(frozen=True)
class Row:
    """One model of one kind: what it is called, and its numbers by metric, None where there is none."""

    kind: str
    labels: Mapping[str, str]
    cells: Mapping[str, Number | None]
    scale: str = ""


def reported_rows(book: Book, source: str, table: str) -> list[Row]:
    """The rows of one reported table, in its own order; a metric names its prompts where there are several."""
    frame = book.reported[(book.reported["source"] == source) & (book.reported["table"] == table)]
    several, kind = (
        frame["prompts"].nunique() > 1,
        "reported by the papers" if source in PAPERS else "reported by others",
    )
    rows = {}
    for row in frame.to_dict("records"):
        labels = {"model": row["model"], "steps": row["steps"]}
        labels |= {name: row[name] for name in ("alpha_rew", "alpha_cfg") if (frame[name] != "").any()}
        metric = f"{row['metric']}, {row['prompts']}" if several else row["metric"]
        key = paper_numbers.reported_source(row)
        rows.setdefault(tuple(labels.values()), (labels, {}))[1][metric] = Number(float(row["value"]), source=key)
    return [Row(kind, labels, cells) for labels, cells in rows.values()]


def _miniature(book: Book, net: str, labels: dict[str, str], keys: Mapping[str, str]) -> Row:
    cells = {metric: paper_numbers.number(book, f"{LAST}:{key}") for metric, key in keys.items()}
    return Row(f"miniature ({NETS[net]})", labels, cells, book.scales.get(LAST, "unknown"))


def standings(book: Book, names: Sequence[str]) -> list[Row]:
    """The miniature's methods by `NUMBERS`; "reference" stands for all references that were drawn."""
    rows = []
    for net in NETS:
        known = book.metrics.get(LAST, {}).get("table", {}).get(net, {})
        for name in names:
            for key in [key for key in known if key.startswith("reference")] if name == "reference" else [name]:
                label = f"{NAMES[name]}, guidance {key.partition(' ')[2]}" if name == "reference" else NAMES[name]
                keys = {number: f"table.{net}.{key}.{number}" for number in NUMBERS}
                rows.append(_miniature(book, net, {"model": label}, keys))
    return rows


def gains(book: Book) -> list[Row]:
    """What a method of the miniature has more than another, with the strength of the reward that was chosen for it."""
    rows = []
    for net in NETS:
        for pair, label in GAINS.items():
            strength = paper_numbers.number(book, f"23_alignment:chosen_alpha.{net}.{pair.split(' over ')[0]}")
            row = _miniature(book, net, {"model": label}, {n: f"gains.{net}.{pair}.{n}" for n in NUMBERS})
            known = {} if strength is None else {"alpha_rew here": strength}
            rows.append(Row(row.kind, row.labels, known | row.cells, row.scale))
    return rows


def by_captions(book: Book) -> list[Row]:
    """The gold score by kind of caption: what stands here for styles of prompts."""
    rows = []
    for net in NETS:
        for name in ("diff_instruct", "dipp", "sim", "distar_in"):
            keys = {
                f"gold score, {text}": f"table.{net}.{name}.gold"
                if what == "test"
                else f"robust.{net}.{what}.{name}.gold"
                for what, text in CAPTIONS.items()
            }
            rows.append(_miniature(book, net, {"model": NAMES[name]}, keys))
    return rows


def full_scale_rows(book: Book) -> list[Row]:
    """What notebooks 30, 31 and 40 measured, if they were run at scale `full`, and with true weights.

    Any mapping in their metrics that holds known rewards by name is a model, called by the path to it. Metrics that say
    `"run": "not run here"`, or `"random_weights": 1`, hold no result.
    """
    rows = []
    for stage in paper_numbers.FULL:
        content, scale = book.metrics.get(stage, {}), book.scales.get(stage, "unknown")
        if scale != "full" or content.get("run") == "not run here" or content.get("random_weights"):
            continue
        for path, inner in paper_numbers.leaves(content):
            found = {key: paper_numbers.as_number(inner[key], "") for key in inner if key in FULL_NAMES}
            cells = {
                FULL_NAMES[key]: paper_numbers.number(book, f"{stage}:{'.'.join((*path, key))}")
                for key, value in found.items()
                if value is not None
            }
            if cells:
                rows.append(Row("full scale", {"model": ", ".join(path) or stage}, cells, scale))
    return rows


def full_or_not(book: Book, metrics: Sequence[str]) -> list[Row]:
    """The rows of full scale that have any of these metrics, or the one row that says that there are none."""
    wanted = [metric.split(",")[0] for metric in metrics]
    rows = [Row(r.kind, r.labels, {m: r.cells.get(m) for m in wanted}, r.scale) for r in full_scale_rows(book)]
    rows = [row for row in rows if any(row.cells.values())]
    return rows or [Row("full scale", {"model": "SD1.5, PixArt-alpha"}, dict.fromkeys(wanted))]
