"""Ranks by hand, by counting one by one, and the same for any share of the work."""

import math
import threading

import pytest
import torch
import torch.nn.functional as F

from diptych.errors import DataError
from diptych.eval import retrieval as module
from diptych.eval.retrieval import retrieval, wilson, zero_shot


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
    for way, ranks in (("image_to_text", by_image), ("text_to_image", by_text)):
        for k in (1, 5, 10):
            assert whole[f"{way}_r{k}"] == sum(r <= k for r in ranks) / len(ranks)
        assert whole[f"{way}_mean_rank"] == sum(ranks) / len(ranks)
        assert whole[f"{way}_median_rank"] == float(torch.tensor(ranks).double().quantile(0.5))
    monkeypatch.setattr(module, "_ROWS", 3)
    monkeypatch.setattr(module, "_COLUMNS", 5)
    assert retrieval(images, texts, own) == whole


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


def test_memory_does_not_grow_with_the_square(monkeypatch):
    """No tensor as large as the matrix of scores is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    n = 6000
    with Largest():
        retrieval(unit(n, 4), unit(n, 4), torch.arange(n))
    assert largest <= 1024 * 4096 < n * n / 8


@pytest.mark.parametrize(("hits", "n"), [(15, 50), (1, 7), (0, 100), (100, 100), (3333, 5000)])
def test_wilson_solves_its_equation(hits, n):
    """Both ends p have |hits/n - p| = z sqrt(p (1 - p) / n): the score test just rejects them."""
    share, z = hits / n, 1.959964
    ends = wilson(share, n)
    for p in ends:
        assert math.isclose(abs(share - p), z * math.sqrt(p * (1 - p) / n), abs_tol=1e-9)
    assert ends[0] <= share <= ends[1]
    assert ends[1] - ends[0] > 0


def test_wilson_of_nothing():
    assert wilson(0.5, 0) == (0, 1)
