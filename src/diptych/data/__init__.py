"""Where samples come from: tar shards and lists of files; whatever is dropped is counted."""

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

__all__ = [
    "SHARD_SUFFIXES",
    "Drop",
    "Report",
    "Sample",
    "is_shard",
    "read_sample",
    "read_shard",
    "split_name",
]
