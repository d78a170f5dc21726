"""What `diptych models show` tells of a row: sizes, work and memory computed, the rest as stated.

- Nothing is run: towers are walked through on the meta device, where tensors have shapes alone.
- A multiply-add counts as two operations, as in open_clip's `docs/model_profile.csv`, with which
  the figures agree; ResNets need less here, for the peer's attention pool computes every position
  and keeps one.
"""

import weakref
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from diptych.config import CLIPConfig, to_dict
from diptych.towers import outline
from diptych.zoo.registry import Asset, Hub, Row, Source, Url

__all__ = [
    "Counts",
    "Fused",
    "address",
    "describe",
    "gflops",
    "num_parameters",
    "num_weights",
    "peak_memory",
    "walk",
]

BATCHES = (1, 32)


@cache
def num_parameters(config: CLIPConfig) -> dict[str, int]:
    """Parameters of the whole model and of each tower; computed without memory for them."""
    model = outline(config)
    parts = {"parameters": model, "of them visual": model.visual, "of them text": model.text}
    return {what: sum(p.numel() for p in part.parameters()) for what, part in parts.items()}


@cache
def num_weights(config: CLIPConfig) -> int:
    """Numbers that a file holds: parameters and buffers."""
    return sum(x.numel() for x in outline(config).state_dict().values())


def gflops(row: Row) -> dict[str, float]:
    """10^9 operations for one image and for one text of full length: products and convolutions."""
    walked = walk(row, 32)
    return {side: counts.flops / 32 / 1e9 for side, counts in walked.items()}


def peak_memory(row: Row, batch: int) -> int:
    """Bytes in fp32: all weights, and what lives at once in the hungrier tower for `batch` inputs.

    Computed, not measured: attention as a fused kernel, without the work space of kernels and what
    an allocator holds back. On a CPU, batch 32, the part beside the weights was measured to be 1.0
    to 2 times as large (tests/zoo/test_facts.py).
    """
    return 4 * num_weights(row.config) + max(counts.peak for counts in walk(row, batch).values())


def walk(row: Row, batch: int) -> dict[str, "Counts"]:
    """What both towers do with `batch` images and texts, by "image" and "text"."""
    return _walk(row.config, row.preprocess.size, row.tokenizer.context_length, batch)


@cache
def _walk(
    config: CLIPConfig, size: tuple[int, int], context_length: int, batch: int
) -> dict[str, "Counts"]:
    """Both towers on the meta device, each with a counter of its own."""
    model = outline(config).eval().requires_grad_(False)
    inputs = {
        "image": (model.visual, torch.empty(batch, 3, *size, device="meta")),
        "text": (model.text, torch.zeros(batch, context_length, dtype=torch.long, device="meta")),
    }
    walked = {}
    for side, (tower, pixels_or_ids) in inputs.items():
        counts = Counts()
        counts.see(pixels_or_ids)
        with torch.no_grad(), counts, Fused(counts):
            tower(pixels_or_ids)
        walked[side] = counts
    return walked


class Counts(TorchDispatchMode):
    """Counts operations, and the bytes of the storages that live at once; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.flops = self.bytes = self.peak = 0
        self._live: set[int] = set()

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._live:
            self._live.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            # a view of a weight is no new memory
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in inputs:
                self.see(tensor)
        return out


class Fused(TorchFunctionMode):
    """Attention without its matrix of weights, as the fused kernel of every backend computes it."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args: Any = (), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        shapes = [x.shape for x in args[:3]]  # query, key, value
        self.counts.flops += sdpa_flop_count(*shapes)
        return torch.empty_like(args[0])


def describe(row: Row, *, work: bool = True) -> dict[str, Any]:
    """A row as names and JSON-ready values; `work=False` leaves out what takes tenths of seconds.

    The work and memory are of one image size and the full context, in fp32.
    """
    facts: dict[str, Any] = {"name": row.name, **num_parameters(row.config)}
    if work:
        numbers = num_weights(row.config)
        facts["gflops"] = {side: round(value, 2) for side, value in gflops(row).items()}
        facts["weights_bytes"] = {"fp32": 4 * numbers, "bf16": 2 * numbers}
        facts["peak_memory_bytes"] = {f"batch {n}": peak_memory(row, n) for n in BATCHES}
        facts["peak_memory_is"] = "computed for fp32, without the work space of kernels"
    return {
        **facts,
        "image_size": list(row.preprocess.size),
        "embed_dim": row.config.embed_dim,
        "context_length": row.tokenizer.context_length,
        "licence": row.licence,
        "non_commercial": row.non_commercial,
        "metrics": dict(row.metrics),
        "metrics_source": row.metrics_source,
        "sources": [address(source) for source in row.sources],
        "sha256": {address(s): s.sha256 for s in row.sources if s.sha256},
        "notes": list(row.notes),
        "config": to_dict(row.config),
        "preprocess": to_dict(row.preprocess),
        "tokenizer": to_dict(row.tokenizer),
    }


def address(source: Source) -> str:
    """Where a source lies, as a person would look for it."""
    match source:
        case Asset(file=file):
            return f"in this package: assets/{file}"
        case Url(url=url):
            return url
        case Hub(repo=repo, revision=revision):
            return f"https://huggingface.co/{repo} ({revision})"
