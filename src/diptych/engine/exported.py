"""An exported folder: what its diptych.json says, and whether its files still give those vectors.

- `diptych.json` is that of `zoo.native` (config, pixels, tokens, licence) with one more key,
  "export": the towers' inputs and outputs, hashes, and how far the files are from the model.
- `reference.safetensors` holds sample photographs and captions as the graphs take them, and the
  vectors of the PyTorch model in fp32: a check needs neither the weights nor a tokenizer.
- Nothing here runs code that lies in a folder: ONNX has none, and a .pt2, which may, is not opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diptych import zoo
from diptych.engine.gate import sample_images, sample_texts
from diptych.engine.graph import Precision, Side, Tower, open_onnx, sides
from diptych.engine.lengths import cut
from diptych.errors import CheckpointError
from diptych.zoo.native import SIDECAR, decode
from diptych.zoo.settings import read_json

if TYPE_CHECKING:
    from diptych.engine.encoder import Encoder

__all__ = [
    "KEY",
    "REFERENCE",
    "Parity",
    "check_export",
    "compare",
    "is_export",
    "measure",
    "read_manifest",
    "sample_inputs",
    "sides_of",
]

Rows: TypeAlias = Callable[[Tensor], Tensor]  # an image or text batch to unit rows [n e]

KEY = "export"
REFERENCE = "reference.safetensors"
NUM_SAMPLES = 8

# What may differ from the fp32 model: unit rows element by element, or in direction.
BOUNDS: dict[Precision, tuple[str, float]] = {
    "fp32": ("max_abs", 2e-6),
    "fp16": ("one_minus_cosine", 1e-3),
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a file's unit rows were from the fp32 model's, the largest over a batch.

    what: the batch, in words.
    """

    tower: Tower
    what: str
    one_minus_cosine: float
    max_abs: float

    def differs(self, precision: Precision) -> bool:
        """Whether that is above the bound of the precision; NaN is."""
        which, bound = BOUNDS[precision]
        return not asdict(self)[which] <= bound

    def __str__(self) -> str:
        return f"1 - cosine {self.one_minus_cosine:.1e}, largest difference {self.max_abs:.1e}"


def sample_inputs(encoder: Encoder, side: Side) -> Tensor:
    """The first sample photographs or captions of the package, as the graph takes them."""
    if side.side == "text":
        return sample_texts(encoder.tokenizer)[:NUM_SAMPLES]
    prepare = encoder.preprocess if side.pixels is None else encoder.preprocess.uint8
    return sample_images(prepare, NUM_SAMPLES)


def measure(run: Rows, reference: Rows, side: Side, batch: Tensor) -> list[Parity]:
    """`compare` on a batch, on its last row alone, and on both cut, where texts may be."""
    batches = {f"{len(batch)} rows": batch, "1 row": batch[-1:]}
    if side.shorter:
        for what, rows in list(batches.items()):
            rows = cut(side.tower, rows).contiguous()
            batches[f"{what} of {rows.shape[1]} ids"] = rows
    with torch.no_grad():  # a loaded program of torch has parameters
        return [compare(run(x), reference(x), side.side, what) for what, x in batches.items()]


def compare(found: Tensor, expected: Tensor, tower: Tower, what: str) -> Parity:
    """How far unit rows [n e] are from those that are expected, the largest over the rows."""
    a, b = found.double(), expected.double()
    cosine = F.cosine_similarity(a, b, dim=-1)
    return Parity(
        tower=tower,
        what=what,
        one_minus_cosine=float((1 - cosine).max()),
        max_abs=float((a - b).abs().max()),
    )


def is_export(path: str | Path) -> bool:
    """Whether a path is a folder that `export` has written."""
    sidecar = Path(path) / SIDECAR
    if not sidecar.is_file():
        return False
    data = read_json(sidecar)
    return isinstance(data, dict) and KEY in data


