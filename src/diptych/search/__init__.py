"""Search that forgets nothing: the store (truth), what is derived from it, and questions.

    from diptych.search import Collection
    with Collection("default") as photos:
        for hit in photos.search("a dog on the beach").hits: ...

Nothing heavy is imported until one of these names is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.search.collection import Answer, Collection
    from diptych.search.filters import Filters
    from diptych.search.fold import Hit
    from diptych.search.query import Term
    from diptych.search.records import Root
    from diptych.search.store import Store

__all__ = ["Answer", "Collection", "Filters", "Hit", "Root", "Store", "Term"]

_WHERE = {
    "Answer": "collection",
    "Collection": "collection",
    "Filters": "filters",
    "Hit": "fold",
    "Root": "records",
    "Store": "store",
    "Term": "query",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"diptych.search.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'diptych.search' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
