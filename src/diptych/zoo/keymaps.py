"""How publishers name their tensors: one table per layout, read forwards and backwards.

- Each row states one correspondence once. `rename` reads a publisher's file with it, `restore`
  derives the inverse of the same row and writes that file again.
- A pattern is literal text with escaped dots and unnested groups; a target names each group once.
  That is all an inverse needs, and a test holds every table to it.
- Two foreign spellings of one tensor may stand in a table; `restore` writes the first.
- `visual.conv1` is a ViT's patches and a ResNet's first convolution: two tables.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diptych.errors import CheckpointError

__all__ = [
    "BERT",
    "CUSTOM_TEXT",
    "CUSTOM_TEXT_LINEAR",
    "EFFICIENTNET_LITE",
    "HF_ALIGN",
    "HF_CLIP",
    "HF_SIGLIP",
    "OPENAI",
    "OPENAI_RESNET",
    "OPENAI_RN",
    "OPENAI_TEXT",
    "OPENAI_VIT",
    "OPEN_CLIP",
    "OPEN_CLIP_RESNET",
    "SCALARS",
    "TIMM_TRUNK",
    "Rule",
    "count",
    "rename",
    "restore",
]

Op = Literal["copy", "transpose", "scalar", "one", "row", "qkv", "kv", "neg_log", "drop"]


class Rule(NamedTuple):
    r"""One row: a foreign key (full match) and our key; "\1" refers to the pattern's groups.

    copy: the same tensor. transpose: of a matrix. drop: a foreign key that says nothing.
    scalar: ours is 0-d, theirs 0-d (read: or [1]). one: ours is 0-d, theirs [1] (read: or 0-d).
    row: theirs has a leading axis of 1 that ours has not.
    neg_log: ours is -log of theirs, both 0-d; back it is the same number up to rounding.
    qkv, kv: theirs holds the parts one below the other; "*" in our key stands for q, k, v.
    """

    pattern: str
    target: str = ""
    op: Op = "copy"


def _open_clip_tower(theirs: str, ours: str) -> tuple[Rule, ...]:
    layer, block = theirs + r"transformer\.resblocks\.(\d+)\.", ours + r".blocks.\1."
    return (
        Rule(layer + r"attn\.in_proj_(weight|bias)", block + r"attn.*_proj.\2", "qkv"),
        Rule(
            layer + r"(ln_1|ln_2|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)",
            block + r"\2.\3",
        ),
    )


def _open_clip_text(prefix: str, projection: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (
        *_open_clip_tower(prefix, "text"),
        Rule(prefix + r"(positional_embedding|token_embedding\.weight|ln_final\.\w+)", r"text.\1"),
        *projection,
    )


OPENAI_VIT = (
    *_open_clip_tower(r"visual\.", "visual"),
    Rule(r"visual\.conv1\.(weight|bias)", r"visual.patch_embed.\1"),
    Rule(
        r"visual\.(class_embedding|positional_embedding|ln_pre\.\w+|ln_post\.\w+)",
        r"visual.\1",
    ),
    Rule(r"visual\.proj", "visual.proj.weight", "transpose"),
)
OPENAI_RN = (
    Rule(r"visual\.(conv[123]\.weight|bn[123]\.\w+)", r"visual.\1"),
    *(
        Rule(
            rf"visual\.layer{stage}\.(\d+)\.(conv[123]|bn[123]|downsample\.[01])\.(\w+)",
            rf"visual.blocks.{stage - 1}.\1.\2.\3",
        )
        for stage in (1, 2, 3, 4)
    ),
    Rule(r"visual\.attnpool\.positional_embedding", "visual.attn_pool.positional_embedding"),
    Rule(r"visual\.attnpool\.([qkv]_proj)\.(\w+)", r"visual.attn_pool.attn.\1.\2"),
    Rule(r"visual\.attnpool\.c_proj\.(\w+)", r"visual.attn_pool.attn.out_proj.\1"),
)
OPENAI_TEXT = _open_clip_text(
    "",
    (
        Rule(r"text_projection", "text.proj.weight", "transpose"),
        Rule(r"text_projection\.(weight|bias)", r"text.proj.\1"),
    ),
)
SCALARS = (
    Rule(r"logit_scale", "logit_scale", "scalar"),
    Rule(r"logit_bias", "logit_bias", "scalar"),
    Rule(r"input_resolution|context_length|vocab_size", op="drop"),  # OpenAI's archives
    Rule(r"(?:text\.)?(?:transformer\.resblocks\.\d+\.)?attn_mask", op="drop"),  # the causal mask
)
OPENAI = (*OPENAI_VIT, *OPENAI_TEXT, *SCALARS)
OPENAI_RESNET = (*OPENAI_RN, *OPENAI_TEXT, *SCALARS)

# open_clip's projection is a matrix without a bias and a Linear with one, so a writer must choose.
_MATRIX = Rule(r"text\.text_projection", "text.proj.weight", "transpose")
_LINEAR = Rule(r"text\.text_projection\.(weight|bias)", r"text.proj.\1")
CUSTOM_TEXT = _open_clip_text(r"text\.", (_MATRIX, _LINEAR))
CUSTOM_TEXT_LINEAR = _open_clip_text(r"text\.", (_LINEAR, _MATRIX))
TIMM_TRUNK = (
    Rule(r"visual\.trunk\.patch_embed\.proj\.(weight|bias)", r"visual.patch_embed.\1"),
    Rule(r"visual\.trunk\.pos_embed", "visual.positional_embedding", "row"),
    Rule(
        r"visual\.trunk\.blocks\.(\d+)\.norm([12])\.(\w+)",
        r"visual.blocks.\1.ln_\2.\3",
    ),
    Rule(
        r"visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.(\w+)",
        r"visual.blocks.\1.attn.*_proj.\2",
        "qkv",
    ),
    Rule(
        r"visual\.trunk\.blocks\.(\d+)\.attn\.proj\.(\w+)",
        r"visual.blocks.\1.attn.out_proj.\2",
    ),
    Rule(r"visual\.trunk\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"visual.blocks.\1.mlp.c_fc.\2"),
    Rule(r"visual\.trunk\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"visual.blocks.\1.mlp.c_proj.\2"),
    Rule(r"visual\.trunk\.norm\.(\w+)", r"visual.ln_post.\1"),
    Rule(r"visual\.trunk\.attn_pool\.latent", "visual.attn_pool.probe"),
    Rule(r"visual\.trunk\.attn_pool\.q\.(\w+)", r"visual.attn_pool.attn.q_proj.\1"),
    Rule(r"visual\.trunk\.attn_pool\.kv\.(\w+)", r"visual.attn_pool.attn.*_proj.\1", "kv"),
    Rule(r"visual\.trunk\.attn_pool\.proj\.(\w+)", r"visual.attn_pool.attn.out_proj.\1"),
    Rule(r"visual\.trunk\.attn_pool\.norm\.(\w+)", r"visual.attn_pool.ln.\1"),
    Rule(r"visual\.trunk\.attn_pool\.mlp\.fc1\.(\w+)", r"visual.attn_pool.mlp.c_fc.\1"),
    Rule(r"visual\.trunk\.attn_pool\.mlp\.fc2\.(\w+)", r"visual.attn_pool.mlp.c_proj.\1"),
    Rule(r"visual\.head\.proj\.weight", "visual.proj.weight"),
)
OPEN_CLIP = (*OPENAI, *CUSTOM_TEXT, *TIMM_TRUNK)  # every ViT that open_clip's `CLIP` classes hold
OPEN_CLIP_RESNET = (*OPENAI_RESNET, *CUSTOM_TEXT)


def _hf_tower(theirs: str, ours: str) -> tuple[Rule, ...]:
    layer, block = theirs + r"\.encoder\.layers\.(\d+)\.", ours + r".blocks.\1."
    return (
        Rule(layer + r"layer_norm([12])\.(\w+)", block + r"ln_\2.\3"),
        Rule(layer + r"self_attn\.((?:q|k|v|out)_proj)\.(\w+)", block + r"attn.\2.\3"),
        Rule(layer + r"mlp\.fc1\.(\w+)", block + r"mlp.c_fc.\2"),
        Rule(layer + r"mlp\.fc2\.(\w+)", block + r"mlp.c_proj.\2"),
        Rule(theirs + r"\.embeddings\.position_embedding\.weight", ours + ".positional_embedding"),
        Rule(theirs + r"\.embeddings\.position_ids", op="drop"),  # an index, in old files only
    )


_HF = (
    *_hf_tower("vision_model", "visual"),
    *_hf_tower("text_model", "text"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.(\w+)", r"visual.patch_embed.\1"),
    Rule(r"vision_model\.post_layernorm\.(\w+)", r"visual.ln_post.\1"),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text.token_embedding.weight"),
    Rule(r"text_model\.final_layer_norm\.(\w+)", r"text.ln_final.\1"),
)
HF_CLIP = (
    *_HF,
    Rule(r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    Rule(r"vision_model\.pre_layrnorm\.(\w+)", r"visual.ln_pre.\1"),  # sic: the files misspell it
    Rule(r"visual_projection\.weight", "visual.proj.weight"),
    Rule(r"text_projection\.weight", "text.proj.weight"),
    Rule(r"logit_scale", "logit_scale", "scalar"),
)
HF_SIGLIP = (
    *_HF,
    Rule(r"vision_model\.head\.probe", "visual.attn_pool.probe"),
    Rule(
        r"vision_model\.head\.attention\.in_proj_(weight|bias)",
        r"visual.attn_pool.attn.*_proj.\1",
        "qkv",
    ),
    Rule(
        r"vision_model\.head\.attention\.out_proj\.(\w+)",
        r"visual.attn_pool.attn.out_proj.\1",
    ),
    Rule(r"vision_model\.head\.layernorm\.(\w+)", r"visual.attn_pool.ln.\1"),
    Rule(r"vision_model\.head\.mlp\.fc1\.(\w+)", r"visual.attn_pool.mlp.c_fc.\1"),
    Rule(r"vision_model\.head\.mlp\.fc2\.(\w+)", r"visual.attn_pool.mlp.c_proj.\1"),
    Rule(r"text_model\.head\.(\w+)", r"text.proj.\1"),
    Rule(r"(logit_scale|logit_bias)", r"\1", "one"),
)


def _bert(theirs: str) -> tuple[Rule, ...]:
    """transformers' `BertModel`; the tanh pooler is no part of a tower and is dropped."""
    layer, block = theirs + r"encoder\.layer\.(\d+)\.", r"text.blocks.\1."
    table = theirs + r"embeddings\."
    return (
        Rule(table + r"word_embeddings\.weight", "text.token_embedding.weight"),
        Rule(table + r"position_embeddings\.weight", "text.positional_embedding"),
        Rule(table + r"token_type_embeddings\.weight", "text.type_embedding"),
        Rule(table + r"LayerNorm\.(\w+)", r"text.ln_embed.\1"),
        Rule(table + r"(?:position_ids|token_type_ids)", op="drop"),  # indices, in old files only
        Rule(layer + r"attention\.self\.query\.(\w+)", block + r"attn.q_proj.\2"),
        Rule(layer + r"attention\.self\.key\.(\w+)", block + r"attn.k_proj.\2"),
        Rule(layer + r"attention\.self\.value\.(\w+)", block + r"attn.v_proj.\2"),
        Rule(layer + r"attention\.output\.dense\.(\w+)", block + r"attn.out_proj.\2"),
        Rule(layer + r"attention\.output\.LayerNorm\.(\w+)", block + r"ln_1.\2"),
        Rule(layer + r"intermediate\.dense\.(\w+)", block + r"mlp.c_fc.\2"),
        Rule(layer + r"output\.dense\.(\w+)", block + r"mlp.c_proj.\2"),
        Rule(layer + r"output\.LayerNorm\.(\w+)", block + r"ln_2.\2"),
        Rule(theirs + r"pooler\.dense\.(?:weight|bias)", op="drop"),
    )


