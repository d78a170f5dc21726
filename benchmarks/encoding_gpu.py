"""Images and texts a second on a GPU, from uint8 on the device: our paths against the peers'.

    scripts/bench encoding_gpu [--models ViT-B-32 ...] [--out benchmarks/results/encoding_gpu.txt]
    scripts/bench encoding_gpu --tiny --device cpu   # the same code on a small model, in seconds

Random weights. Images are uint8 of the model's size and lie on the device; texts are ids on the
CPU, as a tokenizer gives them, of 8 to 20 tokens. Variants take turns, the best of three rounds
counts. "difference" is 1 - cosine to our fp32 tower, the worst of the batch; "of peak" the
operations of the real tokens against a product of 8192 x 8192 bf16 matrices in this run; "alone"
the milliseconds of one input, waited for. Compiling takes minutes: it is begun as long as
`--seconds` have not passed.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych import towers
from diptych.config import CLIPConfig, PreprocessConfig, TextConfig, ViTConfig
from diptych.engine.cuda import STEP, Captured, Graphs
from diptych.engine.lengths import cut
from diptych.engine.lower import Lowered
from diptych.preprocess.pipeline import statistics
from diptych.train.flops import tower_flops
from diptych.zoo.architectures import ARCHITECTURES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

Call = Callable[[Tensor], Tensor]
EOT = 49407
TINY = CLIPConfig(
    embed_dim=32,
    visual=ViTConfig(image_size=(32, 32), patch_size=8, width=64, layers=2, heads=4, mlp_dim=128),
    text=TextConfig(context_length=77, vocab_size=49408, width=64, layers=2, heads=4, mlp_dim=128),
)
PEERS = ("open_clip fp32", "open_clip bf16", "transformers bf16")
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# 1 - cosine that a check allows: another order of sums in bf16, and the folded mean and std
GRAPHS, UINT8 = 1e-5, 1e-4


@dataclass
class Row:
    model: str
    side: str
    variant: str
    rate: float  # a second
    difference: float | None = None
    of_peak: float = 0.0
    alone: float = 0.0  # milliseconds of one input


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(calls: dict[str, Callable], device: torch.device, least: float) -> dict[str, float]:
    """Of one call: the best of three rounds of at least `least` seconds, taken in turns."""
    times = {}
    for name, call in calls.items():
        for _ in range(4):  # warms up, captures, compiles
            call()
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        times[name] = max(1, int(least / (time.perf_counter() - start)))
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(3):
        for name, call in calls.items():
            wait(device)
            start = time.perf_counter()
            for _ in range(times[name]):
                call()
            wait(device)
            best[name] = min(best[name], (time.perf_counter() - start) / times[name])
    return best


def alone_ms(call: Callable, device: torch.device, rounds: int) -> float:
    """Milliseconds of one call that is waited for: the best of some."""
    best = float("inf")
    for _ in range(rounds + 4):
        start = time.perf_counter()
        call()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def gemm_peak(device: torch.device, size: int) -> float:
    """FLOP/s of a bf16 product of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = seconds_of({"product": lambda: a @ b}, device, 0.1 if device.type == "cuda" else 0.01)
    return 2 * size**3 / found["product"]


def difference(a: Tensor, b: Tensor) -> float:
    return float((1 - F.cosine_similarity(a.double(), b.double())).max().clamp_min(0))


@contextlib.contextmanager
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_tf32(call: Call) -> Call:
    def run(batch: Tensor) -> Tensor:
        with tf32():
            return call(batch)

    return run


def graphed(lowered: Lowered, device: torch.device, *, compile: bool = False) -> Graphs:
    how = {"device": device, "compile": compile, "memory": 32 << 30}
    if device.type == "cpu":
        how["capture"] = again

    return Graphs(lowered.tower, lowered, lowered.fixed, **how)


def again(run: Call, buffer: Tensor) -> Captured:
    """In place of a graph, where there is none: the same buffers, and the run itself."""
    output = run(buffer)
    return Captured(output, lambda: output.copy_(run(buffer)), output.nbytes)


def ours(tower: nn.Module, pixels: PreprocessConfig | None, device) -> dict[str, Call]:
    """Variant -> [n e] of uint8 images on the device, or of ids on the CPU."""

    def lowered(dtype: torch.dtype) -> Lowered:
        return Lowered(tower, dtype=dtype, pixels=pixels)

    def eager(fast: Lowered) -> Call:
        return lambda batch: fast(cut(tower, batch, STEP).to(device))

    calls = {"fp32": eager(lowered(torch.float32))}
    calls["tf32"] = with_tf32(calls["fp32"])
    for name, dtype in HALVES.items():
        calls[name] = eager(lowered(dtype))
        calls[f"{name}, graphs"] = graphed(lowered(dtype), device)
    return calls


