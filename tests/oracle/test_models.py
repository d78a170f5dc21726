"""Both towers against open_clip, timm and transformers, on the same tensors.

Full-size models for what people use most, tiny ones of the same shape for the rest. Configs come
from the registry, or from the peer's own config through our readers, so those are proven as well.
"""

from dataclasses import replace

import peers
import pytest
import torch
import torch.nn.functional as F
from report import record

from diptych import zoo
from diptych.config import CLIPConfig, ResNetConfig
from diptych.model.vision import resize_positions
from diptych.towers.initialise import sincos2d
from diptych.zoo.hugging_face import read_config as read_hf
from diptych.zoo.keymaps import HF_CLIP, HF_SIGLIP, OPEN_CLIP, OPEN_CLIP_RESNET, rename
from diptych.zoo.open_clip import read_config as read_open_clip

BOUND = 2e-6
OPEN_CLIP_PEER, HF_PEER = "open_clip_torch", "transformers"


def farthest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())


def rules_of(cfg: CLIPConfig):
    return OPEN_CLIP_RESNET if isinstance(cfg.visual, ResNetConfig) else OPEN_CLIP


def ids_for(cfg: CLIPConfig, n: int, pad: int = 1) -> torch.Tensor:
    text = cfg.text
    if text.pool == "last":
        return peers.siglip_ids(n, text.context_length, text.vocab_size, pad)
    return peers.clip_ids(n, text.context_length, text.vocab_size, text.eos_id)


@torch.no_grad()
def compare(
    what: str, cfg: CLIPConfig, peer, rules, name: str, *, n: int = 4, pad: int = 1
) -> None:
    """Unit features of both towers; `n` inputs that differ clearly, so a mix-up cannot hide."""
    model = peers.ours(cfg, peer, rules)
    image, ids = peers.pixels(n, cfg.visual.image_size), ids_for(cfg, n, pad)
    if name == HF_PEER:
        theirs = (
            peer.get_image_features(pixel_values=image).pooler_output,
            peer.get_text_features(input_ids=ids).pooler_output,
        )
    else:
        theirs = peer.encode_image(image), peer.encode_text(ids)
    pairs = zip(("image", "text"), (model.visual(image), model.text(ids)), theirs, strict=True)
    for side, x, y in pairs:
        x, y = peers.unit(x), peers.unit(y)
        assert float(torch.pdist(y).min()) > 1e3 * BOUND, f"{side} inputs are alike"
        record("Activations", f"{what}, {side}", farthest(x, y), BOUND, name)


# --- full size --------------------------------------------------------------------------------

