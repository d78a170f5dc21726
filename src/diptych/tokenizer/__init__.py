"""Text -> token ids, exactly as each publisher's code makes them.

    tokenizer = build(TokenizerConfig(kind="clip_bpe", context_length=77))
    tokenizer(["a photo of a cat"])                 # int64 [1, 77]
    tokenizer.tokenize(texts).cut                   # which rows do not hold their whole text

- `clean.py`: the rules before tokens. `bpe.py`: CLIP. `pieces.py`: SigLIP, SigLIP 2, CLIPA.
- User text can never produce a control token: a caption that spells "<|endoftext|>" is tokenised as
  those letters. The peers let it end the caption, which hides the rest from the model.
- Nothing is cut in silence, and no text takes more than linear time.
"""

from pathlib import Path

from diptych.config import TokenizerConfig
from diptych.tokenizer.base import TextTokenizer, Tokenizer, Tokens, Truncate, locate
from diptych.tokenizer.bpe import Specials

__all__ = ["Specials", "TextTokenizer", "Tokenizer", "Tokens", "Truncate", "build"]


def build(config: TokenizerConfig, folder: Path | None = None) -> TextTokenizer:
    """The tokenizer of a config. `folder` is where `config.file` lies, if not in the package.

    Raises:
        ConfigError: `config.file` needs a folder.
        CheckpointError: the file is not there.
    """
    return TextTokenizer(config, locate(config, folder))
