"""Run by test_compile.py in a process of its own, where no import hook wraps the model.

python compiled.py compile | export
"""

import sys

import torch
from torch.export import Dim

from diptych import towers
from diptych.config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)

torch.manual_seed(0)
SIZE = {"width": 32, "layers": 2, "heads": 4, "mlp_dim": 64}
VIT = ViTConfig(image_size=(32, 32), patch_size=8, act="quick_gelu", **SIZE)
SIGLIP = ViTConfig(
    image_size=(32, 32), patch_size=8, class_token=False, pool="map", pre_norm=False, **SIZE
)
RESNET = ResNetConfig(image_size=(64, 64), layers=(1, 1, 1, 1), width=8, heads=4)
EFFICIENTNET = EfficientNetConfig(
    image_size=(66, 70), width_mult=0.25, depth_mult=0.1, head_width=40
)
LITE = EfficientNetConfig(
    image_size=(65, 64), width_mult=0.25, depth_mult=0.1, lite=True, padding="even"
)
TEXT = TextConfig(context_length=16, vocab_size=64, act="quick_gelu", **SIZE)
PADDED = TextConfig(context_length=16, vocab_size=64, pad_id=0, pool="eos", eos_id=63, **SIZE)
BIDIRECTIONAL = TextConfig(context_length=16, vocab_size=64, causal=False, pool="last", **SIZE)
BERT = BertConfig(context_length=16, vocab_size=64, **SIZE)
BERT_CLASS = BertConfig(context_length=16, vocab_size=64, pool="class", pad_id=None, **SIZE)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape, (a.shape, b.shape)
    assert torch.allclose(a, b, atol=2e-6), (a - b).abs().max()


def compile_whole() -> None:
    """One graph, no break, in evaluation and in training with patch dropout's config."""
    for visual, text in (
        *((VIT, TEXT), (SIGLIP, BIDIRECTIONAL), (RESNET, PADDED)),
        *((EFFICIENTNET, BERT), (LITE, BERT_CLASS)),
    ):
        model = towers.build(CLIPConfig(embed_dim=24, visual=visual, text=text)).eval()
        image, ids = torch.randn(2, 3, *visual.image_size), torch.randint(1, 64, (3, 16))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected, got = model(image, ids), compiled(image, ids)
        close(got.image_features, expected.image_features)
        close(got.text_features, expected.text_features)


def export_towers() -> None:
    """Any batch size, any text length up to the context, from one exported program."""
    n, s = Dim("n", min=1, max=64), Dim("s", min=2, max=16)
    for cfg in (VIT, SIGLIP, RESNET, EFFICIENTNET, LITE):
        tower = towers.build(cfg, 24).eval()
        example = torch.randn(3, 3, *cfg.image_size)
        program = torch.export.export(tower, (example,), dynamic_shapes=({0: n},)).module()
        for size in (1, 2, 7):
            image = torch.randn(size, 3, *cfg.image_size)
            close(program(image), tower(image))
    for cfg in (TEXT, PADDED, BIDIRECTIONAL, BERT, BERT_CLASS):
        tower = towers.build(cfg, 24).eval()
        example = torch.randint(1, 64, (3, 12))
        shapes = ({0: n, 1: s},)
        program = torch.export.export(tower, (example,), dynamic_shapes=shapes).module()
        for size in ((1, 16), (2, 5), (7, 11)):
            ids = torch.randint(1, 64, size)
            close(program(ids), tower(ids))


if __name__ == "__main__":
    torch.set_num_threads(2)
    {"compile": compile_whole, "export": export_towers}[sys.argv[1]]()
