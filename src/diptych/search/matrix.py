"""The vectors of one model as mapped files, to be searched: derived, whole or not there at all.

    folder/matrix.json              the manifest: names, sizes and checksums; the last to be written
    folder/{rows,codes,ids,blocks,sums}-TOKEN

- A build writes files of new names, brings them to the disk, and then puts the manifest in place in
  one step: killed at any moment, it leaves the old matrix or the new one. The next build removes
  what a dead one left. Who has the old files mapped goes on reading them.
- The checksum (CRC-32: every flipped bit, every burst of 32) of all but the fp16 rows is compared
  at opening; a row's, with 63 others, before the row is first used. So opening reads what a
  search reads anyway, the codes, and an answer never rests on a damaged byte.
"""

from __future__ import annotations

import hashlib
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.engine.codes import BLOCK, Codes, quantise
from diptych.engine.quantised import Quantised
from diptych.engine.topk import dots
from diptych.errors import ConfigError, IndexFileError
from diptych.search.derived import (
    checksums,
    compare,
    damaged,
    map_file,
    read_manifest,
    remove_others,
    write_manifest,
)
from diptych.zoo.atomic import atomic_write

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Matrix"]

MANIFEST = "matrix.json"
_VERSION = 1
_KINDS = ("rows", "codes", "ids", "blocks", "sums")
_ROWS = 64  # of one checksum: 64 KB where e = 512
_CODES = 4096  # of one checksum: 2 MB