def normalised(batch: Tensor, stats: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    mean, std = stats
    return (batch.to(dtype) / 255 - mean.to(dtype)) / std.to(dtype)


def peers(arch: str, side: str, pixels: PreprocessConfig, device, *, compile: bool) -> dict:
    """open_clip's and transformers' runs of the same inputs; what is not installed is left out."""
    stats = statistics(pixels, device)

    def of_inputs(run: Callable, dtype: torch.dtype) -> Call:
        if side == "texts":
            return lambda ids: run(ids.to(device))
        return lambda batch: run(normalised(batch, stats, dtype))

    def open_clip(dtype: torch.dtype) -> Call:
        from peers import open_clip_by_name

        model = open_clip_by_name(arch).to(device, dtype).eval()
        run = model.encode_image if side == "images" else model.encode_text
        return of_inputs(torch.compile(run, mode="max-autotune") if compile else run, dtype)

    def hugging_face() -> Call:
        model = transformers_clip(ARCHITECTURES[arch]).to(device, torch.bfloat16).eval()
        run = model.get_image_features if side == "images" else shortest(model)
        return of_inputs(run, torch.bfloat16)

    makers: dict[str, Callable[[], Call]] = {
        "open_clip fp32": lambda: open_clip(torch.float32),
        "open_clip bf16": lambda: open_clip(torch.bfloat16),
        "transformers bf16": hugging_face,
    }
    if compile:
        makers = {"open_clip bf16, compiled": lambda: open_clip(torch.bfloat16)}
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def shortest(model: nn.Module) -> Callable:
    """Texts padded to the longest of the batch, as transformers' users have them."""
    return lambda ids: model.get_text_features(ids[:, : int(ids.argmax(-1).max()) + 1])


def transformers_clip(config: CLIPConfig) -> nn.Module:
    from peers import transformers

    hf = transformers()

    def side(tower) -> dict:
        return {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_dim,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": "gelu",
        }

    image = {"image_size": config.visual.image_size[0], "patch_size": config.visual.patch_size}
    cfg = hf.CLIPConfig(
        vision_config=side(config.visual) | image,
        text_config=side(config.text) | {"eos_token_id": EOT},
        projection_dim=config.embed_dim,
    )
    return hf.CLIPModel(cfg)


def inputs(config: CLIPConfig, batch: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (batch, 3, *config.visual.image_size)
    images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    ids = torch.randint(1, EOT - 1, (batch, config.text.context_length), generator=generator)
    ends = torch.randint(7, 20, (batch,), generator=generator)
    ids[torch.arange(batch), ends] = EOT
    ids[torch.arange(config.text.context_length) > ends[:, None]] = 0
    return {"images": images.to(device), "texts": ids}


class Bench:
    """All of a run: what was measured, and what was checked."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.started = time.perf_counter()
        self.rows: list[Row] = []
        self.checks: list[str] = []
        self.references: dict[tuple[str, str], Tensor] = {}
        self.rounds = 5 if args.tiny else 50
        self.least = 0.15 if self.device.type == "cuda" else 0.01
        self.peak = gemm_peak(self.device, 512 if args.tiny else 8192)

    def check(self, what: str, value: float, bound: float) -> None:
        verdict = "ok" if value <= bound else "FAILED"
        self.checks.append(f"{what}: 1 - cosine {value:.1e}, at most {bound:.0e}: {verdict}")

    def model(self, arch: str, config: CLIPConfig) -> Callable[[], None]:
        """Measures a model; returns what measures its compiled variants."""
        torch.manual_seed(0)
        with self.device:
            model = towers.build(config).eval()
        pixels = PreprocessConfig(size=config.visual.image_size)
        batches = inputs(config, self.args.batch, self.device)
        ids = batches["texts"]
        flops = tower_flops(config, context_length=cut(model.text, ids).shape[1], training=False)
        sides = {
            "images": (model.visual, pixels, flops.visual),
            "texts": (model.text, None, flops.text),
        }
        for side, (tower, of_side, work) in sides.items():
            calls = ours(tower, of_side, self.device)
            self.exact(f"{arch}, {side}", calls, batches[side], tower, pixels)
            if not self.args.tiny:
                calls |= peers(arch, side, pixels, self.device, compile=False)
            self.measure(arch, side, calls, batches[side], work)

        def compiled() -> None:
            for side, (tower, of_side, work) in sides.items():
                fast = Lowered(tower, dtype=torch.bfloat16, pixels=of_side)
                calls: dict[str, Call] = {
                    "bf16, compiled, graphs": graphed(fast, self.device, compile=True)
                }
                if not self.args.tiny:
                    calls |= peers(arch, side, pixels, self.device, compile=True)
                self.measure(arch, side, calls, batches[side], work)

        return compiled

    def exact(self, where: str, calls: dict[str, Call], batch: Tensor, tower, pixels) -> None:
        few = batch[:13]  # padded to 16
        for name in HALVES:
            graphs = calls[f"{name}, graphs"]
            for n in (1, 13):
                padded = [graphs(few[:n]) for _ in range(3)][-1]
                off = difference(padded, calls[name](few[:n]))
                self.check(f"{where}, {name}, {n}: graphs equal eager", off, GRAPHS)
        assert isinstance(graphs, Graphs)
        if self.device.type == "cuda":
            self.checks.append(f"{where}: {len(graphs)} graphs were captured of 2")
        if batch.dtype == torch.uint8:
            stats = statistics(pixels, self.device)
            for name, dtype in HALVES.items():
                floats = Lowered(tower, dtype=dtype)(normalised(few, stats, torch.float32))
                self.check(
                    f"{where}, {name}: uint8 equals float",
                    difference(calls[name](few), floats),
                    UINT8,
                )

    def measure(self, arch: str, side: str, calls: dict[str, Call], batch: Tensor, work) -> None:
        runs = {name: lambda call=call: call(batch) for name, call in calls.items()}
        seconds = seconds_of(runs, self.device, self.least)
        for name, call in calls.items():
            rate = len(batch) / seconds[name]
            row = Row(arch, side, name, rate, of_peak=rate * work / self.peak)
            if not name.startswith(("open_clip", "transformers")):
                vectors = call(batch[:32]).float()
                # fp32 comes first
                row.difference = difference(
                    vectors, self.references.setdefault((arch, side), vectors)
                )
            row.alone = alone_ms(lambda call=call: call(batch[:1]), self.device, self.rounds)
            self.rows.append(row)
            print(f"{arch}, {side}, {name}: {rate:.0f}/s", file=sys.stderr, flush=True)

    def report(self) -> str:
        """The table, the checks and the conditions."""
        where = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        lines = [
            f"{where}, torch {torch.__version__}, batch {self.args.batch}, "
            f"bf16 product {self.peak / 1e12:.1f} TFLOP/s",
            "",
            "| model | side | variant | a second | x peer | difference | of peak | alone, ms |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            same = [r for r in self.rows if (r.model, r.side) == (row.model, row.side)]
            eager = [r.rate for r in same if r.variant in PEERS]
            ratio = f"{row.rate / max(eager):.2f}" if eager else "-"
            off = "-" if row.difference is None else f"{row.difference:.1e}"
            lines.append(
                f"| {row.model} | {row.side} | {row.variant} | {row.rate:,.0f} | {ratio} | {off} "
                f"| {row.of_peak:.1%} | {row.alone:.2f} |"
            )
        lines += ["", "x peer: against the fastest peer that is not compiled", "", *self.checks]
        return "\n".join(lines)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16", "ViT-L-14"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=150, help="then no compilation is begun")
    parser.add_argument("--tiny", action="store_true", help="a small model alone, without peers")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here. Type: scripts/bench encoding_gpu --tiny --device cpu")
    if arguments.tiny:
        arguments.batch = min(arguments.batch, 16)
    return arguments


@torch.no_grad()
def main() -> None:
    args = arguments_of()
    bench = Bench(args)
    configs = {"tiny": TINY} if args.tiny else {name: ARCHITECTURES[name] for name in args.models}
    later = [bench.model(arch, config) for arch, config in configs.items()]
    # on a CPU a compiled tower would only show the compiler
    for compiled in later if bench.device.type == "cuda" else ():
        if time.perf_counter() - bench.started < args.seconds:
            compiled()
    report = bench.report()
    print(report)
    if args.out is not None:
        head = f"{' '.join(['scripts/bench encoding_gpu', *sys.argv[1:]])}\n2026-12-01\n\n"
        args.out.write_text(head + report + "\n", "utf-8")
    if any(check.endswith("FAILED") for check in bench.checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
