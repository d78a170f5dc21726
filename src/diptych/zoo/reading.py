"""Read a checkpoint of any publisher: recognised by content, translated strictly, never run.

Each key must be known, each tensor must be there, each shape must be the config's.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from diptych.config import (
    CLIPConfig,
    EfficientNetConfig,
    PreprocessConfig,
    ResNetConfig,
    TokenizerConfig,
    ViTConfig,
)
from diptych.errors import CheckpointError, ConfigError
from diptych.towers import families
from diptych.zoo import align, hugging_face, keymaps, native, open_clip, openai
from diptych.zoo.checkpoint import Checkpoint, Format, check_shapes, expected_shapes
from diptych.zoo.int8 import dequantise
from diptych.zoo.keymaps import Rule, rename
from diptych.zoo.registry import Row, get
from diptych.zoo.settings import differences, read_json
from diptych.zoo.tensors import Tensors, read_tensors

__all__ = ["HF_WEIGHT_FILES", "INDEX", "read", "read_state_dict", "weight_map"]

HF_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"  # behind such a name: the list of its shards


def read(
    path: str | Path,
    *,
    config: CLIPConfig | str | None = None,
    rules: Sequence[Rule] | None = None,
) -> Checkpoint:
    """Read an OpenAI archive, an open_clip or Hugging Face folder, our file, or a state dict.

    Args:
        config: what the model is, where the file does not say: a config, or the name of a registry
            row, which supplies pixels, tokens and licence too and wins over the folder's files.
        rules: the key table, where the tensors have names of no known publisher.

    Raises:
        ModelNotFoundError: no such path or row.
        UnsafeFileError: the file would have to run code; nothing was run.
        CheckpointError: not a whole checkpoint, or not of this config; lists the first differences.
        ConfigError: settings that we cannot honour, or that contradict `config`.
    """
    path = Path(path)
    row = get(config) if isinstance(config, str) else None
    given = row.config if row else config if isinstance(config, CLIPConfig) else None
    if path.is_dir():
        found = _read_folder(path, given, rules, row=row)
    else:
        found = _read_file(path, given, rules, row=row)
    if row:
        found = _from_row(found, row)
    check_shapes(found.state_dict, found.config, source=found.source)
    return found


def read_state_dict(
    path: str | Path, *, config: CLIPConfig | str | None = None
) -> dict[str, Tensor]:
    """The tensors of a checkpoint under our names; see `read`."""
    return read(path, config=config).state_dict


def _from_row(found: Checkpoint, row: Row) -> Checkpoint:
    notes = (f"config, pixels and tokens are those of the registry row {row.name!r}",)
    return replace(
        found,
        config=row.config,
        preprocess=row.preprocess,
        tokenizer=row.tokenizer,
        licence=found.licence or row.licence,
        notes=notes + found.notes,
    )


# --- one file ---------------------------------------------------------------------------------


def _read_file(
    path: Path, config: CLIPConfig | None, rules: Sequence[Rule] | None, *, row: Row | None
) -> Checkpoint:
    tensors = read_tensors(path)
    if native.KEY in tensors.metadata:
        return _read_native(path, tensors, config, row=row)
    form: Format = "openai" if openai.recognise(tensors) else "open_clip"
    if form == "openai":
        inferred = openai.infer(tensors, source=str(path))
        _agree(inferred, config, path, row)
        config = inferred if config is None else config
    if config is None:
        raise CheckpointError(
            f"{path}: a state dict does not say what model it is. Pass config= (--config), the "
            "name of a model such as 'ViT-B-32/laion2b_s34b_b79k', or a CLIPConfig; all: diptych "
            "models list. Of a Hugging Face or open_clip folder, give the folder."
        )
    state_dict = translate(tensors.state_dict, config, rules, source=str(path))
    if any(key.startswith("vision_model.") for key in tensors.state_dict):
        form = "hf"
    return Checkpoint(
        state_dict=state_dict,
        config=config,
        preprocess=PreprocessConfig(size=_image_size(config)),
        tokenizer=TokenizerConfig(kind="clip_bpe", context_length=config.text.context_length),
        folder=path.parent,
        format=form,
        source=str(path),
        notes=() if form == "openai" else ("a bare state dict: took OpenAI's pixels and tokens",),
    )


def _read_native(
    path: Path, tensors: Tensors, config: CLIPConfig | None, *, row: Row | None
) -> Checkpoint:
    facts = native.decode(tensors.metadata[native.KEY], str(path))
    _agree(facts.config, config, path, row)
    state_dict = dequantise(tensors.state_dict, str(path))
    vocabulary = state_dict.pop(native.VOCABULARY, None)
    folder = native.unpack(vocabulary, facts.tokenizer) if vocabulary is not None else None
    return Checkpoint(
        state_dict=state_dict,
        config=facts.config,
        preprocess=facts.preprocess,
        tokenizer=facts.tokenizer,
        folder=folder,
        format="diptych",
        source=str(path),
        licence=facts.licence,
        metadata=facts.metadata,
    )


def _image_size(config: CLIPConfig) -> tuple[int, int]:
    if isinstance(config.visual, ViTConfig | ResNetConfig | EfficientNetConfig):
        return config.visual.image_size
    return 224, 224  # a registered tower; a row or a folder says better


def _agree(found: CLIPConfig, given: CLIPConfig | None, path: Path, row: Row | None) -> list[str]:
    """A file that says what it is must not be called something else; a row may know better."""
    differ = differences(given, found) if given is not None else []
    if differ and row is None:
        raise ConfigError(
            f"{path}: config= contradicts the file: {'; '.join(differ[:10])}. Leave config= out, "
            "or change the result: dataclasses.replace(checkpoint, config=...)."
        )
    return [f"the row's {what}, in the file" for what in differ]


# --- a folder ---------------------------------------------------------------------------------


def _read_folder(
    path: Path, config: CLIPConfig | None, rules: Sequence[Rule] | None, *, row: Row | None
) -> Checkpoint:
    theirs = next((path / n for n in open_clip.WEIGHT_FILES if (path / n).is_file()), None)
    if (path / "open_clip_config.json").is_file():
        if theirs is None:
            raise CheckpointError(
                f"{path}: has open_clip_config.json but none of the files "
                f"{', '.join(open_clip.WEIGHT_FILES)}."
            )
        found = _read_open_clip(path, theirs, config, rules, row=row)
    elif (path / "config.json").is_file():
        found = _read_hf(path, config, rules, row=row)
    else:
        raise CheckpointError(
            f"{path}: holds no model: neither open_clip_config.json nor config.json. Give a folder "
            "of open_clip or Hugging Face, or the path of a file."
        )
    return native.with_sidecar(found, path)


def _read_open_clip(
    path: Path,
    weights: Path,
    given: CLIPConfig | None,
    rules: Sequence[Rule] | None,
    *,
    row: Row | None,
) -> Checkpoint:
    where = str(path / "open_clip_config.json")
    data = read_json(path / "open_clip_config.json")
    if not isinstance(data, dict) or "model_cfg" not in data:
        raise CheckpointError(f"{where}: the key 'model_cfg' is missing.")
    config, notes = open_clip.read_config(data["model_cfg"], where)
    notes += _agree(config, given, path, row)
    if "preprocess_cfg" not in data:
        notes.append("no preprocess_cfg: took open_clip's default")
    tokenizer, more = open_clip.read_tokenizer(data["model_cfg"]["text_cfg"], config, path, where)
    tensors = read_tensors(weights)
    config = given or config
    return Checkpoint(
        state_dict=translate(tensors.state_dict, config, rules, source=str(weights)),
        config=config,
        preprocess=open_clip.read_preprocess(data.get("preprocess_cfg", {}), config, where),
        tokenizer=tokenizer,
        folder=path,
        format="open_clip",
        source=str(path),
        notes=tuple(notes + more),
    )


# model_type: the module that reads such folders; `hugging_face` itself knows the others
_HF_FAMILIES = {"align": align}


def _read_hf(
    path: Path, given: CLIPConfig | None, rules: Sequence[Rule] | None, *, row: Row | None
) -> Checkpoint:
    data = read_json(path / "config.json")
    kind = str(data.get("model_type")) if isinstance(data, dict) else ""
    family = _HF_FAMILIES.get(kind, hugging_face)
    config = family.read_config(data, str(path / "config.json"))
    notes = _agree(config, given, path, row)
    config = given or config
    processor = path / "preprocessor_config.json"
    if processor.is_file():
        settings = read_json(processor)
    else:
        settings = family.default_pixels(config)
        notes.append("no preprocessor_config.json: took the family's default")
    tokenizer, more = family.read_tokenizer(config, path)
    tensors = _hf_tensors(path)
    return Checkpoint(
        state_dict=translate(tensors, config, rules, source=str(path)),
        config=config,
        preprocess=family.read_preprocess(settings, config, str(processor)),
        tokenizer=tokenizer,
        folder=path,
        format="hf",
        source=str(path),
        notes=tuple(notes + more),
    )


def _hf_tensors(path: Path) -> dict[str, Tensor]:
    for name in HF_WEIGHT_FILES:
        if (path / name).is_file():
            return read_tensors(path / name).state_dict
        index = path / f"{name}{INDEX}"
        if index.is_file():
            return _sharded(index)
    raise CheckpointError(f"{path}: has config.json but neither {' nor '.join(HF_WEIGHT_FILES)}.")


def weight_map(index: Path) -> dict[str, str]:
    """Key -> file, of an index of shards.

    Raises:
        CheckpointError: no index, or it names a file outside its folder.
    """
    data = read_json(index)
    where = data.get("weight_map") if isinstance(data, dict) else None
    if (
        not isinstance(where, dict)
        or not where
        or not all(isinstance(v, str) for v in where.values())
    ):
        raise CheckpointError(f"{index}: has no weight_map.")
    for name in where.values():
        if Path(name).name != name or name.startswith("."):
            raise CheckpointError(f"{index}: names {name!r}, which lies outside its folder.")
    return where


def _sharded(index: Path) -> dict[str, Tensor]:
    """The shards that an index names; each key must lie where the index says."""
    where = weight_map(index)
    out: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        shard = read_tensors(index.parent / name).state_dict
        expected = {key for key, file in where.items() if file == name}
        if wrong := sorted(shard.keys() ^ expected):
            raise CheckpointError(
                f"{index}: {name} and the index differ in {', '.join(wrong[:10])}."
            )
        out |= shard
    return out


# --- translation ------------------------------------------------------------------------------


_HF_TABLES = (keymaps.HF_CLIP, keymaps.HF_SIGLIP, keymaps.HF_ALIGN)


def translate(
    state_dict: dict[str, Tensor],
    config: CLIPConfig,
    rules: Sequence[Rule] | None,
    *,
    source: str,
) -> dict[str, Tensor]:
    """`state_dict` under our names, by the table in which the most of its keys are found.

    The rows of the towers' families come first, then the built-in tables.
    """
    if rules is not None:
        return rename(state_dict, rules, source=source)
    resnet = isinstance(config.visual, ResNetConfig)
    first = keymaps.OPEN_CLIP_RESNET if resnet else keymaps.OPEN_CLIP
    own = tuple(
        rule
        for side in (config.visual, config.text)
        if type(side) in families()
        for rule in families()[type(side)].rules
    )
    tables = [(*own, *table) for table in (first, *_HF_TABLES)]
    best = max(tables, key=lambda table: keymaps.count(state_dict, table))
    known = keymaps.count(state_dict, best)
    if known < len(state_dict) and known < len(state_dict.keys() & expected_shapes(config).keys()):
        return state_dict  # our own names; `check_shapes` says which are wrong
    return rename(state_dict, best, source=source)
