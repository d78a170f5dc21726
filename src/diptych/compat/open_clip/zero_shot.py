"""open_clip's `build_zero_shot_classifier`: one unit vector a class, the mean over its prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["build_zero_shot_classifier"]


@torch.no_grad()
def build_zero_shot_classifier(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    classnames: Sequence[str],
    templates: Sequence[str | Callable[[str], str]],
    num_classes_per_batch: int | None = 10,
    device: str | torch.device = "cpu",
    use_tqdm: bool = False,
) -> Tensor:
    """[e c]: column i is the unit vector of class i, for `image_features @ weights`.

    Args:
        templates: of "a photo of a {}." or functions of the name.
        num_classes_per_batch: classes that are encoded at once; None: all.
        use_tqdm: show a progress bar.
    """
    step = num_classes_per_batch or len(classnames)
    starts: Iterable[int] = range(0, len(classnames), step)
    if use_tqdm:
        from rich.progress import track

        starts = track(starts, description="classes")
    columns = []
    for start in starts:
        names = classnames[start : start + step]
        texts = [t.format(c) if isinstance(t, str) else t(c) for c in names for t in templates]
        vectors = model.encode_text(tokenizer(texts).to(device), normalize=True)
        columns.append(F.normalize(vectors.unflatten(0, (len(names), -1)).mean(1), dim=-1))
    return torch.cat(columns).T
