"""Pictures of an evaluation set that are among the training pictures, and what they do to a figure.

CLIP's paper (arXiv 2103.00020, section 5): find what is in both, then compare the accuracy on all,
on the clean rest and on the overlap.

- A pair is in for one of three reasons, the strongest is given: the same bytes (SHA-256 of the
  file), the same pixels (of the decoded picture: another file format, other metadata), or nearly
  the same: cosine and perceptual hash together, with the thresholds of `engine.neighbours`.
- The evaluation set is held, the training pictures pass by once: memory grows with the former and
  with what was found, not with the latter. Of a picture's matches the ten strongest are kept and
  all are counted.
- What could not be read is listed: it was not compared.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image as PILImage

from diptych.engine.encoder import Encoder
from diptych.engine.neighbours import (
    DUPLICATE_COSINE,
    DUPLICATE_HAMMING,
    between,
    hamming,
    perceptual_hash,
)
from diptych.engine.stream import decode, num_threads, sources
from diptych.errors import ConfigError, DataError
from diptych.eval.binomial import Interval, at_least, clopper_pearson
from diptych.preprocess import collate
from diptych.preprocess.pixels import orientation

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

__all__ = ["Found", "Match", "Overlap", "WithAndWithout", "overlap", "with_and_without"]

Reason = Literal["same bytes", "same pixels", "nearly the same"]

_REASONS: tuple[Reason, ...] = ("nearly the same", "same pixels", "same bytes")  # rising
_KEPT = 10  # matches of a picture
_TRAIN = 2048  # training pictures compared at once
_READ = 64 * 2**20  # bytes of a file that are kept while it is decoded; larger ones are read twice
_PAPER = 0.995  # confidence of the intervals in the paper's figure 17


class Match(NamedTuple):
    """A training picture that an evaluation picture was found in.

    Attributes:
        train: its path, or its position in what was given.
        cosine: of the two vectors. bits: by which their perceptual hashes differ, of 64.
    """

    train: Any
    reason: Reason
    cosine: float
    bits: int


class Found(NamedTuple):
    """An evaluation picture that is in the training set: its strongest matches, and how many."""

    evaluation: Any
    matches: tuple[Match, ...]
    num_matches: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What was compared and found.

    Attributes:
        found: evaluation pictures with a match, in the order of the set.
        keys: of all evaluation pictures that were compared, in their order.
        num_train, num_evaluation: pictures that were compared.
        unused_train, unused_evaluation: (key, reason) of those that could not be read.
    """

    found: tuple[Found, ...]
    keys: tuple[Any, ...]
    num_train: int
    num_evaluation: int
    unused_train: tuple[tuple[Any, str], ...]
    unused_evaluation: tuple[tuple[Any, str], ...]

    @property
    def share(self) -> float:
        """Of the evaluation pictures, in [0, 1]."""
        return len(self.found) / self.num_evaluation


def overlap(
    encoder: Encoder,
    train: Any,
    evaluation: Any,
    *,
    cosine: float = DUPLICATE_COSINE,
    bits: int = DUPLICATE_HAMMING,
    progress: Callable[[int], object] | None = None,
) -> Overlap:
    """Which evaluation pictures are among the training pictures.

    Args:
        encoder: its vectors are compared; any model will do, `mini` too.
        train, evaluation: a folder, or an iterable of what `Encoder.encode_image` takes.
        cosine, bits: near-duplicates have at least this cosine and hashes that differ in at most so
            many bits. cosine = 1 with bits = 0 leaves little but copies.
        progress: is told how many pictures were read, of both sides.

    Raises:
        ConfigError: cosine outside (0, 1], bits outside 0..64.
        DataError: no picture that can be read on one of the sides.
    """
    if not (0 < cosine <= 1 and 0 <= bits <= 64):
        raise ConfigError(f"cosine={cosine}, bits={bits}: a cosine in (0, 1], and 0 to 64 bits")
    lost: list[tuple[Any, str]] = []
    unused: list[tuple[Any, str]] = []
    told = _Told(progress)
    held = _Pictures.joined(_pictures(encoder, evaluation, lost, told), encoder)
    if not held.keys:
        raise DataError(_nothing("evaluation", lost))
    best: list[list[tuple[tuple, Match]]] = [[] for _ in held.keys]
    counts = np.zeros(len(held.keys), np.int64)
    num_train = 0
    for block in _pictures(encoder, train, unused, told):
        for i, order, match in _matches(block, held, num_train, cosine, bits):
            counts[i] += 1
            push = heapq.heappush if len(best[i]) < _KEPT else heapq.heappushpop
            push(best[i], (order, match))
        num_train += len(block.keys)
    if not num_train:
        raise DataError(_nothing("training", unused))
    found = [
        Found(held.keys[i], tuple(match for _, match in sorted(best[i], reverse=True)), int(num))
        for i, num in enumerate(counts)
        if num
    ]
    return Overlap(
        found=tuple(found),
        keys=tuple(held.keys),
        num_train=num_train,
        num_evaluation=len(held.keys),
        unused_train=tuple(unused),
        unused_evaluation=tuple(lost),
    )