FULL = {  # our registry's name: open_clip's name, QuickGELU
    "RN50/openai": ("RN50", True),
    "RN101/openai": ("RN101", True),
    "RN50x4/openai": ("RN50x4", True),
    "ViT-B-32/openai": ("ViT-B-32", True),
    "ViT-B-32/laion2b_s34b_b79k": ("ViT-B-32", False),
    "ViT-B-16/openai": ("ViT-B-16", True),
    "ViT-L-14/openai": ("ViT-L-14", True),
    "ViT-H-14/laion2b_s32b_b79k": ("ViT-H-14", False),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    theirs, quick_gelu = FULL[name]
    cfg = zoo.get(name).config
    published = peers.open_clip().get_model_config(theirs)
    assert read_open_clip(published | {"quick_gelu": quick_gelu}, theirs)[0] == cfg
    peer = peers.open_clip_by_name(theirs, quick_gelu=quick_gelu)
    compare(name, cfg, peer, rules_of(cfg), OPEN_CLIP_PEER)


def test_full_size_hf_clip():
    cfg = zoo.get("ViT-B-32/openai").config
    peer = peers.hf_clip({"eos_token_id": 2}, {}, 512)
    assert read_hf(peer.config.to_dict(), "HF") == cfg
    compare("ViT-B-32/openai", cfg, peer, HF_CLIP, HF_PEER)


def test_full_size_hf_siglip():
    cfg = zoo.get("ViT-B-16-SigLIP/webli").config
    peer = peers.hf_siglip({}, {})
    assert read_hf(peer.config.to_dict(), "HF") == cfg
    compare("ViT-B-16-SigLIP/webli", cfg, peer, HF_SIGLIP, HF_PEER)


def test_full_size_timm_siglip():
    """open_clip and timm compute the exact GELU here; ours does on request."""
    cfg = zoo.get("ViT-B-16-SigLIP/webli").config
    published = peers.open_clip().get_model_config("ViT-B-16-SigLIP")
    assert read_open_clip(published, "SigLIP")[0] == cfg
    exact = replace(cfg, visual=replace(cfg.visual, act="gelu"), text=replace(cfg.text, act="gelu"))
    peer = peers.open_clip_by_name("ViT-B-16-SigLIP")
    compare("ViT-B-16-SigLIP/webli with act='gelu'", exact, peer, OPEN_CLIP, "timm")


# --- tiny: the shapes of the rest -------------------------------------------------------------

TEXT = {"context_length": 16, "vocab_size": 128, "width": 64, "heads": 2, "layers": 2}
IMAGE = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 2}
CLIPA_IMAGE = {
    **IMAGE,
    "no_ln_pre": True,
    "pool_type": "avg",
    "final_ln_after_pool": True,
    "pos_embed_type": "sin_cos_2d",
}
CLIPA_TEXT = {**TEXT, "pool_type": "last", "no_causal_mask": True}
TANH = {"act_kwargs": {"approximate": "tanh"}}
TINY = {
    "RN50x16, narrow": (
        {"image_size": 384, "layers": [6, 8, 18, 8], "width": 8},
        {**TEXT, "layers": 12},
        True,
    ),
    "RN50x64, narrow": (
        {"image_size": 448, "layers": [3, 15, 36, 10], "width": 8},
        {**TEXT, "layers": 12},
        True,
    ),
    "ViT-L-14-336, narrow": (
        {"image_size": 336, "patch_size": 14, "width": 64, "head_width": 64, "layers": 24},
        {**TEXT, "layers": 12},
        True,
    ),
    "ViT-H-14, heads of 80": ({**IMAGE, "width": 160, "head_width": 80}, TEXT, False),
    "ViT-g-14, heads of 88": (
        {**IMAGE, "width": 176, "head_width": 88, "mlp_ratio": 4.3637},
        TEXT,
        False,
    ),
    "ViT-bigG-14, heads of 104": (
        {**IMAGE, "width": 208, "head_width": 104, "mlp_ratio": 4.9231},
        {**TEXT, "width": 160, "heads": 5},
        False,
    ),
    "ViT-e-14, heads of 112": (
        {**IMAGE, "width": 224, "head_width": 112, "mlp_ratio": 8.5715},
        TEXT,
        False,
    ),
    "ViT of 32x64 pixels": ({**IMAGE, "image_size": [32, 64]}, TEXT, False),
    "text of 7 heads, 10 wide": (IMAGE, {**TEXT, "width": 70, "heads": 7, "layers": 3}, True),
    "text pooled at an EOS id": (IMAGE, {**TEXT, "pool_type": "eos", "eos_id": 60}, False),
    "CLIPA, exact GELU": (CLIPA_IMAGE, CLIPA_TEXT, False),
    "CLIPA, tanh GELU": (CLIPA_IMAGE | TANH, CLIPA_TEXT | TANH, False),
    "mean pool after the norm": ({**IMAGE, "pool_type": "avg"}, CLIPA_TEXT, False),
}


def tiny(vision: dict, text: dict, quick_gelu: bool = False, embed_dim: int = 48):
    cfg = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}
    return read_open_clip(cfg, "tiny")[0], peers.open_clip_clip(cfg)


@pytest.mark.parametrize("what", TINY)
def test_tiny_open_clip(what):
    cfg, peer = tiny(*TINY[what])
    compare(what, cfg, peer, rules_of(cfg), OPEN_CLIP_PEER, pad=0)


