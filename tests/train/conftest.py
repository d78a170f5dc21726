"""Helpers beside the tests are imported by name: `from worlds import run`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
