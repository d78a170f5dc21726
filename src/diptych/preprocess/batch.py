"""Batches: equal images stacked, or images of any size as padded rows of patches.

Legend: n images, s patches of the longest image, p = patch_size * patch_size * 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.config import Patches
from diptych.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8


def patchify(
    image: Float[Tensor, "3 H W"], patch_size: int
) -> tuple[Float[Tensor, "s p"], Int[Tensor, 2]]:
    """The patches of one image, row by row, and their grid (rows, columns).

    A patch is flattened as (row, column, channel), so that the weights of SigLIP 2's NaFlex tower
    fit: its Linear is a convolution's weight permuted (0, 2, 3, 1).

    Raises:
        ConfigError: a side is not a multiple of `patch_size`.
    """
    channels, height, width = image.shape
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"an image of {height}x{width} is not a whole number of patches of {patch_size}. "
            "Resize it to multiples of the patch size."
        )
    rows, columns = height // patch_size, width // patch_size
    cut = image.reshape(channels, rows, patch_size, columns, patch_size)
    patches = cut.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)  # (h w) (row column channel)
    return patches, torch.tensor([rows, columns])


def collate(
    images: Sequence[Float[Tensor, "3 H W"] | UInt8[Tensor, "3 H W"]]
    | Sequence[tuple[Tensor, Tensor]],
) -> Float[Tensor, "n 3 H W"] | UInt8[Tensor, "n 3 H W"] | Patches:
    """An image batch: tensors of one size are stacked; rows of `patchify` are padded and masked.

    Raises:
        ImageError: no image, or tensors of different sizes or types.
    """
    if not images:
        raise ImageError("an empty list is no batch. Give at least one image.")
    tensors = [image for image in images if isinstance(image, Tensor)]
    if len(tensors) == len(images):
        if len(sizes := {tuple(tensor.shape) for tensor in tensors}) > 1:
            raise ImageError(
                f"images of different sizes cannot be stacked: {sorted(sizes)}. "
                "Use one Preprocess for all, or patchify them."
            )
        if len({tensor.dtype for tensor in tensors}) > 1:
            raise ImageError("a batch is either of levels (uint8) or of normalised pixels")
        return torch.stack(tensors)
    rows = [image for image in images if not isinstance(image, Tensor)]
    if tensors:
        raise ImageError("a batch is either of tensors or of patches. Separate the two.")
    longest = max(len(patches) for patches, _ in rows)
    batch = rows[0][0].new_zeros(len(rows), longest, rows[0][0].shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=batch.device)
    for i, (patches, _) in enumerate(rows):
        batch[i, : len(patches)] = patches
        mask[i, : len(patches)] = True
    return Patches(batch, mask, torch.stack([grid for _, grid in rows]))
