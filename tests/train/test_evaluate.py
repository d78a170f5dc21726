"""Evaluation in a run against the same by hand, and what can be known to fail before it starts."""

import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import worlds
from miniature import config, pictures, rows

import diptych
from diptych.errors import ConfigError, DataError
from diptych.train import evaluate, train
from diptych.train.config import EvalConfig
from diptych.train.world import World

METRICS = ("image_to_text_r1", "text_to_image_r1", "held_out_loss", "pair_cosine_mean")


@pytest.fixture
def own(tmp_path, own_cache):
    """A list to train on, and one of six other pictures."""
    data, held_out = pictures(tmp_path / "data"), pictures(tmp_path / "held-out", 6)
    return data, held_out


def test_metrics_by_hand(own, tmp_path):
    data, held_out = own
    run = config(data, f"evaluate.sources={held_out}", "steps=2")
    found = train(run, tmp_path / "run")["evaluation"]
    encoder = diptych.load(tmp_path / "run/model.safetensors", precision="fp32")
    pairs = [json.loads(line) for line in held_out.read_text("utf-8").splitlines()]
    images = encoder.encode_image([str(held_out.parent / pair["image"]) for pair in pairs])
    texts = encoder.encode_text([text for pair in pairs for text in pair["captions"]])
    scores = images @ texts.T
    own_best = scores.argmax(1) // 2  # two captions each
    logits = torch.tensor(scores[:, ::2]) * encoder.model.logit_scale.detach().exp()
    cross = torch.nn.functional.cross_entropy
    target = torch.arange(6)
    assert found["num_images"] == 6 and found["num_texts"] == 12
    assert found["image_to_text_r1"] == np.mean(own_best == np.arange(6))
    assert found["text_to_image_r1"] == np.mean(scores.argmax(0) == np.arange(12) // 2)
    assert found["pair_cosine_mean"] == pytest.approx(
        scores[np.arange(12) // 2, np.arange(12)].mean(), abs=1e-5
    )
    loss = (cross(logits, target) + cross(logits.T, target)) / 2
    assert found["held_out_loss"] == pytest.approx(float(loss), abs=1e-4)
    assert found["held_out_chance"] == math.log(6)


def test_metrics_do_not_depend_on_the_batch(own, tmp_path):
    """Weights that are not moved give the same, however large a step is."""
    data, held_out = own
    found = []
    for size in (4, 8):
        how = (f"evaluate.sources={held_out}", "optim.lr=0", "micro_batch=none", "steps=1")
        run = config(data, f"batch_size={size}", *how)
        found.append(train(run, tmp_path / str(size))["evaluation"])
    assert [found[0][name] for name in METRICS] == [found[1][name] for name in METRICS]


def test_classes_are_those_of_classify(own, tmp_path):
    data, _ = own
    names = ("red", "green", "blue", "grey")
    listed = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    labelled = [{"image": row["image"], "caption": names[i % 4]} for i, row in enumerate(listed)]
    classes = data.parent / "classes.jsonl"
    classes.write_text("".join(json.dumps(row) + "\n" for row in labelled), "utf-8")
    how = ("evaluate.best=zero_shot_top1", "evaluate.templates=photo")
    run = config(data, f"evaluate.classes={classes}", *how)
    train(run, tmp_path / "run")
    found = rows(tmp_path / "run", "evaluation")[-1]
    encoder = diptych.load(tmp_path / "run/model.safetensors", precision="fp32")
    paths = [str(data.parent / row["image"]) for row in labelled]
    given = encoder.classify(paths, sorted(names), templates="photo")
    right = [best[0][0] == row["caption"] for best, row in zip(given, labelled, strict=True)]
    assert found["zero_shot_top1"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("what", "best", "type_"),
    [
        ("classes", "image_to_text_r1", "evaluate.best=zero_shot_top1"),
        ("sources", "zero_shot_top1", "evaluate.best=image_to_text_r1"),
        ("sources", "image_to_text_r2", "There is: image_to_text_r1"),
    ],
)
def test_a_best_that_is_not_measured(own, tmp_path, what, best, type_):
    """Refused before the first step, not after the last."""
    run = config(own[0], f"evaluate.{what}={own[1]}", f"evaluate.best={best}")
    with pytest.raises(ConfigError, match=type_):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("best", ["alignment", "held_out_loss", "uniformity_text"])
def test_every_best_that_is_offered_is_measured(own, tmp_path, best):
    run = config(own[0], f"evaluate.sources={own[1]}", f"evaluate.best={best}", "steps=1")
    assert train(run, tmp_path / "run")["best"]["metric"] == best


def test_pictures_of_which_none_can_be_decoded(own, tmp_path):
    for path in own[1].parent.glob("*.png"):
        path.write_bytes(b"no picture")
    run = config(own[0], f"evaluate.sources={own[1]}", "steps=1")
    with pytest.raises(DataError, match="none of the held-out pictures"):
        train(run, tmp_path / "run")


def test_a_picture_that_cannot_be_decoded_is_left_out(own, tmp_path):
    (own[1].parent / "03.png").write_bytes(b"no picture")
    run = config(own[0], f"evaluate.sources={own[1]}", "steps=1")
    found = train(run, tmp_path / "run")["evaluation"]
    assert found["num_images"] == 5 and found["num_texts"] == 10


def one_picture() -> dict[str, float]:
    """What this rank of two makes of one held-out picture."""
    image, owner = torch.eye(2)[:1], torch.zeros(1, dtype=torch.int64)
    evaluate._vectors = lambda *given: (image, image, owner)
    world = World(rank=dist.get_rank(), size=dist.get_world_size())
    given = {"world": world, "autocast": None, "loss": None}
    return evaluate.evaluate(None, None, None, EvalConfig(), **given)


def test_fewer_held_out_pictures_than_ranks_end_no_run():
    """One picture has no loss over two equal shares; the rest is measured."""
    for found in worlds.run(2, one_picture):
        assert "held_out_loss" not in found
        assert found["image_to_text_r1"] == 1.0
