"""A moderation policy: labels as plain sentences, with thresholds, in a YAML file.

    labels:
      animal:
        yes: ["a photo of an animal", "a bird"]      # sentences that are true of such a picture
        no: ["a photo of food", "a building"]        # what else may be on it
        accept: 1.3      # at this score or above the verdict is "yes"
        reject: -0.7     # below this one it is "no"; between them "unsure"

- This is the only place where Diptych reads YAML: moderators write these files, not programmers.
- It is read by `yaml.safe_load` after a look at its size, its depth, and for anchors, which can
  grow a file of a kilobyte to gigabytes. No tag of it can make an object.
- `fitted` is written by `diptych moderate fit`: which model the thresholds belong to, and what they
  promise. A policy with thresholds refuses another model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError, nearest
from diptych.zoo.atomic import atomic_write

__all__ = ["Fitted", "Label", "Policy", "read_policy", "write_policy"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 6
MAX_LABELS, MAX_SENTENCES = 200, 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One question to a picture.

    Attributes:
        yes, no: sentences; at least one of each.
        accept: from this score on the verdict is "yes"; None: never.
        reject: below this score it is "no"; None: never.
    """

    name: str
    yes: tuple[str, ...]
    no: tuple[str, ...]
    accept: float | None = None
    reject: float | None = None

    @property
    def has_thresholds(self) -> bool:
        """Whether anybody has set one."""
        return self.accept is not None or self.reject is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What the thresholds were set for.

    Attributes:
        model, fingerprint: of the encoder. mask_text: printed text was painted over.
        precision, recall: the targets. confidence: with which each is kept.
    """

    model: str
    fingerprint: str
    mask_text: bool
    precision: float
    recall: float
    confidence: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Labels, and what their thresholds were fitted for; None: by hand, or not at all."""

    labels: tuple[Label, ...]
    fitted: Fitted | None = None
    note: str = ""


def read_policy(path: str | Path) -> Policy:
    """The policy in a file.

    Raises:
        ConfigError: no such file, no YAML, or no policy: with the line, where there is one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: has more than {MAX_BYTES:,} bytes: no policy.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 ({error}).") from None
    found, lines = _load(text, path)
    return _policy(_Node(found, str(path), lines))


def _load(text: str, path: Path) -> tuple[Any, Mapping[tuple[str, ...], int]]:
    """Plain data, and the line of each key by its way from the top."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                assert event.start_mark is not None
                raise ConfigError(f"{path}:{event.start_mark.line + 1}: has an alias (*name).")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                where = f"{path}:{event.start_mark.line + 1}"
                raise ConfigError(f"{where}: is nested more than {MAX_DEPTH} deep: no policy.")
        lines: dict[tuple[str, ...], int] = {}
        _lines(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, path)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: is no YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-99-99
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is no YAML: {error}.") from None


