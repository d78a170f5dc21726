"""The streamed losses against the readable ones, autograd, and themselves over more processes."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from worlds import run

from diptych.errors import ConfigError, TrainError
from diptych.model import loss as reference
from diptych.train import streamed, streamed_tiles

SCALES = (0.01, 10.0, 69.0, 100.0, 300.0)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """No size below is a multiple of these, and most are more than one tile."""
    monkeypatch.setattr(streamed_tiles, "ROWS", 4)
    monkeypatch.setattr(streamed_tiles, "COLUMNS", 6)


def unit(n: int, e: int = 5, *, dtype=torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(n, e, dtype=dtype), dim=1).requires_grad_()


def scalar(x: float, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(x, dtype=dtype, requires_grad=True)


def with_gradients(function, inputs, **options) -> list[torch.Tensor]:
    """The value, then the gradient of each input."""
    value = function(*inputs, **options)
    differentiable = [x for x in (*inputs, options.get("negatives")) if x is not None]
    return [value.detach(), *torch.autograd.grad(value, differentiable)]


def assert_same(got, expected, tolerance: float) -> None:
    for g, x in zip(got, expected, strict=True):
        assert (g - x).abs().max() <= tolerance * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("n", [1, 2, 7, 13])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_equal_to_the_reference(kind, n):
    ours, theirs = (getattr(room, f"{kind}_loss") for room in (streamed, reference))
    for scale, grouped, hard in itertools.product(SCALES, (False, True), (False, True)):
        inputs = [unit(n), unit(n), scalar(scale)]
        inputs += [scalar(-3.0)] if kind == "sigmoid" else []
        options = {
            "groups": torch.randint(7, 10, (n,)) if grouped else None,
            "negatives": unit(3) if hard else None,
        }
        expected = with_gradients(theirs, inputs, **options)
        assert_same(with_gradients(ours, inputs, **options), expected, 1e-12)
        with torch.no_grad():
            assert_same([ours(*inputs, **options)], expected[:1], 1e-12)


@pytest.mark.parametrize("n", [1, 9])
def test_distillation_is_equal_to_the_reference(n):
    teacher = [unit(n, 4).detach(), unit(n, 4).detach(), torch.tensor(20.0).double()]
    for scale in SCALES:
        inputs = [unit(n), unit(n), scalar(scale)]
        expected = with_gradients(lambda *x: reference.distillation_loss(*x, *teacher), inputs)
        got = with_gradients(lambda *x: streamed.distillation_loss(*x, *teacher), inputs)
        assert_same(got, expected, 1e-12)
        with torch.no_grad():
            value = streamed.distillation_loss(*inputs, *teacher)
        assert_same([value], expected[:1], 1e-12)


@pytest.mark.parametrize("scale", [3.0, 90.0])
def test_gradcheck(scale):
    groups, negatives = torch.tensor([0, 1, 0, 2, 1]), unit(2)
    inputs = (unit(5), unit(5), scalar(scale), scalar(-scale / 2))
    assert torch.autograd.gradcheck(
        lambda i, t, s, b, h: streamed.sigmoid_loss(i, t, s, b, groups=groups, negatives=h),
        (*inputs, negatives),
    )
    assert torch.autograd.gradcheck(
        lambda i, t, s, h: streamed.softmax_loss(i, t, s, groups=groups, negatives=h),
        (*inputs[:3], negatives),
    )


def test_the_gradient_of_what_follows_is_multiplied_in():
    inputs = [unit(5), unit(5), scalar(10.0)]
    once = with_gradients(streamed.softmax_loss, inputs)
    thrice = with_gradients(lambda *x: 3 * streamed.softmax_loss(*x), inputs)
    assert_same(thrice, [3 * x for x in once], 1e-14)


def test_only_what_asks_gets_a_gradient():
    image = unit(5)
    text, scale = unit(5).detach(), torch.tensor(10.0).double()
    loss = streamed.softmax_loss(image, text, scale)
    loss.backward()
    assert image.grad is not None and text.grad is None
    assert not streamed.softmax_loss(image.detach(), text, scale).requires_grad


# --- awkward numbers --------------------------------------------------------------------------


def float32_error(inputs, *, least: float = 1e-3) -> float:
    """The largest difference of float32 to float64, relative to the largest of each gradient.

    `least` stands for that largest where the true gradient is 0.
    """
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = with_gradients(reference.softmax_loss, wide)
    narrow = [x.detach().float().requires_grad_() for x in inputs]
    got = with_gradients(streamed.softmax_loss, narrow)
    return max(
        float((g - x).abs().max() / x.abs().max().clamp(min=least))
        for g, x in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("scale", [14.3, 69.0, 100.0])
def test_random_features_do_not_underflow(scale):
    """All cosines are near 0, where a shift by the largest logit possible leaves exp(-100)."""
    assert float32_error([unit(60, 512), unit(60, 512), scalar(scale)]) < 1e-5


@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_equal_and_opposite_rows(scale):
    row = unit(1)
    for image, text in itertools.product((row, -row), repeat=2):
        both = [image.expand(7, -1).detach(), text.expand(7, -1).detach()]
        assert float32_error([*both, scalar(scale)], least=0.1 * scale) < 1e-5


def test_one_row_far_below_all_others():
    """Its logits are all -100 while others reach +100: no single shift holds both."""
    image = unit(1).expand(9, -1).detach().clone()
    text = image.clone()
    image[3] = -image[3]
    assert float32_error([image, text, scalar(100.0)]) < 1e-5


def test_rows_that_are_not_unit_vectors():
    assert float32_error([9 * unit(9).detach(), 9 * unit(9).detach(), scalar(100.0)]) < 1e-5


def test_nan_is_not_hidden():
    image = unit(9).detach()
    image[2, 1] = torch.nan
    assert streamed.softmax_loss(image, unit(9), scalar(10.0)).isnan()
    assert streamed.sigmoid_loss(image, unit(9), scalar(10.0), scalar(0.0)).isnan()


def trained(n: int, e: int) -> list[torch.Tensor]:
    """Pairs as a trained model has them: two cones, clusters, cosines 0.6 to 0.7 beside 0.3."""
    meaning, spread = torch.randn(n, e), torch.randn(n // 20, e).repeat_interleave(20, 0)
    cones = torch.randn(2, e)
    return [
        F.normalize(meaning + spread + 1.2 * torch.randn(n, e) + cone, dim=1)
        for cone in (1.5 * cones[0] + 0.6 * cones[1], 1.5 * cones[1] + 0.6 * cones[0])
    ]


@pytest.mark.parametrize("scale", [14.3, 50.0])
@pytest.mark.parametrize("made", ["random", "trained"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "distillation"])
def test_bf16_products_keep_the_direction(kind, made, scale, monkeypatch):
    monkeypatch.setattr(streamed_tiles, "ROWS", 150)
    monkeypatch.setattr(streamed_tiles, "COLUMNS", 350)
    pairs = trained(800, 256) if made == "trained" else [unit(800, 256) for _ in "it"]
    inputs = [*pairs, torch.tensor(scale)] + [torch.tensor(-0.5 * scale)] * (kind == "sigmoid")
    wide = [x.detach().double().requires_grad_() for x in inputs]
    narrow = [x.detach().float().requires_grad_() for x in inputs]
    teacher = [x.detach() for x in (narrow[1], narrow[0], torch.tensor(10.0))]
    more = teacher if kind == "distillation" else []
    ours = with_gradients(
        lambda *x: getattr(streamed, f"{kind}_loss")(*x, *more, precision="bf16"), narrow
    )
    theirs = with_gradients(
        lambda *x: getattr(reference, f"{kind}_loss")(*x, *(y.double() for y in more)), wide
    )
    for got, expected in zip(ours, theirs, strict=True):
        assert F.cosine_similarity(got.double().flatten(), expected.flatten(), dim=0) > 0.9999
        assert abs(got.norm() / expected.norm() - 1) < 0.01


def test_features_in_bf16_under_autocast_are_summed_in_float32():
    image, text = (unit(50, dtype=torch.float32).detach().bfloat16() for _ in "it")
    wide = [x.double().requires_grad_() for x in (image, text)]
    expected = with_gradients(reference.softmax_loss, [*wide, scalar(20.0)])
    narrow = [x.requires_grad_() for x in (image, text)]
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(streamed.softmax_loss, [*narrow, scalar(20.0, torch.float32)])
    assert [x.dtype for x in got] == [torch.float32, *[torch.bfloat16] * 2, torch.float32]
    assert abs(got[0] - expected[0]) < 1e-5
    assert_same(got[1:3], expected[1:3], 1e-2)


# --- several processes ------------------------------------------------------------------------


def batch(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """12 pairs with groups across ranks, and 4 hard negatives."""
    torch.manual_seed(1)
    return {
        "image": unit(12, dtype=dtype).detach(),
        "text": unit(12, dtype=dtype).detach(),
        "negatives": unit(4, dtype=dtype).detach(),
        "groups": torch.randint(3, 9, (12,)),
    }


def losses(data: dict[str, torch.Tensor], room, **process_group) -> dict[str, torch.Tensor]:
    """Value and gradients of every kind of loss on these rows."""
    dtype, found = data["image"].dtype, {}
    for scale, grouped, hard in itertools.product((10.0, 100.0), (False, True), (False, True)):
        for kind in ("softmax", "sigmoid", "distillation"):
            inputs = [data["image"].clone(), data["text"].clone(), torch.tensor(scale, dtype=dtype)]
            if kind == "sigmoid":
                inputs.append(torch.tensor(-7.0, dtype=dtype))
            inputs = [x.requires_grad_() for x in inputs]
            options = {}
            if kind == "distillation":
                inputs += [data["text"], data["image"] + data["text"], torch.tensor(5.0).to(dtype)]
            else:
                options["groups"] = data["groups"] if grouped else None
                options["negatives"] = data["negatives"].clone().requires_grad_() if hard else None
            value = getattr(room, f"{kind}_loss")(*inputs, **options, **process_group)
            wanted = [x for x in inputs if x.requires_grad]
            names = ["image", "text", "scale", "bias"][: len(wanted)]
            if options.get("negatives") is not None:
                names, wanted = ["negatives", *names], [options["negatives"], *wanted]
            case = f"{kind} {scale} {grouped} {hard}"
            found[f"{case} value"] = value.detach()
            for name, gradient in zip(names, torch.autograd.grad(value, wanted), strict=True):
                found[f"{case} {name}"] = gradient
    return found


def one_rank() -> list[dict[str, torch.Tensor]]:
    """In float64, then in float32."""
    streamed_tiles.ROWS, streamed_tiles.COLUMNS = 4, 5
    world, rank, found = dist.get_world_size(), dist.get_rank(), []
    for dtype in (torch.float64, torch.float32):
        data = {name: rows.chunk(world)[rank] for name, rows in batch(dtype).items()}
        found.append(losses(data, streamed))
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_gives_the_gradient_of_the_whole_batch(world):
    for ranks, dtype in zip(
        zip(*run(world, one_rank), strict=True), (torch.float64, torch.float32), strict=True
    ):
        data = batch(dtype)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
        expected = losses(wide, reference)
        assert_shares(ranks, expected, dtype)


def assert_shares(ranks, expected: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for name, want in expected.items():
        parts = [rank[name] for rank in ranks]
        match name.split()[-1]:
            case "value":
                assert all(torch.equal(part, parts[0]) for part in parts), name
                got = parts[0]
            case "scale" | "bias":
                got = torch.stack(parts).sum(0)  # each rank has its share
            case _:
                got = torch.cat(parts)
        # In float32 the logits themselves are rounded, by as much as they are large.
        tolerance = 1e-10 if dtype == torch.float64 else 1e-7 * float(name.split()[1])
        assert (got - want).abs().max() <= tolerance * max(1.0, float(want.abs().max())), name


def a_part(ranks: list[int]) -> torch.Tensor:
    group = dist.new_group(ranks)
    if dist.get_rank() not in ranks:
        return torch.tensor(torch.nan)
    data = batch(torch.float64)
    mine = slice(6 * ranks.index(dist.get_rank()), 6 * ranks.index(dist.get_rank()) + 6)
    scale = torch.tensor(20.0).double()
    return streamed.softmax_loss(
        data["image"][mine], data["text"][mine], scale, process_group=group
    )


def test_a_group_of_some_processes():
    data = batch(torch.float64)
    expected = reference.softmax_loss(data["image"], data["text"], torch.tensor(20.0).double())
    got = run(3, a_part, [0, 2])
    assert abs(got[0] - expected) < 1e-12 and abs(got[2] - expected) < 1e-12


def uneven(rows: list[int], negatives: list[int]) -> str:
    rank, scale = dist.get_rank(), torch.tensor(20.0)
    image = F.normalize(torch.randn(rows[rank], 5), dim=1)
    hard = torch.randn(negatives[rank], 5) if negatives[rank] else None
    try:
        streamed.softmax_loss(image, image, scale, negatives=hard)
    except TrainError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("rows", "negatives"), [([4, 3], [0, 0]), ([4, 4], [0, 2])])
def test_batches_of_different_form_are_refused_on_every_rank(rows, negatives):
    messages = run(2, uneven, rows, negatives)
    assert all("the same" in message and "drop_last" in message for message in messages)


# --- refusals ---------------------------------------------------------------------------------


def test_local_negatives_are_refused_with_the_reason():
    streamed.check_negatives("global", 8)
    streamed.check_negatives("local_no_grad", 1)
    with pytest.raises(ConfigError, match=r"cosine 0\.951 .* Type: negatives='global'"):
        streamed.check_negatives("local_no_grad", 2)
    with pytest.raises(ConfigError, match="Type: negatives='global'"):
        streamed.check_negatives("locale", 1)


def test_refusals():
    image, text, scale = unit(5), unit(5), scalar(10.0)
    with pytest.raises(TrainError, match="one text per image"):
        streamed.softmax_loss(image, unit(6), scale)
    with pytest.raises(ConfigError, match="precision='fp16'"):
        streamed.softmax_loss(image, text, scale, precision="fp16")
    with pytest.raises(TrainError, match="Move all to cpu"):
        streamed.softmax_loss(image, text.detach().to("meta"), scale)
