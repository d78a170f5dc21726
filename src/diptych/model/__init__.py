"""The model: two towers that meet in one embedding space, in six short files.

Read `clip`, then `transformer`, `vision`, `text`, `loss`, `lora`. Letters in the shapes: n images
or texts, s sequence, d width, h heads, k width of a head, e embed_dim, H W pixels, (h w) or (y x)
the grid of patches, c channels.
"""

from diptych.model.clip import CLIP, Features
from diptych.model.text import TextTransformer
from diptych.model.transformer import Hidden
from diptych.model.vision import VisionTransformer

__all__ = ["CLIP", "Features", "Hidden", "TextTransformer", "VisionTransformer"]
