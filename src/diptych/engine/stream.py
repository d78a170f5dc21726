"""Images from anywhere to prepared pixels: decoders beside the model, bounded memory.

- At most a few batches of pixels exist at once, whatever the length of the input.
- Order is kept, so rows and keys line up; an image that fails is named and the rest goes on.
- Threads are enough for a few cores: decoding and resizing leave Python's lock. With many cores the
  rest of the work waits for it, and processes do not. They are started afresh, never forked, and
  each imports torch: seconds and 250 MB, so they are for long runs.
"""

import importlib.util
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image as PILImage

from diptych.errors import ConfigError, ImageError
from diptych.processors import num_processors

__all__ = [
    "HEIF_SUFFIXES",
    "IMAGE_SUFFIXES",
    "RAW_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Batch",
    "Decoded",
    "decode",
    "num_processes",
    "num_threads",
    "one_ahead",
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


_TOGETHER = 8  # images that a worker process takes at once: fewer messages
Pairs = list[tuple[Any, Any]]


_T = TypeVar("_T")


class Batch(NamedTuple):
    """One step of `Encoder.stream`."""

    keys: list[Any]  # of the rows of `vectors`: the path as text, or the position in the input
    vectors: Any  # float32 [k, e], unit rows
    errors: dict[Any, ImageError]  # by key, for inputs that came since the last batch


class Decoded(NamedTuple):
    key: Any
    pixels: Any  # what `prepare` made, such as UInt8[3 H W]; None after an error
    error: ImageError | None


def num_threads() -> int:
    """Decoding threads: `DIPTYCH_THREADS`, else `num_processors`.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    text = os.environ.get("DIPTYCH_THREADS")
    if text is None:
        return num_processors()
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"DIPTYCH_THREADS must be a positive whole number, got {text!r}")
    return int(text)


def num_processes() -> int:
    """Decoding processes: `DIPTYCH_PROCESSES`, else 0, which decodes in threads.

    Raises:
        ConfigError: the variable is not a whole number.
    """
    text = os.environ.get("DIPTYCH_PROCESSES", "0")
    if not text.isdecimal():
        raise ConfigError(f"DIPTYCH_PROCESSES must be a whole number, got {text!r}")
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
    processes: int = 0,
) -> Iterator[Decoded]:
    """Run `prepare(image, name=...)` in `threads`, in order, at most `window` images ahead.

    Args:
        items: (key, image) pairs.
        prepare: `Preprocess.uint8` or the like. For processes: picklable, and makes a tensor.
        threads: how many at once, if there are no processes.
        window: bounds what is decoded and not yet taken; processes take images in eights.
        processes: that many worker processes in place of the threads.

    Raises:
        ConfigError: a worker process was killed, or could not start.
    """
    items = iter(items)
    some = _TOGETHER if processes else 1
    with _pool(prepare, threads, processes) as pool:
        work = _work_there if processes else partial(_work, prepare)
        waiting: deque[Future[list[Decoded]]] = deque()
        try:
            for _ in range(-(-window // some)):
                _submit(pool, work, items, some, waiting)
            while waiting:
                done = waiting.popleft().result()
                _submit(pool, work, items, some, waiting)
                for key, pixels, error in done:
                    array = isinstance(pixels, np.ndarray)
                    yield Decoded(key, torch.from_numpy(pixels) if array else pixels, error)
        except BrokenProcessPool as error:
            raise ConfigError(
                "a decoding process ended early: it was killed (for memory, as a rule), or a "
                'script starts the work outside of `if __name__ == "__main__":`. '
                "Type: export DIPTYCH_PROCESSES=0"
            ) from error
        finally:  # the consumer stopped early: do not decode what nobody will see
            for future in waiting:
                future.cancel()


def _pool(prepare: Callable[..., Any], threads: int, processes: int) -> Executor:
    if not processes:
        return ThreadPoolExecutor(threads, thread_name_prefix="diptych-decode")
    fresh = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    return ProcessPoolExecutor(processes, fresh, initializer=_start, initargs=(prepare,))


def _submit(
    pool: Executor,
    work: Callable[[Pairs], list[Decoded]],
    items: Iterator[tuple[Any, Any]],
    some: int,
    waiting: deque[Future[list[Decoded]]],
) -> None:
    if pairs := list(islice(items, some)):
        waiting.append(pool.submit(work, pairs))


def _work(prepare: Callable[..., Any], pairs: Pairs) -> list[Decoded]:
    done = []
    for key, image in pairs:
        try:
            name = None if isinstance(image, str | Path) else f"image {key}"
            done.append(Decoded(key, prepare(image, name=name), None))
        except ImageError as error:
            done.append(Decoded(key, None, error))
    return done


_prepare: Callable[..., Any] | None = None  # in a worker process: set once, not sent per image


def _start(prepare: Callable[..., Any]) -> None:
    global _prepare
    _prepare = prepare
    torch.set_num_threads(1)


def _work_there(pairs: Pairs) -> list[Decoded]:
    """`_work` in a worker process: arrays come back, for torch would send a file of each tensor."""
    assert _prepare is not None
    return [
        one._replace(pixels=one.pixels.numpy()) if isinstance(one.pixels, torch.Tensor) else one
        for one in _work(_prepare, pairs)
    ]


def one_ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Each item once the next one was made; the order is kept."""
    items = iter(items)
    for ready in islice(items, 1):
        for following in items:
            yield ready
            ready = following
        yield ready
