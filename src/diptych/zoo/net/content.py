"""Is a file what its name says? Looked at before it gets that name."""

import json
import zipfile
from pathlib import Path

from diptych.errors import CheckpointError
from diptych.zoo.tensors import safetensors_header

__all__ = ["WEIGHTS", "check_content", "is_web_page"]

MAX_JSON = 64 << 20  # bytes; no reader of ours takes more
ARCHIVES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHTS = (".safetensors", *ARCHIVES)


def is_web_page(head: bytes) -> bool:
    """Whether the first bytes are HTML's: a login page, a captive portal, a proxy's excuse."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16].lower()
    return text.startswith((b"<!doctype html", b"<html"))


def check_content(path: Path, name: str) -> None:
    """Whether the bytes in `path` can be a file called `name`, and are all there.

    Safetensors state their length, a zip archive ends with its directory, JSON closes its
    brackets. The old format of `torch.save` says nothing of its end: its hash or length must.

    Raises:
        CheckpointError: says what it is instead, or that it is cut off.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if is_web_page(head):
        raise CheckpointError(f"{name}: is a web page.")
    suffix = Path(name).suffix
    if suffix == ".safetensors":
        _check_safetensors(path, name)
    elif suffix in ARCHIVES and head[:4] == b"PK\3\4":
        _check_zip(path, name)
    elif suffix in ARCHIVES and head[:1] != b"\x80":
        raise CheckpointError(f"{name}: starts with {head[:8]!r}: no file of torch.save.")
    elif suffix == ".json" and path.stat().st_size <= MAX_JSON:
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name}: is no JSON ({error}).") from None


def _check_safetensors(path: Path, name: str) -> None:
    header = safetensors_header(path)
    try:
        end = max((e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"))
        with path.open("rb") as file:
            stated = 8 + int.from_bytes(file.read(8), "little") + end
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise CheckpointError(f"{name}: its safetensors header is malformed ({error!r}).") from None
    if stated != path.stat().st_size:
        raise CheckpointError(
            f"{name}: its header states {stated} bytes, the file has {path.stat().st_size}."
        )


def _check_zip(path: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{name}: is cut off or damaged ({error}).") from None
