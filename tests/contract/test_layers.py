"""Rooms import what stands below them, and importing costs what it should."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers():
    run = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["diptych", "diptych.cli.main", "diptych.config"])
def test_import_brings_no_torch(module):
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = set(python(code).split())
    assert not loaded & {"torch", "torchvision", "transformers", "open_clip", "numpy", "PIL"}


def test_import_diptych_is_fast():
    code = "from time import process_time as t; s = t(); import diptych; print(t() - s)"
    assert min(float(python(code)) for _ in range(3)) < 0.1  # seconds of CPU, whatever else runs


def test_the_whole_library_needs_no_torchvision():
    code = (
        "import sys, diptych.engine, diptych.zoo; "
        "assert not {'torchvision', 'transformers', 'open_clip', 'timm'} & sys.modules.keys()"
    )
    python(code)
