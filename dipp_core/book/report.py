"""What a notebook publishes, and what it finds of earlier ones: figures, tables and metrics, networks and models.

One style, stable bytes. The pipeline collects results under `reports/`; a notebook that a reader runs by hand writes to
`reports/scratch/` instead, so exploring never touches a published result.
"""

import dataclasses
import io
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.pyplot as plt

from dipp_core.files import InputError, read_json, root, write_whole

if TYPE_CHECKING:
    from torch import Tensor

# One colour per role in every notebook, told apart under the common colour blindnesses (Okabe and Ito's, and two more)
COLORS = {
    "data": "#B3B3B3",
    "ref": "#0072B2",  # the frozen reference diffusion
    "gen": "#D55E00",  # the one-step generator
    "ta": "#009E73",  # the assistant
    "reward": "#CC79A7",
    "exact": "#000000",  # a closed form
    "accent": "#E69F00",  # guidance, and whatever has no role
    "light": "#56B4E9",
    # methods, where several stand side by side
    "start": "#666666",  # the one-step generator before alignment
    "control": "#999999",  # as many steps without a reward: Diff-Instruct, and SIM
    "control_sim": "#BBA8D4",
    "dipp": "#D55E00",  # Diff-Instruct++
    "dipp_light": "#F4A97B",  # the same in another setting
    "distar": "#6A3D9A",  # Diff-Instruct*
    "distar_light": "#A78BC8",
    "reward_only": "#CC79A7",
}
CYCLE = [COLORS[name] for name in ("ref", "gen", "ta", "reward", "accent", "light", "exact")]
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"

STYLE = {
    "figure.figsize": (8.0, 4.0),
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "lines.linewidth": 2.0,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "image.cmap": SEQUENTIAL,
    "pdf.fonttype": 42,
}


