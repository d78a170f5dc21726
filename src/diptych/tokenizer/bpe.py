"""CLIP's byte-pair encoding: exact, with a bounded cache of words and no slow word.

Source: openai/CLIP `clip/simple_tokenizer.py` (MIT); Sennrich et al., arXiv 1508.07909.

- A vocabulary is 256 bytes, the same 256 at the end of a word, one id for each merge, and two
  control ids: 49,408 in all. So the id of a merge is also its rank.
- User text never becomes a control id. `specials=` names the peer whose spelling of the control
  tokens is honoured: that is for `compat`, which reproduces the peers' behaviour.
- The original runs one regular expression over the text. No alternative matches white space, so
  a chunk between spaces can be looked up as a whole. The cache holds the most recent chunks, in two
  generations, and none of more than 24 characters: 262,144 chunks, some 40 MB of English.
- Plain texts are joined, lowered, split and looked up many at a time, not one by one.
- A short word is merged by a simple loop; a long one with a linked list and one bucket of places
  for each rank, by windows: linear, where the original is quadratic (32,000 letters: 37 s).
"""

import gzip
import re
import threading
from array import array
from collections.abc import Sequence
from functools import cache, partial
from heapq import heapify, heappop, heappush
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Literal

import regex

from diptych.errors import CheckpointError
from diptych.tokenizer.clean import BLOCK, blocks

__all__ = ["ClipBPE", "Specials", "Words"]

Specials = Literal["openai", "open_clip"]

NUM_MERGES = 49_152 - 256 - 2  # of the 262,144 in the published file
SHORT = 40  # symbols; up to here the simple loop is faster
WINDOW = 2048  # symbols of a long word that are merged together
LONG = 16_384  # characters; of a longer chunk only the part that is kept is merged
OVERLAP = 16  # ids at the end of a window that the next one reads again
SPELLING: dict[Specials, tuple[str, str]] = {
    "openai": ("<|startoftext|>", "<|endoftext|>"),
    "open_clip": ("<start_of_text>", "<end_of_text>"),
}
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ASCII = re.compile(
    _WORD.replace(r"\p{L}", "a-z").replace(r"\p{N}", "0-9"), re.IGNORECASE | re.ASCII
)
BATCH = 1024  # plain texts that are joined
END = "\n"  # the chunk between two of them; no other chunk is white space
MARK = array("i", [0x7FFFFF7F]).tobytes()  # its row; in no row of ids, at whichever byte
_NONE = 1 << 32  # above every id


