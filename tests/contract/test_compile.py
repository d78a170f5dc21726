"""One graph, export with dynamic sizes, FSDP2: each in a process without the shape hook."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("what", ["compile", "export"])
def test_the_model_is_one_graph(what):
    run(HERE / "compiled.py", what)


def test_fsdp2_on_two_ranks_equals_one_process(tmp_path):
    run(HERE / "sharded.py", tmp_path / "store")


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
