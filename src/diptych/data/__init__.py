"""Where samples come from: tar shards, lists and folders; whatever is dropped is counted.

`read_shard` streams one shard. For training there is `data.pairs.Pairs`: indexed sources, a fixed
order, batches. It needs torch, and so it is not imported here.
"""

from diptych.data.shards import (
    SHARD_SUFFIXES,
    Drop,
    Report,
    Sample,
    is_shard,
    read_sample,
    read_shard,
    split_name,
)
from diptych.data.sources import Source

__all__ = [
    "SHARD_SUFFIXES",
    "Drop",
    "Report",
    "Sample",
    "Source",
    "is_shard",
    "read_sample",
    "read_shard",
    "split_name",
]