def _byte_order() -> bytes:
    """Bytes in the order of their ids: those that print first, as in `bytes_to_unicode`."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return bytes(printing + [b for b in range(256) if b not in printing])


def byte_letters() -> dict[int, str]:
    """The printing character by which vocabularies spell each byte, in the order of their ids."""
    order = _byte_order()
    printing = 188  # of them; the others are spelled from U+0100 on
    return {b: chr(b if i < printing else 256 + i - printing) for i, b in enumerate(order)}


class Words(dict[str, bytes]):
    """Chunk of text -> its ids as native int32, in a cache bounded in entries and in bytes."""

    LIMIT = 131_072  # entries of one generation; there are two
    CHARS = 24  # a longer chunk is not kept
    IDS = 16  # nor one of more tokens

    def __init__(self, merges: Sequence[tuple[str, str]]):
        order = _byte_order()
        self.to_id = bytes(order.index(b) for b in range(256))
        self.parts: list[tuple[int, int]] = [(-1, -1)] * 512
        self.pairs: dict[int, int] = {}  # left << 16 | right -> id of the merge
        self.spelling = [bytes([b]) for b in order] + [bytes([b]) + b"</w>" for b in order]
        self.lengths = [1] * 512  # bytes of each id, without the mark of a word's end
        self.size = 512 + len(merges) + 2
        self.pattern = regex.compile(_WORD, regex.IGNORECASE)
        self._old: dict[str, bytes] = {}
        self._lock = threading.Lock()
        symbols = [chr(b) if 0x21 <= b < 0x7F or (b > 0xA0 and b != 0xAD) else "" for b in order]
        extra = iter(range(256, 512))
        symbols = [s or chr(next(extra)) for s in symbols]
        ids = {s: i for i, s in enumerate(symbols + [s + "</w>" for s in symbols])}
        for new, (left, right) in enumerate(merges, start=512):
            a, b = ids[left], ids[right]
            ids[left + right] = new
            self.pairs[a << 16 | b] = new
            self.parts.append((a, b))
            self.spelling.append(self.spelling[a] + self.spelling[b])
            self.lengths.append(self.lengths[a] + self.lengths[b])
        self.longest = max(self.lengths)

    def __missing__(self, chunk: str) -> bytes:
        row = self._old.get(chunk)
        if row is None:
            row = MARK if chunk == END else self._row(chunk)
        if len(chunk) <= self.CHARS and len(row) <= 4 * self.IDS:
            if len(self) >= self.LIMIT:
                with self._lock:
                    if len(self) >= self.LIMIT:
                        self._old = self.copy()
                        self.clear()
            self[chunk] = row
        return row

    def _row(self, chunk: str) -> bytes:
        pattern = _ASCII if chunk.isascii() else self.pattern  # the same, and twice as fast
        words = pattern.findall(chunk)
        return self.merge(chunk) if words == [chunk] else b"".join(map(self.__getitem__, words))

    def merge(self, word: str) -> bytes:
        """The ids of one word, as native int32."""
        ids = list(word.encode().translate(self.to_id))
        ids[-1] += 256
        merge = self.merge_short if len(ids) <= SHORT else self.merge_long
        return array("i", merge(ids)).tobytes()

    def merge_short(self, ids: list[int]) -> list[int]:
        """Merge the first pair of the lowest rank, again and again: O(n^2)."""
        get = self.pairs.get
        ids = list(ids)
        ranks = [get(a << 16 | b, _NONE) for a, b in pairwise(ids)]
        while (low := min(ranks, default=_NONE)) < _NONE:
            at = ranks.index(low)
            del ids[at + 1], ranks[at]
            ids[at] = low
            if at:
                ranks[at - 1] = get(ids[at - 1] << 16 | low, _NONE)
            if at < len(ranks):
                ranks[at] = get(low << 16 | ids[at + 1], _NONE)
        return ids

    def merge_long(self, ids: list[int]) -> list[int]:
        """The same, in time linear in a long word: by windows, which keeps the lists in cache.

        A sequence of ids is the encoding of its text if each two neighbours are the encoding of
        theirs: a merge across a seam would also happen between those two alone, because the parts
        of a merge are older than it. So a window ends some ids early, the next one starts there,
        and the two ids at the seam are looked at. Where they would merge, the window before is
        read again, and windows are twice as long from then on.
        """
        out: list[int] = []
        begun: list[tuple[int, int]] = []  # of each window: its first symbol, and ids before it
        start, size, expected = 0, WINDOW, -1
        while True:
            window = self.merge_window(ids[start : start + size])
            if out and window[0] != expected and not self._neighbours(out[-1], window[0]):
                start, before = begun.pop()
                del out[before:]
                size, expected = 2 * size, -1
                continue
            if start + size >= len(ids):
                return out + window
            keep = max(1, len(window) - OVERLAP)
            begun.append((start, len(out)))
            out += window[:keep]
            start += sum(map(self.lengths.__getitem__, window[:keep]))
            expected = window[keep] if keep < len(window) else -1

    def head(self, word: str, limit: int) -> bytes:
        """The first `limit` + 1 ids of a very long word, without merging the rest of it.

        No id is longer than `longest` symbols, so of that many places in a row one is a seam of the
        whole word's encoding, and up to there it is the encoding of the part. If the parts that
        end at each of these places begin with the same ids, so does the whole.
        """
        symbols = word.encode().translate(self.to_id)
        size = 8 * limit
        while 2 * size < len(symbols):
            first = self.merge_window([*symbols[:size]])[: limit + 1]
            if len(first) > limit:
                ends = range(size + 1, size + self.longest)
                if all(self.merge_window([*symbols[:e]])[: limit + 1] == first for e in ends):
                    return array("i", first).tobytes()
            size *= 2
        return self.merge(word)

    def _neighbours(self, left: int, right: int) -> bool:
        """Whether the text of two ids is encoded as these two."""
        symbols = []
        for id_ in (left, right):
            spelling = self.spelling[id_]
            symbols += spelling[: self.lengths[id_]].translate(self.to_id)
            symbols[-1] += 256 * (len(spelling) > self.lengths[id_])
        return self.merge_short(symbols) == [left, right]

    def merge_window(self, ids: list[int]) -> list[int]:
        """The same in O(n log n): a linked list, and the places of each merge in a bucket.

        Written out, as each call and tuple here is a tenth of the time of a megabyte. Buckets come
        in the order of their rank; it only rises, as a merge uses older merges.
        """
        get, end = self.pairs.get, len(ids)
        ids = [*ids, -1, -1]  # guards: ids[end], and ids[-1] before the first
        after, before = list(range(1, end + 3)), list(range(-1, end + 1))
        buckets: dict[int, list[int]] = {}  # id of the merge -> places of its left part
        for place, (a, b) in enumerate(pairwise(ids[:end])):
            if (new := get(a << 16 | b)) is not None:
                buckets.setdefault(new, []).append(place)
        ranks = list(buckets)
        heapify(ranks)
        while ranks:
            rank = heappop(ranks)
            left, right = self.parts[rank]
            for place in sorted(buckets.pop(rank)):
                other = after[place]
                if ids[place] != left or ids[other] != right:
                    continue  # an earlier merge took one of the two
                ids[place], ids[other] = rank, -1
                after[place] = following = after[other]
                before[following] = place
                leading = before[place]
                if (new := get(rank << 16 | ids[following])) is not None:
                    if new in buckets:
                        buckets[new].append(place)
                    else:
                        buckets[new] = [place]
                        heappush(ranks, new)
                if (new := get(ids[leading] << 16 | rank)) is not None:
                    if new in buckets:
                        buckets[new].append(leading)
                    else:
                        buckets[new] = [leading]
                        heappush(ranks, new)
        return [id_ for id_ in ids if id_ >= 0]


@cache
def _words(path: Path | None) -> Words:
    """The merges in `path`, plain or gzip; None: those in the package."""
    if path is None:
        data = (resources.files("diptych") / "assets" / "clip_bpe.txt.gz").read_bytes()
    else:
        data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    try:
        lines = data.decode().split("\n")
        first = 1 if "#version" in lines[0] else 0
        merges = [line.split() for line in lines[first : first + NUM_MERGES] if line]
        return Words([(left, right) for left, right in merges])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a file of byte-pair merges, two symbols a line ({error!r}). "
            "Use CLIP's merges.txt or bpe_simple_vocab_16e6.txt.gz."
        ) from error


class ClipBPE:
    """A vocabulary (see `base.Vocabulary`) of byte-pair merges; texts follow OpenAI's rules."""

    def __init__(self, path: Path | None, clean: str):
        self.clean = clean
        self.words = _words(path)
        self.size = self.words.size
        self.control = frozenset({self.size - 2, self.size - 1})

    def rows(
        self, texts: Sequence[str], *, limit: int | None = None, specials: Specials | None = None
    ) -> list[bytes]:
        """The ids of each text as native int32. A long text may end once it passes `limit` ids."""
        if self.clean not in ("openai", "transformers") or specials is not None:
            return [self._row(text, limit, specials) for text in texts]
        found: list[bytes] = []
        for start in range(0, len(texts), BATCH):
            found += self._batch(list(texts[start : start + BATCH]), limit)
        return found

    def _batch(self, texts: list[str], limit: int | None) -> list[bytes]:
        """`rows` of some texts: those that need no cleaning are joined and looked up at once."""
        others = [
            i
            for i, text in enumerate(texts)
            if not (text.isascii() and text.isprintable() and len(text) <= BLOCK) or "&" in text
        ]
        rows = [self._row(texts[i], limit, None) for i in others]
        for i in others:
            texts[i] = ""
        chunks = f" {END} ".join(texts).lower().split(" ")
        found = b"".join(map(self.words.__getitem__, chunks)).split(MARK)
        for i, row in zip(others, rows, strict=True):
            found[i] = row
        return found

    def _row(self, text: str, limit: int | None, specials: Specials | None) -> bytes:
        get = self.words.__getitem__
        if specials is not None:
            get = _Special(self.words, specials).get
        elif limit is not None and len(text) > BLOCK:
            get = partial(self._head, limit=limit)
        found = []
        total = 0
        for block in blocks(text, self.clean):
            chunks = block.replace(END, " ").split(" ")  # a line end is white space, not END
            row = b"".join(map(get, chunks))
            found.append(row)
            total += len(row) // 4
            if limit is not None and total > limit:
                break
        return b"".join(found)

    def _head(self, chunk: str, *, limit: int) -> bytes:
        """Chunk -> its ids, or of a very long one at least the first `limit` + 1."""
        if len(chunk) <= LONG:
            return self.words[chunk]
        found = b""
        for word in self.words.pattern.finditer(chunk):
            text = word.group()
            found += self.words.head(text, limit) if len(text) > LONG else self.words[text]
            if len(found) > 4 * limit:
                break
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` as `SimpleTokenizer.decode` has it: control ids spelled, a space a word."""
        names = [name.encode() for name in SPELLING["openai"]]
        table = self.words.spelling
        joined = b"".join(
            table[id_] if id_ < len(table) else names[id_ - len(table)] for id_ in ids
        )
        return joined.decode(errors="replace").replace("</w>", " ")


class _Special:
    """Chunk -> ids where a peer's spelling of the control tokens stands for their ids."""

    def __init__(self, words: Words, specials: Specials):
        self.words = words
        self.ids = {
            name: array("i", [words.size - 2 + i]).tobytes()
            for i, name in enumerate(SPELLING[specials])
        }
        names = "|".join(regex.escape(name) for name in self.ids)
        self.pattern = regex.compile(f"{names}|{_WORD}", regex.IGNORECASE)

    def get(self, chunk: str) -> bytes:
        if "<" not in chunk:
            return self.words[chunk]
        found = self.pattern.findall(chunk)
        return b"".join(self.ids.get(word) or self.words.merge(word) for word in found)
