"""One graph, export with dynamic sizes, FSDP2: each in a process without the shape hook."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "train")]
import sharded  # noqa: E402
import worlds  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("what", ["compile", "export"])
def test_the_model_is_one_graph(what):
    run(HERE / "compiled.py", what)


def test_fsdp2_on_two_ranks_equals_one_process():
    worlds.run(2, sharded.compare)


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
