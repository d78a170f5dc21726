"""The contrastive losses, forward and backward, against open_clip's: seconds, memory, direction.

    scripts/bench loss                      # CPU, one thread: N = 4096 and 8192
    scripts/bench loss --sizes 4096 8192 16384 32768
    scripts/bench loss --device cuda        # N = 4k ... 128k

Each line is a process of its own; the better of the runs counts. Memory is the peak above the
inputs: resident on the CPU, allocated on CUDA. The cosine is that of the features' gradients to
the readable loss in float64, at the smallest N. "tiles" on CUDA is what Inf-CL does in form: tiles
of logits in memory, several kernels for each; "ours, bf16" is fused by Triton.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from diptych.model import loss
from diptych.train import streamed, streamed_tiles

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

from peers import open_clip

WIDTH, SCALE, BIAS = 512, 1 / 0.07, -10.0
GPU_ONLY = ("open_clip, autocast bf16", "tiles, bf16")
METHODS = ("open_clip, fp32", "ours, fp32", "ours, bf16", *GPU_ONLY)
LARGEST = {"cpu": 20_000, "cuda": 70_000}  # rows for which the peer's n x n matrices are made


def features(n: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Pairs at a cosine of about 0.7, and the scalars."""
    generator = torch.Generator(device).manual_seed(0)
    rows = []
    for i in range(2):
        noise = torch.empty(n, WIDTH, device=device).normal_(generator=generator)
        rows.append(F.normalize(noise.add_(rows[0], alpha=math.sqrt(WIDTH)) if i else noise, dim=1))
        del noise
    scalars = [torch.tensor(x, device=device) for x in (SCALE, BIAS)]
    return [x.to(dtype).requires_grad_() for x in (*rows, *scalars)]


def function(kind: str, method: str):
    """The loss as a function of (image, text, scale, bias)."""
    who, precision = method.split(", ")
    if who == "open_clip":
        peer = open_clip().loss.ClipLoss() if kind == "softmax" else open_clip().loss.SigLipLoss()

        def run(image, text, scale, bias):
            with torch.autocast(image.device.type, torch.bfloat16, enabled="bf16" in precision):
                return peer(image, text, scale, *([] if kind == "softmax" else [bias]))

        return run
    if who == "tiles":
        streamed.fused = streamed_tiles.fused = lambda operands: False
    if kind == "softmax":
        return lambda i, t, s, b: streamed.softmax_loss(i, t, s, precision=precision)
    return lambda i, t, s, b: streamed.sigmoid_loss(i, t, s, b, precision=precision)


def step(run, inputs) -> float:
    for x in inputs:
        x.grad = None
    value = run(*inputs)
    value.backward()
    return value.item()


def used(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def direction(kind: str, inputs) -> float:
    """Cosine of the features' gradients to those of the readable loss in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    image, text, scale, bias = exact
    if kind == "softmax":
        loss.softmax_loss(image, text, scale).backward()
    else:
        loss.sigmoid_loss(image, text, scale, bias).backward()
    got, expected = (
        torch.cat([x.grad.double().flatten() for x in xs[:2]]) for xs in (inputs, exact)
    )
    return F.cosine_similarity(got, expected, dim=0).item()


def cell(kind: str, method: str, n: int, options: argparse.Namespace) -> dict:
    device = options.device
    torch.set_num_threads(options.threads)
    run = function(kind, method)
    step(run, features(64, device, torch.float32))  # what is loaded and compiled once
    inputs = features(n, device, torch.float32)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # One thread's own seconds do not count what other processes take.
    clock = time.process_time if device == "cpu" and options.threads == 1 else time.perf_counter
    before, seconds = used(device), []
    for _ in range(options.runs):
        start = clock()
        value = step(run, inputs)  # its `item` waits for the GPU
        seconds.append(clock() - start)
    found = {"value": value, "seconds": min(seconds), "peak": used(device) - before}
    return found | {"cosine": direction(kind, inputs) if n == options.sizes[0] else None}


def in_a_process(kind: str, method: str, n: int, options: argparse.Namespace) -> dict | None:
    arguments = ["--cell", kind, method, str(n), *sys.argv[1:]]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    print(f"exit code {done.returncode}", *done.stderr.splitlines()[-1:], file=sys.stderr)
    return None


def table(kind: str, options: argparse.Namespace) -> None:
    print(f"\n{kind}, width {WIDTH}, forward and backward\n")
    print("| method | N | seconds | MiB above the inputs | loss | 1 - cosine to float64 |")
    print("|---|---|---|---|---|---|")
    slopes = []
    for method in METHODS:
        if method in GPU_ONLY and options.device != "cuda":
            continue
        peaks = {}
        for n in options.sizes:
            if method.startswith("open_clip") and n > LARGEST[options.device]:
                continue
            found = in_a_process(kind, method, n, options)
            if found is None:
                print(f"| {method} | {n} | failed | | | |", flush=True)
                continue
            peaks[n] = found["peak"]
            off = "" if found["cosine"] is None else f"{1 - found['cosine']:.1e}"
            numbers = f"{found['seconds']:.3g} | {found['peak']:.0f} | {found['value']:.6f}"
            print(f"| {method} | {n} | {numbers} | {off} |", flush=True)
        if len(peaks) > 1:
            x, y = ([math.log(max(v, 1)) for v in side] for side in (peaks.keys(), peaks.values()))
            slopes.append(f"{method}: {statistics.linear_regression(x, y).slope:.2f}")
    print("\nslope of memory, fitted to logarithms (1 is linear): " + "; ".join(slopes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=["softmax", "sigmoid"])
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.sizes = options.sizes or ([2**i for i in range(12, 18)] if on_gpu else [4096, 8192])
    if options.cell:
        kind, method, n = options.cell
        print(json.dumps(cell(kind, method, int(n), options)))
        return
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {options.threads} thread(s)"
    print(f"{where}; torch {torch.__version__}; best of {options.runs}")
    for kind in options.kinds:
        table(kind, options)


if __name__ == "__main__":
    main()
