"""An approximate index of a matrix, tuned on words: an inverted file of 8 bits (IVF,SQ8, faiss).

- Text queries lose more neighbours than image queries in an index that leaves lists out, so the
  number of lists to look at is tuned on text vectors, and both recalls are written down. The text
  queries that are measured are others than those that it was tuned on.
- What it finds is scored again exactly as in `engine.topk`: a score is the same number here and
  there; only rows can be missed. Few allowed rows are compared without it, all of them.
- Derived from a `Matrix` and refused when that has other rows. faiss checks nothing in a file and
  may crash on a damaged one, so the checksum is compared before faiss sees a byte.
"""

from __future__ import annotations

import math
import uuid
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.engine.topk import best_pairs, check_space, checked_queries
from diptych.errors import ConfigError, IndexFileError, MissingExtraError
from diptych.search.derived import (
    damaged,
    map_file,
    read_manifest,
    remove_others,
    write_manifest,
)
from diptych.search.matrix import Matrix
from diptych.zoo.atomic import atomic_write

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Approximate"]

MANIFEST = "approximate.json"
_VERSION = 1
_KINDS = ("index", "queries")
_K = 10  # recall is of the 10 best
_TRAIN = 40  # rows of a list in the sample that the lists come from
_SAMPLE = 2**18  # of these at most: 0.5 GB where e = 512
_ROWS = 2**16  # added at once
_IMAGES = 500  # rows of the matrix as queries
_FEW = 32  # where fewer than one in so many rows may answer, those are compared directly