def _lines(node: Any, way: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    """The line of each key; a key that stands twice is an error, as YAML takes the last."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = (*way, str(key.value))
        line = key.start_mark.line + 1
        if name in lines:
            raise ConfigError(f"{path}:{line}: {key.value!r} stands twice (first: {lines[name]}).")
        lines[name] = line
        _lines(value, name, lines, path)


@dataclass(frozen=True, slots=True)
class _Node:
    """A value of the file, with the way to it, so that an error can name its line."""

    value: Any
    path: str
    lines: Mapping[tuple[str, ...], int]
    way: tuple[str, ...] = ()

    def fail(self, problem: str) -> ConfigError:
        line = self.lines.get(self.way)
        where = f"{self.path}:{line}" if line else self.path
        at = f"{'.'.join(self.way)}: " if self.way else ""
        return ConfigError(f"{where}: {at}{problem}")

    def mapping(self, known: tuple[str, ...] | None = None) -> dict[str, _Node]:
        if not isinstance(self.value, dict) or not self.value:
            raise self.fail(f"has {self.value!r:.40} where names with values should be.")
        parts = {
            str(name): _Node(value, self.path, self.lines, (*self.way, str(name)))
            for name, value in self.value.items()
        }
        for name, part in parts.items():
            if known is not None and name not in known:
                raise part.fail(f"is not known here. {nearest(name, known)}")
        return parts

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        good = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not good or not math.isfinite(self.value) or not low <= self.value <= high:
            raise self.fail(f"has {self.value!r:.40} where a number should be.")
        return float(self.value)

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fail(
                f"has {self.value!r:.40} where a text should be. Put it in quotes: YAML takes yes, "
                "no and numbers for other things."
            )
        return self.value.strip()

    def texts(self) -> tuple[str, ...]:
        values = self.value if isinstance(self.value, list) else [self.value]
        if not 1 <= len(values) <= MAX_SENTENCES:
            raise self.fail(f"has {len(values)} sentences. Give 1 to {MAX_SENTENCES}.")
        parts = [_Node(value, self.path, self.lines, self.way).text() for value in values]
        return tuple(dict.fromkeys(parts))


def _policy(root: _Node) -> Policy:
    top = root.mapping(("labels", "fitted", "note"))
    if "labels" not in top:
        raise root.fail("has no 'labels:'. Give at least one, with 'yes:' and 'no:' sentences.")
    rows = top["labels"].mapping()
    if len(rows) > MAX_LABELS:
        raise top["labels"].fail(f"has {len(rows)} labels, more than {MAX_LABELS}.")
    labels = tuple(_label(name, node) for name, node in rows.items())
    note = top["note"].text() if "note" in top else ""
    return Policy(labels=labels, fitted=_fitted(top.get("fitted")), note=note)


def _label(name: str, node: _Node) -> Label:
    value = node.value
    if isinstance(value, dict):  # YAML 1.1 reads the bare keys yes and no as true and false
        names = {True: "yes", False: "no"}
        value = {names.get(k, k) if isinstance(k, bool) else k: v for k, v in value.items()}
    fields = _Node(value, node.path, node.lines, node.way).mapping(
        ("yes", "no", "accept", "reject")
    )
    for wanted in ("yes", "no"):
        if wanted not in fields:
            raise node.fail(f"has no '{wanted}:' sentences. A score compares both.")
    yes, no = fields["yes"].texts(), fields["no"].texts()
    if both := set(yes) & set(no):
        raise node.fail(f"has {min(both)!r} under yes and under no.")
    accept, reject = (
        fields[key].number() if key in fields else None for key in ("accept", "reject")
    )
    if accept is not None and reject is not None and reject > accept:
        raise node.fail(f"rejects below {reject:g} and accepts from {accept:g}: turn them round.")
    return Label(name=name, yes=yes, no=no, accept=accept, reject=reject)


def _fitted(node: _Node | None) -> Fitted | None:
    if node is None:
        return None
    names = ("model", "fingerprint", "mask_text", "precision", "recall", "confidence")
    fields = node.mapping(names)
    if missing := [name for name in names if name not in fields]:
        raise node.fail(f"has no {missing[0]!r}. `diptych moderate fit` writes this part.")
    mask = fields["mask_text"].value
    if not isinstance(mask, bool):
        raise fields["mask_text"].fail(f"has {mask!r:.40} where true or false should be.")
    return Fitted(
        model=fields["model"].text(),
        fingerprint=fields["fingerprint"].text(),
        mask_text=mask,
        **{name: fields[name].number(0, 1) for name in ("precision", "recall", "confidence")},
    )


def write_policy(policy: Policy, path: str | Path) -> None:
    """Write a policy, whole or not at all; `read_policy` gives it back. Comments are not kept."""
    import yaml

    labels = {}
    for label in policy.labels:
        row: dict[str, Any] = {"yes": list(label.yes), "no": list(label.no)}
        row |= {} if label.accept is None else {"accept": label.accept}
        row |= {} if label.reject is None else {"reject": label.reject}
        labels[label.name] = row
    data: dict[str, Any] = {"note": policy.note} if policy.note else {}
    data["labels"] = labels
    if policy.fitted is not None:
        fitted = policy.fitted
        data["fitted"] = {
            "model": fitted.model,
            "fingerprint": fitted.fingerprint,
            "mask_text": fitted.mask_text,
            "precision": fitted.precision,
            "recall": fitted.recall,
            "confidence": fitted.confidence,
        }
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    atomic_write(Path(path), lambda part: part.write_text(text, encoding="utf-8"))
