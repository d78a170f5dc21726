"""Reading a publisher's JSON settings so that no key is overlooked.

`Settings` hands out each key once; what is left at the end must be known to say nothing, else the
file asks for something that we would silently not do.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from diptych.errors import CheckpointError, ConfigError

__all__ = ["Settings", "differences", "essence", "pair", "read_json", "triple"]

NO_ARITHMETIC = ("init", "patch_dropout")  # fields that act in training alone


class Settings:
    """A JSON object whose keys are taken one by one; `done` refuses those that nobody took."""

    def __init__(self, data: Any, where: str):
        if not isinstance(data, dict):
            raise CheckpointError(f"{where} is not a JSON object but {data!r:.60}.")
        self.where = where
        self._left = dict(data)

    def take(self, key: str, default: Any = None) -> Any:
        return self._left.pop(key, default)

    def require(self, key: str) -> Any:
        if key not in self._left:
            raise CheckpointError(f"{self.where}: the key {key!r} is missing.")
        return self._left.pop(key)

    def choice(self, key: str, table: dict[Any, Any], default: Any) -> Any:
        """`table[value]`; a value that the table has not is an error that names it."""
        value = self.take(key, default)
        if value not in table:
            self.refuse(key, value)
        return table[value]

    def refuse(self, key: str, value: Any) -> None:
        raise ConfigError(
            f"{self.where}: {key} = {json.dumps(value)} asks for something Diptych cannot do. "
            "A package may add it: see diptych.towers.Family."
        )

    def done(self, neutral: dict[str, Any], ignored: tuple[str, ...] = ()) -> None:
        """All other keys must be `ignored` or have their `neutral` value."""
        for key, value in self._left.items():
            if key in ignored or (key in neutral and neutral[key] == value):
                continue
            self.refuse(key, value)


def pair(value: Any, where: str) -> tuple[int, int]:
    """(height, width) from 224 or [224, 224]."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
        return value[0], value[1]
    if type(value) is int:
        return value, value
    raise CheckpointError(f"{where} must be a whole number or two of them, got {value!r}.")


def triple(value: Any, where: str) -> tuple[float, float, float]:
    """(red, green, blue) from a list of three numbers."""
    if isinstance(value, list | tuple) and len(value) == 3:
        red, green, blue = value
        if all(type(v) in (int, float) for v in value):
            return float(red), float(green), float(blue)
    raise CheckpointError(f"{where} must be three numbers, got {value!r:.60}.")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        CheckpointError: it is not JSON, or more than 64 MB of it.
    """
    if path.stat().st_size > 64 << 20:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes are too many for settings.")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON ({error}). Fetch the file again.") from None


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Fields in which two configs compute differently: "visual.act: 'gelu', not 'quick_gelu'"."""
    if type(ours) is not type(theirs):
        return [f"{prefix}type: {type(ours).__name__}, not {type(theirs).__name__}"]
    out: list[str] = []
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name in NO_ARITHMETIC:
            continue
        if dataclasses.is_dataclass(a):
            out += differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            out.append(f"{prefix}{field.name}: {a!r}, not {b!r}")
    return out


def essence(config: Any) -> dict[str, Any]:
    """What a config says beyond its defaults, without the fields that act in training alone.

    A field that is added to a config later, with a default that changes nothing, changes no
    fingerprint of an older model.
    """
    out: dict[str, Any] = {"type": type(config).__name__}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in NO_ARITHMETIC or value == field.default:
            continue
        out[field.name] = essence(value) if dataclasses.is_dataclass(value) else value
    return out