BERT = _bert("")
EFFICIENTNET_LITE = (  # efficientnet-lite-pytorch, which names B0 to B8 alike
    Rule(r"_conv_stem\.weight", "visual.stem.conv.weight"),
    Rule(r"_bn0\.(\w+)", r"visual.stem.bn.\1"),
    Rule(r"_blocks\.(\d+)\._expand_conv\.weight", r"visual.blocks.\1.expand.conv.weight"),
    Rule(r"_blocks\.(\d+)\._bn0\.(\w+)", r"visual.blocks.\1.expand.bn.\2"),
    Rule(r"_blocks\.(\d+)\._depthwise_conv\.weight", r"visual.blocks.\1.depthwise.conv.weight"),
    Rule(r"_blocks\.(\d+)\._bn1\.(\w+)", r"visual.blocks.\1.depthwise.bn.\2"),
    Rule(r"_blocks\.(\d+)\._se_(reduce|expand)\.(\w+)", r"visual.blocks.\1.squeeze.\2.\3"),
    Rule(r"_blocks\.(\d+)\._project_conv\.weight", r"visual.blocks.\1.project.conv.weight"),
    Rule(r"_blocks\.(\d+)\._bn2\.(\w+)", r"visual.blocks.\1.project.bn.\2"),
    Rule(r"_conv_head\.weight", "visual.head.conv.weight"),
    Rule(r"_bn1\.(\w+)", r"visual.head.bn.\1"),
    Rule(r"_fc\.(weight|bias)", r"visual.proj.classifier.\1"),  # of ImageNet's 1000 classes
)

