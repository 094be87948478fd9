"""The miniature's learned judges: a reward learned from preferences, and a classifier that reads what a picture shows.

The reward sees pictures and captions and was taught by judged pairs alone; it approximates what the judge thinks, and
can be fooled where there were no pairs. The classifier tells which attributes a picture has; its last layer is also the
space in which sets of pictures are compared. Neither knows how pictures are drawn.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dipp_core.files import InputError

IMAGE_FEATURES = 128


class PictureNet(nn.Module):
    """Three strided convolutions: pictures (B, 3, 32, 32) in [0, 1] -> features (B, 128).

    Smooth throughout, so that a reward built on it has a useful gradient. `shift`, (B, 2 * 128), scales and shifts the
    last feature maps: what the features should look for.
    """

    def __init__(self, widths: Sequence[int] = (32, 64)):
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.GroupNorm(8, second),
            nn.SiLU(),
            nn.Conv2d(second, IMAGE_FEATURES, 4, stride=2, padding=1),
            nn.GroupNorm(8, IMAGE_FEATURES),
        )
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(IMAGE_FEATURES * 16, IMAGE_FEATURES), nn.SiLU())

    def forward(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        maps = self.stem(2 * images - 1)
        if shift is not None:
            scale, offset = shift[:, :, None, None].chunk(2, dim=1)
            maps = (1 + scale) * maps + offset
        return self.body(nn.functional.silu(maps))


class AttributeClassifier(nn.Module):
    """Which value each attribute of a picture has, and its style; sizes = number of values of each, style last."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.sizes = tuple(sizes)
        self.trunk = PictureNet()
        self.head = nn.Linear(IMAGE_FEATURES, sum(self.sizes))

    def features(self, images: Tensor) -> Tensor:
        """The space of Frechet distances and of the text encoder's training; (B, 3, 32, 32) -> (B, 128)."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits, one (B, size) for every attribute."""
        return self.head(self.features(images)).split(self.sizes, dim=-1)

    def right(self, images: Tensor, attributes: Tensor) -> Tensor:
        """Whether each attribute is seen as it should be; attributes (B, n) -> (B, n) bool. All true: caption met."""
        return torch.stack([part.argmax(-1) for part in self(images)[: attributes.shape[-1]]], dim=-1) == attributes

    def style(self, images: Tensor) -> Tensor:
        """The style that each picture is seen in, the last of what it was taught; (B,) indices."""
        return self(images)[-1].argmax(-1)


def classifier_loss(logits: Sequence[Tensor], attributes: Tensor) -> Tensor:
    """Mean cross-entropy, summed over attributes; attributes (B, n)."""
    losses = [nn.functional.cross_entropy(part, attributes[:, k]) for k, part in enumerate(logits)]
    return sum(losses, start=torch.zeros(()))


class PreferenceReward(nn.Module):
    """The learned reward r(x, c): (images (B, 3, 32, 32) in [0, 1], B captions) -> (B,), differentiable in the images.

    A caption is the set of its words, so neither the order of words nor words outside `words` matter to the reward.
    The words choose what the picture features look for, and join them before the score.
    """

    def __init__(self, words: Sequence[str], hidden: int = 64):
        super().__init__()
        self.words = {word: index for index, word in enumerate(words)}
        self.text = nn.Sequential(nn.Linear(len(words), hidden), nn.SiLU())
        self.look_for = nn.Linear(hidden, 2 * IMAGE_FEATURES)
        self.trunk = PictureNet()
        self.score = nn.Sequential(nn.Linear(IMAGE_FEATURES + hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def bag(self, captions: Sequence[str]) -> Tensor:
        """Which words every caption has, (B, words) of 0 and 1."""
        bag = torch.zeros(len(captions), len(self.words))
        for row, text in enumerate(captions):
            known = [self.words[word] for word in text.lower().replace(",", " ").split() if word in self.words]
            if not known:
                raise InputError(f"the caption {text!r} has no word that this reward was taught: {list(self.words)}")
            bag[row, known] = 1.0
        return bag

    def forward(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        if len(images) != len(captions):
            raise InputError(f"{len(images)} pictures and {len(captions)} captions: give one caption for every picture")
        text = self.text(self.bag(captions).to(images))
        features = self.trunk(images, self.look_for(text))
        return self.score(torch.cat([features, text], dim=-1)).squeeze(-1)


def bradley_terry_loss(reward_a: Tensor, reward_b: Tensor, a_wins: Tensor) -> Tensor:
    """-log sigmoid(r(winner) - r(loser)), mean over the pairs; all (B,), a_wins bool."""
    return -nn.functional.logsigmoid(torch.where(a_wins, reward_a - reward_b, reward_b - reward_a)).mean()


def pair_accuracy(reward_a: Tensor, reward_b: Tensor, a_wins: Tensor) -> float:
    """The share of pairs of which the reward prefers the winner."""
    return ((reward_a > reward_b) == a_wins).float().mean().item()


def judges_from(
    tensors: Mapping[str, Tensor], *, words: Sequence[str], sizes: Sequence[int]
) -> tuple[PreferenceReward, AttributeClassifier]:
    """Both judges, frozen, from weights whose names begin with "reward." and "classifier."."""
    reward, classifier = PreferenceReward(words), AttributeClassifier(sizes)
    judges: dict[str, nn.Module] = {"reward.": reward, "classifier.": classifier}
    for prefix, judge in judges.items():
        judge.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        judge.eval().requires_grad_(False)
    return reward, classifier
