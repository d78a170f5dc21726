"""`open_clip` 3.3.0 as people use it: models, transforms, tokenizers and zero-shot classifiers.

    from diptych.compat import open_clip
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained="openai")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

What differs, on purpose:
- A tag's activation is the one its weights were trained with, with or without "-quickgelu" in the
  name; open_clip warns and computes the other. `exact_gelu_(model)` gives open_clip's arithmetic
  for SigLIP and CLIPA, which were trained with the tanh GELU.
- An argument that is not honoured is refused, and so is `pretrained=` beside "hf-hub:".
- A text cannot spell a control token, and SigLIP 2 keeps its punctuation, as in its training.
- Losses, CoCa, `forward_intermediates` and the ImageNet prompt lists are not here.
"""

from diptych.compat.open_clip.factory import (
    create_model,
    create_model_and_transforms,
    create_model_from_pretrained,
    get_model_preprocess_cfg,
    get_tokenizer,
)
from diptych.compat.open_clip.model import (
    CLIP,
    CustomTextCLIP,
    convert_weights_to_fp16,
    convert_weights_to_lp,
    exact_gelu_,
    get_cast_dtype,
    get_input_dtype,
)
from diptych.compat.open_clip.names import (
    get_model_config,
    list_models,
    list_openai_models,
    list_pretrained,
    list_pretrained_models_by_tag,
    list_pretrained_tags_by_model,
)
from diptych.compat.open_clip.tokenizer import SimpleTokenizer, decode, tokenize
from diptych.compat.open_clip.transform import AugmentationCfg, image_transform
from diptych.compat.open_clip.zero_shot import build_zero_shot_classifier
from diptych.config import OPENAI_MEAN as OPENAI_DATASET_MEAN
from diptych.config import OPENAI_STD as OPENAI_DATASET_STD

__all__ = [
    "CLIP",
    "OPENAI_DATASET_MEAN",
    "OPENAI_DATASET_STD",
    "AugmentationCfg",
    "CustomTextCLIP",
    "SimpleTokenizer",
    "build_zero_shot_classifier",
    "convert_weights_to_fp16",
    "convert_weights_to_lp",
    "create_model",
    "create_model_and_transforms",
    "create_model_from_pretrained",
    "decode",
    "exact_gelu_",
    "get_cast_dtype",
    "get_input_dtype",
    "get_model_config",
    "get_model_preprocess_cfg",
    "get_tokenizer",
    "image_transform",
    "list_models",
    "list_openai_models",
    "list_pretrained",
    "list_pretrained_models_by_tag",
    "list_pretrained_tags_by_model",
    "tokenize",
]
