"""CUDA: towers replayed as graphs, and batches copied up beside the work.

- A small batch on a GPU waits for its launches, more than a hundred of them. A CUDA graph launches
  them all at once; the kernels are the same.
- A graph has fixed shapes: a batch is padded to the next of `BATCHES`, and a causal text is cut to
  the next multiple of `STEP` tokens, on the CPU, before it is copied.
- What a graph holds is never stale: a tower that was changed (`Versions`) is captured again.
- Each graph has its own memory, so that one that is dropped gives it back.
- Whatever cannot be captured runs as before, and the log says so once.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diptych.engine.lengths import cut
from diptych.engine.versions import Versions

__all__ = ["BATCHES", "STEP", "Captured", "Graphs", "Uploader", "record"]

log = logging.getLogger("diptych")

# sizes that are captured: from 9 on, less than half as much again is computed in vain
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
STEP = 8  # tokens: a text is cut to a multiple of it
_WARM_UPS = 3  # runs before a capture: libraries choose kernels and take their workspaces

Run = Callable[[Tensor], Tensor]


class Captured(NamedTuple):
    """A run of fixed shape: `replay()` computes `output` from what the input buffer holds."""

    output: Tensor  # [n e], the buffer that every replay writes
    replay: Callable[[], None]
    num_bytes: int  # of memory that it keeps, beside its input


class Capture(Protocol):
    def __call__(self, run: Run, buffer: Tensor) -> Captured: ...


class record:
    """Captures a CUDA graph of a run. One for each `Graphs`; calls must not overlap."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, run: Run, buffer: Tensor) -> Captured:
        """The graph of `run(buffer)`; both its input and its output keep their addresses.

        Raises:
            RuntimeError: something in `run` cannot be captured, as reading a value on the host.
        """
        # warm-up on the stream of the capture: the workspaces of cuBLAS belong to a stream, and one
        # made during a capture would live in the graph's memory and be used after the graph is gone
        self.stream = self.stream or torch.cuda.Stream(self.device)
        now = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            for _ in range(_WARM_UPS):
                run(buffer)
        now.wait_stream(self.stream)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may pin memory and wait for their own work meanwhile
        how = {"stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **how):
            output = run(buffer)
        grown = torch.cuda.memory_reserved(self.device) - before
        return Captured(output, graph.replay, max(grown, 0))


class _Entry:
    """One graph with its buffers, and the event after its last use."""

    def __init__(self, buffer: Tensor, captured: Captured):
        self.buffer, self.captured = buffer, captured
        self.num_bytes = buffer.nbytes + captured.num_bytes
        self.done = torch.cuda.Event() if buffer.is_cuda else None

    def __call__(self, batch: Tensor) -> Tensor:
        n = len(batch)
        if self.done is not None:  # callers may be on different streams
            torch.cuda.current_stream(self.buffer.device).wait_event(self.done)
        self.buffer[:n].copy_(batch)  # the rows behind keep what they had: no row sees another
        self.captured.replay()
        output = self.captured.output[:n].clone()  # the next call writes over it
        if self.done is not None:
            self.done.record(torch.cuda.current_stream(self.buffer.device))
        return output

    def close(self) -> None:
        """Waits until the GPU is through with it, so that its memory may go."""
        if self.done is not None:
            self.done.synchronize()


class Graphs:
    """Calls a tower by graphs where it can, else by `eager`; the same vectors up to rounding.

    Safe to share between threads. No gradients. A shape is captured when it comes for the second
    time, so that one question pays for no capture. Pickles without its graphs.

    Args:
        tower: the reference, watched for changes.
        eager: batch on the device -> [n e]: what runs where no graph does.
        fixed: gives the run to capture, for the weights as they are at that moment: it must read
            no value on the host. None: the tower must run as it is.
        device: of the tower.
        capture: how a run is captured; None: `record`.
        largest: larger batches run by `eager`: there the launches cost nothing.
        most: graphs that are kept; the one not used for longest goes first.
        memory: bytes that they may keep together; None: a quarter of the device's.
        compile: runs are compiled before they are captured, which fuses norms, casts and sums;
            the first call of a kind then takes half a minute.
    """

    def __init__(
        self,
        tower: nn.Module,
        eager: Run,
        fixed: Callable[[], Run | None],
        *,
        device: torch.device,
        capture: Capture | None = None,
        largest: int = BATCHES[-1],
        most: int = 32,
        memory: int | None = None,
        compile: bool = False,
    ):
        self.tower, self.eager, self.fixed, self.device = tower, eager, fixed, device
        self.largest, self.most, self.memory, self.compile = largest, most, memory, compile
        self.capture = capture
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._capture = self.capture or record(self.device)
        self._versions: Versions | None = None
        self._run: Run | None = None
        self._graphs: OrderedDict[tuple, _Entry] = OrderedDict()
        self._seen: Counter[tuple] = Counter()
        self._refused: set[tuple] = set()

    def __call__(self, batch: Any) -> Tensor:
        """[n e] of pixels [n 3 H W], ids [n s] or patches, on any device."""
        with torch.no_grad(), self._on_device():
            if not isinstance(batch, Tensor):
                return self.eager(type(batch)(*(part.to(self.device) for part in batch)))
            batch = cut(self.tower, batch, STEP)
            fits = 0 < len(batch) <= self.largest
            if fits and not torch.is_autocast_enabled(self.device.type):
                with self._lock:
                    graph = self._graph(batch)
                    if graph is not None:
                        return graph(batch)
            return self.eager(batch.to(self.device))

    def _on_device(self) -> AbstractContextManager:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _graph(self, batch: Tensor) -> _Entry | None:
        """The graph for this shape, captured if its time has come. Under the lock."""
        if self._versions is None or not self._versions.hold():
            self._clear()
            self._versions, self._run = Versions(self.tower), self.fixed()
            if self._run is not None and self.compile:
                self._run = torch.compile(self._run)
        if self._run is None:
            return None
        n = next(size for size in (*BATCHES, self.largest) if size >= len(batch))
        shape = (min(n, self.largest), *batch.shape[1:])
        # the precision of fp32 products is torch's, and a graph keeps that of its capture
        key = (shape, batch.dtype, torch.get_float32_matmul_precision())
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        self._seen[key] += 1
        if self._seen[key] < 2 or key in self._refused:
            return None
        return self._add(key, self._run, batch)

    def _add(self, key: tuple, run: Run, batch: Tensor) -> _Entry | None:
        shape, dtype, _ = key
        try:
            buffer = torch.empty(shape, dtype=dtype, device=self.device)
            buffer[:] = batch[-1]  # real values: kernels are chosen, and ids looked up, by them
            entry = _Entry(buffer, self._capture(run, buffer))
        except RuntimeError as error:  # of CUDA: not capturable, or out of memory
            if not self._refused:
                first = str(error).partition("\n")[0]
                log.warning("no CUDA graph of %s, it runs without: %s", list(shape), first)
            self._refused.add(key)
            return None
        memory = self._budget()
        if entry.num_bytes > memory:
            log.info("a CUDA graph of %s takes %d bytes: not kept", list(shape), entry.num_bytes)
            self._refused.add(key)
            return None
        self._graphs[key] = entry
        while len(self._graphs) > self.most or self.num_bytes > memory:
            self._graphs.popitem(last=False)[1].close()
        return entry

    def _budget(self) -> int:
        if self.memory is None:
            self.memory = torch.cuda.get_device_properties(self.device).total_memory // 4
        return self.memory

    @property
    def num_bytes(self) -> int:
        """Bytes that the graphs keep on the device, with their buffers."""
        return sum(entry.num_bytes for entry in self._graphs.values())

    def __len__(self) -> int:
        """Graphs that are kept now."""
        return len(self._graphs)

    def clear(self) -> None:
        """Drops all graphs and gives their memory back."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        for entry in self._graphs.values():
            entry.close()
        self._graphs.clear()
        self._seen.clear()
        self._refused.clear()
        self._versions = self._run = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


class _Slot:
    """Memory of the host that a copy to the device reads; free when its event has passed."""

    def __init__(self, allocate: Callable[[int], Tensor]):
        self.allocate = allocate
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.copied: Any = None  # the event after the copy that reads it

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of it, once nothing reads it any more."""
        if self.copied is not None:
            self.copied.synchronize()
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if len(self.memory) < num_bytes:
            self.memory = self.allocate(num_bytes)
        return self.memory[:num_bytes].view(dtype).view(*shape)


class Uploader:
    """Copies batches to a GPU beside its work: two pinned buffers and a stream of its own.

    The caller's stream waits for the copy, the caller does not. While the GPU runs one batch the
    next is copied. On other devices batches are only moved. Safe to share between
    threads.
    """

    def __init__(self, device: torch.device, *, num_buffers: int = 2):
        self.device, self.num_buffers = device, num_buffers
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        self._slots = [_Slot(_pinned) for _ in range(self.num_buffers)]
        self._next = 0

    def __call__(self, batch: Tensor) -> Tensor:
        """The batch on the device."""
        if self.device.type != "cuda" or batch.is_cuda:
            return batch.to(self.device)
        return self._copy(batch)

    def _copy(self, batch: Tensor) -> Tensor:
        with self._lock, torch.cuda.device(self.device):
            self._stream = self._stream or torch.cuda.Stream()
            slot = self._slots[self._next]
            self._next = (self._next + 1) % len(self._slots)
            host = slot.take(batch.shape, batch.dtype)
            host.copy_(batch)
            with torch.cuda.stream(self._stream):
                copied = host.to(self.device, non_blocking=True)
                slot.copied = torch.cuda.Event()
                slot.copied.record(self._stream)
            now = torch.cuda.current_stream()
            now.wait_event(slot.copied)
            copied.record_stream(now)  # its memory is the copy stream's: not to be reused too soon
            return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"device": self.device, "num_buffers": self.num_buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
