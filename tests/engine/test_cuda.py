"""Graphs give the eager path's vectors, whatever is padded, dropped or changed; without a GPU.

`Repeat` stands for a capture: like a graph it reads and writes fixed buffers, and knows only the
run that it was given, so that stale weights and mixed-up rows would show.
"""

import copy
import logging
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych import towers
from diptych.config import BertConfig, TextConfig, ViTConfig
from diptych.engine.cuda import BATCHES, Captured, Graphs, Uploader, _Slot, record
from diptych.engine.lengths import cut
from diptych.engine.lower import Lowered
from diptych.engine.versions import Versions

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
VIT = ViTConfig(image_size=(16, 16), patch_size=8, width=32, layers=2, heads=4, mlp_dim=64)
TEXT = TextConfig(context_length=20, vocab_size=99, width=32, layers=2, heads=4, mlp_dim=64)
BERT = BertConfig(context_length=20, vocab_size=99, width=32, layers=2, heads=4, mlp_dim=64)


def tower_of(cfg) -> nn.Module:
    torch.manual_seed(0)
    tower = towers.build(cfg, 16).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return tower


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def texts(n: int, longest: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 98, (n, 20), generator=generator)
    for row in ids:
        end = int(torch.randint(2, longest, (), generator=generator))
        row[end], row[end + 1 :] = 98, 0
    ids[0] = torch.tensor([5] * (longest - 1) + [98] + [0] * (20 - longest))
    return ids


class Repeat:
    """A capture that runs again on the buffers it was given."""

    def __init__(self, num_bytes: int = 1):
        self.num_bytes, self.shapes = num_bytes, []

    def __call__(self, run, buffer):
        self.shapes.append(tuple(buffer.shape))
        output = torch.empty_like(run(buffer))
        return Captured(output, lambda: output.copy_(run(buffer)), self.num_bytes)


def graphs_of(tower, *, memory=1 << 30, capture=None, **how):
    """(graphs, the fake capture, the eager path)"""
    lowered = Lowered(tower, dtype=torch.float32)
    capture = capture or Repeat()
    how |= {"device": CPU, "capture": capture, "memory": memory}
    return (
        Graphs(tower, lowered, lambda: lowered, **how),
        capture,
        Lowered(tower, dtype=lowered.dtype),
    )


def close(a, b):
    assert a.shape == b.shape
    assert (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).abs().max() <= 2e-6


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 13, 17, 33])
def test_a_batch_of_any_size_is_padded_and_equal(n):
    graphs, capture, eager = graphs_of(tower_of(VIT))
    for seed in range(4):
        close(graphs(images(n, seed)), eager(images(n, seed)))
    assert [shape[0] for shape in capture.shapes] == [min(b for b in BATCHES if b >= n)]


def test_the_first_time_pays_for_no_capture():
    graphs, capture, _ = graphs_of(tower_of(VIT))
    graphs(images(3))
    assert not capture.shapes and not len(graphs)
    graphs(images(4))  # of the same bucket
    assert capture.shapes == [(4, 3, 16, 16)] and len(graphs) == 1


def test_a_result_is_not_written_over_by_the_next():
    graphs, _, eager = graphs_of(tower_of(VIT))
    graphs(images(2))
    found = [graphs(images(2, seed)) for seed in range(5)]
    for seed, vectors in enumerate(found):
        close(vectors, eager(images(2, seed)))