_BLOCK, _OURS = r"vision_model\.encoder\.blocks\.(\d+)\.", r"visual.blocks.\1."
HF_ALIGN = (
    *_bert(r"text_model\."),
    Rule(r"text_projection\.(weight|bias)", r"text.proj.\1"),
    Rule(r"temperature", "logit_scale", "neg_log"),
    Rule(r"vision_model\.embeddings\.convolution\.weight", "visual.stem.conv.weight"),
    Rule(r"vision_model\.embeddings\.batchnorm\.(\w+)", r"visual.stem.bn.\1"),
    Rule(_BLOCK + r"expansion\.expand_conv\.weight", _OURS + "expand.conv.weight"),
    Rule(_BLOCK + r"expansion\.expand_bn\.(\w+)", _OURS + r"expand.bn.\2"),
    Rule(_BLOCK + r"depthwise_conv\.depthwise_conv\.weight", _OURS + "depthwise.conv.weight"),
    Rule(_BLOCK + r"depthwise_conv\.depthwise_norm\.(\w+)", _OURS + r"depthwise.bn.\2"),
    Rule(_BLOCK + r"squeeze_excite\.(reduce|expand)\.(\w+)", _OURS + r"squeeze.\2.\3"),
    Rule(_BLOCK + r"projection\.project_conv\.weight", _OURS + "project.conv.weight"),
    Rule(_BLOCK + r"projection\.project_bn\.(\w+)", _OURS + r"project.bn.\2"),
)


