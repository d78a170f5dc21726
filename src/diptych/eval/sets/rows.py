"""All rows, by name, and the suites that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diptych.eval.sets.row import DataSet
from diptych.eval.sets.rows_more import MORE
from diptych.eval.sets.rows_packaged import PACKAGED
from diptych.eval.sets.rows_paper import PAPER

__all__ = ["SETS", "SUITES"]

SETS: Mapping[str, DataSet] = MappingProxyType(
    {row.name: row for row in (*PAPER, *MORE, *PACKAGED)}
)
SUITES: tuple[str, ...] = tuple(
    dict.fromkeys(suite for row in SETS.values() for suite in row.suites)
)