class WithAndWithout(NamedTuple):
    """Accuracies in [0, 1], with exact 99.5 % intervals as in the paper.

    Attributes:
        everything, clean, overlap: all samples, those that are in no training set, those that are.
            (NaN where there are none.)
        gain: everything - clean: by how much the overlap flatters the figure.
        p: how likely it is that as many of the overlap or more are right if each is with the clean
            accuracy (one-sided exact binomial test). The clean accuracy is taken as known, as in
            the paper.
    """

    everything: float
    clean: float
    overlap: float
    intervals: dict[str, Interval]
    gain: float
    p: float
    num_clean: int
    num_overlap: int


def with_and_without(right: Bool[Tensor, " n"], overlapping: Bool[Tensor, " n"]) -> WithAndWithout:
    """What samples of the training data do to an accuracy.

    Args:
        right: which samples the model got right. overlapping: which are in the training data.

    Raises:
        DataError: no samples, or not one of each for every sample.
    """
    hits, inside = np.asarray(right, bool), np.asarray(overlapping, bool)
    if hits.shape != inside.shape or hits.ndim != 1 or not len(hits):
        raise DataError(
            f"with_and_without: {list(hits.shape)} answers and {list(inside.shape)} marks: give "
            "one of each for every sample"
        )
    parts = {"everything": hits, "clean": hits[~inside], "overlap": hits[inside]}
    shares = {name: float(part.mean()) if len(part) else np.nan for name, part in parts.items()}
    p = 1.0
    if 0 < inside.sum() < len(hits):
        p = at_least(int(parts["overlap"].sum()), int(inside.sum()), shares["clean"])
    return WithAndWithout(
        **shares,
        intervals={
            name: clopper_pearson(int(part.sum()), len(part), _PAPER)
            for name, part in parts.items()
            if len(part)
        },
        gain=shares["everything"] - shares["clean"],
        p=p,
        num_clean=int((~inside).sum()),
        num_overlap=int(inside.sum()),
    )


# --- reading --------------------------------------------------------------------------------------


class _Told:
    """Counts for `progress`."""

    def __init__(self, progress: Callable[[int], object] | None):
        self.progress, self.done = progress, 0

    def more(self, num: int) -> None:
        self.done += num
        if self.progress is not None:
            self.progress(self.done)


class _Pictures(NamedTuple):
    """Keys, SHA-256 of files (b"": it was none) and of pixels, vectors [k e], hashes."""

    keys: list[Any]
    files: list[bytes]
    pixels: list[bytes]
    vectors: np.ndarray
    hashes: np.ndarray

    @classmethod
    def joined(cls, blocks: Iterator[_Pictures], encoder: Encoder) -> _Pictures:
        keys, files, pixels, vectors, hashes = [], [], [], [], []
        for block in blocks:
            keys += block.keys
            files += block.files
            pixels += block.pixels
            vectors.append(block.vectors)
            hashes.append(block.hashes)
        none = np.empty((0, encoder.config.embed_dim), np.float32)
        return cls(
            *(keys, files, pixels),
            np.concatenate([none, *vectors]),
            np.concatenate([np.empty(0, np.uint64), *hashes]),
        )


class _Read(NamedTuple):
    file: bytes
    pixels: bytes
    values: Any