class Approximate:
    """An approximate index of all rows of a matrix.

    Attributes:
        facts: num_vectors, num_lists, num_probed; recall_target; recall_text and recall_image, the
            measured share of the true 10 best that is found; num_texts and num_images measured on;
            faiss, its version.
    """

    def __init__(self, folder: Path, matrix: Matrix, index: Any, body: dict[str, Any]):
        """Use `build` or `open`."""
        self.facts: dict[str, Any] = body["facts"]
        self._folder, self._matrix, self._index, self._body = folder, matrix, index, body

    @classmethod
    def build(
        cls,
        folder: Path,
        matrix: Matrix,
        *,
        queries: Float[np.ndarray, "m e"],
        recall: float = 0.95,
    ) -> Approximate:
        """Build, tune, measure, and write to `folder`, in the place of an older index there.

        Time: two minutes for 1,000,000 x 512 on two cores, most of it for the lists. Memory: a
        copy of the index, 1 byte a number, and the sample.

        Args:
            queries: float32 unit vectors of texts, of the model that made the rows: some hundred.
                Half of them tune, the other half measures.
            recall: the share of the true 10 best to find, above 0, at most 1.

        Raises:
            ConfigError: no rows, no two queries, or a recall outside its range.
            IndexFileError: the matrix is damaged.
            MissingExtraError: faiss is not installed.
            CheckpointError: the system refused; an old index is intact.
        """
        queries = checked_queries(queries, 1)
        check_space(matrix.vectors, queries)
        if not matrix.num_vectors or len(queries) < 2:
            raise ConfigError(
                f"an approximate index of {matrix.num_vectors} rows, tuned on {len(queries)} "
                "queries, cannot be. Give rows, and two queries at least."
            )
        if not 0 < recall <= 1:
            raise ConfigError(f"recall must be above 0, at most 1, got {recall}. Try 0.95.")
        matrix.verify()
        index = _train(matrix)
        _add(index, matrix, 0)
        num_probed = _tune(index, matrix, queries[0::2], recall)
        return cls._write(folder, matrix, index, queries, recall, num_probed)

    @classmethod
    def open(cls, folder: Path, matrix: Matrix, *, grown: bool = False) -> Approximate:
        """Read the index of a matrix.

        Args:
            grown: the matrix may have more rows, after those that the index knows: call `add` then.

        Raises:
            IndexFileError: there is none, it is damaged, or it is of other rows.
            MissingExtraError: faiss is not installed.
        """
        faiss = _faiss()
        missing = None
        for _ in range(5):  # its files are gone when a build has just put others in their place
            body = read_manifest(folder / MANIFEST, kind="approximate", version=_VERSION)
            n, e = body["facts"]["num_vectors"], body["embed_dim"]
            same = e == matrix.vectors.shape[1] and (
                n <= matrix.num_vectors if grown else n == matrix.num_vectors
            )
            if not same or matrix.digest(n) != body["matrix"]:
                raise damaged(folder / MANIFEST, "it is the index of other rows")
            try:
                for kind in _KINDS:
                    _map(folder, body, kind)
                file = folder / body["names"]["index"]
                return cls(folder, matrix, faiss.read_index(str(file)), body)
            except FileNotFoundError as error:
                missing = error
            except RuntimeError as error:  # of another faiss, or gone since its bytes were read
                missing = error
        raise damaged(folder, f"a file is missing, or faiss refuses it ({missing})")

    def add(self, matrix: Matrix) -> Approximate:
        """The index of a matrix with more rows after those it had, written in its place.

        The lists and their number to look at stay; the recalls are measured again.

        Raises:
            IndexFileError: the first rows are not those of this index, or a file is damaged.
            CheckpointError: the system refused; the old index is intact.
        """
        known = self.facts["num_vectors"]
        if matrix.num_vectors < known or matrix.digest(known) != self._body["matrix"]:
            raise damaged(self._folder / MANIFEST, "it is the index of other rows")
        matrix.verify()
        queries = _map(self._folder, self._body, "queries").view(np.float32)
        queries = np.array(queries.reshape(-1, matrix.vectors.shape[1]))
        index = _faiss().clone_index(self._index)
        _add(index, matrix, known)
        facts = self.facts
        return self._write(
            self._folder, matrix, index, queries, facts["recall_target"], facts["num_probed"]
        )

    def topk(
        self,
        queries: Float[np.ndarray, "q e"],
        k: int,
        *,
        where: Bool[np.ndarray, " n"] | None = None,
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Scores and rows of nearly the k best: arguments, results and errors of `Matrix.topk`.

        A filter that leaves less than a third lets it look at more lists. Where it would find
        fewer than k rows, or few are allowed, all that are allowed are compared.
        """
        queries = checked_queries(queries, k)
        check_space(self._matrix.vectors, queries)
        n = self._matrix.num_vectors
        if n != self.facts["num_vectors"]:
            raise IndexFileError(
                f"{self._folder}: the index knows {self.facts['num_vectors']} of {n} rows. "
                "Call add(matrix)."
            )
        if where is not None and (where.shape != (n,) or where.dtype != bool):
            raise ConfigError(
                f"where must be bool [{n}], got {where.dtype} {list(where.shape)}. "
                "Give True or False for each row."
            )
        allowed = n if where is None else int(np.count_nonzero(where))
        if allowed * _FEW < n or k * 8 > allowed or not len(queries):
            return self._matrix.topk(queries, k, where=where)
        num_probed = self.facts["num_probed"]
        if where is not None:  # the best of few rows lie farther from the query, in more lists
            num_probed = math.ceil(num_probed * math.sqrt(n / allowed))
        scores, rows = _search(self._index, self._matrix, queries, k, num_probed, where)
        lost = np.flatnonzero(rows[:, -1] < 0)
        if len(lost):
            scores[lost], rows[lost] = self._matrix.topk(queries[lost], k, where=where)
        return scores, rows

    @classmethod
    def _write(
        cls,
        folder: Path,
        matrix: Matrix,
        index: Any,
        queries: np.ndarray,
        recall: float,
        num_probed: int,
    ) -> Approximate:
        faiss = _faiss()
        images, own = _images(matrix)
        facts = {
            "num_vectors": matrix.num_vectors,
            "num_lists": index.nlist,
            "num_probed": num_probed,
            "recall_target": recall,
            "recall_text": float(_recall(index, matrix, queries[1::2], num_probed).mean()),
            "recall_image": float(_recall(index, matrix, images, num_probed, own=own).mean()),
            "num_texts": len(queries[1::2]),
            "num_images": len(images),
            "faiss": faiss.__version__,
        }
        token = uuid.uuid4().hex
        names = {kind: f"{kind}-{token}" for kind in _KINDS}
        body = {
            "kind": "approximate",
            "version": _VERSION,
            "embed_dim": matrix.vectors.shape[1],
            "matrix": matrix.digest(),
            "names": names,
            "facts": facts,
        }
        remove_others(folder, _KINDS, _named(folder))
        # in memory first: faiss does not tell of a disk that is full when it closes a file
        contents = {"index": faiss.serialize_index(index), "queries": queries}
        try:
            for kind, array in contents.items():
                atomic_write(
                    folder / names[kind], lambda part, array=array: part.write_bytes(array.data)
                )
            body["sizes"] = {kind: array.nbytes for kind, array in contents.items()}
            body["crc32"] = {kind: zlib.crc32(array.data) for kind, array in contents.items()}
            write_manifest(folder / MANIFEST, body)
        finally:
            remove_others(folder, _KINDS, _named(folder))
        return cls(folder, matrix, index, body)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError(
            "faiss", extra="search", needed_for="an approximate index"
        ) from None
    return faiss


# --- files ----------------------------------------------------------------------------------------


def _named(folder: Path) -> list[str]:
    """The files of the index that is in the folder now."""
    try:
        body = read_manifest(folder / MANIFEST, kind="approximate", version=_VERSION)
    except IndexFileError:
        return []
    return list(body["names"].values())


def _map(folder: Path, body: dict[str, Any], kind: str) -> np.ndarray:
    """The bytes of a file, whose checksum is right. Raises FileNotFoundError, IndexFileError."""
    path = folder / body["names"][kind]
    found = map_file(path, np.uint8, (body["sizes"][kind],))
    if zlib.crc32(found.data) != body["crc32"][kind]:
        raise damaged(path, "its checksum is another one")
    return found


# --- the index ------------------------------------------------------------------------------------


def _train(matrix: Matrix) -> Any:
    """An empty index whose lists come from a sample of the rows."""
    faiss = _faiss()
    n, e = matrix.vectors.shape
    num_lists = 2 ** max(0, round(math.log2(4 * math.sqrt(n))))
    while num_lists > 1 and num_lists * 8 > n:
        num_lists //= 2
    index = faiss.index_factory(e, f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # no warning on the terminal
    index.cp.max_points_per_centroid = _SAMPLE
    size = min(n, _SAMPLE, max(_TRAIN * num_lists, 4096))
    rows = np.random.default_rng(0).choice(n, size, replace=False)
    index.train(_float32(matrix, np.sort(rows)))
    return index


def _add(index: Any, matrix: Matrix, start: int) -> None:
    """Add the rows from `start` on."""
    for first in range(start, matrix.num_vectors, _ROWS):
        stop = min(first + _ROWS, matrix.num_vectors)
        index.add(_float32(matrix, slice(first, stop)))


def _float32(matrix: Matrix, rows: Any) -> np.ndarray:
    """Rows as faiss takes them. One with NaN or infinity becomes 0; its exact score is -inf."""
    values = matrix.vectors[rows].astype(np.float32)
    values[~np.isfinite(values).all(1)] = 0
    return values


def _search(
    index: Any,
    matrix: Matrix,
    queries: np.ndarray,
    k: int,
    num_probed: int,
    where: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, rows) [q k]: exact scores of what some lists hold; -inf and -1 where fewer do."""
    faiss = _faiss()
    params = faiss.SearchParametersIVF(nprobe=min(num_probed, index.nlist))
    if where is not None:
        bits = np.packbits(where, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(where), faiss.swig_ptr(bits))
        params.sel = selector
    # 8 bits may put a row a few places off: that many more are looked at
    _, found = index.search(queries, k + 40 + k // 2, params=params)
    query, place = np.nonzero(found >= 0)
    row = found[query, place]
    scores = matrix.pairs(queries, query, row)
    missing = np.repeat(np.arange(len(queries)), k)  # so that each query has k pairs
    return best_pairs(
        np.concatenate([query, missing]),
        np.concatenate([scores, np.full(len(missing), -np.inf, np.float32)]),
        np.concatenate([row, np.full(len(missing), -1)]),
        num_queries=len(queries),
        k=k,
    )


def _images(matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """(queries, their rows): rows of the matrix, evenly spread."""
    n = matrix.num_vectors
    rows = np.unique(np.linspace(0, n - 1, min(n, _IMAGES)).round().astype(np.int64))
    return _float32(matrix, rows), rows


def _recall(
    index: Any,
    matrix: Matrix,
    queries: np.ndarray,
    num_probed: int,
    *,
    own: np.ndarray | None = None,
    best: np.ndarray | None = None,
) -> np.ndarray:
    """The share of the true 10 best that is found, of each query.

    own: the row of each query, that does not count. best: float32 [q], the 10th best score.
    """
    k = min(_K + (own is not None), matrix.num_vectors)
    if best is None:
        best = matrix.topk(queries, k)[0][:, -1]
    scores, rows = _search(index, matrix, queries, k, num_probed)
    found = (scores >= best[:, None]) & (rows >= 0)  # another row with the same score is as good
    if own is not None and k > 1:
        found &= rows != own[:, None]
        k -= 1
    return np.minimum(found.sum(1), k) / k


def _tune(index: Any, matrix: Matrix, queries: np.ndarray, target: float) -> int:
    """The fewest lists to look at that reach the target by a standard error, by halving."""
    best = matrix.topk(queries, min(_K, matrix.num_vectors))[0][:, -1]

    def reached(num_probed: int) -> bool:
        found = _recall(index, matrix, queries, num_probed, best=best)
        return found.mean() - found.std() / math.sqrt(len(found)) >= target

    low, high = 0, 1
    while high < index.nlist and not reached(high):
        low, high = high, min(2 * high, index.nlist)
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
