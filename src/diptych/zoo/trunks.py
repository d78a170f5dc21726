"""What the names of timm's SigLIP image towers mean, as open_clip's configs use them.

Source: huggingface/pytorch-image-models 1.0, `timm/models/vision_transformer.py`.
"""

from dataclasses import replace

from diptych.config import ViTConfig

__all__ = ["TIMM"]

_B = ViTConfig(
    image_size=(224, 224),
    patch_size=16,
    width=768,
    layers=12,
    heads=12,
    mlp_dim=3072,
    act="gelu_tanh",
    ln_eps=1e-6,
    patch_bias=True,
    class_token=False,
    pre_norm=False,
    pool="map",
    proj="none",
    init="big_vision",
)
_L = replace(_B, width=1024, layers=24, heads=16, mlp_dim=4096)
_SO = replace(_B, width=1152, layers=27, heads=16, mlp_dim=4304)
_GOPT = replace(_B, width=1536, layers=40, heads=16, mlp_dim=6144)
_SIGLIP = (  # timm name, sizes, patch, image sides
    ("vit_base_patch32_siglip_{}", _B, 32, (256,)),
    ("vit_base_patch16_siglip_{}", _B, 16, (224, 256, 384, 512)),
    ("vit_large_patch16_siglip_{}", _L, 16, (256, 384, 512)),
    ("vit_so400m_patch14_siglip_{}", _SO, 14, (224, 378, 384)),
    ("vit_so400m_patch16_siglip_{}", _SO, 16, (256, 384, 512)),
    ("vit_giantopt_patch16_siglip_{}", _GOPT, 16, (256, 384)),
)
TIMM: dict[str, ViTConfig] = {
    name.format(side): replace(base, patch_size=patch, image_size=(side, side))
    for name, base, patch, sides in _SIGLIP
    for side in sides
}
