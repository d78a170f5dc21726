"""Each test has a cache of its own; `tiny_zoo` is importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    pass
