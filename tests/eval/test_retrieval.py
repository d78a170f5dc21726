"""Ranks by hand, by counting one by one, and the same for any share of the work."""

import math
import threading
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.errors import DataError
from diptych.eval import ranking
from diptych.eval.retrieval import (
    mean_frames,
    ranks,
    retrieval,
    zero_shot,
)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def counted(images, texts, own) -> tuple[list[int], list[int]]:
    """Ranks as they are defined: each score against each other, one by one, in double precision."""
    scores = (images.double() @ texts.double().T).float().tolist()
    own = own.tolist()
    by_image = []
    for i, row in enumerate(scores):
        if mine := [row[t] for t in range(len(own)) if own[t] == i]:
            wrong = [row[t] for t in range(len(own)) if own[t] != i]
            by_image.append(1 + sum(s >= max(mine) for s in wrong))
    by_text = [
        1 + sum(scores[i][t] >= scores[own[t]][t] for i in range(len(scores)) if i != own[t])
        for t in range(len(own))
    ]
    return by_image, by_text


def test_by_hand():
    """Two images, three texts; text 2 of image 0 lies nearer to image 1."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = retrieval(images, texts, torch.tensor([0, 1, 0]))
    assert found["image_to_text_r1"] == 1
    assert found["text_to_image_r1"] == 2 / 3
    assert found["text_to_image_r5"] == 1
    assert found["text_to_image_mean_rank"] == 4 / 3
    assert found["image_to_text_median_rank"] == found["text_to_image_median_rank"] == 1
    assert (found["num_images"], found["num_texts"]) == (2, 3)


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    same = torch.ones(20, 4) / 2
    found = retrieval(same, same, torch.arange(20))
    assert found["image_to_text_r1"] == found["text_to_image_r10"] == 0
    assert found["image_to_text_mean_rank"] == 20
    assert zero_shot(same, torch.arange(20) % 7, same[:7])["top5"] == 0


def test_copies_of_a_vector_tie_wherever_they_stand():
    """1,500 copies of each of two texts: a block of the product never tells them apart."""
    images = unit(2, 384)
    texts = images[torch.arange(3000) % 2]
    found = retrieval(images, texts, torch.arange(3000) % 2)
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 1
    noisy = F.normalize(unit(1, 384) + 0.1 * unit(1, 384, seed=1))
    others = noisy.expand(5000, -1).contiguous()
    assert retrieval(others, others[:1], torch.tensor([7]))["text_to_image_mean_rank"] == 5000


@pytest.mark.parametrize(("n", "m"), [(7, 7), (30, 151), (50, 20)])
def test_as_counted_one_by_one(n, m, monkeypatch):
    own = torch.randint(n, (m,), generator=torch.Generator().manual_seed(n))
    images = unit(n, 8)
    texts = F.normalize(images[own] + 0.7 * unit(m, 8, seed=1), dim=-1)
    texts[m // 2] = texts[0]  # a tie
    by_image, by_text = counted(images, texts, own)
    whole = retrieval(images, texts, own)
    for way, places in (("image_to_text", by_image), ("text_to_image", by_text)):
        for k in (1, 5, 10):
            assert whole[f"{way}_r{k}"] == sum(r <= k for r in places) / len(places)
        assert whole[f"{way}_mean_rank"] == sum(places) / len(places)
        assert whole[f"{way}_median_rank"] == float(torch.tensor(places).double().quantile(0.5))
    monkeypatch.setattr(ranking, "_STRIPE", 13)
    monkeypatch.setattr(ranking, "_ROWS", 3)
    monkeypatch.setattr(ranking, "_COLUMNS", 5)
    monkeypatch.setattr(ranking, "_BYTE", 2)
    assert retrieval(images, texts, own) == whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_near_ties_are_decided_by_the_score_in_double_precision(dtype):
    """Scores that float32 products get wrong: rows of nearly one direction."""
    base = unit(1, 512, seed=3)
    images = base.repeat(80, 1)
    images[torch.arange(80), torch.arange(80)] *= 1 + torch.linspace(-3e-4, 3e-4, 80)
    images, texts = images.to(dtype), base.repeat(120, 1).to(dtype)
    own = torch.arange(120) % 80
    by_image, by_text = counted(images, texts, own)
    found = ranks(images, texts, own)
    assert found[0].tolist() == by_image
    assert found[1].tolist() == by_text
    assert dtype != torch.float32 or len(set(by_text)) > 5  # float32 tells them apart


def test_how_far_a_float32_product_is_believed():
    """The margin covers the worst that a product in float32 can do to equal signs of one size."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.9, 1, (2, 64, 1024)) / 32
    a, b = a.astype(np.float32), b.astype(np.float32)
    sides = ranking._Side.of(a, "image"), ranking._Side.of(b, "text")
    off = np.abs((a @ b.T).astype(np.float64) - a.astype(np.float64) @ b.astype(np.float64).T)
    assert 0 < off.max() < ranking._margin(*sides) < 1e-4


