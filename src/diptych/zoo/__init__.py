"""What exists in the world, and reading and writing every publisher's format.

`registry` holds the rows, `reading` reads, `writing` writes, `keymaps` states the tensors'
names, `torchscript` and `tensors` open files without running them, `identity` hashes models,
`fetch` finds or downloads what a model needs.
"""

from diptych.zoo.cache import cache_folder, find, locate, published, read_record
from diptych.zoo.checkpoint import Checkpoint, Format, check_finite, check_shapes
from diptych.zoo.facts import describe, num_parameters
from diptych.zoo.fetch import Fetched, fetch, fetch_files, fetch_url, fetch_vocabulary
from diptych.zoo.identity import fingerprint, identify, sha256_of, verify
from diptych.zoo.net.web import hub, is_offline
from diptych.zoo.opening import open_model
from diptych.zoo.reading import read, read_state_dict
from diptych.zoo.registry import Asset, Golden, Hub, Row, Url, get, list_models
from diptych.zoo.writing import save, write

__all__ = [
    "Asset",
    "Checkpoint",
    "Fetched",
    "Format",
    "Golden",
    "Hub",
    "Row",
    "Url",
    "cache_folder",
    "check_finite",
    "check_shapes",
    "describe",
    "fetch",
    "fetch_files",
    "fetch_url",
    "fetch_vocabulary",
    "find",
    "fingerprint",
    "get",
    "hub",
    "identify",
    "is_offline",
    "list_models",
    "locate",
    "num_parameters",
    "open_model",
    "published",
    "read",
    "read_record",
    "read_state_dict",
    "save",
    "sha256_of",
    "verify",
    "write",
]