class Matrix:
    """Rows of float16 with their ids, memory-mapped or in memory.

    Attributes:
        ids: int64 [n], rising.
        vectors: float16 [n e]. Reading them does not compare checksums: `verify` does.
        meta: what the builder wrote down.
        num_vectors: n.
        bound: how far `scores` of a query of length 1 is from the exact ones at most.
    """

    def __init__(
        self,
        ids: Int[np.ndarray, " n"],
        rows: Quantised,
        *,
        meta: dict[str, Any],
        checks: _Checks | None = None,
    ):
        """Use `build`, `open` or `of`."""
        self.ids, self.vectors, self.meta = ids, rows.vectors, meta
        self.num_vectors = len(ids)
        self.bound = rows.bound
        self._rows, self._checks = rows, checks

    @classmethod
    def of(cls, ids: Int[np.ndarray, " n"], vectors: Float[np.ndarray, "n e"]) -> Matrix:
        """A matrix in memory, for small or fresh rows.

        Raises:
            ConfigError: not int64 [n], rising, and float16 [n e].
        """
        _check_block(ids, vectors, vectors.shape[-1], None)
        rows = Quantised.of(vectors)
        return cls(ids, rows, meta={})

    @classmethod
    def build(
        cls,
        folder: Path,
        blocks: Iterable[tuple[np.ndarray, np.ndarray]],
        *,
        embed_dim: int,
        meta: dict[str, Any],
    ) -> Matrix:
        """Write the rows to `folder`, in the place of an older matrix there, and open it.

        One process at a time may build in a folder. Memory: some 300 MB where e = 512, and 8 bytes
        a row.

        Args:
            blocks: int64 ids [k], rising over all blocks, and float16 rows [k e], of any sizes.
            embed_dim: e.
            meta: anything JSON can say; `Matrix.meta` gives it back.

        Raises:
            ConfigError: a block of another shape or type, or ids that do not rise.
            CheckpointError: the system refused (disk full, no permission); an old one is intact.
        """
        remove_others(folder, _KINDS, _named(folder))
        token = uuid.uuid4().hex
        names = {kind: f"{kind}-{token}" for kind in _KINDS}
        body = {"kind": "matrix", "version": _VERSION, "embed_dim": embed_dim, "names": names}
        try:
            body |= _write(folder, names, _regroup(blocks, embed_dim), embed_dim)
            write_manifest(folder / MANIFEST, {**body, "meta": meta})
        finally:
            remove_others(folder, _KINDS, _named(folder))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Matrix:
        """Map the matrix of a folder.

        Raises:
            IndexFileError: there is none, it is cut short, or a bit is not as it was written.
        """
        missing = None
        for _ in range(5):  # its files are gone when a build has just put others in their place
            body = read_manifest(folder / MANIFEST, kind="matrix", version=_VERSION)
            try:
                return cls._map(folder, body)
            except FileNotFoundError as error:
                missing = error
        raise damaged(folder, f"a file is missing ({missing})")

    @classmethod
    def _map(cls, folder: Path, body: dict[str, Any]) -> Matrix:
        n, e, num_odd = body["num_vectors"], body["embed_dim"], body["num_odd"]
        blocks, tiles, chunks = (-(-n // size) for size in (BLOCK, _CODES, _ROWS))
        path = {kind: folder / name for kind, name in body["names"].items()}
        ids = map_file(path["ids"], np.int64, (n,))
        sides = map_file(path["blocks"], np.uint8, (blocks * (8 * e + 16) + 8 * num_odd,))
        sums = map_file(path["sums"], np.uint32, (chunks + tiles,))
        for kind, array in (("ids", ids), ("blocks", sides), ("sums", sums)):
            if zlib.crc32(array.data) != body["crc32"][kind]:
                raise damaged(path[kind], "its checksum is another one")
        vectors = map_file(path["rows"], np.float16, (n, e))
        codes = map_file(path["codes"], np.int8, (n, e), mode="c")
        compare(path["codes"], codes, sums[chunks:], _CODES, list(range(tiles)))
        cut = np.cumsum([8 * blocks, 8 * blocks, 8 * num_odd, 4 * blocks * e])
        residuals, lengths, odd, centres, scales = np.split(sides, cut)
        codes = Codes(
            codes,
            centres.view(np.float32).reshape(blocks, e),
            scales.view(np.float32).reshape(blocks, e),
            residuals.view(np.float64),
            lengths.view(np.float64),
            odd.view(np.int64),
        )
        checks = _Checks(path["rows"], vectors, sums[:chunks])
        return cls(
            ids, Quantised(vectors, codes, touch=checks.touch), meta=body["meta"], checks=checks
        )

    def topk(
        self,
        queries: Float[np.ndarray, "q e"],
        k: int,
        *,
        where: Bool[np.ndarray, " n"] | None = None,
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """(scores, rows) of the k largest inner products: exact, as `engine.quantised`.

        Raises:
            ConfigError: k below 1, a query with NaN, or shapes that do not belong together.
            IndexFileError: a row that is needed is not as it was written.
        """
        return self._rows.topk(queries, k, where=where)

    def scores(self, query: Float[np.ndarray, " e"]) -> Float[np.ndarray, " n"]:
        """float32 scores of all rows, each within `bound` * |query| of the exact one."""
        return self._rows.scores(query)

    def pairs(
        self,
        queries: Float[np.ndarray, "q e"],
        query: Int[np.ndarray, " p"],
        row: Int[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """Exact float32 scores of the pairs (queries[query[i]], row[i]); NaN becomes -inf.

        Raises:
            IndexFileError: a row is not as it was written.
        """
        if self._checks is not None:
            self._checks.touch(row)
        return dots(queries, self.vectors, query, row)

    def verify(self) -> None:
        """Compare the checksums of all rows. Raises IndexFileError."""
        if self._checks is not None:
            self._checks.touch(np.arange(0, self.num_vectors, _ROWS))

    def digest(self, num: int | None = None) -> str:
        """SHA-256 of the ids and the rows' checksums: of the first `num` rows, or of all.

        Equal for equal rows, whichever build wrote them.
        """
        num = self.num_vectors if num is None else num
        whole = num // _ROWS
        sums = self._checks.sums if self._checks is not None else checksums(self.vectors, _ROWS)
        found = hashlib.sha256(np.ascontiguousarray(self.ids[:num]).data)
        found.update(np.ascontiguousarray(sums[:whole]).data)
        found.update(checksums(self.vectors[whole * _ROWS : num], _ROWS).data)
        return found.hexdigest()


class _Checks:
    """The checksums of mapped rows, compared before a row is first used."""

    def __init__(self, path: Path, vectors: np.ndarray, sums: np.ndarray):
        self.sums = sums
        self._path, self._vectors = path, vectors
        self._sound = np.zeros(len(sums), bool)

    def touch(self, rows: np.ndarray) -> None:
        chunks = np.unique(rows // _ROWS)
        chunks = chunks[~self._sound[chunks]]
        compare(self._path, self._vectors, self.sums, _ROWS, chunks.tolist())
        self._sound[chunks] = True


# --- writing --------------------------------------------------------------------------------------


def _named(folder: Path) -> list[str]:
    """The files of the matrix that is in the folder now."""
    try:
        body = read_manifest(folder / MANIFEST, kind="matrix", version=_VERSION)
    except IndexFileError:
        return []
    return list(body["names"].values())


def _check_block(ids: np.ndarray, rows: np.ndarray, embed_dim: int, last: int | None) -> None:
    if rows.dtype != np.float16 or rows.shape != (len(ids), embed_dim) or ids.dtype != np.int64:
        raise ConfigError(
            f"a block must be int64 ids [k] and float16 rows [k, {embed_dim}], got {ids.dtype} "
            f"{list(ids.shape)} and {rows.dtype} {list(rows.shape)}. Convert them."
        )
    before = [] if last is None else [last]
    if (np.diff(ids, prepend=before) <= 0).any():
        raise ConfigError("ids must rise from row to row and from block to block. Sort the rows.")


def _regroup(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], embed_dim: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows in blocks of `BLOCK`, the last perhaps shorter."""
    ids, rows = np.empty(BLOCK, np.int64), np.empty((BLOCK, embed_dim), np.float16)
    filled, last = 0, None
    for some_ids, some_rows in blocks:
        _check_block(some_ids, some_rows, embed_dim, last)
        last = int(some_ids[-1]) if len(some_ids) else last
        start = 0
        while start < len(some_ids):
            num = min(BLOCK - filled, len(some_ids) - start)
            ids[filled : filled + num] = some_ids[start : start + num]
            rows[filled : filled + num] = some_rows[start : start + num]
            filled, start = filled + num, start + num
            if filled == BLOCK:
                yield ids.copy(), rows
                filled = 0
    if filled:
        yield ids[:filled].copy(), rows[:filled]


def _write(
    folder: Path,
    names: dict[str, str],
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    embed_dim: int,
) -> dict[str, Any]:
    """Write all files but the manifest; returns what it says about them."""
    ids, codes, row_sums, code_sums = [], [], [], []

    def fill(rows_part: Path, codes_part: Path) -> None:
        with rows_part.open("wb") as rows_file, codes_part.open("wb") as codes_file:
            start = 0
            for some_ids, rows in blocks:
                coded = quantise(rows)
                rows_file.write(rows.data)
                codes_file.write(coded.codes.data)
                row_sums.append(checksums(rows, _ROWS))
                code_sums.append(checksums(coded.codes, _CODES))
                ids.append(some_ids)
                none = coded.codes[:0]  # not kept in memory
                codes.append(coded._replace(codes=none, odd=coded.odd + start))
                start += len(rows)

    atomic_write(
        folder / names["rows"],
        lambda rows: atomic_write(folder / names["codes"], lambda codes: fill(rows, codes)),
    )
    contents = {
        "ids": [*ids, np.empty(0, np.int64)],
        "blocks": [
            *(block.residuals for block in codes),
            *(block.lengths for block in codes),
            *(block.odd.astype(np.int64) for block in codes),
            *(block.centres for block in codes),
            *(block.scales for block in codes),
        ],
        "sums": [*row_sums, *code_sums],
    }
    crc32 = {}
    for kind, arrays in contents.items():
        data = b"".join(array.tobytes() for array in arrays)
        atomic_write(folder / names[kind], lambda part, data=data: part.write_bytes(data))
        crc32[kind] = zlib.crc32(data)
    return {
        "num_vectors": sum(len(some) for some in ids),
        "num_odd": sum(len(block.odd) for block in codes),
        "crc32": crc32,
    }