def test_memory_mapped_arrays_and_any_float_type(tmp_path):
    images, own = unit(60, 32), torch.arange(150) % 50
    texts = F.normalize(images[own] + 1.8 * unit(150, 32, seed=1), dim=-1)
    for dtype in (np.float16, np.float32):
        mapped = []
        for name, vectors in (("images", images), ("texts", texts)):
            np.save(tmp_path / f"{name}.npy", vectors.numpy().astype(dtype))
            mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
        whole = retrieval(*(torch.from_numpy(np.array(part)) for part in mapped), own)
        assert retrieval(*mapped, own) == whole
        assert 0 < whole["text_to_image_r1"] < 1


def test_average_precision_by_hand():
    """Image 0 finds its texts at ranks 1 and 3, image 1 its only one at rank 2."""
    images = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    texts = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.96, 0.28]])
    own = torch.tensor([0, 0, 1])
    found = retrieval(images, texts, own)
    scores = images.double() @ texts.double().T
    assert scores[0].argsort(descending=True).tolist() == [0, 2, 1]
    assert scores[1].argsort(descending=True).tolist() == [1, 2, 0]
    assert found["image_to_text_map"] == pytest.approx(((1 / 1 + 2 / 3) / 2 + 1 / 2) / 2, abs=1e-15)
    assert found["text_to_image_map"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3, abs=1e-15)
    same = torch.ones(4, 2) / 2**0.5
    assert retrieval(same, same, torch.arange(4))["image_to_text_map"] == 1 / 4  # ties


def test_an_image_without_a_caption_has_no_rank():
    images = torch.eye(3)
    assert [r.tolist() for r in ranks(images, images[[2, 0]], torch.tensor([2, 0]))] == [
        [1, 0, 1],
        [1, 1],
    ]


def test_a_video_is_the_mean_of_its_frames():
    frames = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
    videos = mean_frames(frames, torch.tensor([0, 1, 0, 1]))
    expected = F.normalize(torch.tensor([[1.0, 1.0], [0.6, 1.8]]))
    assert torch.allclose(videos, expected, atol=1e-7)
    assert torch.equal(mean_frames(frames.numpy(), torch.tensor([0, 1, 0, 1])), videos)


@pytest.mark.parametrize(
    ("frames", "owner", "match"),
    [
        (torch.eye(3), [0, 2, 2], "1 videos have no frame; the first is 1"),
        (torch.eye(3), [0, 0], "3 frames and 2 numbers"),
        (torch.eye(3)[:0], [], "0 frames"),
        (torch.tensor([[1.0, 0], [-1, 0]]), [0, 0], "no mean direction"),
        (torch.tensor([[1.0, math.nan], [0, 1]]), [0, 1], "first is 0"),
    ],
)
def test_videos_that_have_no_mean(frames, owner, match):
    with pytest.raises(DataError, match=match):
        mean_frames(frames, torch.tensor(owner, dtype=torch.int64))


def ranks_of_a_world(world: int, run) -> list[dict[str, float]]:
    """`run(rank, reduce)` in a thread each; reduce sums over them."""
    barrier, parts, found = threading.Barrier(world), [None] * world, [None] * world

    def one(rank: int) -> None:
        def reduce(x: torch.Tensor) -> torch.Tensor:
            parts[rank] = x
            barrier.wait(timeout=20)
            return torch.stack(parts).sum(0)

        found[rank] = run(rank, reduce)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_counts_the_same(world):
    images, own = unit(41, 16), torch.arange(120) % 40  # one image has no caption
    texts = F.normalize(images[own] + 0.8 * unit(120, 16, seed=1), dim=-1)
    alone = retrieval(images, texts, own)
    assert 0 < alone["text_to_image_r1"] < 1
    assert alone["num_images"] == 40

    def run(rank, reduce):
        return retrieval(images, texts, own, rank=rank, world=world, reduce=reduce)

    assert ranks_of_a_world(world, run) == [alone] * world
    labels = torch.arange(41) % 9
    alone = zero_shot(images, labels, texts[:9])

    def shot(rank, reduce):
        return zero_shot(images, labels, texts[:9], rank=rank, world=world, reduce=reduce)

    assert ranks_of_a_world(world, shot) == [alone] * world


def test_zero_shot_by_hand():
    classes = torch.eye(3)
    images = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0.8, 0.6, 0]])
    found = zero_shot(images, torch.tensor([0, 0, 0, 1, 1]), classes)
    assert found == {"top1": 0.8, "top5": 1.0, "mean_per_class": 0.75, "num_images": 5}


def test_a_number_that_is_not_finite_is_never_a_hit():
    images, own = unit(4, 8), torch.arange(4)
    broken = images.clone()
    broken[2, 3] = math.nan
    with pytest.raises(DataError, match="1 of 4 text vectors"):
        retrieval(images, broken, own)
    with pytest.raises(DataError, match="image vectors"):
        zero_shot(broken, own, images)


def test_rows_that_do_not_exist():
    images = unit(4, 8)
    for own in ([0, 1, 2, 4], [0, 1, 2, -1], [0, 1]):
        with pytest.raises(DataError, match="row of its image"):
            retrieval(images, images, torch.tensor(own))
    with pytest.raises(DataError, match="label"):
        zero_shot(images, torch.tensor([0, 1, 2, 4]), images)


def test_memory_does_not_grow_with_the_square():
    n = 8000
    images, own = unit(n, 4).numpy(), torch.arange(n)
    tracemalloc.start()
    try:
        retrieval(images, images, own)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * n * n / 10  # of the matrix of scores in float32
