"""The readable losses against each paper's formula written out in loops, and their limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from diptych.model import loss

N, E = 6, 8


@pytest.fixture
def pair():
    return [F.normalize(torch.randn(N, E).double(), dim=1) for _ in "it"]


def scale(x: float = 7.0) -> torch.Tensor:
    return torch.tensor(x).double()


def log_share(logits: list[float], i: int) -> float:
    """log softmax of one number among `logits`."""
    return logits[i] - math.log(sum(math.exp(x) for x in logits))


def table(image, text, s) -> list[list[float]]:
    return [[float(s * (i @ t)) for t in text] for i in image]


def test_softmax_is_the_mean_of_two_cross_entropies(pair):
    rows = table(*pair, 7.0)
    columns = list(map(list, zip(*rows, strict=True)))
    expected = -sum(log_share(rows[i], i) + log_share(columns[i], i) for i in range(N)) / (2 * N)
    assert loss.softmax_loss(*pair, scale()) == pytest.approx(expected, abs=1e-12)
    hard = F.normalize(torch.randn(3, E).double(), dim=1)
    longer = table(pair[0], torch.cat([pair[1], hard]), 7.0)
    expected = -sum(log_share(longer[i], i) + log_share(columns[i], i) for i in range(N)) / (2 * N)
    got = loss.softmax_loss(*pair, scale(), negatives=hard)
    assert got == pytest.approx(expected, abs=1e-12)


def test_groups_share_the_target(pair):
    groups = torch.tensor([4, 0, 4, 1, 4, 0])
    rows = table(*pair, 7.0)
    expected = 0.0
    for direction in (rows, list(map(list, zip(*rows, strict=True)))):
        for i in range(N):
            mates = [j for j in range(N) if groups[j] == groups[i]]
            expected -= sum(log_share(direction[i], j) for j in mates) / len(mates) / (2 * N)
    got = loss.softmax_loss(*pair, scale(), groups=groups)
    assert got == pytest.approx(expected, abs=1e-12)
    alone = loss.softmax_loss(*pair, scale(), groups=torch.arange(N) + 5)
    assert torch.equal(alone, loss.softmax_loss(*pair, scale()))


def test_a_caption_twice_is_no_negative_of_itself(pair):
    """Without groups two equal captions cost at least (2 / N) ln 2; with them they may cost 0."""
    image = text = torch.eye(N).double()[[0, 0, 2, 3, 4, 5]]
    groups = torch.tensor([0, 0, 2, 3, 4, 5])
    apart = loss.softmax_loss(image, text, scale(100.0))
    assert apart == pytest.approx(2 / N * math.log(2))
    # The best that a uniform target over two allows is its entropy: the same number.
    together = loss.softmax_loss(image, text, scale(100.0).requires_grad_(), groups=groups)
    assert together.item() == pytest.approx(2 / N * math.log(2))
    rows = image.clone().requires_grad_()
    loss.softmax_loss(rows, text, scale(100.0)).backward()
    grouped = image.clone().requires_grad_()
    loss.softmax_loss(grouped, text, scale(100.0), groups=groups).backward()
    assert grouped.grad.abs().max() < 1e-12


def test_sigmoid_asks_of_each_pair_alone(pair):
    bias, groups = torch.tensor(-3.0).double(), torch.tensor([4, 0, 4, 1, 4, 0])
    hard = F.normalize(torch.randn(2, E).double(), dim=1)
    expected = 0.0
    for i in range(N):
        for j, t in enumerate([*pair[1], *hard]):
            sign = 1 if j < N and groups[i] == groups[j] else -1
            expected += math.log1p(math.exp(-sign * float(7 * pair[0][i] @ t + bias))) / N
    got = loss.sigmoid_loss(*pair, scale(), bias, groups=groups, negatives=hard)
    assert got == pytest.approx(expected, abs=1e-12)


def test_soft_targets_hold_the_other_losses(pair):
    groups = torch.tensor([4, 0, 4, 1, 4, 0])
    same = (groups[:, None] == groups).double()
    got = loss.soft_target_loss(*pair, scale(), 5 * same)
    assert got == pytest.approx(float(loss.softmax_loss(*pair, scale(), groups=groups)))
    teacher = [F.normalize(torch.randn(N, 3).double(), dim=1) for _ in "it"]
    got = loss.soft_target_loss(*pair, scale(), (4 * teacher[0] @ teacher[1].T).exp())
    expected = loss.distillation_loss(*pair, scale(), *teacher, scale(4.0))
    assert got == pytest.approx(float(expected))


def test_distillation_is_least_at_the_teacher(pair):
    """There it is the entropy of the teacher's softmaxes, and the gradient is 0."""
    student = [x.clone().requires_grad_() for x in (*pair, scale())]
    value = loss.distillation_loss(*student, *pair, scale())
    logits = 7 * pair[0] @ pair[1].T
    entropy = [
        torch.distributions.Categorical(logits=x).entropy().mean() for x in (logits, logits.T)
    ]
    assert value.item() == pytest.approx(float(sum(entropy)) / 2)
    value.backward()
    assert all(x.grad.abs().max() < 1e-12 for x in student)


def test_hinge_rank(pair):
    labels = torch.tensor([2, 0, 1, 1, 5, 3])
    expected = 0.0
    for i, right in enumerate(labels.tolist()):
        for j in range(N):
            if j != right:
                behind = 0.1 - float(pair[0][i] @ pair[1][right]) + float(pair[0][i] @ pair[1][j])
                expected += max(0.0, behind) / N
    assert loss.hinge_rank_loss(*pair, labels) == pytest.approx(expected, abs=1e-12)


def test_nt_xent_weighs_the_directions(pair):
    both = [loss.nt_xent_loss(*pair, scale(), weight=w) for w in (1.0, 0.0)]
    assert (both[0] + both[1]) / 2 == pytest.approx(float(loss.softmax_loss(*pair, scale())))
    got = loss.nt_xent_loss(*pair, scale())
    assert got == pytest.approx(float(0.75 * both[0] + 0.25 * both[1]))
    rows = table(*pair, 7.0)
    assert both[0] == pytest.approx(-sum(log_share(rows[i], i) for i in range(N)) / N)


def test_bag_of_words():
    logits, words = torch.randn(2, 5).double(), torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    first, second = logits.tolist()
    expected = -(log_share(first, 0) + log_share(first, 2) + log_share(second, 4)) / 2
    assert loss.bag_of_words_loss(logits, words) == pytest.approx(expected)


def test_random_features_start_at_ln_n():
    rows = [F.normalize(torch.randn(256, 512), dim=1) for _ in "it"]
    got = loss.softmax_loss(*rows, torch.tensor(1.0))
    assert got == pytest.approx(math.log(256), abs=0.01)
