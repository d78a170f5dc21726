"""`clip.simple_tokenizer` of openai/CLIP, on this package's byte-pair encoder."""

from diptych.compat.tokens import SimpleTokenizer

__all__ = ["SimpleTokenizer"]
