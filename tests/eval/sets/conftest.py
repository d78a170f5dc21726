"""The helper beside the tests is imported by name: `from layouts_made import picture`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
