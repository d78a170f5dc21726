"""Oracle tests: the same weights and inputs through the original and through Diptych.

Run by scripts/oracle in an environment of its own, see requirements.txt.
"""

import gc
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # `report` and `peers` are imported by name

import peers
import report

peers.torchvision_stub()


def pytest_collection_modifyitems(session, config, items):
    """Forget the recorded rows of tests that are gone, where a module is collected whole."""
    if config.option.keyword or config.option.markexpr or any("::" in a for a in config.args):
        return
    tests: dict[str, set[str]] = {}
    for item in items:
        tests.setdefault(item.nodeid.split("::")[0], set()).add(item.nodeid)
    for module, names in tests.items():
        report.forget(module, names)


def pytest_configure(config):
    for module in ("timm", "torchvision", "open_clip", "transformers"):
        config.addinivalue_line("filterwarnings", rf"ignore:::{module}")


@pytest.fixture(autouse=True)
def _free():
    """Full-size models one at a time."""
    yield
    gc.collect()
