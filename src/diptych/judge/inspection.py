"""MVTec AD's layout, read strictly; and how well a detector does on it, with intervals.

    CATEGORY/train/good/*.png            CATEGORY/test/good/*.png
    CATEGORY/test/DAMAGE/000.png         CATEGORY/ground_truth/DAMAGE/000_mask.png

Bergmann et al., MVTec AD (CVPR 2019). A damaged picture without a mask, a mask without its picture
and a mask of another size are errors: left out in silence they would change the figures.

- Image AUROC is over pictures, pixel AUROC over all pixels of all test pictures, masks and maps at
  a long side of `SIDE`.
- Intervals: bootstrap over pictures. That of the pixels works on counts in 2048 bins of score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from diptych.engine.stream import readable_suffixes
from diptych.errors import DataError
from diptych.eval.metrics import roc_auc
from diptych.eval.uncertainty import bootstrap
from diptych.preprocess import open_image

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from diptych.eval.uncertainty import Interval

__all__ = [
    "SIDE",
    "Figures",
    "Inspection",
    "Piece",
    "categories",
    "figures",
    "mask_of",
    "read_mvtec",
]

SIDE = 128
_BINS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A test picture. `damage`: "good", or the folder's name; `mask`: None where it is good."""

    path: Path
    damage: str
    mask: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """A category: sound pictures to learn from, and those to be judged."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Piece, ...]


def categories(folder: Path) -> list[Path]:
    """The folder itself if it is a category, else those below it that are. Raises DataError."""
    if (folder / "test").is_dir():
        return [folder]
    found = sorted(each for each in folder.glob("*") if (each / "test").is_dir())
    if not found:
        raise DataError(
            f"{folder}: no category in it. MVTec AD's layout is CATEGORY/train/good, "
            "CATEGORY/test/good, CATEGORY/test/DAMAGE and CATEGORY/ground_truth/DAMAGE."
        )
    return found


def read_mvtec(folder: Path) -> Inspection:
    """One category.

    Raises:
        DataError: a folder that is missing or empty, a damaged picture without its mask, or a mask
            without its picture; names it.
    """
    train = _images(folder / "train" / "good")
    damages = sorted(each.name for each in (folder / "test").glob("*") if each.is_dir())
    if "good" not in damages or len(damages) < 2:
        raise DataError(
            f"{folder / 'test'}: has {damages or 'nothing'}. It needs good and one damage or more."
        )
    pieces = []
    for damage in damages:
        for path in _images(folder / "test" / damage):
            mask = None
            if damage != "good":
                mask = folder / "ground_truth" / damage / f"{path.stem}_mask.png"
                if not mask.is_file():
                    raise DataError(
                        f"{mask}: is missing, the mask of {path}. Where a damaged picture has no "
                        "mask, take the picture out."
                    )
            pieces.append(Piece(path=path, damage=damage, mask=mask))
    known = {piece.mask for piece in pieces}
    for mask in sorted((folder / "ground_truth").glob("*/*_mask.png")):
        if mask not in known:
            raise DataError(f"{mask}: there is no picture in {folder / 'test'} that it belongs to")
    return Inspection(name=folder.name, train=tuple(train), test=tuple(pieces))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    suffixes = readable_suffixes()
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if not found:
        raise DataError(f"{folder}: has no pictures")
    return found


def mask_of(piece: Piece) -> Bool[Tensor, "h w"]:
    """Where a piece is damaged, its long side at most `SIDE`; a sound one's mask is empty.

    A place is damaged where any pixel under it is: a scratch must not vanish.

    Raises:
        DataError: the mask and its picture differ in size, or a damaged one's mask is empty.
        ImageError: one of them cannot be read.
    """
    width, height = open_image(piece.path).size
    ratio = min(1.0, SIDE / max(width, height))
    shape = max(1, round(height * ratio)), max(1, round(width * ratio))
    if piece.mask is None:
        return torch.zeros(shape, dtype=torch.bool)
    mask = open_image(piece.mask)
    if mask.size != (width, height):
        raise DataError(
            f"{piece.mask}: is {mask.width} x {mask.height}, its picture {width} x {height}"
        )
    pixels = torch.from_numpy(np.array(mask.convert("L"))) > 0
    if not pixels.any():
        raise DataError(f"{piece.mask}: marks nothing, though the picture counts as damaged")
    return F.adaptive_max_pool2d(pixels[None].float(), shape)[0] > 0


class Figures(NamedTuple):
    """Areas under ROC curves with 95 % intervals: of pictures, and of pixels."""

    image: float
    image_interval: Interval
    pixel: float
    pixel_interval: Interval


def figures(
    scores: Sequence[float],
    maps: Sequence[Float[Tensor, "h w"]],
    pieces: Sequence[Piece],
    *,
    masks: Callable[[Piece], Bool[Tensor, "h w"]] = mask_of,
    samples: int = 1000,
) -> Figures:
    """How well scores and maps tell damaged from sound.

    Args:
        masks: how a piece's mask is read.

    Raises:
        DataError: counts that differ, nothing sound or nothing damaged among the pieces, or so few
            of a kind that pictures drawn anew often have none of it.
    """
    truth = torch.tensor([piece.mask is not None for piece in pieces])
    if not len(scores) == len(maps) == len(pieces) or truth.all() or not truth.any():
        raise DataError(
            f"{len(scores)} scores, {len(maps)} maps and {len(pieces)} pieces, of which "
            f"{int(truth.sum())} are damaged: the counts must be equal, and both kinds be there"
        )
    values = torch.tensor(scores, dtype=torch.float64)
    image = roc_auc(values, truth)
    real = [masks(piece) for piece in pieces]
    at = [
        _resized(each, (mask.shape[0], mask.shape[1]))
        for each, mask in zip(maps, real, strict=True)
    ]
    flat, right = torch.cat([x.flatten() for x in at]), torch.cat([x.flatten() for x in real])
    pixel = roc_auc(flat, right)
    edges = flat.sort().values[torch.linspace(0, len(flat) - 1, _BINS + 1).long()[1:-1]]
    counted = torch.stack([_counts(x, m, edges) for x, m in zip(at, real, strict=True)])

    def of_images(rows: Tensor) -> float:
        return roc_auc(values[rows], truth[rows])

    def of_pixels(rows: Tensor) -> float:
        times = torch.bincount(rows, minlength=len(pieces)).double()
        return _area(torch.tensordot(times, counted, dims=1))

    return Figures(
        image,
        bootstrap(of_images, len(pieces), samples=samples),
        pixel,
        bootstrap(of_pixels, len(pieces), samples=samples),
    )


def _resized(found: Float[Tensor, "h w"], shape: tuple[int, int]) -> Float[Tensor, "h w"]:
    image = found[None, None].float()
    return F.interpolate(image, size=shape, mode="bilinear", align_corners=False)[0, 0]


def _counts(
    found: Float[Tensor, "h w"], mask: Bool[Tensor, "h w"], edges: Float[Tensor, " b"]
) -> Float[Tensor, "2 b"]:
    """How many sound and how many damaged pixels fall into each bin of score."""
    bins = torch.bucketize(found.flatten(), edges)
    both = [
        torch.bincount(bins[part], minlength=_BINS) for part in (~mask.flatten(), mask.flatten())
    ]
    return torch.stack(both).double()


def _area(counts: Float[Tensor, "2 b"]) -> float:
    """The area under the ROC curve of binned scores; pairs within a bin count half."""
    sound, damaged = counts
    pairs = sound.sum() * damaged.sum()
    if not pairs:
        raise DataError("all pixels are of one kind")
    below = sound.cumsum(0) - sound
    return float((damaged * (below + sound / 2)).sum() / pairs)
