"""The originals with random weights, and our towers on the very same tensors.

- `disturb_` fills every tensor with seeded noise: a fresh model has pieces of zeros and ones that
  would hide an error. Scales are chosen so that activations stay near the size they have in a
  trained model: a network that amplifies its own rounding measures only that.
- The peers are imported when a test asks for one: collecting the tests costs nothing.
"""

import math
import re
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych import towers
from diptych.config import CLIPConfig
from diptych.model import CLIP
from diptych.zoo.keymaps import Rule, rename

__all__ = [
    "clip_ids",
    "disturb_",
    "hf_clip",
    "hf_siglip",
    "open_clip",
    "open_clip_by_name",
    "open_clip_clip",
    "ours",
    "photos",
    "pixels",
    "siglip_ids",
    "torchvision_stub",
    "unit",
]

_KEPT: list[torch.library.Library] = []
_EMBEDDING = re.compile(r"(position|pos_|token|class).*embed\w*(\.weight)?$|\.(probe|latent)$")
_LAST_NORM = re.compile(r"\d\.bn3\.weight$")


def torchvision_stub() -> None:
    """Declare two operators without which torchvision cannot be imported beside a CPU torch."""
    try:
        _ = torch.ops.torchvision.nms
    except AttributeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # the operators live as long as it does


def open_clip() -> ModuleType:
    torchvision_stub()
    import open_clip

    return open_clip


def transformers() -> ModuleType:
    torchvision_stub()
    import transformers

    return transformers


@torch.no_grad()
def disturb_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Noise in every parameter and buffer of any CLIP-like model, in place; returns it in eval.

    Matrices: normal, variance 1 / fan-in; a ResNet's kernels: 2 / fan-in.
    Embeddings, class token, probe: deviation 0.5. Norms: scale 1 + 0.2 noise. Biases: 0.1. The
    last norm of each of L bottlenecks is scaled by L^-0.5, so that they do not add up to an
    attention pool that picks one position. Batch-norm means: 0.1, variances: exp(0.2 noise).
    Scalars move by 0.1.
    """
    g = torch.Generator().manual_seed(seed)
    resnet = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    bottlenecks = sum(bool(_LAST_NORM.search(name)) for name, _ in model.named_parameters())

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=g)

    for name, x in model.named_parameters():
        if not x.requires_grad:
            continue  # CLIPA's fixed positions
        if x.numel() == 1:
            x.add_(0.1 * noise(x))
        elif _EMBEDDING.search(name):
            x.copy_(0.5 * noise(x))
        elif name.endswith("bias"):
            x.copy_(0.1 * noise(x))
        elif x.ndim == 1:
            x.copy_((bottlenecks**-0.5 if _LAST_NORM.search(name) else 1) * (1 + 0.2 * noise(x)))
        else:
            gain = 2 if resnet and x.ndim == 4 else 1
            x.copy_((gain / x[0].numel()) ** 0.5 * noise(x))
    for name, x in model.named_buffers():
        if name.endswith("running_mean"):
            x.copy_(0.1 * noise(x))
        elif name.endswith("running_var"):
            x.copy_((0.2 * noise(x)).exp())
    return model.eval()


def open_clip_clip(cfg: dict, seed: int = 0) -> nn.Module:
    """open_clip's `CLIP` for a `model_cfg`, disturbed."""
    cfg = {k: v for k, v in cfg.items() if k != "custom_text"}
    return disturb_(open_clip().CLIP(**cfg), seed)


def open_clip_by_name(name: str, *, quick_gelu: bool = False, seed: int = 0) -> nn.Module:
    """A full-size model of open_clip, without the time and memory of its own initialisation."""
    cfg = open_clip().get_model_config(name)
    custom = cfg.pop("custom_text", False)
    with torch.device("meta"):
        make = open_clip().CustomTextCLIP if custom else open_clip().CLIP
        model = make(**cfg, quick_gelu=quick_gelu).to_empty(device="cpu")
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1 / 0.07))
        if model.logit_bias is not None:
            model.logit_bias.fill_(-10)
    if not custom:
        length = model.context_length
        model.attn_mask = torch.full((length, length), -math.inf).triu_(1)  # in no state dict
    return disturb_(model, seed)