def test_clipa_positions_are_its_own():
    """They are stored, so a load would hide a wrong formula."""
    peer = tiny(*TINY["CLIPA, exact GELU"])[1]
    positions = sincos2d(64, (4, 4))
    value = farthest(positions, peer.visual.positional_embedding[1:])
    record("Activations", "CLIPA, 2-D sine positions", value, 1e-7, OPEN_CLIP_PEER)


HF_TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
HF_IMAGE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [2, 60])
def test_tiny_hf_clip(act, eos):
    text = {**HF_TEXT, "hidden_act": act, "eos_token_id": eos, "bos_token_id": 0}
    peer = peers.hf_clip(text, {**HF_IMAGE, "hidden_act": act}, 24)
    rule = "highest id" if eos == 2 else "first EOS id"
    cfg = read_hf(peer.config.to_dict(), "HF")
    compare(f"tiny CLIP, {act}, pooled at the {rule}", cfg, peer, HF_CLIP, HF_PEER)


SIGLIP = {
    "tiny SigLIP": ({}, {}, 1),
    "tiny SigLIP, 16 tokens": ({"max_position_embeddings": 16}, {}, 1),
    "tiny SigLIP So400m, heads of 72": (
        {"hidden_size": 144, "num_attention_heads": 2, "intermediate_size": 538},
        {"hidden_size": 144, "num_attention_heads": 2, "intermediate_size": 538, "image_size": 40},
        1,
    ),
    "tiny SigLIP 2 g-opt, heads of 96, text of 72": (
        {"hidden_size": 144, "num_attention_heads": 2, "projection_size": 192},
        {"hidden_size": 192, "num_attention_heads": 2},
        0,
    ),
    "tiny SigLIP 2 of fixed resolution, 64 tokens": ({"vocab_size": 256}, {"image_size": 64}, 0),
}


@pytest.mark.parametrize("what", SIGLIP)
def test_tiny_hf_siglip(what):
    text, vision, pad = SIGLIP[what]
    text = {**HF_TEXT, "max_position_embeddings": 64, "projection_size": 48, **text}
    if "hidden_size" in text and "hidden_size" in vision:
        text["projection_size"] = vision["hidden_size"]
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    peer = peers.hf_siglip(text, {**HF_IMAGE, **vision})
    cfg = read_hf(peer.config.to_dict(), "HF")
    compare(what, cfg, peer, HF_SIGLIP, HF_PEER, pad=pad)


# --- every layer ------------------------------------------------------------------------------


def hidden_of(tower, x, depth: int):
    return tower.hidden(x, layers=range(depth + 1), attention=range(1, depth + 1))


@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
@torch.no_grad()
def test_hidden_states_and_attention(family):
    if family == "CLIP":
        peer = peers.hf_clip({**HF_TEXT, "eos_token_id": 2}, HF_IMAGE, 24)
        rules = HF_CLIP
    else:
        text = {**HF_TEXT, "projection_size": 48, "bos_token_id": 0, "eos_token_id": 1}
        peer, rules = peers.hf_siglip(text, HF_IMAGE), HF_SIGLIP
    cfg = read_hf(peer.config.to_dict(), "HF")
    model = peers.ours(cfg, peer, rules)
    image, ids = peers.pixels(4, 32), ids_for(cfg, 4)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    theirs = {
        "image": peer.vision_model(pixel_values=image, **wanted),
        "text": peer.text_model(input_ids=ids, **wanted),
    }
    for side, tower, x in (("image", model.visual, image), ("text", model.text, ids)):
        got = hidden_of(tower, x, 3)
        states, maps = theirs[side].hidden_states, theirs[side].attentions
        assert len(states) == 4 and len(maps) == 3
        value = max(farthest(got.tokens[i], y) / float(y.abs().max()) for i, y in enumerate(states))
        record("Hidden states", f"{family}, {side} tokens, layers 0 to 3", value, BOUND, HF_PEER)
        value = max(farthest(got.attention[i], y) for i, y in enumerate(maps, start=1))
        record("Hidden states", f"{family}, {side} attention, layers 1 to 3", value, BOUND, HF_PEER)
        if (family, side) == ("CLIP", "image"):
            continue  # transformers norms the class token alone here, after taking it
        last = theirs[side].last_hidden_state
        value = farthest(tower.final_norm(got.tokens[3]), last) / float(last.abs().max())
        record("Hidden states", f"{family}, {side}, after the final norm", value, BOUND, HF_PEER)


