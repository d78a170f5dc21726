"""Is something damaged, and where: by words for its state, and by a few pictures of sound ones.

After WinCLIP (Jeong et al., arXiv 2303.14814). Words: sentences for a sound and for a damaged
object, each a mean of unit vectors; the score of a picture is the softmax of the two, at the
model's own scale. A map has the same of each window, put together by harmonic means. Pictures:
windows of sound ones are remembered; a window's distance is half of one minus its cosine to the
nearest of them, and a map the mean over windows and scales.

- With both, a picture's score is the mean of its word score and the map's highest value, as there.
- Windows are encoded as pictures of their own (`judge.windows`), so every image tower will do.
- What differs from the paper: no map of single patches, and with pictures of sound ones the map is
  of their distances alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageFilter

from diptych.engine.prompts import fill
from diptych.errors import ConfigError, DataError
from diptych.eval.zeroshot import zero_shot_weights
from diptych.judge.windows import Box, Windows, check_scales, harmonic, mean_map, opened, windows_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from diptych.engine import Encoder

__all__ = [
    "DAMAGED",
    "SCALES",
    "SOUND",
    "TEMPLATES",
    "Detector",
    "Found",
    "Seen",
    "overlay",
    "state_vectors",
]

# the lists of the paper's appendix
SOUND = (
    *("{}", "flawless {}", "perfect {}", "unblemished {}"),
    *("{} without flaw", "{} without defect", "{} without damage"),
)
DAMAGED = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    *("a cropped photo of the {}.", "a cropped photo of a {}.", "a close-up photo of a {}."),
    *("a close-up photo of the {}.", "a bright photo of a {}.", "a bright photo of the {}."),
    *("a dark photo of the {}.", "a dark photo of a {}.", "a jpeg corrupted photo of a {}."),
    *("a jpeg corrupted photo of the {}.", "a blurry photo of the {}.", "a blurry photo of a {}."),
    *("a photo of a {}.", "a photo of the {}.", "a photo of a small {}."),
    *("a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}."),
    *("a photo of the {} for visual inspection.", "a photo of a {} for visual inspection."),
    *("a photo of the {} for anomaly detection.", "a photo of a {} for anomaly detection."),
)
SCALES = (1 / 2, 1 / 3)  # of the short side


class Seen(NamedTuple):
    """A picture as a detector looks at it: all that the model says, and no pixels."""

    size: tuple[int, int]  # width and height as opened
    scales: list[Windows]
    whole: Float[Tensor, "1 e"]


class Found(NamedTuple):
    """What is said of one picture."""

    score: float  # the higher, the more suspect
    words: float | None  # probability of "damaged" by words alone; None without an object's name
    map: Float[Tensor, "h w"]  # the same of each place
    box: Box  # the hottest window of the smallest scale, in pixels of the picture as opened
    size: tuple[int, int]  # width and height of the picture as opened


def state_vectors(
    encoder: Encoder, name: str, *, templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "2 e"]:
    """Unit vectors of the sound and of the damaged object: means over states and templates.

    Args:
        name: what is looked at, as "metal nut".

    Raises:
        ConfigError: no name, or a template without "{}".
    """
    if not name.strip():
        raise ConfigError("the object has no name. Give one, as: metal nut")
    phrases = [[fill(state, name.strip()) for state in states] for states in (SOUND, DAMAGED)]
    return zero_shot_weights(encoder, phrases, templates).cpu()


class Detector:
    """Says of pictures how suspect they are; knows the object by name, by sound ones, or by both.

    Args:
        object: its name; None: only sound pictures say what is right (`fit`).
        scales: sides of windows as shares of the short side.

    Attributes:
        memory_: after `fit`, for each scale the vectors [m e] of all windows of the sound ones.

    Raises:
        ConfigError: scales that are none, or an empty name.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        object: str | None = None,
        scales: Sequence[float] = SCALES,
        templates: Sequence[str] = TEMPLATES,
    ):
        self.encoder = encoder
        self.scales = check_scales(scales)
        self._states = None
        if object is not None:
            self._states = state_vectors(encoder, object, templates=templates)
        self.memory_: list[Tensor] | None = None

    def look(self, image: Any) -> Seen:
        """What `fit` and `judge` need of a picture; they take it in place of the picture.

        Raises:
            ImageError: it cannot be read; names it.
        """
        picture = opened(image)
        scales = windows_of(self.encoder, picture, self.scales)
        whole = self.encoder.encode_image(picture, out="torch").cpu()
        return Seen(picture.size, scales, whole)

    def fit(self, images: Iterable[Any]) -> Detector:
        """Remember the windows of sound pictures.

        Raises:
            DataError: none is given.
            ImageError: one cannot be read; names it.
        """
        seen = [image if isinstance(image, Seen) else self.look(image) for image in images]
        if not seen:
            raise DataError("no sound pictures are given. One is enough, four are better.")
        rows = ([windows.vectors for windows in each.scales] for each in seen)
        self.memory_ = [torch.cat(some) for some in zip(*rows, strict=True)]
        return self

    def judge(self, image: Any) -> Found:
        """How suspect a picture is, and where.

        Raises:
            ConfigError: neither a name nor sound pictures say what is right.
            ImageError: it cannot be read.
        """
        seen = image if isinstance(image, Seen) else self.look(image)
        words = None if self._states is None else float(self._probability(seen.whole))
        if self.memory_ is not None:
            pairs = zip(seen.scales, self.memory_, strict=True)
            values = [_distance(windows.vectors, memory) for windows, memory in pairs]
            maps = [
                mean_map(some, windows.boxes, *seen.size)
                for some, windows in zip(values, seen.scales, strict=True)
            ]
            found = torch.stack(maps).mean(0)
            highest = float(found.max())
            score = highest if words is None else (words + highest) / 2
        elif words is not None:
            values = [self._probability(windows.vectors) for windows in seen.scales]
            maps = [
                harmonic(some, windows.boxes, *seen.size)
                for some, windows in zip(values, seen.scales, strict=True)
            ]
            found, score = 1 / torch.stack([1 / each for each in maps]).mean(0), words
        else:
            raise ConfigError(
                "nothing says what a sound one is. Give object=, or call fit with pictures."
            )
        smallest = min(range(len(values)), key=lambda i: self.scales[i])
        hottest = seen.scales[smallest].boxes[int(values[smallest].argmax())]
        return Found(score, words, found, hottest, seen.size)

    def _probability(self, vectors: Float[Tensor, "n e"]) -> Float[Tensor, " n"]:
        """Of "damaged". Of a sigmoid model's logits the bias drops out between the two."""
        assert self._states is not None
        scale = self.encoder.model.logit_scale.detach().exp().cpu()
        return (scale * vectors @ self._states.T).softmax(-1)[:, 1]


