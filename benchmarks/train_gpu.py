"""Training steps of ViT-B/32, B/16 and L/14 at the largest batch that fits, then the loss alone.

    scripts/bench train_gpu                       # on a GPU: bf16, 77 tokens
    scripts/bench train_gpu --compile --tokens 16
    scripts/bench train_gpu --small               # on a CPU: two small batches of B/32

The step is the loop's own: autocast, exact streamed loss, fused AdamW; weights in fp32. Pixels and
tokens are random and lie on the device, so nothing is decoded, copied or augmented: it says what
the device can take, not what a run gets. The batch is doubled from `--start` until it does not fit,
a process each. Utilisation (MFU) is `train.flops`: three times the forward pass and the loss,
against the peak of the card's data sheet (on a CPU against products of matrices, measured).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from diptych import towers
from diptych.train.accumulate import Piece, backward
from diptych.train.flops import peak_flops, step_flops, tower_flops
from diptych.train.streamed import softmax_loss
from diptych.zoo.architectures import ARCHITECTURES

START = {"ViT-B-32": 512, "ViT-B-16": 256, "ViT-L-14": 128}
FULL = 3  # exit code: it did not fit
EOT = 49407


def pieces(config, batch: int, tokens: int, device: torch.device) -> list[Piece]:
    """Random pixels, and ids that end at the last place."""
    images = torch.randn(batch, 3, *config.visual.image_size, device=device)
    ids = torch.randint(1, EOT - 1, (batch, tokens), device=device)
    ids[:, -1] = EOT
    return [Piece(images, ids, torch.arange(batch, device=device))]


def measure(arguments: argparse.Namespace) -> dict:
    """Seconds a step, memory and utilisation of one model at one batch, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = ARCHITECTURES[arguments.model]
    with device:
        model = towers.build(config).train()
    for tower in (model.visual, model.text):
        tower.checkpointing = arguments.checkpointing
        if arguments.compile:
            tower.compile()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = pieces(config, arguments.batch, arguments.tokens, device)

    def loss(image, text, scale, _bias):
        return softmax_loss(image, text, scale.exp(), precision=arguments.loss_precision)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        backward(model, batch, loss, autocast=lambda: torch.autocast(device.type, torch.bfloat16))
        optimiser.step()

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps

    run(arguments.warmup)
    seconds = min(run(arguments.steps) for _ in range(3))
    flops = step_flops(
        tower_flops(config, context_length=arguments.tokens),
        batch_size=arguments.batch,
        embed_dim=config.embed_dim,
    )
    peak, _ = peak_flops(device)
    return {
        "batch": arguments.batch,
        "seconds": seconds,
        "pairs": arguments.batch / seconds,
        "mfu": flops.model / seconds / peak,
        "gib": peak_bytes(device) / 2**30,
    }


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(model: str, batch: int, arguments: argparse.Namespace) -> dict | None:
    """`measure` in a process of its own; None: it did not fit."""
    options = [f"--{name}" for name in ("compile", "checkpointing") if vars(arguments)[name]]
    for name in ("tokens", "steps", "warmup", "loss_precision"):
        options += [f"--{name.replace('_', '-')}", str(vars(arguments)[name])]
    command = [sys.executable, __file__, "--model", model, "--batch", str(batch), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == FULL:
        return None
    if done.returncode:
        raise SystemExit(f"{model} at batch {batch}: the process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def search(model: str, arguments: argparse.Namespace) -> list[dict]:
    """Doubled batches, as many as fit."""
    found, batch, limit = [], arguments.start or START[model], arguments.largest
    while 1 <= batch <= limit:
        result = child(model, batch, arguments)
        said = "does not fit" if result is None else f"{result['pairs']:.0f} pairs/s"
        print(f"{model}, batch {batch}: {said}", file=sys.stderr, flush=True)
        if result is None:
            limit = batch - 1
            batch = batch // 2 if not found else batch
        else:
            found.append(result)
            batch *= 2
    return found


def table(results: dict[str, list[dict]]) -> str:
    """The largest batch of each model, and the fastest."""
    lines = [
        "| model | largest batch | pairs/s | MFU | peak memory, GiB | fastest batch | pairs/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, found in results.items():
        if found:
            last, best = found[-1], max(found, key=lambda one: one["pairs"])
            lines.append(
                f"| {model} | {last['batch']:,} | {last['pairs']:,.1f} | {last['mfu']:.1%} "
                f"| {last['gib']:.1f} | {best['batch']:,} | {best['pairs']:,.1f} |"
            )
    return "\n".join(lines)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(START), choices=list(ARCHITECTURES))
    parser.add_argument("--tokens", type=int, default=77, help="of every caption")
    parser.add_argument("--start", type=int, help="first batch; default: by model")
    parser.add_argument("--largest", type=int, default=65_536, help="no batch above this")
    parser.add_argument("--steps", type=int, default=8, help="in each of three rounds")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--loss-precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the towers")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--small", action="store_true", help="ViT-B-32 at batches 4 and 8")
    parser.add_argument("--no-loss", action="store_true", help="leave the loss alone out")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.models = ["ViT-B-32"]
        arguments.start, arguments.largest, arguments.steps, arguments.warmup = 4, 8, 1, 1
    return arguments


def main() -> None:
    arguments = arguments_of()
    if arguments.model is not None:
        try:
            print(json.dumps(measure(arguments)))
        except torch.OutOfMemoryError:
            sys.exit(FULL)
        return
    cuda = torch.cuda.is_available()
    if not (cuda or arguments.small):
        raise SystemExit("no GPU here. Type: scripts/bench train_gpu --small")
    results = {model: search(model, arguments) for model in arguments.models}
    if not arguments.no_loss:
        options = ["--device", "cuda"] if cuda else ["--sizes", "512", "1024", "--kinds", "softmax"]
        loss = [sys.executable, str(Path(__file__).with_name("loss.py")), *options]
        subprocess.run(loss, check=False)  # without open_clip its rows say so, and the others stand
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    _, source = peak_flops(torch.device("cuda" if cuda else "cpu"))
    print(
        f"\n{name}, torch {torch.__version__}, bf16, {arguments.tokens} tokens, "
        f"compiled: {arguments.compile}, checkpointing: {arguments.checkpointing}, "
        f"products of the loss in {arguments.loss_precision}; peak: {source}\n"
    )
    print(table(results))


if __name__ == "__main__":
    main()
