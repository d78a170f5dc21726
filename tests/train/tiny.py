"""A model of 20,000 parameters with everything in it that a step may trip over."""

import torch

from diptych import towers
from diptych.config import CLIPConfig, TextConfig, ViTConfig
from diptych.train.accumulate import Piece

SIZE = {"width": 32, "layers": 2, "heads": 4, "mlp_dim": 64}


def config(loss: str = "softmax", patch_dropout: float = 0.5) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=24,
        visual=ViTConfig(image_size=(32, 32), patch_size=8, patch_dropout=patch_dropout, **SIZE),
        text=TextConfig(context_length=12, vocab_size=64, **SIZE),
        loss=loss,
    )


def model(loss: str = "softmax", dtype: torch.dtype = torch.float64, **more):
    torch.manual_seed(0)
    return towers.build(config(loss, **more)).to(dtype).train()


def batch(n: int, dtype: torch.dtype = torch.float64) -> Piece:
    generator = torch.Generator().manual_seed(1)
    return Piece(
        torch.randn(n, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(1, 64, (n, 12), generator=generator),
        torch.arange(n) * 7919,
    )


def rows(piece: Piece, start: int, end: int) -> Piece:
    return Piece(*(part[start:end] for part in piece))


def cut(piece: Piece, num: int) -> list[Piece]:
    size = len(piece.ids) // num
    return [rows(piece, i, i + size) for i in range(0, len(piece.ids), size)]