@torch.no_grad()
def test_resnet_stages_and_pool_weights():
    vision = {"image_size": 96, "layers": [2, 1, 2, 1], "width": 16}
    cfg, peer = tiny(vision, TEXT)
    model = peers.ours(cfg, peer, OPEN_CLIP_RESNET)
    image = peers.pixels(3, 96)
    stages = []
    for layer in (1, 2, 3, 4):
        module = getattr(peer.visual, f"layer{layer}")
        module.register_forward_hook(lambda m, i, out: stages.append(out))
    peer.visual(image)
    got = model.visual.hidden(image, layers=(1, 2, 3, 4), attention=(-1,))
    value = max(
        farthest(got.tokens[i], y.flatten(2).mT) / float(y.abs().max())
        for i, y in enumerate(stages, start=1)
    )
    record("Hidden states", "ResNet, stages 1 to 4", value, BOUND, OPEN_CLIP_PEER)
    pool, x = peer.visual.attnpool, stages[-1].flatten(2).permute(2, 0, 1)  # s n c
    x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding[:, None]
    weights = F.multi_head_attention_forward(
        query=x[:1],
        key=x,
        value=x,
        embed_dim_to_check=x.shape[-1],
        num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=True,
        average_attn_weights=False,
    )[1]
    value = farthest(got.attention[-1], weights)
    record("Hidden states", "ResNet, weights of the attention pool", value, BOUND, "torch")


# --- other resolutions ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [48, 24, 64, (32, 64), (56, 40)])
@torch.no_grad()
def test_another_resolution(size):
    """Ours resizes while it runs; open_clip once, when it loads. Non-square ones included."""
    cfg, peer = tiny(IMAGE, TEXT)
    model = peers.ours(cfg, peer, OPEN_CLIP)
    large = {"embed_dim": 48, "vision_cfg": {**IMAGE, "image_size": size}, "text_cfg": TEXT}
    other = peers.open_clip().CLIP(**large).eval()
    weights = peer.state_dict()
    peers.open_clip().model.resize_pos_embed(weights, other)
    other.load_state_dict(weights)
    image = peers.pixels(4, size)
    x, y = model.encode_image(image), other.encode_image(image, normalize=True)
    height, width = (size, size) if isinstance(size, int) else size
    what = f"trained at 32x32, run at {height}x{width} pixels"
    record("Resolutions", what, farthest(x, y), BOUND, OPEN_CLIP_PEER)


def test_positions_of_a_non_square_model():
    """open_clip takes every old grid for a square; torch's own interpolation is the oracle."""
    g = torch.Generator().manual_seed(0)
    positions = torch.randn(1 + 3 * 5, 8, generator=g)
    grid = positions[1:].view(3, 5, 8).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, (4, 7), mode="bicubic", antialias=True, align_corners=False)
    expected = torch.cat([positions[:1], grid[0].permute(1, 2, 0).reshape(28, 8)])
    value = farthest(resize_positions(positions, 1, (3, 5), (4, 7)), expected)
    record("Resolutions", "positions of a 3x5 grid for a 4x7 one", value, 0, "torch")


# --- training ---------------------------------------------------------------------------------