@pytest.mark.parametrize("cfg", [TEXT, replace(TEXT, pool="eos", eos_id=98), BERT])
@pytest.mark.parametrize("longest", [3, 8, 9, 17, 20])
def test_texts_are_cut_to_steps_and_equal(cfg, longest):
    tower, ids = tower_of(cfg), texts(5, longest)
    graphs, capture, eager = graphs_of(tower)
    for _ in range(3):
        close(graphs(ids), eager(ids))
        close(graphs(ids), tower(ids))
    assert capture.shapes == [(8, min(20, -(-longest // 8) * 8))]


def test_padding_that_is_attended_to_stays():
    for cfg in (replace(TEXT, causal=False, pool="last"), replace(TEXT, pad_id=0, pool="first")):
        ids = texts(4)
        assert cut(tower_of(cfg), ids) is ids
    assert cut(tower_of(VIT), images(2)).shape == (2, 3, 16, 16)
    nothing = torch.zeros(2, 20, dtype=torch.long)  # BERT's padding alone
    assert cut(tower_of(BERT), nothing, 8).shape == (2, 8)


def test_the_least_recently_used_graph_goes():
    graphs, capture, eager = graphs_of(tower_of(VIT), most=2)
    for n in (1, 1, 2, 2, 1, 4, 4):  # 2 goes when 4 comes
        close(graphs(images(n)), eager(images(n)))
    assert len(graphs) == 2 and [shape[0] for shape in capture.shapes] == [1, 2, 4]
    graphs(images(1))
    assert len(capture.shapes) == 3
    graphs(images(2))
    assert [shape[0] for shape in capture.shapes] == [1, 2, 4, 2]


def test_memory_is_bounded():
    one = 4 * 3 * 16 * 16
    graphs, capture, eager = graphs_of(
        tower_of(VIT), memory=5 * one + 200, capture=Repeat(num_bytes=50)
    )
    for n in (1, 1, 2, 2, 4, 4, 8, 8, 8):
        close(graphs(images(n)), eager(images(n)))
        assert graphs.num_bytes <= 5 * one + 200
    assert [shape[0] for shape in capture.shapes] == [1, 2, 4, 8]  # 8 is too large: once, and never
    assert len(graphs) == 1


def test_a_large_batch_and_an_empty_one_run_without():
    graphs, capture, eager = graphs_of(tower_of(VIT), largest=6)
    for _ in range(3):
        close(graphs(images(7)), eager(images(7)))
        close(graphs(images(5)), eager(images(5)))
    assert capture.shapes == [(6, 3, 16, 16)]
    graphs, _, _ = graphs_of(nn.Flatten().eval())
    assert len(graphs(torch.zeros(0, 5))) == 0


def hook(module, args, output):
    return output * 2


CHANGES = {
    "in place": lambda t: t.blocks[0].mlp.c_fc.weight.mul_(1.5),
    "module": lambda t: setattr(t.blocks[1].attn, "q_proj", nn.Linear(32, 32)),
    "parameter": lambda t: setattr(t.proj, "weight", nn.Parameter(torch.randn(16, 32))),
    "data": lambda t: setattr(t.blocks[0].ln_1.weight, "data", torch.randn(32)),
    "loaded": lambda t: t.load_state_dict(
        {k: v * 1.1 for k, v in t.state_dict().items()}, assign=True
    ),
}
OTHER_CHANGES = {
    "hook": lambda t: t.blocks[1].register_forward_hook(hook),
    "pre-hook": lambda t: t.ln_post.register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
    "patched": lambda t: setattr(t.blocks[1], "forward", lambda x, mask=None: x),
    "training": lambda t: t.train(),
    "added": lambda t: t.blocks[0].register_parameter("more", nn.Parameter(torch.zeros(1))),
    "deleted": lambda t: setattr(t.blocks[0].attn.q_proj, "bias", None),
    "parametrised": lambda t: torch.nn.utils.parametrize.register_parametrization(
        t.proj, "weight", nn.Softplus()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_never_a_stale_vector(change):
    tower = tower_of(VIT)
    graphs, capture, _ = graphs_of(tower)
    before = [graphs(images(3)) for _ in range(3)][-1]
    CHANGES[change](tower)
    after = [graphs(images(3)) for _ in range(3)]
    for vectors in after:
        close(vectors, tower(images(3)))
        assert (vectors - before).abs().max() > 1e-3
    assert len(capture.shapes) == 2  # once before and once after


@pytest.mark.parametrize("change", [*CHANGES, *OTHER_CHANGES])
@torch.no_grad()
def test_versions_see_every_change(change):
    tower = tower_of(VIT)
    versions = Versions(tower)
    tower(images(2))
    assert versions.hold()
    (CHANGES | OTHER_CHANGES)[change](tower)
    assert not versions.hold()
    assert Versions(tower).hold()


@torch.no_grad()
def test_a_tower_that_must_run_as_it_is_does():
    tower = tower_of(VIT)
    lowered, capture = Lowered(tower, dtype=torch.float32), Repeat()
    plain = lambda: None if tower.blocks[0]._forward_hooks else lowered  # noqa: E731
    graphs = Graphs(tower, lowered, plain, device=CPU, capture=capture, memory=1 << 30)
    seen = []
    handle = tower.blocks[0].register_forward_hook(lambda *args: seen.append(1))
    for _ in range(4):
        graphs(images(2))
    assert len(seen) == 4 and not capture.shapes
    handle.remove()
    for _ in range(2):
        graphs(images(2))
    assert len(seen) == 4 and len(capture.shapes) == 1


def test_what_cannot_be_captured_runs_without_and_is_said_once(caplog):
    def refuse(run, buffer):
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    tower = tower_of(VIT)
    graphs, _, eager = graphs_of(tower, capture=refuse)
    with caplog.at_level(logging.WARNING, "diptych"):
        for n in (1, 1, 1, 2, 2, 2):
            close(graphs(images(n)), eager(images(n)))
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph of [1, 3, 16, 16], it runs without: "
        "operation not permitted when stream is capturing"
    ]
    assert len(graphs) == 0


def test_the_precision_of_products_is_part_of_a_graph():
    graphs, capture, _ = graphs_of(tower_of(VIT))
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            graphs(images(2)), graphs(images(2))
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(capture.shapes) == 2


def test_threads_do_not_mix_their_rows():
    graphs, _, eager = graphs_of(tower_of(VIT), most=2)
    wanted = {(n, seed): eager(images(n, seed)) for n in (1, 3, 6) for seed in range(8)}
    wrong = []

    def work(n, seed):
        for _ in range(10):
            if (graphs(images(n, seed)) - wanted[n, seed]).abs().max() > 1e-5:
                wrong.append((n, seed))

    threads = [threading.Thread(target=work, args=key) for key in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Itself:
    """Gives what it holds; a lambda could not be pickled."""

    def __init__(self, held):
        self.held = held

    def __call__(self):
        return self.held


def test_a_copy_starts_with_no_graph_and_with_its_own_tower():
    tower = tower_of(VIT)
    lowered = Lowered(tower, dtype=torch.float32)
    graphs = Graphs(tower, lowered, Itself(lowered), device=CPU, capture=Repeat(), memory=1 << 30)
    graphs(images(2)), graphs(images(2))
    for other in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert len(graphs) == 1 and len(other) == 0
        with torch.no_grad():
            other.tower.proj.weight.mul_(-1)
        close(other(images(2)), -graphs(images(2)))


def test_slots_of_the_host_are_not_taken_while_they_are_read():
    class Event:
        waited = 0

        def synchronize(self):
            self.waited += 1

    sizes = []
    slot = _Slot(lambda n: sizes.append(n) or torch.empty(n, dtype=torch.uint8))
    first = slot.take((2, 3), torch.float32)
    slot.copied = Event()
    assert first.shape == (2, 3) and first.dtype == torch.float32
    second = slot.take((4,), torch.uint8)
    assert slot.copied.waited == 1 and second.data_ptr() == first.data_ptr()
    slot.take((5, 5), torch.int64)
    assert sizes == [24, 200] and slot.copied.waited == 2


def test_without_a_gpu_an_upload_is_only_a_move():
    upload, batch = Uploader(CPU), images(2)
    assert upload(batch) is batch
    assert pickle.loads(pickle.dumps(upload)).device == CPU


@pytest.fixture
def cuda(monkeypatch):
    """`torch.cuda` as a list of what is asked of it."""
    fake = MagicMock()
    monkeypatch.setattr("diptych.engine.cuda.torch.cuda", fake)
    return fake


def test_an_upload_waits_for_its_buffer_and_the_caller_for_the_upload(cuda, monkeypatch):
    monkeypatch.setattr("diptych.engine.cuda._pinned", lambda n: torch.empty(n, dtype=torch.uint8))
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append(stream))
    upload, events = Uploader(CPU), []
    cuda.Event.side_effect = lambda: events.append(MagicMock()) or events[-1]
    for seed in range(3):
        batch = images(2, seed)
        copied = upload._copy(batch)
        assert torch.equal(copied, batch)
        cuda.current_stream().wait_event.assert_called_with(events[-1])
    assert [event.synchronize.call_count for event in events] == [1, 0, 0]  # before the third
    assert all(event.record.call_args.args == (cuda.Stream(),) for event in events)
    assert kept == [cuda.current_stream()] * 3


def test_a_capture_warms_up_on_its_own_stream_and_counts_its_memory(cuda):
    cuda.memory_reserved.side_effect = [10, 50]
    runs = []
    found = record(CPU)(lambda x: runs.append(x) or x * 2, torch.ones(2, 3))
    assert found.num_bytes == 40 and torch.equal(found.output, torch.full((2, 3), 2.0))
    assert len(runs) == 4 and found.replay == cuda.CUDAGraph().replay
    how = {"stream": cuda.Stream(), "capture_error_mode": "thread_local"}
    cuda.graph.assert_called_once_with(cuda.CUDAGraph(), **how)
    cuda.Stream().wait_stream.assert_called_once_with(cuda.current_stream())
    cuda.current_stream().wait_stream.assert_called_once_with(cuda.Stream())


@pytest.mark.slow
def test_the_benchmark_runs_without_a_gpu(tmp_path):
    out = tmp_path / "table.txt"
    command = [sys.executable, str(ROOT / "benchmarks" / "encoding_gpu.py"), "--tiny"]
    command += ["--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = out.read_text("utf-8")
    for word in ("bf16, graphs", "graphs equal eager", "uint8 equals float"):
        assert word in table, table
    assert "FAILED" not in table
