"""The data sets: a row each, and the few layouts in which people have them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from diptych.errors import ConfigError, DataError, nearest
from diptych.eval.sets.row import DataSet, Sample, Samples, Unused
from diptych.eval.sets.rows import SETS, SUITES

__all__ = ["SETS", "SUITES", "DataSet", "Sample", "Samples", "Unused", "find", "read"]


def find(names: Sequence[str]) -> list[DataSet]:
    """The rows of some names, each once, in the order of the names.

    Args:
        names: of sets ("food101"), of suites ("paper"), patterns ("imagenet*"), or a folder of
            one's own ("./my-set", which begins with ".", "/" or "~").

    Raises:
        ConfigError: a name that is none, or a pattern that nothing fits.
        DataError: a folder that cannot be measured.
    """
    found: dict[str, DataSet] = {}
    for name in names:
        if name in SETS:
            rows = [SETS[name]]
        elif name.startswith((".", "/", "~")):
            from diptych.eval.sets.own import own_set  # it needs the readers, as below

            rows = [own_set(Path(name), taken=frozenset(SETS))]
        elif name in SUITES:
            rows = [row for row in SETS.values() if name in row.suites]
        else:
            rows = [row for row in SETS.values() if fnmatchcase(row.name, name)]
        if not rows:
            raise ConfigError(
                f"no set or suite {name!r}. {nearest(name, [*SETS, *SUITES])} All of them: "
                "diptych eval sets"
            )
        found |= {row.name: row for row in rows}
    if not found:
        raise ConfigError("no set given. Name some, or a suite: " + ", ".join(SUITES))
    return list(found.values())


def read(row: DataSet, folder: Path | None, *, partial: bool = False) -> Samples:
    """The samples of a set: of its folder, or made where it makes them itself.

    Args:
        folder: that of this set; not needed where `row.make` is there.
        partial: whether classes of the list may be without a folder. They stay in the list.

    Raises:
        DataError: no folder, or nothing in it that can be measured; names what is wrong.
        MissingExtraError: Parquet or videos without their extra.
    """
    if row.make is not None:
        return row.make()
    if folder is None:
        raise DataError(
            f"{row.name}: needs its data. Give the folder that holds {row.name}/: --data FOLDER. "
            f"{row.title}: {row.source}"
        )
    from diptych.eval.sets.layouts import read_layout  # the readers, which few rows need

    return read_layout(folder, row, partial=partial)