def plain(value: Any) -> Any:
    """JSON without surprises: tensors and numpy numbers as numbers, floats to 6 significant digits, no NaN."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a published number must be finite, found {value}")
        return float(f"{value:.6g}")
    return value


def _line(facts: dict) -> str:
    return json.dumps(plain(facts), sort_keys=True, allow_nan=False)


@dataclasses.dataclass(frozen=True)
class Report:
    """The published outputs of one stage, and what it leaves for later notebooks."""

    stage: str
    root: pathlib.Path

    def figure(self, fig: Any, name: str, alt: str) -> Any:
        """Save as PNG (two pixels per point on the page) and PDF; returns the picture for the notebook to show.

        `alt` says in words what the picture shows, for readers who cannot see it.
        """
        from IPython.display import Image

        if fig.get_figwidth() > 11:
            raise ValueError(f"figure {name!r} is {fig.get_figwidth()} inches wide; text stays legible up to 11")
        for suffix, metadata in ((".pdf", {"CreationDate": None, "ModDate": None}), (".png", {"Software": None})):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=suffix[1:], metadata=metadata)
            write_whole(self._figure_path(name, suffix), buffer.getvalue())
        plt.close(fig)
        width = round(fig.get_figwidth() * STYLE["figure.dpi"])
        return Image(data=buffer.getvalue(), format="png", width=width, alt=alt)

    def animation(self, frames: Iterable, name: str, alt: str, *, fps: int = 10) -> Any:
        """Save figures (each is closed) as one looped GIF of at most 900 pixels; returns it to be shown.

        The last frame stays for two seconds.
        """
        from IPython.display import Image

        pictures = [_picture(fig) for fig in frames]
        palette = pictures[-1].quantize(128)
        first, *rest = (picture.quantize(palette=palette, dither=0) for picture in pictures)
        durations = [1000 // fps] * len(rest) + [2000]
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
        write_whole(self._figure_path(name, ".gif"), buffer.getvalue())
        return Image(data=buffer.getvalue(), format="gif", width=first.width, alt=alt)

    def _figure_path(self, name: str, suffix: str) -> pathlib.Path:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"figure name {name!r}: use lower-case letters, digits and underscores")
        return self.root / "figures" / self.stage / f"{name}{suffix}"

    def table(self, frame: Any, name: str) -> Any:
        """Save a pandas table as CSV with 6 significant digits; returns it for the notebook to show."""
        text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_whole(self.root / "tables" / self.stage / f"{name}.csv", text)
        return frame

    def metrics(self, values: dict) -> dict:
        """Save the numbers that this notebook stands for; the last cell of every notebook."""
        values = plain(values)
        text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"
        write_whole(self.root / "metrics" / f"{self.stage}.json", text)
        return values

    def save(self, tensors: "dict[str, Tensor]", name: str, *, scale: str, **facts: Any) -> None:
        """Save tensors for later notebooks, which get them with `load_tensors`; `facts` (JSON) go along."""
        from safetensors.torch import save

        whole = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
        content = save(whole, metadata={"facts": _line({"scale": scale} | facts)})
        write_whole(self.root / "runs" / self.stage / f"{name}.safetensors", content)

    def new_folder(self, name: str, *, scale: str, **facts: Any) -> pathlib.Path:
        """A folder for one model of `save_pretrained`, which later notebooks get with `find_folder`; facts go along."""
        folder = self.root / "runs" / self.stage / name
        write_whole(folder / "facts.json", _line({"scale": scale} | facts))
        return folder


def _picture(fig: Any) -> Any:
    """A figure as a Pillow image of at most 900 pixels width, and the figure closed."""
    from PIL import Image

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=min(STYLE["figure.dpi"], 900 / fig.get_figwidth()))
    plt.close(fig)
    return Image.open(buffer).convert("RGB")


def open_report(stage: str) -> Report:
    """The report of one stage, in the one style; under `reports/scratch` unless the pipeline runs the notebook."""
    matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
    matplotlib.rcParams.update(STYLE)
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the dates of matplotlib's own fonts
    place = os.environ.get("DIPP_REPORTS")
    return Report(stage, pathlib.Path(place) if place else root() / "reports" / "scratch")


def _cure(stage: str) -> str:
    return f"run `make repro STAGE={stage}`, or the notebook {stage} by hand, first"


def _facts(path: pathlib.Path, stage: str) -> dict:
    """What was saved with a folder or a file of tensors."""
    from safetensors import SafetensorError, safe_open

    cure = f"remove {path} and {_cure(stage)}"
    try:
        if path.is_dir():
            facts = read_json(path / "facts.json", cure)
        else:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
        facts["scale"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({type(error).__name__}); {cure}") from None
    return facts


def _found(stage: str, name: str, scale: str) -> tuple[pathlib.Path, dict]:
    """What a stage saved at a scale: beside this run's own results, or in reports/scratch by hand; else published.

    By hand, and where neither has any, what `make keep` left in data/networks.
    """
    reports, by_hand = root() / "reports", "DIPP_REPORTS" not in os.environ
    own = pathlib.Path(os.environ.get("DIPP_RESULTS") or reports / "scratch")
    kept, other = root() / "data" / "networks", ""
    for runs in (own / "runs", reports / "runs", *([kept] if by_hand else [])):
        path = runs / stage / name
        if not path.exists():
            continue
        facts = _facts(path, stage)
        if facts["scale"] == scale:
            if by_hand:
                own_run = f", in half precision; `make repro STAGE={stage}` makes your own" if runs == kept else ""
                print(f"using {path}{own_run}")
            return path, facts
        made = f"{path} was made at scale '{facts['scale']}', this notebook runs at '{scale}'"
        other = other or f"{made}: {_cure(stage)} with `scale: {scale}`"
    raise InputError(other or f"{reports / 'runs' / stage / name} is missing: {_cure(stage)}")


def load_tensors(stage: str, name: str, *, scale: str) -> "tuple[dict[str, Tensor], dict]":
    """The tensors that a stage saved under this name, and the facts that went along.

    `scale` is that of the notebook that asks: results of different scales are not mixed.
    """
    from safetensors.torch import load_file

    path, facts = _found(stage, f"{name}.safetensors", scale)
    tensors = load_file(path)
    if path.is_relative_to(root() / "data"):  # kept in half precision
        tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    return tensors, facts


def find_folder(stage: str, name: str, *, scale: str) -> tuple[pathlib.Path, dict]:
    """The folder that a stage made under this name, and the facts that went along; `scale` is that of who asks."""
    return _found(stage, name, scale)
