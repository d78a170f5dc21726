"""Bulk embedding: shards in, folders of vectors out, by any number of workers anywhere.

`plan` names what there is to do, `lease` says who does it, `unit` does one shard, `worker` does all
of them, `launch` starts workers.
"""

from diptych.engine.bulk.launch import (
    Place,
    Task,
    default_workers,
    place,
    run_here,
    run_local,
    run_ray,
)
from diptych.engine.bulk.plan import Job, Manifest, expand, finished, plan, read_manifest
from diptych.engine.bulk.unit import embed_shard, retry_shard
from diptych.engine.bulk.worker import LEASE, Told, work

__all__ = [
    "LEASE",
    "Job",
    "Manifest",
    "Place",
    "Task",
    "Told",
    "default_workers",
    "embed_shard",
    "expand",
    "finished",
    "place",
    "plan",
    "read_manifest",
    "retry_shard",
    "run_here",
    "run_local",
    "run_ray",
    "work",
]
