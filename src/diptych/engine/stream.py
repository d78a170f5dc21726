"""Images from anywhere to prepared pixels: decoding threads beside the model, bounded memory.

- At most a few batches of pixels exist at once, whatever the length of the input.
- Order is kept, so rows and keys line up; an image that fails is named and the rest goes on.
"""

import importlib.util
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from diptych.errors import ConfigError, ImageError

__all__ = [
    "HEIF_SUFFIXES",
    "IMAGE_SUFFIXES",
    "RAW_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Batch",
    "Decoded",
    "decode",
    "num_threads",
    "readable_suffixes",
    "sources",
]

# files of a folder that are taken for images; a file that is given by name is always tried
_SUFFIXES = "jpg jpeg jpe jfif mpo png apng webp gif bmp tif tiff avif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
# those of the extra `photos`, which are taken where its packages are installed
_SUFFIXES = "heic heif hif"
HEIF_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
_SUFFIXES = (
    "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf "
    "srw x3f"
)
RAW_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
# not images: for `Encoder.encode_video`; not ts, which is TypeScript's more often
_SUFFIXES = "mp4 m4v mov 3gp mkv webm avi mpg mpeg mts m2ts wmv flv ogv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


class Batch(NamedTuple):
    """One step of `Encoder.stream`."""

    keys: list[Any]  # of the rows of `vectors`: the path as text, or the position in the input
    vectors: Any  # float32 [k, e], unit rows
    errors: dict[Any, ImageError]  # by key, for inputs that came since the last batch


class Decoded(NamedTuple):
    key: Any
    pixels: Any  # what `prepare` made: Float[3 H W]; None after an error
    error: ImageError | None


def num_threads() -> int:
    """Decoding threads: `DIPTYCH_THREADS`, else the processors this process may use.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    text = os.environ.get("DIPTYCH_THREADS")
    if text is None:
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"DIPTYCH_THREADS must be a positive whole number, got {text!r}")
    return int(text)


def sources(images: Any) -> Iterator[tuple[Any, Any]]:
    """(key, image) pairs of a folder (walked in sorted order), one image, or an iterable of them.

    A path is its own key; anything else has its position as key.
    """
    if isinstance(images, str | Path) and Path(images).is_dir():
        yield from _walk(Path(images))
        return
    one_array = isinstance(images, np.ndarray) and images.ndim < 4
    if one_array or isinstance(images, str | Path | bytes | PILImage.Image):
        images = [images]
    elif not isinstance(images, Iterable):
        raise ImageError(
            f"cannot take images from a {type(images).__name__}. Give a path, a Pillow image, a "
            "uint8 array of [height, width, channels], or an iterable of them."
        )
    for i, image in enumerate(images):
        yield (str(image) if isinstance(image, str | Path) else i), image


def readable_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that a folder walk takes with what is installed."""
    found = IMAGE_SUFFIXES
    for package, suffixes in (("pillow_heif", HEIF_SUFFIXES), ("rawpy", RAW_SUFFIXES)):
        if importlib.util.find_spec(package) is not None:
            found |= suffixes
    return found


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    suffixes = readable_suffixes()
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in suffixes:
                path = Path(root, name)
                yield str(path), path


def decode(
    items: Iterable[tuple[Any, Any]],
    prepare: Callable[..., Any],
    *,
    threads: int,
    window: int,
) -> Iterator[Decoded]:
    """Run `prepare(image, name=...)` in `threads`, in order, at most `window` images ahead."""

    def work(key: Any, image: Any) -> Decoded:
        try:
            name = None if isinstance(image, str | Path) else f"image {key}"
            return Decoded(key, prepare(image, name=name), None)
        except ImageError as error:
            return Decoded(key, None, error)

    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="diptych-decode") as pool:
        waiting: deque[Future[Decoded]] = deque(
            pool.submit(work, *item) for item in islice(items, window)
        )
        try:
            while waiting:
                done = waiting.popleft().result()
                for item in islice(items, 1):
                    waiting.append(pool.submit(work, *item))
                yield done
        finally:  # the consumer stopped early: do not decode what nobody will see
            for future in waiting:
                future.cancel()