def rename(
    state_dict: Mapping[str, Tensor], rules: Sequence[Rule], *, source: str
) -> dict[str, Tensor]:
    """`state_dict` under our names. Tensors stay views of the file where the op allows.

    Raises:
        CheckpointError: a key that no rule matches, two keys for one of ours, or a tensor whose
            shape the rule cannot take; names file, key and fix.
    """
    out: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, tensor in state_dict.items():
        name, rule = _match(key, rules, source)
        for part, value in _read(rule, name, tensor, f"{source}: {key!r}"):
            if part in out:
                raise CheckpointError(
                    f"{source}: {origin[part]!r} and {key!r} both hold {part!r}. "
                    "Remove one of them from the file."
                )
            out[part], origin[part] = value, key
    return out


def restore(state_dict: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The inverse of `rename`: our names to the publisher's, contiguous, ready to be written.

    Raises:
        CheckpointError: a tensor for which the layout has no place.
    """
    inverses = [inverse for rule in rules if (inverse := invert(rule)) is not None]
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state_dict.items():
        name, op, letter = _foreign(key, inverses)
        match op:
            case "qkv" | "kv":
                parts.setdefault(name, {})[letter] = tensor
                if len(parts[name]) == len(op):
                    out[name] = torch.cat([parts[name][x] for x in op])
            case "transpose":
                out[name] = tensor.T.contiguous()
            case "one":
                out[name] = tensor.reshape(1)
            case "row":
                out[name] = tensor[None].contiguous()
            case "neg_log":
                out[name] = tensor.double().neg().exp().to(tensor.dtype)
            case _:
                out[name] = tensor.contiguous()
    if unfinished := sorted(parts.keys() - out.keys()):
        raise CheckpointError(f"cannot write {unfinished[0]!r}: a part of q, k, v is missing")
    return out


def count(keys: Iterable[str], rules: Sequence[Rule]) -> int:
    """How many of the keys the table knows."""
    return sum(any(re.fullmatch(rule.pattern, key) for rule in rules) for key in keys)


def _match(key: str, rules: Iterable[Rule], source: str) -> tuple[str, Rule]:
    for rule in rules:
        if found := re.fullmatch(rule.pattern, key):
            return found.expand(rule.target), rule
    raise CheckpointError(
        f"{source}: no rule for key {key!r}. Add a Rule in zoo/keymaps.py, or pass rules=."
    )


def _read(rule: Rule, name: str, tensor: Tensor, where: str) -> list[tuple[str, Tensor]]:
    """What one foreign tensor holds under our names."""
    shape = list(tensor.shape)
    match rule.op:
        case "drop":
            return []
        case "copy":
            return [(name, tensor)]
        case "transpose" if tensor.ndim == 2:
            return [(name, tensor.T)]
        case "scalar" | "one" if tensor.numel() == 1:
            return [(name, tensor.reshape(()))]
        case "neg_log" if tensor.numel() == 1 and bool(tensor > 0):
            return [(name, tensor.reshape(()).double().log().neg().to(tensor.dtype))]
        case "row" if tensor.ndim > 1 and shape[0] == 1:
            return [(name, tensor[0])]
        case "qkv" | "kv" if tensor.ndim and shape[0] % len(rule.op) == 0:
            chunks = tensor.chunk(len(rule.op))
            return [(name.replace("*", x), c) for x, c in zip(rule.op, chunks, strict=True)]
    raise CheckpointError(
        f"{where} has the shape {shape}, which {rule.op!r} cannot take. The file is damaged, or of "
        "another layout: pass rules=."
    )


class Inverse(NamedTuple):
    pattern: re.Pattern[str]
    target: str
    op: Op


@cache
def invert(rule: Rule) -> Inverse | None:
    """The same correspondence from our key to theirs; None where ours has no such key."""
    if rule.op == "drop":
        return None
    literals_and_groups = re.split(r"(\((?:\?:|[^()]|\(\?:[^()]*\))*\))", rule.pattern)
    template, groups = "", []
    for i, piece in enumerate(literals_and_groups):
        if i % 2:
            groups.append(piece[1:-1])
            template += rf"\g<g{len(groups)}>"
        else:
            template += piece.replace("\\.", ".")
    pattern = ""
    for piece in re.split(r"(\\\d|\*)", rule.target):
        if piece == "*":
            pattern += f"(?P<letter>[{rule.op}])"
        elif piece.startswith("\\"):
            pattern += f"(?P<g{piece[1:]}>{groups[int(piece[1:]) - 1]})"
        else:
            pattern += re.escape(piece)
    return Inverse(re.compile(pattern), template, rule.op)


def _foreign(key: str, inverses: Iterable[Inverse]) -> tuple[str, Op, str]:
    for inverse in inverses:
        if found := inverse.pattern.fullmatch(key):
            letter = found.groupdict().get("letter", "")
            return found.expand(inverse.target), inverse.op, letter
    raise CheckpointError(
        f"this layout has no name for the tensor {key!r}. Save the model with format='diptych'."
    )
