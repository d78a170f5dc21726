"""What another package adds: a tower, its key table, a row. Shown in docs/how-to/add-a-model.md."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import CLIPConfig, PreprocessConfig, TextConfig, TokenizerConfig
from diptych.model import Hidden
from diptych.towers import Family
from diptych.zoo import Row, Url
from diptych.zoo.keymaps import Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatConfig:
    """An image seen as a few big squares."""

    image_size: tuple[int, int]
    squares: int


class FlatTower(nn.Module):
    """The tower contract: forward = project(pool(final_norm(hidden(batch))))."""

    def __init__(self, cfg: FlatConfig, embed_dim: int):
        super().__init__()
        self.cfg = cfg
        self.norm = nn.LayerNorm(3)
        self.proj = nn.Linear(3 * cfg.squares**2, embed_dim)

    def hidden(self, image: Tensor, layers=(-1,), attention=()) -> Hidden:
        squares = F.adaptive_avg_pool2d(image, self.cfg.squares)
        tokens = squares.flatten(2).transpose(1, 2)  # n (y x) 3
        return Hidden(tokens=dict.fromkeys(layers, tokens), attention={}, grid=squares.shape[-2:])

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def pool(self, tokens: Tensor, hidden: Hidden) -> Tensor:
        return tokens.flatten(1)

    def project(self, pooled: Tensor) -> Tensor:
        return self.proj(pooled)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.hidden(image)
        return self.project(self.pool(self.final_norm(hidden.tokens[-1]), hidden))


family = Family(
    config=FlatConfig,
    build=FlatTower,
    rules=(  # how the published file names the tensors of this tower
        Rule(r"flat\.norm\.(weight|bias)", r"visual.norm.\1"),
        Rule(r"flat\.head\.(weight|bias)", r"visual.proj.\1"),
    ),
)
ROWS = (
    Row(
        name="flat/demo",
        config=CLIPConfig(
            embed_dim=24,
            visual=FlatConfig(image_size=(32, 32), squares=4),
            text=TextConfig(
                context_length=77, vocab_size=49408, width=32, layers=1, heads=2, mlp_dim=64
            ),
        ),
        preprocess=PreprocessConfig(size=(32, 32)),
        tokenizer=TokenizerConfig(kind="clip_bpe", context_length=77),
        sources=(Url(url="https://weights.example.org/flat-demo.pt"),),
        licence="MIT",
    ),
)