def _distance(vectors: Float[Tensor, "n e"], memory: Float[Tensor, "m e"]) -> Float[Tensor, " n"]:
    """Half of one minus the cosine to the nearest, from 0 to 1 (section 4.3 of the paper)."""
    return (1 - (vectors @ memory.T).amax(1).clamp(max=1)) / 2


def overlay(
    image: Any, found: Float[Tensor, "h w"], *, low: float, high: float, side: int = 320
) -> PILImage.Image:
    """The picture with heat laid over it: nothing at `low` and below, red at `high` and above."""
    picture = opened(image)
    picture.thumbnail((side, side))
    heat = ((found - low) / max(high - low, 1e-12)).clamp(0, 1)
    # eased: the steps between windows are no edges of anything
    levels = PILImage.fromarray((heat * 255).round().byte().numpy())
    levels = levels.resize(picture.size, PILImage.Resampling.BILINEAR)
    levels = levels.filter(ImageFilter.GaussianBlur(max(picture.size) / 40))
    share = np.asarray(levels, np.float32)[..., None] / 255
    # grey below, so that the heat is seen on red things as well
    pixels = np.asarray(picture, np.float32)
    grey = pixels.mean(-1, keepdims=True)
    shown = 0.35 * pixels + 0.65 * grey
    hot = np.concatenate([np.full_like(share, 255), 210 * (1 - share), 30 * (1 - share)], axis=-1)
    cover = 0.75 * np.sqrt(share)
    return PILImage.fromarray((shown * (1 - cover) + hot * cover).clip(0, 255).astype(np.uint8))
