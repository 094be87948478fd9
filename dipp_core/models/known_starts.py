"""Public one-step models that a generator can start from: what is known of each, and from where.

A start is asked once, at the timestep that it was trained at. Two conventions of the noise z ~ N(0, I) are in use:

    AS_IT_IS      x = z              fed as x_t*; the first step of a latent consistency model, and ours
    TIMES_SIGMA   x = sigma(t*) z    the noise that the forward process leaves of a picture that is black

The second goes by several names: `add_noise(0, z, t*)`; EDM's D(sigma z, sigma) with sigma = sigma(t*) / alpha(t*);
Euler's method from its largest sigma. No commit stands here that was not seen in a public place; without one a hub id
must be given as OWNER/NAME@COMMIT. What a model says itself, in its folder's scheduler, is read from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

AS_IT_IS, TIMES_SIGMA = "as it is", "times sigma"
IN_CODE = "verified in public code"
ON_PAGE = "verified on a page of the hub"
RECALLED = "recalled"
UNKNOWN = "unknown"

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PIXART = "PixArt-alpha/PixArt-XL-2-512x512"


@dataclass(frozen=True)
class Start:
    """A published one-step model.

    reference: the diffusion whose latents and prompts it shares. revision: None where no commit could be verified.
    half: its weights are there in half precision alone. pickled: the file its weights are in, where that is a pickle,
    which is not opened here; cure: what to do about it. status: of every statement, how it is known.
    """

    reference: str
    t_star: int
    prediction: str
    noise: str
    revision: str | None
    status: Mapping[str, str]
    half: bool = False
    pickled: str | None = None
    cure: str | None = None


def _distar_family() -> dict[str, Start]:
    """The release of Diff-Instruct*: five SDXL generators, whole pipelines."""
    status = {"t_star": IN_CODE, "noise": IN_CODE, "prediction": RECALLED, "reference": IN_CODE, "revision": UNKNOWN}
    start = Start(SDXL, 399, "eps", AS_IT_IS, None, status, half=True)
    names = ("distar_long_1step", "distar_short_1step", "sim_1step", "dipp_1step", "diff_instruct_1step")
    return {f"XDG-XHS/{name}": start for name in names}


STARTS = _distar_family() | {
    "tianweiy/DMD2": Start(
        SDXL,
        399,
        "eps",
        AS_IT_IS,
        "be22767697a1f3ca656b73c776e15fa335c86c6c",
        {"t_star": IN_CODE, "noise": IN_CODE, "prediction": RECALLED, "reference": IN_CODE, "revision": ON_PAGE},
        pickled="dmd2_sdxl_1step_unet_fp16.bin",
        cure=(
            "write its tensors anew, once: torch.load(FILE, weights_only=True), then safetensors.torch.save_file; and "
            "give the .safetensors file"
        ),
    ),
    "UT-Austin-PML/SiD-LSG": Start(
        SD15,
        625,
        "eps",
        TIMES_SIGMA,
        "08b9319239ee023737744d5790ee7466268bffed",
        {"t_star": IN_CODE, "noise": IN_CODE, "prediction": RECALLED, "reference": IN_CODE, "revision": ON_PAGE},
        pickled="batch512_cfg4.54.54.5_t625_8380_v2.pkl",
        cure=(
            "open it with the code of SiD-LSG where you trust it, save its 'ema' by save_pretrained, and put beside it "
            'one_step.json with {"t_star": 625, "noise": "times sigma"}; then give the folder'
        ),
    ),
    "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512": Start(
        PIXART,
        400,
        "eps",
        AS_IT_IS,
        "57df7bb32daad69bc1d6c825a275935113802169",
        {"t_star": IN_CODE, "noise": IN_CODE, "prediction": RECALLED, "reference": IN_CODE, "revision": ON_PAGE},
    ),
    # its reference, Stable Diffusion 2.1, was withdrawn by its owner in November 2025: a folder of it must be given
    "stabilityai/sd-turbo": Start(
        "a folder of Stable Diffusion 2.1 (base)",
        999,
        "eps",
        TIMES_SIGMA,
        "b261bac6fd2cf515557d5d0707481eafa0485ec2",
        {"t_star": RECALLED, "noise": ON_PAGE, "prediction": ON_PAGE, "reference": RECALLED, "revision": IN_CODE},
    ),
}


def table() -> list[dict[str, str | int]]:
    """The starts for a reader, each statement with how it is known."""
    rows = []
    for name, start in STARTS.items():
        row = {"start": name}
        for field in ("reference", "t_star", "prediction", "noise", "revision"):
            value = getattr(start, field)
            row[field] = f"{'not known' if value is None else value} ({start.status[field]})"
        rows.append(row | {"weights": f"pickle, {start.pickled}" if start.pickled else "safetensors"})
    return rows
