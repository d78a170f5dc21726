"""Items that hold a picture, to the vectors of its views: in their order, in bounded memory.

A view is what a picture becomes before the model's own preprocessing: the picture as it is, or the
picture with its printed text painted over. Several views of a picture cost one reading of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from diptych.engine import Encoder
from diptych.engine.stream import decode, num_threads
from diptych.errors import ImageError
from diptych.preprocess import collate

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Encoded", "Item", "Pictured", "encode_items"]


class Pictured(Protocol):
    """What has a picture, and a name to call it by."""

    @property
    def key(self) -> str: ...
    @property
    def image(self) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A picture and its name, and nothing else."""

    key: str
    image: Any


T = TypeVar("T", bound=Pictured)
Views = Callable[[Any, str], Sequence[Any]]


class Encoded(NamedTuple, Generic[T]):
    """An item with the unit vectors of its views [v e]; if it failed none, and the error."""

    item: T
    vectors: Float[Tensor, "v e"]
    error: ImageError | None


def encode_items(
    encoder: Encoder, items: Iterable[T], *, views: Views | None = None
) -> Iterator[Encoded[T]]:
    """Each item, in its order, with its vectors or with the error that names it.

    Args:
        views: (image, name) to the pictures to encode, at least one; it runs in the threads that
            decode. None: the picture as it is.
    """

    def prepare(item: T, name: str | None) -> list[Tensor]:
        shown = [item.image] if views is None else views(item.image, item.key)
        return [encoder.preprocess.uint8(picture, name=item.key) for picture in shown]

    pairs = ((item, item) for item in items)  # `decode` takes (key, image): an item is both
    done = decode(pairs, prepare, threads=num_threads(), window=2 * encoder.batch_size)
    while some := list(islice(done, encoder.batch_size)):
        pixels = [view for one in some if one.pixels is not None for view in one.pixels]
        rows = torch.empty(0, encoder.config.embed_dim, device=encoder.device)
        if pixels:
            rows = encoder.run_image(collate(pixels))
        start = 0
        for one in some:
            views_of = 0 if one.pixels is None else len(one.pixels)
            yield Encoded(one.key, rows[start : start + views_of], one.error)
            start += views_of
