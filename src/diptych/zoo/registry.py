"""What exists in the world: one row for each published checkpoint we know.

- A row is data: adding a tag adds a row to a file in `rows`; architectures derive from bases.
- Activation, epsilon, pixels and tokens belong to the tag, not to the architecture. Where peers
  differ, arithmetic and the cleaning of SigLIP 2 text follow the original training code.
- Other packages add rows with an entry point in the group "diptych.rows" that names a sequence of
  `Row`.
"""

import fnmatch
import logging
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from diptych.errors import ConfigError, ModelNotFoundError, nearest
from diptych.zoo.row import Asset, Golden, Hub, Row, Source, Url
from diptych.zoo.rows import align, clipa, dfn, metaclip, mini, open_clip, openai, siglip

__all__ = ["Asset", "Golden", "Hub", "Row", "Source", "Url", "get", "list_models", "rows"]

ENTRY_POINT_GROUP = "diptych.rows"
_BUILT_IN = (mini, openai, open_clip, metaclip, dfn, siglip, clipa, align)

log = logging.getLogger("diptych")


@cache
def rows() -> dict[str, Row]:
    """All rows by name; reads the entry points of other packages on the first call.

    Raises:
        ConfigError: two rows of one name; names the packages.
    """
    found: dict[str, Row] = {}
    for row in (row for module in _BUILT_IN for row in module.ROWS):
        assert row.name not in found, row.name
        found[row.name] = row
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        for row in _rows_of(entry):
            if row.name in found:
                raise ConfigError(
                    f"{entry.value}: the name {row.name!r} is taken. Rename the row, or remove "
                    f"the package: pip uninstall {entry.dist.name if entry.dist else '...'}"
                )
            found[row.name] = row
    return found


def _rows_of(entry: EntryPoint) -> Iterator[Row]:
    """The rows of another package; one that cannot be imported costs its rows and no others."""
    try:
        given = tuple(entry.load())
    except (ImportError, AttributeError, TypeError) as error:
        log.warning("the rows of %s are left out: %s", entry.value, error)
        return
    for row in given:
        if not isinstance(row, Row):
            raise ConfigError(f"{entry.value}: is no zoo.Row but a {type(row).__name__}")
        yield row


def list_models(pattern: str = "*") -> list[str]:
    """Names of the rows that match a shell pattern, in the registry's order."""
    return [name for name in rows() if fnmatch.fnmatchcase(name, pattern)]


def get(name: str) -> Row:
    """The row of a name.

    Raises:
        ModelNotFoundError: no such row; names the three nearest and the command that lists all.
    """
    if name not in rows():
        raise ModelNotFoundError(
            f"no model is named {name!r}. {nearest(name, rows())} All of them: diptych models list"
        )
    return rows()[name]
