"""Prompts encoded once: what the denoisers of SD1.5, SDXL, PixArt-alpha and the miniature are told, looked up by row.

A condition is a dict whose leaves have the batch as first axis: "tokens" (B, L, d), "mask" (B, L) where the model looks
at a mask, "pooled" (B, d') where it is told of the prompt as a whole, and "prompt" (B,), the row in the table. Networks
ignore "prompt"; rewards find the text by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.method.scores import Cond


@dataclass
class TextEncoder:
    """A tokenizer and its encoder, under the convention of the pipeline they came from; every prompt is encoded once.

    masked: as in PixArt, the prompt is stripped and in lower case, and padding is 0 and hidden by a mask; else, as in
    Stable Diffusion, padding is part of the prompt. second: SDXL's other encoder; the tokens are then the last hidden
    states but one of both, side by side, and "pooled" is the second's vector for the whole prompt. zero_null: the empty
    prompt is zeros, not its encoding; as a prompt among others it is encoded.
    """

    tokenizer: Any
    encoder: nn.Module
    max_length: int
    masked: bool = False
    known: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    second: "TextEncoder | None" = None
    zero_null: bool = False

    def _tokenized(self, texts: list[str]) -> Any:
        options = {"padding": "max_length", "max_length": self.max_length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(texts, **options).to(self.encoder.device)

    @torch.no_grad()
    def encode_batch(self, texts: list[str]) -> dict[str, Tensor]:
        """The leaves of these prompts, (n, ...), straight from the encoder."""
        if self.second is not None:
            ones = (self, self.second)
            found = [one.encoder(one._tokenized(texts)["input_ids"], output_hidden_states=True) for one in ones]
            return {"tokens": torch.cat([one.hidden_states[-2] for one in found], dim=-1), "pooled": found[1][0]}
        if self.masked:
            texts = [text.lower().strip() for text in texts]
        found = self._tokenized(texts)
        looks = self.masked or getattr(self.encoder.config, "use_attention_mask", False)
        mask = found["attention_mask"] if looks else None
        tokens = self.encoder(found["input_ids"], attention_mask=mask)[0]
        if not self.masked:
            return {"tokens": tokens}
        return {"tokens": tokens * mask.unsqueeze(-1).to(tokens), "mask": mask}

    def encode(self, texts: Sequence[str], *, batch: int = 64) -> dict[str, Tensor]:
        """The leaves of these prompts, a row each; only those not met before go through the encoder."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), batch):
            some = new[start : start + batch]
            leaves = self.encode_batch(some)
            for row, text in enumerate(some):
                self.known[text] = {name: leaf[row].cpu() for name, leaf in leaves.items()}
        rows = [self.known[text] for text in texts]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def null(self) -> dict[str, Tensor]:
        """The leaves of the empty prompt, (1, ...)."""
        leaves = self.encode([""])
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()} if self.zero_null else leaves

    def parts(self) -> dict[str, Any]:
        """What a pipeline is made of, by its own names."""
        found = {"tokenizer": self.tokenizer, "text_encoder": self.encoder}
        if self.second is None:
            return found
        more = {"tokenizer_2": self.second.tokenizer, "text_encoder_2": self.second.encoder}
        return found | more | {"force_zeros_for_empty_prompt": self.zero_null}


@dataclass(frozen=True)
class Prompts:
    """A table of prompts: texts, their leaves (n, ...), and those of the empty prompt, (1, ...)."""

    texts: tuple[str, ...]
    leaves: dict[str, Tensor]
    null: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def null_cond(self) -> Cond:
        """The condition of the empty prompt, of batch 1; its "prompt" is -1."""
        return self.null | {"prompt": torch.tensor([-1], device=self.null["tokens"].device)}

    def rows(self, index: Tensor) -> Cond:
        """The condition of some rows; index (B,), where -1 is the empty prompt."""
        if len(self) and int(index.max()) >= len(self):
            raise IndexError(f"there is no prompt {int(index.max())}: the table has {len(self)}")
        index, empty = index.to(self.null["tokens"].device), None
        chosen = {name: leaf[index.clamp(min=0)] for name, leaf in self.leaves.items()}
        if bool((empty := index < 0).any()):
            for name, leaf in chosen.items():
                leaf[empty] = self.null[name].to(leaf)
        return chosen | {"prompt": index}

    def draw(self, batch_shape: tuple[int, ...], generator: torch.Generator, *, drop: float = 0.0) -> Cond:
        """Rows drawn evenly, as `align` wants its prompts; a share `drop` of them is the empty prompt."""
        index = torch.randint(len(self), batch_shape, generator=generator, device=generator.device)
        if drop:
            dropped = torch.rand(batch_shape, generator=generator, device=generator.device) < drop
            index = torch.where(dropped, -1, index)
        return self.rows(index)

    def texts_of(self, cond: Cond) -> list[str]:
        """The texts of a condition."""
        return ["" if row < 0 else self.texts[row] for row in cond["prompt"].tolist()]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Prompts":
        """The table on a device; floating leaves in `dtype` where it is given."""

        def moved(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: leaf.to(device, dtype if leaf.is_floating_point() else None) for k, leaf in leaves.items()}

        return Prompts(self.texts, moved(self.leaves), moved(self.null))


def encode_prompts(text: TextEncoder, texts: Sequence[str]) -> Prompts:
    """The table of these prompts and of the empty one."""
    if not texts:
        raise ValueError("no prompts were given: the list is empty")
    return Prompts(tuple(texts), text.encode(texts), text.null())