def test_patch_dropout_keeps_the_same_patches():
    cfg, peer = tiny({**IMAGE, "patch_dropout": 0.5}, TEXT)
    model = peers.ours(cfg, peer, OPEN_CLIP).train()
    peer.train()
    image, found = peers.pixels(4, 32), []
    with torch.no_grad():
        for tower in (model.visual, peer.visual):
            torch.manual_seed(3)
            found.append(peers.unit(tower(image)))
        whole = peers.unit(model.eval().visual(image))
    assert farthest(found[0], whole) > 1e-3
    value = farthest(*found)
    record("Training", "patch dropout 0.5, same seed, image", value, BOUND, OPEN_CLIP_PEER)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def softmax_loss(model, image, ids):
    out = model(image, ids)
    logits = model.logits(out.image_features, out.text_features)
    at = torch.arange(len(logits))
    return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2


def sigmoid_loss(model, image, ids):
    out = model(image, ids)
    logits = model.logits(out.image_features, out.text_features)
    return -F.logsigmoid(logits * (2 * torch.eye(len(logits)) - 1)).sum() / len(logits)


def compare_gradients(what: str, model, ours, theirs, rules, name: str) -> None:
    """See report.SECTIONS["Training"]. The second term keeps gradients that are zero in exact
    arithmetic (the key's bias) from counting as infinitely wrong."""
    expected = rename(theirs, rules, source=what)
    assert ours.keys() == expected.keys()
    assert ours.keys() == {k for k, p in model.named_parameters() if p.requires_grad}
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    value = max(
        float((ours[k] - g).norm() / (g.norm() + 1e-3 * whole)) for k, g in expected.items()
    )
    record("Training", what, value, 1e-5, name)


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "CLIPA"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_softmax_loss(kind, checkpointing):
    vision = {"image_size": 96, "layers": [2, 1, 2, 1], "width": 16}
    vision = {"ViT": IMAGE, "CLIPA": CLIPA_IMAGE, "ResNet": vision}[kind]
    cfg, peer = tiny(vision, CLIPA_TEXT if kind == "CLIPA" else TEXT, kind == "ViT")
    rules = rules_of(cfg)
    model = peers.ours(cfg, peer, rules)
    image, ids = peers.pixels(6, vision["image_size"]), ids_for(cfg, 6)
    model.train(), peer.train()
    model.visual.checkpointing = model.text.checkpointing = checkpointing
    loss = peers.open_clip().ClipLoss()
    statistics = {k: v.clone() for k, v in peer.state_dict().items()}  # shared batch-norm buffers
    theirs = gradients(peer, loss(*peer(image, ids)))
    peer.load_state_dict(statistics)
    got = gradients(model, softmax_loss(model, image, ids))
    what = f"gradients of the softmax loss, {kind}"
    what += ", checkpointed" if checkpointing else ""
    compare_gradients(what, model, got, theirs, rules, OPEN_CLIP_PEER)


def test_gradients_of_the_hf_softmax_loss():
    peer = peers.hf_clip({**HF_TEXT, "eos_token_id": 2}, HF_IMAGE, 24).train()
    cfg = read_hf(peer.config.to_dict(), "HF")
    model = peers.ours(cfg, peer, HF_CLIP).train()
    image, ids = peers.pixels(6, 32), ids_for(cfg, 6)
    theirs = gradients(peer, peer(input_ids=ids, pixel_values=image, return_loss=True).loss)
    got = gradients(model, softmax_loss(model, image, ids))
    what = "gradients of the softmax loss, ViT"
    compare_gradients(what, model, got, theirs, HF_CLIP, HF_PEER)


def test_gradients_of_the_sigmoid_loss():
    text = {**HF_TEXT, "projection_size": 48, "bos_token_id": 0, "eos_token_id": 1}
    peer = peers.hf_siglip(text, HF_IMAGE).train()
    cfg = read_hf(peer.config.to_dict(), "HF")
    model = peers.ours(cfg, peer, HF_SIGLIP).train()
    image, ids = peers.pixels(6, 32), ids_for(cfg, 6)
    theirs = gradients(peer, peer(input_ids=ids, pixel_values=image, return_loss=True).loss)
    got = gradients(model, sigmoid_loss(model, image, ids))
    what = "gradients of the sigmoid loss, SigLIP"
    compare_gradients(what, model, got, theirs, HF_SIGLIP, HF_PEER)
