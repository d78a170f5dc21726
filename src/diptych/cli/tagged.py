"""Where the tags of `diptych tag` go: lines, JSON, a CSV file, sidecars."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import emit, failed, key_text
from diptych.cli.main import on_a_line

if TYPE_CHECKING:
    import numpy as np

    from diptych.engine import Batch
    from diptych.judge.sidecars import Naming
    from diptych.judge.tag import Tag
    from diptych.judge.vocabulary import Vocabulary

__all__ = ["Output"]


@dataclass(slots=True)
class Output:
    """Where tags go: stdout, a table, sidecars."""

    as_json: bool
    alt_text: bool
    table: Path | None
    sidecars: Naming | None
    level: Any
    top: int | None
    done: int = 0
    errors: int = 0
    written: int = 0
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _beside: dict[Path, str] = field(default_factory=dict)

    def failures(self, batch: Batch) -> None:
        for key, error in batch.errors.items():
            failed(key_text(key), error, as_json=self.as_json)
        self.errors += len(batch.errors)

    def show(
        self, keys: list[Any], cosines: np.ndarray, cuts: np.ndarray, words: Vocabulary
    ) -> None:
        from diptych.judge.tag import tags

        found = tags(cosines, cuts, words, level=self.level, top=self.top)
        for key, some in zip(keys, found, strict=True):
            try:
                self._beside_photo(key, some)
            except ValueError as error:
                failed(key_text(key), error, as_json=self.as_json)
                self.errors += 1
                continue
            self._tell(key_text(key), some)
            self.done += 1

    def _beside_photo(self, key: Any, some: list[Tag]) -> None:
        if self.sidecars is None:
            return
        from diptych.errors import DataError
        from diptych.judge.sidecars import sidecar_path, write_sidecar

        if not isinstance(key, str):
            raise DataError("a picture from stdin has no place for a sidecar")
        if not Path(key).exists():  # a collection may remember what has gone
            raise DataError(f"{key}: is not there any more, so it gets no sidecar")
        path = sidecar_path(Path(key), self.sidecars)
        first = self._beside.setdefault(path, key)
        if first != key:
            raise DataError(
                f"{key}: its sidecar {path.name} is that of {Path(first).name} as well. "
                "Type: --sidecars full"
            )
        self.written += write_sidecar(path, [tag.label.path for tag in some])

    def _tell(self, path: str, some: list[Tag]) -> None:
        from diptych.judge.tag import alt_text

        phrase = alt_text(some) if self.alt_text else None
        if self.table is not None:
            self._rows += [
                (path, str(tag.label), f"{tag.score:.4f}", f"{tag.margin:.4f}") for tag in some
            ]
        if self.as_json:
            record: dict[str, Any] = {
                "path": path,
                "labels": [
                    {
                        "label": tag.label.name,
                        "score": tag.score,
                        "margin": tag.margin,
                        "parents": list(tag.label.parents),
                    }
                    for tag in some
                ],
            }
            emit(record | ({} if phrase is None else {"alt_text": phrase}))
            return
        told = ", ".join(f"{tag.label.name} {tag.score:.2f}" for tag in some)
        click.echo(f"{on_a_line(path)}: {told or '(no tag)'}")
        if phrase is not None:
            click.echo(f"  {phrase}")

    def finish(self) -> None:
        if self.table is not None and self.done:
            from diptych.zoo.atomic import atomic_write

            text = io.StringIO(newline="")
            csv.writer(text).writerows([("path", "label", "score", "margin"), *self._rows])
            atomic_write(self.table, lambda part: part.write_bytes(text.getvalue().encode()))
        if self.sidecars is not None and not self.as_json:
            click.echo(f"{self.written:,} sidecars written", err=True)