def read_manifest(folder: Path) -> dict[str, Any]:
    """The "export" part of a folder's diptych.json; the rest is read too, and must be whole.

    Raises:
        CheckpointError: not an exported folder, or its diptych.json is malformed.
    """
    path = folder / SIDECAR
    if not is_export(folder):
        raise CheckpointError(f"{folder}: is no exported folder. Type: diptych models export")
    decode(path.read_text("utf-8"), str(path))
    manifest = read_json(path)[KEY]
    wanted = {"format": str, "precision": str, "mode": str, "fingerprint": str}
    wanted |= {"towers": dict, "files": dict}
    for key, kind in wanted.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise CheckpointError(f"{path}: {key!r} of its {KEY!r} is missing. Export it again.")
    names = [*manifest["files"], *(tower.get("file") for tower in manifest["towers"].values())]
    if wrong := [name for name in names if Path(str(name)).name != name]:
        raise CheckpointError(f"{path}: {wrong[0]!r} is not the name of a file in the folder.")
    if manifest["precision"] not in BOUNDS or not manifest["towers"].keys() <= {"image", "text"}:
        raise CheckpointError(f"{path}: of a later version. Type: pip install --upgrade diptych")
    return manifest


def check_export(folder: Path, encoder: Encoder | None = None) -> dict[str, Any]:
    """Hold an exported folder against its own hashes and reference vectors, or against a model.

    Args:
        encoder: the model that it is said to be; None: the vectors that lie in the folder.

    Returns:
        What was found, in words; "differs": whether a vector is above the bound, or the model is
        another one.

    Raises:
        CheckpointError: a file is missing, or is not the one that was written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    manifest = read_manifest(folder)
    precision: Precision = manifest["precision"]
    _check_hashes(folder, manifest["files"])
    facts: dict[str, Any] = {"model": str(folder), "format": f"export, {manifest['format']}"}
    facts |= {"precision": precision, "fingerprint": manifest["fingerprint"]}
    facts |= {"files": list(manifest["files"]), "hashes": "all as they should be"}
    differs = False
    if encoder is not None and encoder.fingerprint != manifest["fingerprint"]:
        facts["made of"] = f"another model: that one has the fingerprint {encoder.fingerprint}"
        differs = True
    if manifest["format"] != "onnx":
        why = "not run: a .pt2 file can run code when it is opened"
        return facts | {"vectors": why, "differs": differs}
    for parity in _parities(folder, manifest, encoder):
        bad = parity.differs(precision)
        facts[f"{parity.tower}, {parity.what}"] = f"{parity}{' DIFFERS' if bad else ''}"
        differs = differs or bad
    return facts | {"differs": differs}


def _parities(folder: Path, manifest: dict[str, Any], encoder: Encoder | None) -> list[Parity]:
    try:
        stored = {} if encoder is not None else load_file(folder / REFERENCE)
        found: list[Parity] = []
        for tower, facts in manifest["towers"].items():
            run, taken, given = open_onnx(folder / facts["file"]), facts["input"], facts["output"]
            if encoder is not None:
                side = sides_of(encoder, uint8=taken["dtype"] == "uint8")[tower]
                found += measure(run, side.rows, side, sample_inputs(encoder, side))
            else:
                batch, expected = stored[taken["name"]], stored[given["name"]]
                found.append(compare(run(batch), expected, tower, f"{len(batch)} rows"))
    except (KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: is malformed ({error!r}). Export it again.") from None
    return found


def sides_of(encoder: Encoder, *, uint8: bool = False) -> dict[Tower, Side]:
    """Both towers of an encoder; see `graph.sides`."""
    pixels = encoder.preprocess.config
    return sides(encoder.model, encoder.config, pixels, encoder.tokenizer_config, uint8=uint8)


def _check_hashes(folder: Path, files: Mapping[str, str]) -> None:
    for name, sha256 in files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is missing. Export the model again.")
        if (found := zoo.sha256_of(folder / name)) != sha256:
            raise CheckpointError(
                f"{folder / name}: its SHA-256 is {found}, the file that was exported had "
                f"{sha256}. Export the model again."
            )
