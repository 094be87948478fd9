"""What leaves a training at full scale: the exported pipeline, checked by diffusers itself, with its model card."""

import json
import pathlib
from typing import Any

import torch

from dipp_core.book import machine
from dipp_core.rewards import public as rewards
from dipp_core.training import rehearsal
from dipp_core.training.full_training import STAGES, Training


@torch.no_grad()
def difference(training: Training, folder: pathlib.Path, count: int, *, seed: int) -> tuple[torch.Tensor, float]:
    """Pictures (count, 3, H, W) that an ordinary pipeline draws in one step, and the largest difference to ours.

    The first prompts of the training, the same noise for both.
    """
    import diffusers

    run, loaded = training.run, training.loaded
    texts = list(loaded.prompts.texts[:count])
    z = torch.randn(len(texts), *loaded.world.z_shape, generator=torch.Generator().manual_seed(seed))
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"num_inference_steps": 1, "timesteps": [run.t_star], "guidance_scale": 1.0}
    if "PixArt" in type(pipe).__name__:
        # else it looks for the nearest of its own sizes, and rewrites the prompts
        how |= {"use_resolution_binning": False, "clean_caption": False}
    z = z.to(next(loaded.world.denoiser.parameters()).device)
    theirs = pipe.to(z.device)(texts, latents=z, output_type="pt", **how).images.float().cpu()
    x0 = training.student.gen(z, loaded.prompts.rows(torch.arange(len(texts))))
    ours = loaded.world.decode(x0).float().cpu()
    return theirs, (ours - theirs).abs().max().item()


def write_card(training: Training, folder: pathlib.Path, *, true_run: bool) -> str:
    """README.md of an exported pipeline: what it is, how to sample it, what it learned from; returned as text."""
    run = training.run
    names = [pathlib.Path(one).name if pathlib.Path(one).is_dir() else one for one in (run.reference, run.start)]
    judged = [f"- {_about(term)}" for term in run.rewards] if training.loaded.reward is not None else []
    stages = [f"- {name}: `{json.dumps(getattr(run, name).model_dump(), sort_keys=True)}`" for name in STAGES]
    binning = (
        ", use_resolution_binning=False, clean_caption=False" if training.loaded.world.denoiser.is_transformer else ""
    )
    sampling = f"pipe(prompt, num_inference_steps=1, timesteps=[{run.t_star}], guidance_scale=1.0{binning})"
    text = "\n".join(
        [
            "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---",
            "# One-step generator, aligned with a reward",
            "" if true_run else f"**{rehearsal.SAYS}**\n",
            f"Reference: `{names[0]}`. Start: `{names[1]}`. Their licences hold for what is derived from them.\n",
            "## Sample it\n",
            "```python\nimport diffusers\npipe = diffusers.DiffusionPipeline.from_pretrained(folder)",
            f"{sampling}\n```\n",
            "## How it was made\n",
            *stages,
            f"- {len(training.loaded.prompts)} prompts, no images; seed {run.seed}",
            f"- profile `{run.profile}`, on {machine.describe()}\n",
            "## What it was rewarded for\n",
            *(judged or ["- nothing: distilled only"]),
            "\nA reward that was optimised is no measure of quality any more: judge the pictures by others.\n",
        ]
    )
    (folder / "README.md").write_text(text)
    return text


def _about(term: dict) -> str:
    """A reward with what a reader must know of it."""
    name, weight = str(term.get("reward")), term.get("weight", 1.0)
    if name not in rewards.NAMES:
        return f"{weight:g} x {name}, one's own"
    about = rewards.SCORERS[name].about
    return f"{weight:g} x {name} {about.version}: {about.scale}. Weights: {about.weights_licence}. {about.hazards}"
