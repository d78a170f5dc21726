"""The plan before a run: what it counts is what there is, and it sees a start that is wrong."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from diptych import towers
from diptych.train.accumulate import Piece, backward
from diptych.train.checks import gradient_error, gradient_warnings, initial_loss
from diptych.train.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from diptych.train.dryrun import (
    Facts,
    activation_bytes,
    cost,
    differences,
    dry_run,
    memory,
    parameters,
    plan_text,
)
from diptych.train.flops import Work


def softmax(image, text, scale, bias):
    logits, right = scale.exp() * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


@pytest.fixture
def model(tiny_clip):
    return towers.build(tiny_clip)


@pytest.fixture
def batch(tiny_clip):
    ids = torch.randint(1, 62, (8, 16))
    ids[:, 0], ids[:, 9], ids[:, 10:] = 62, 63, 0
    return torch.randn(8, 3, 32, 32), ids


def facts_of(model, tiny_clip, batch, **more) -> Facts:
    return Facts(model=model, clip=tiny_clip, images=batch[0], ids=batch[1], steps=100, **more)


def test_differences_are_what_set_takes():
    config = TrainConfig(
        epochs=3, batch_size=128, optim=OptimConfig(lr=1e-3), loss=LossConfig(kind="softmax")
    )
    found = differences(config)
    assert found.pop("batch_size") == 128
    assert found.pop("optim.lr") == 1e-3
    assert found.pop("loss.kind") == "softmax"
    assert found == {"steps": None, "epochs": 3}


def test_parameters_of_each_part(model):
    model.visual.requires_grad_(False)
    found = parameters(model)
    assert found["visual"]["trained"] == 0
    assert found["scalars"] == {"trained": 1, "frozen": 0}
    assert sum(sum(c.values()) for c in found.values()) == sum(
        p.numel() for p in model.parameters()
    )


# --- memory ---


def saved_bytes(model, images, ids) -> int:
    """What autograd itself says that it keeps, each storage once, weights and batch left out."""
    known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), images, ids)}
    kept = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in known:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        features = model(images, ids)
    assert features is not None
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def test_activations_are_what_autograd_keeps(model, batch):
    images, ids = batch
    fixed, each = activation_bytes(model, images, ids)
    kept = saved_bytes(model, images, ids)
    assert fixed + 8 * each == pytest.approx(kept, rel=0.05)
    assert fixed < 0.02 * kept


def test_checkpointing_and_frozen_towers_keep_less(model, batch):
    _, whole = activation_bytes(model, *batch)
    for tower in (model.visual, model.text):
        tower.checkpointing = True
    _, less = activation_bytes(model, *batch)
    assert less < 0.4 * whole
    for tower in (model.visual, model.text):
        tower.checkpointing = False
    model.visual.requires_grad_(False)
    _, lit = activation_bytes(model, *batch)
    assert lit < 0.7 * whole


def test_measuring_leaves_no_trace(model, batch):
    state = torch.random.get_rng_state()
    activation_bytes(model, *batch)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_memory_adds_up(model, tiny_clip, batch):
    config = TrainConfig(steps=10, batch_size=64, micro_batch=16, ema=0.99)
    found = memory(config, facts_of(model, tiny_clip, batch))
    size = 4 * sum(p.numel() for p in model.parameters())
    assert found["weights"] == found["gradients"] == found["mean of the weights"] == size
    assert found["optimiser"] == 2 * size
    assert "buckets of DDP" not in found
    assert found["in all"] == sum(v for k, v in found.items() if k != "in all")
    half = memory(replace(config, micro_batch=8), facts_of(model, tiny_clip, batch))
    assert half["activations"] == pytest.approx(found["activations"] / 2, rel=0.05)
    sharded = replace(config, parallel="fsdp")
    two = memory(sharded, facts_of(model, tiny_clip, batch, world=2))
    assert two["optimiser"] == size
    model.text.requires_grad_(False)
    frozen = memory(config, facts_of(model, tiny_clip, batch))
    assert frozen["weights"] == size
    assert frozen["gradients"] < size


# --- is the start right? ---


@pytest.mark.parametrize("embed_dim", [24, 256])
def test_random_weights_start_at_ln_n(tiny_clip, batch, embed_dim):
    model = towers.build(replace(tiny_clip, embed_dim=embed_dim))
    with torch.no_grad():
        loss = float(softmax(*model(*batch)))
    spread = (1 / 0.07) ** 2 / (2 * embed_dim)
    how = {"batch_size": 64, "random": True, "softmax": True, "spread": spread}
    found, warnings = initial_loss(loss, pairs=8, **how)
    assert found["ln of that"] == math.log(8)
    assert found["ln 64, of the run"] == math.log(64)
    assert not warnings
    assert initial_loss(loss + spread + 0.5, pairs=8, **how)[1]


@pytest.mark.parametrize(
    ("loss", "random", "told"),
    [
        (math.log(8), True, None),
        (math.log(8) * 1.06, True, "random weights should give ln 8"),
        (math.log(8) * 0.9, True, "random weights should give ln 8"),
        (0.5, False, None),
        (math.log(8) * 1.2, False, "worse than chance"),
        (math.nan, False, "not a number"),
    ],
)
def test_a_first_loss_that_is_wrong(loss, random, told):
    _, warnings = initial_loss(loss, pairs=8, batch_size=8, random=random, softmax=True)
    assert [told in text for text in warnings] == ([True] if told else [])


def test_sigmoid_has_no_chance():
    assert initial_loss(9.0, pairs=8, batch_size=8, random=True, softmax=False)[1] == []


def by_pieces(model, batch, loss=softmax):
    """What the loop does: `accumulate.backward`."""
    images, ids = batch

    def gradients(size):
        size = size or len(ids)
        parts = [slice(i, i + size) for i in range(0, len(ids), size)]
        backward(model, [Piece(images[p], ids[p], torch.arange(8)[p]) for p in parts], loss)

    return gradients


def test_the_gradient_of_pieces_is_that_of_the_batch(model, batch):
    model.double()
    images, ids = batch
    found = gradient_error(model, by_pieces(model, (images.double(), ids)), piece=2)
    assert found["relative error"] < 1e-12
    assert found["worst"] < 1e-9
    assert found["logit_scale"] < 1e-12
    assert not gradient_warnings(found, precision="fp32")
    assert all(p.grad is None for p in model.parameters())


def test_the_common_mistake_is_seen(model, batch):
    """Each piece back-propagates the loss of itself alone: no negatives from the other pieces."""
    images, ids = batch

    def wrong(size):
        size = size or len(ids)
        for i in range(0, len(ids), size):
            features = model(images[i : i + size], ids[i : i + size])
            (softmax(*features) * size / len(ids)).backward()

    found = gradient_error(model, wrong, piece=2)
    assert found["relative error"] > 0.1
    (text,) = gradient_warnings(found, precision="fp32")
    assert "off by" in text
    nan = found | {"relative error": math.nan}
    assert gradient_warnings(nan, precision="auto")


# --- the whole ---


def test_cost():
    found = cost(0.5, 7200, world=8, price=2.0, watts=1000.0)
    assert found["seconds"] == 3600
    assert found["device-hours"] == found["kWh"] == 8
    assert found["cost"] == 16
    assert "1000 W" in found["assumed"]
    assert "2 an hour" in found["assumed"]
    assert "cost" not in cost(0.5, 7200)
    assert "700 W" in cost(0.5, 7200)["assumed"]


def test_the_plan(model, tiny_clip, batch):
    start = ModelConfig(start=None, build="x")
    config = TrainConfig(steps=100, batch_size=64, micro_batch=16, model=start)
    facts = facts_of(
        model,
        tiny_clip,
        batch,
        flops=Work(model, tiny_clip, batch_size=64, twice=True).step(),
        peak=(1e12, "made up"),
        loss=math.log(64) * 0.9,
        loss_pairs=64,
        gradients=by_pieces(model, batch),
        seconds_per_step=0.25,
        waiting=0.1,
        cut=(3, 64),
        data={"samples": 5000, "dropped": {"no caption": 2}},
    )
    plan = dry_run(config, facts, price=1.0)
    assert json.loads(json.dumps(plan)) == plan
    assert plan["batch"]["pairs at once"] == 16
    assert plan["time"]["seconds"] == 25
    assert plan["time"]["pairs/s"] == 256
    assert plan["time"]["utilisation"] == pytest.approx(facts.flops.model / 0.25 / 1e12)
    assert plan["gradient"]["relative error"] < 1e-5
    assert len(plan["warnings"]) == 1
    text = plan_text(plan)
    for part in ("micro_batch", "trained", "MiB", "GFLOP", "0:00:25", "3 of 64", "no caption 2"):
        assert part in text, part
    assert "Warning: the first loss is" in text
    assert "optim.betas" not in text
    assert "optim.betas" in plan_text(plan, config=config)


def test_a_plan_with_nothing_measured(model, tiny_clip, batch):
    plan = dry_run(TrainConfig(steps=3), facts_of(model, tiny_clip, batch))
    assert plan_text(plan)
    assert not {"time", "work", "gradient", "first loss", "data"} & plan.keys()