def _pictures(
    encoder: Encoder, images: Any, unused: list[tuple[Any, str]], told: _Told
) -> Iterator[_Pictures]:
    """Blocks of at most `_TRAIN` pictures; what cannot be read joins `unused`."""

    def read(image: Any, name: str | None) -> _Read:
        file = b""
        if isinstance(image, str | Path):
            name = name or str(image)
            image, file = _file(Path(image))
        elif isinstance(image, bytes):
            file = hashlib.sha256(image).digest()
        seen: list[bytes] = []
        values = encoder.preprocess(image, name=name, look=lambda one: seen.append(_digest(one)))
        return _Read(file, seen[0], values)

    keys: list[Any] = []
    reads: list[_Read] = []
    rows: list[np.ndarray] = []
    hashes: list[np.ndarray] = []

    def run() -> None:
        done = sum(map(len, rows))
        batch = collate([one.values for one in reads[done:]])
        rows.append(encoder.run_image(batch).float().cpu().numpy())
        hashes.extend(perceptual_hash(one.values[None]) for one in reads[done:])
        reads[done:] = [one._replace(values=None) for one in reads[done:]]

    def block() -> _Pictures:
        files, pixels = [one.file for one in reads], [one.pixels for one in reads]
        return _Pictures(keys, files, pixels, np.concatenate(rows), np.concatenate(hashes))

    window = 2 * encoder.batch_size
    for done in decode(sources(images), read, threads=num_threads(), window=window):
        told.more(1)
        if done.error is not None:
            unused.append((done.key, str(done.error)))
            continue
        keys.append(done.key)
        reads.append(done.pixels)
        if len(keys) % encoder.batch_size == 0:
            run()
            if len(keys) >= _TRAIN:
                yield block()
                keys, reads, rows, hashes = [], [], [], []
    if len(keys) > sum(map(len, rows)):
        run()
    if keys:
        yield block()


def _file(path: Path) -> tuple[Any, bytes]:
    """The bytes of a file, or its path where they are many, and their SHA-256."""
    try:
        if path.stat().st_size > _READ:
            with path.open("rb") as file:
                return path, hashlib.file_digest(file, "sha256").digest()
        data = path.read_bytes()
    except OSError:
        return path, b""  # whoever opens it says what is wrong
    return data, hashlib.sha256(data).digest()


def _digest(image: PILImage.Image) -> bytes:
    """SHA-256 of what was decoded: of one turn, one size, and 8-bit colours or the values."""
    plain = image.mode in ("1", "L", "P", "RGB") and "transparency" not in image.info
    shown = image.convert("RGB") if plain else image
    about = f"{shown.mode} {shown.size} {orientation(image)} ".encode()
    palette = b"" if shown.palette is None else shown.palette.tobytes()
    return hashlib.sha256(about + palette + shown.tobytes()).digest()


def _nothing(side: str, unused: list[tuple[Any, str]]) -> str:
    first = f"; the first: {unused[0][1]}" if unused else ""
    return f"overlap: no {side} picture could be read, {len(unused)} failed{first}"


# --- comparing ------------------------------------------------------------------------------------


def _matches(
    block: _Pictures, held: _Pictures, first: int, cosine: float, bits: int
) -> Iterator[tuple[int, tuple, Match]]:
    """(row of the evaluation set, how strong, the match); `first` training pictures came before."""
    same: dict[tuple[int, int], int] = {}  # (training row, evaluation row): reason
    for strength, theirs, ours in ((1, block.pixels, held.pixels), (2, block.files, held.files)):
        places: dict[bytes, list[int]] = {}
        for i, digest in enumerate(ours):
            places.setdefault(digest, []).append(i)
        for j, digest in enumerate(theirs):
            if digest:  # b"": it was no file
                same |= {(j, i): strength for i in places.get(digest, ())}
    for pairs in between(block.vectors, held.vectors, threshold=cosine):
        near = hamming(block.hashes[pairs.i], held.hashes[pairs.j]) <= bits
        for j, i in zip(pairs.i[near].tolist(), pairs.j[near].tolist(), strict=True):
            same.setdefault((j, i), 0)
    for (j, i), strength in same.items():
        a, b = block.vectors[j].astype(np.float64), held.vectors[i].astype(np.float64)
        similarity = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        apart = int(hamming(block.hashes[[j]], held.hashes[[i]])[0])
        match = Match(block.keys[j], _REASONS[strength], similarity, apart)
        # what batches round differently is equal; then the earlier one stands first
        yield i, (strength, round(similarity, 5), -apart, -(first + j)), match
