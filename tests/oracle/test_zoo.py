"""The rows against open_clip's registry: configs, sizes, pixels, addresses; differences by name."""

from dataclasses import replace

import peers
import pytest
import torch
from report import record

from diptych import zoo
from diptych.config import ViTConfig
from diptych.zoo import open_clip as layout
from diptych.zoo.architectures import ARCHITECTURES, with_act
from diptych.zoo.facts import num_parameters
from diptych.zoo.settings import differences

PEER = "open_clip_torch"
# Families that no tower of ours carries yet, by what their names hold.
NOT_CARRIED = ("roberta", "convnext", "coca", "EVA", "nllb", "MobileCLIP", "ViTamin", "PE-Core")
# (name, what the peer has): why ours is another
OTHER_ADDRESSES = {
    (
        "ViT-B-16-plus-240/laion400m_e32",
        "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
    ): "the peer's registry names the repository of e31 for e32",
}


def registry() -> dict[str, dict]:
    """open_clip's tags by our names, without the "-quickgelu" twins."""
    pretrained = peers.open_clip().pretrained
    return {
        f"{name}/{tag}": pretrained.get_pretrained_cfg(name, tag)
        for name, tag in peers.open_clip().list_pretrained()
        if not name.endswith("-quickgelu")
    }


def test_every_tag_has_a_row_or_a_reason():
    missing = [
        name
        for name in registry()
        if name not in zoo.list_models() and not any(part in name for part in NOT_CARRIED)
    ]
    assert not missing
    ours = {n for n in zoo.list_models() if n.split("/")[0] in ARCHITECTURES}
    assert not ours - registry().keys()
    record("Zoo", "open_clip's ViT, ResNet, SigLIP, CLIPA tags without a row", 0, 0, PEER)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_what_the_peers_config_says(name):
    cfg = peers.open_clip().get_model_config(name)
    found, _ = layout.read_config(cfg, name)
    clipa = isinstance(found.visual, ViTConfig) and found.visual.norm_after_pool
    wrong = differences(ARCHITECTURES[name], found)
    if clipa:  # the training code's activation, and that its positions are not trained
        assert wrong == [
            "visual.act: 'gelu_tanh', not 'gelu'",
            "visual.positions: 'sincos2d', not 'learned'",
            "text.act: 'gelu_tanh', not 'gelu'",
        ]
    else:
        assert not wrong


def test_sizes():
    worst = 0
    for name, config in ARCHITECTURES.items():
        cfg = peers.open_clip().get_model_config(name)
        custom = cfg.pop("custom_text", False)
        make = peers.open_clip().CustomTextCLIP if custom else peers.open_clip().CLIP
        with torch.device("meta"):
            peer = make(**cfg)
        counts = num_parameters(config)
        theirs = [sum(p.numel() for p in part.parameters()) for part in (peer, peer.visual)]
        mine = [counts["parameters"], counts["of them visual"]]
        worst = max(worst, *(abs(a - b) for a, b in zip(mine, theirs, strict=True)))
    record("Zoo", f"parameters of {len(ARCHITECTURES)} architectures", worst, 0, PEER)


def test_pixels_activation_and_addresses():
    wrong = []
    for name, theirs in registry().items():
        if name not in zoo.list_models():
            continue
        row = zoo.get(name)
        pixels = replace(
            row.preprocess,
            mean=tuple(theirs["mean"]),
            std=tuple(theirs["std"]),
            interpolation=theirs["interpolation"],
            resize=theirs["resize_mode"],
        )
        if pixels != row.preprocess:
            wrong.append(f"{name}: {differences(row.preprocess, pixels)}")
        base = ARCHITECTURES[name.split("/")[0]]
        if row.config != (with_act(base, "quick_gelu") if theirs.get("quick_gelu") else base):
            wrong.append(f"{name}: activation")
        known = {s.repo if isinstance(s, zoo.Hub) else s.url for s in row.sources}
        for address in (theirs["hf_hub"].rstrip("/"), theirs["url"]):
            if address and address not in known and (name, address) not in OTHER_ADDRESSES:
                wrong.append(f"{name}: {address} is not among {known}")
    assert not wrong, "\n".join(wrong)
    record("Zoo", "rows whose pixels, activation or address differ unsaid", 0, 0, PEER)
