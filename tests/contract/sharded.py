"""What test_compile.py runs on two gloo ranks: FSDP2 against one process."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from diptych import towers
from diptych.config import CLIPConfig, TextConfig, ViTConfig

SIZE = {"width": 32, "layers": 2, "heads": 4, "mlp_dim": 64}
CONFIG = CLIPConfig(
    embed_dim=24,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, **SIZE),
    text=TextConfig(context_length=16, vocab_size=64, **SIZE),
)


def step(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Features, and gradients of every parameter, of a loss on a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 3, 32, 32, generator=generator)
    ids = torch.randint(0, 64, (4, 16), generator=generator)
    out = model(image, ids)
    logits = out.logit_scale.exp() * out.image_features @ out.text_features.T
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    found = {"image_features": out.image_features, "text_features": out.text_features}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return {name: tensor.detach() for name, tensor in found.items()}


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    return towers.build(CONFIG)


def compare() -> None:
    mesh = init_device_mesh("cpu", (2,))
    expected = step(build())
    for checkpointing in (False, True):
        model = build()
        for tower in (model.visual, model.text):
            tower.checkpointing = checkpointing
            for block in tower.blocks:
                fully_shard(block, mesh=mesh)
        # A scalar cannot be split, so what stands outside the blocks stays whole.
        got = step(model)
        assert isinstance(model.visual.blocks[0].attn.q_proj.weight, DTensor)
        for name, tensor in expected.items():
            difference = (got[name] - tensor).abs().max()
            assert difference <= 1e-6 + 1e-5 * tensor.abs().max(), (name, difference)
