"""What exists in the world, and reading and writing every publisher's format.

`registry` holds the rows, `reading` reads, `writing` writes, `keymaps` states the tensors'
names, `torchscript` and `tensors` open files without running them, `identity` hashes models.
"""

from diptych.zoo.cache import cache_folder, find, locate
from diptych.zoo.checkpoint import Checkpoint, Format, check_finite, check_shapes
from diptych.zoo.facts import describe, num_parameters
from diptych.zoo.identity import fingerprint, identify, sha256_of, verify
from diptych.zoo.opening import open_model
from diptych.zoo.reading import read, read_state_dict
from diptych.zoo.registry import Asset, Hub, Row, Url, get, list_models
from diptych.zoo.writing import save, write

__all__ = [
    "Asset",
    "Checkpoint",
    "Format",
    "Hub",
    "Row",
    "Url",
    "cache_folder",
    "check_finite",
    "check_shapes",
    "describe",
    "find",
    "fingerprint",
    "get",
    "identify",
    "list_models",
    "locate",
    "num_parameters",
    "open_model",
    "read",
    "read_state_dict",
    "save",
    "sha256_of",
    "verify",
    "write",
]
