"""Optimisers, layer decay, schedules and adapters against timm, optimi, open_clip and peft."""

import pytest
import torch
from torch import nn

from diptych import towers
from diptych.config import ViTConfig
from diptych.train.config import OptimConfig, ScheduleConfig
from diptych.train.optim import build_optimiser, parameter_groups
from diptych.train.schedule import learning_rate

CFG = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


class Pair(nn.Module):
    """Matrices and vectors of several sizes, as towers have them."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


def farthest(kind: str, build, dtype=torch.float32) -> float:
    """Largest difference of a weight in 20 steps; gradients jump by 100 in the middle."""
    torch.manual_seed(0)
    ours, theirs = Pair().to(dtype), Pair().to(dtype)
    theirs.load_state_dict(ours.state_dict())
    optimiser = build_optimiser(ours, OptimConfig(kind=kind, momentum=0.9, **CFG))
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.ndim <= 1]
    peer = build([{"params": decayed}, {"params": rest, "weight_decay": 0.0}])
    worst = 0.0
    for step in range(20):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p) * (100 if step == 10 else 1)
            q.grad = p.grad.clone()
        optimiser.step()
        peer.step()
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        worst = max(worst, *(float((p - q).detach().abs().max()) for p, q in pairs))
    return worst


def test_lamb_is_timms():
    from timm.optim import Lamb

    assert farthest("lamb", lambda groups: Lamb(groups, max_grad_norm=None, **CFG)) <= 1e-6


def test_stableadamw_is_optimis():
    from optimi import StableAdamW

    def build(groups):
        how = {"decouple_lr": False, "foreach": False, "kahan_sum": False}
        return StableAdamW(groups, **CFG, **how)

    assert farthest("stableadamw", build) <= 1e-6


def test_adamw_is_torchs_plain_loop():
    build = lambda groups: torch.optim.AdamW(groups, foreach=False, fused=False, **CFG)  # noqa: E731
    assert farthest("adamw", build) <= 1e-6


def test_layer_decay_is_timms():
    """timm's, but for the final norm, which it counts to the last block and BEiT does not."""
    import timm
    from timm.optim import param_groups_layer_decay

    depth, decay = 4, 0.75
    peer = timm.create_model(
        "vit_tiny_patch16_224", depth=depth, num_classes=8, weight_init="skip", fc_norm=False
    )
    scales = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(peer, layer_decay=decay)
        for p in group["params"]
    }
    theirs = {name: scales[id(p)] for name, p in peer.named_parameters()}
    tower = ViTConfig(
        image_size=(224, 224), patch_size=16, width=192, layers=depth, heads=3, mlp_dim=768,
        act="gelu", pre_norm=False, proj="linear",
    )  # fmt: skip
    model = nn.ModuleDict({"visual": towers.build(tower, 8)})
    groups = parameter_groups(model, OptimConfig(visual_layer_decay=decay))
    ours = {name: group["lr_scale"] for group in groups for name in group["names"]}
    same = {
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "patch_embed.weight": "patch_embed.proj.weight",
        **{f"blocks.{i}.mlp.c_fc.weight": f"blocks.{i}.mlp.fc1.weight" for i in range(depth)},
        **{f"blocks.{i}.ln_1.bias": f"blocks.{i}.norm1.bias" for i in range(depth)},
        "proj.weight": "head.weight",
    }
    got = {name: ours[f"visual.{name}"] for name in same}
    assert got == pytest.approx({name: theirs[peer_name] for name, peer_name in same.items()})


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("kind", ["cosine", "constant", "constant_cooldown"])
def test_schedules_are_open_clips(kind, steps):
    from open_clip_train.scheduler import const_lr, const_lr_cooldown, cosine_lr

    peak, warmup, cooldown = 5e-4, max(1, steps // 10), max(1, steps // 4)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=peak)
    adjust = {
        "cosine": lambda: cosine_lr(optimiser, peak, warmup, steps),
        "constant": lambda: const_lr(optimiser, peak, warmup, steps),
        "constant_cooldown": lambda: const_lr_cooldown(optimiser, peak, warmup, steps, cooldown),
    }[kind]()
    cfg = ScheduleConfig(kind=kind, warmup=warmup, cooldown=cooldown)
    for step in range(steps):
        assert learning_rate(step, steps, cfg, peak) == pytest.approx(adjust(step), rel=1e-12)


def test_adapters_are_pefts():
    """The same A and B in both: outputs, gradients and merged weights."""
    peft = pytest.importorskip("peft")
    from diptych.model.lora import LoraLinear, add_lora, merged

    torch.manual_seed(0)
    ours = nn.ModuleDict({"visual": nn.ModuleDict({"q_proj": nn.Linear(12, 8)})})
    theirs = nn.ModuleDict({"q_proj": nn.Linear(12, 8)})
    theirs["q_proj"].load_state_dict(ours["visual"]["q_proj"].state_dict())
    settings = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj"], lora_dropout=0.0)
    peft.inject_adapter_in_model(settings, theirs)
    add_lora(ours, rank=4, alpha=10.0, targets=("q_proj",))
    layer, peer = ours["visual"]["q_proj"], theirs["q_proj"]
    assert isinstance(layer, LoraLinear)
    a, b = peer.lora_A["default"].weight, peer.lora_B["default"].weight
    bound = 12**-0.5  # of both uniform starts
    assert max(float(w.detach().abs().max()) for w in (a, layer.down.weight)) <= bound
    assert not b.any() and not layer.up.weight.any()
    nn.init.normal_(b)
    with torch.no_grad():
        layer.down.weight.copy_(a)
        layer.up.weight.copy_(b)
    x = torch.randn(5, 12)
    y, z = layer(x), peer(x)
    assert float((y - z).detach().abs().max()) <= 1e-5
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(layer.down.weight.grad, a.grad)
    torch.testing.assert_close(layer.up.weight.grad, b.grad)
    folded = merged(ours, ours.state_dict())["visual.q_proj.weight"]
    peer.merge()
    theirs_folded = peer.get_base_layer().weight.detach()
    torch.testing.assert_close(folded, theirs_folded, atol=1e-6, rtol=0)