def hf_clip(text: dict, vision: dict, projection_dim: int, seed: int = 0) -> nn.Module:
    """transformers' `CLIPModel`, eager attention so that it can return its weights."""
    hf = transformers()
    cfg = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    cfg._attn_implementation = "eager"
    return disturb_(hf.CLIPModel(cfg), seed)


def hf_siglip(text: dict, vision: dict, seed: int = 0) -> nn.Module:
    """transformers' `SiglipModel`, eager attention."""
    hf = transformers()
    cfg = hf.SiglipConfig(text_config=text, vision_config=vision)
    cfg._attn_implementation = "eager"
    return disturb_(hf.SiglipModel(cfg), seed)


def ours(cfg: CLIPConfig, peer: nn.Module, rules: Sequence[Rule]) -> CLIP:
    """Our model for `cfg` on the peer's own tensors (shared, not copied); strict both ways."""
    with torch.device("meta"):
        model = towers.build(cfg)
    weights = rename(peer.state_dict(), rules, source=type(peer).__name__)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def photos(n: int, size: int | tuple[int, int], seed: int = 0) -> Tensor:
    """[n 3 H W] in 0..1: smooth noise at several frequencies, each image with its own spectrum,
    brightness, contrast and tint, the way photographs differ.
    """
    g = torch.Generator().manual_seed(seed)
    size = (size, size) if isinstance(size, int) else tuple(size)
    images = torch.zeros(n, 3, *size)
    for cells in (2, 4, 8, 16, 32, 64):
        noise = torch.randn(n, 3, cells, cells, generator=g)
        grey = torch.rand(n, 1, 1, 1, generator=g)
        noise = grey * noise.mean(1, keepdim=True) + (1 - grey) * noise
        weight = torch.randn(n, 1, 1, 1, generator=g).exp() * cells**-0.7
        images += weight * F.interpolate(noise, size, mode="bicubic", align_corners=False)
    images -= images.mean((1, 2, 3), keepdim=True)
    images /= images.std((1, 2, 3), keepdim=True)
    contrast = 0.05 + 0.25 * torch.rand(n, 1, 1, 1, generator=g)
    bright = 0.2 + 0.6 * torch.rand(n, 1, 1, 1, generator=g)
    tint = 0.1 * torch.randn(n, 3, 1, 1, generator=g)
    return (images * contrast + bright + tint).clamp(0, 1)


def pixels(n: int, size: int | tuple[int, int], seed: int = 0) -> Tensor:
    """`photos` as a model takes them, normalised."""
    return (photos(n, size, seed) - 0.45) / 0.27


def clip_ids(n: int, context_length: int, vocab_size: int, eos: int | None = None, seed: int = 0):
    """[n s]: start, words, EOT, zeros; lengths from empty to full. EOT is the highest id unless
    `eos` says another; then ids above it occur too, and a second EOT may follow.
    """
    g = torch.Generator().manual_seed(seed)
    end = vocab_size - 1 if eos is None else eos
    ids = torch.randint(3, vocab_size - 2, (n, context_length), generator=g)
    ids[ids == end] = 1
    ids[:, 0] = vocab_size - 2
    at = torch.linspace(1, context_length - 1, n).long()
    for row, i in zip(ids, at.tolist(), strict=True):
        row[i] = end
        row[i + 1 :] = 0 if eos is None else end
    return ids


def siglip_ids(n: int, context_length: int, vocab_size: int, pad: int = 1, seed: int = 0):
    """[n s]: words, EOS (id 1), padding; lengths from one word to full."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocab_size, (n, context_length), generator=g)
    for row, i in zip(ids, torch.linspace(1, context_length - 1, n).long().tolist(), strict=True):
        row[i] = 1
        row[i + 1 :] = pad
    return ids
