"""Whole processes from start to end: Python, imports of peers, `diptych` with a resident or not.

    scripts/bench starting [--rounds 5]

The processes take turns, so a slow moment hits them all; of each the least wall time and the least
CPU time (of all its threads) of the rounds count. Bytecode is kept between runs, as it is after an
installation, and a first round that nobody times fills it and the cache of the disk. The collection
has the 28 pictures of the package. The resident's own work on a question is not in the CPU column,
as it is another process; it is in the wall time.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "src" / "diptych" / "assets" / "samples"
# open_clip and transformers import torchvision, which has no CPU build here: two operators do
STUB = """
import torch
kept = torch.library.Library("torchvision", "FRAGMENT")
for op in ("nms", "qnms"):
    kept.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
PEER = "import open_clip"


def diptych(*arguments: str) -> list[str]:
    code = "from diptych.cli.main import main; main()"
    return [sys.executable, "-c", code, *arguments]


def processes() -> dict[str, tuple[list[str], str]]:
    """Name -> the command, and DIPTYCH_RESIDENT."""
    python = {
        "python -c pass": "pass",
        "import click": "import click",
        "import numpy": "import numpy",
        "import torch": "import torch",
        PEER: f"{STUB}\nimport open_clip",
        "from transformers import CLIPModel": f"{STUB}\nfrom transformers import CLIPModel",
    }
    ask = diptych("search", "a dog on the grass")
    photo = str(SAMPLES / "dog.jpg")
    return {name: ([sys.executable, "-c", code], "0") for name, code in python.items()} | {
        "diptych --help": (diptych("--help"), "0"),
        'diptych search "a dog on the grass"': (ask, "0"),
        "the same, a resident answers": (ask, ""),
        "diptych classify dog.jpg": (diptych("classify", photo, "--labels", "a dog,a cat"), "0"),
    }


def seconds(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """(wall, CPU) of one run."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment(folder: str) -> dict[str, str]:
    """Nothing of the user's own, and bytecode that is kept."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return env | {
        "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "bytecode"),
        "XDG_DATA_HOME": f"{folder}/data",
        "XDG_RUNTIME_DIR": folder,
        "DIPTYCH_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "passive",
    }


def measure(rounds: int, env: dict[str, str]) -> dict[str, tuple[float, float]]:
    best: dict[str, tuple[float, float]] = {}
    for round_ in range(rounds + 1):  # the first warms up
        for name, (command, resident) in processes().items():
            wall, cpu = seconds(command, env | {"DIPTYCH_RESIDENT": resident})
            if round_:
                known = best.get(name, (wall, cpu))
                best[name] = min(known[0], wall), min(known[1], cpu)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="dip-") as folder:
        env = environment(folder)
        for arguments in (("index", str(SAMPLES)), ("resident", "start", "--idle", "1h")):
            subprocess.run(diptych(*arguments), env=env, stdout=subprocess.DEVNULL, check=True)
        try:
            best = measure(rounds, env)
            told = subprocess.run(diptych("resident", "status"), env=env, capture_output=True)
        finally:
            subprocess.run(diptych("resident", "stop"), env=env, stdout=subprocess.DEVNULL)
    print("| process | wall, s | CPU, s | wall / open_clip's | CPU / open_clip's |")
    print("|---|---|---|---|---|")
    for name, (wall, cpu) in best.items():
        ratios = f"{wall / best[PEER][0]:.3f} | {cpu / best[PEER][1]:.3f}"
        print(f"| {name} | {wall:.3f} | {cpu:.3f} | {ratios} |")
    print(
        f"\n{told.stdout.decode().strip()}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
