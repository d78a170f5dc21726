"""Images and texts a second through the towers: Diptych, open_clip, transformers, two runtimes.

    scripts/bench encoding [--only b32-images,query] [--threads 1] [--compile] [--out FILE.md]

Random weights; prepared pixels and token ids, so nothing but the towers is timed. The variants of a
part take turns and the best round of each counts, in wall time; an idle machine is wanted. "error"
is 1 - cosine to fp32 of the same weights, the worst of the batch. The share is of the peak that
the part measures, in turns with the rest, for a product of 1600x768x3072 in the variant's type.
Texts run at 77 positions where a peer knows no other way, else at the longest of the batch.
`--compile` adds torch.compile, which needs a C++ compiler. `--all` exports and quantises ViT-L/14
too, which takes longer than all the rest. A FILE.svg is written beside FILE.md. OpenVINO's int8
needs nncf 3.4.0, which is not installed with the other peers.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))
sys.path.insert(0, str(Path(__file__).parent))

from encoding_peers import BASE, Case, Variant, open_clip_model, peers_of
from encoding_report import Row, machine, markdown, svg, text
from peers import pixels

import diptych
from diptych.engine import Encoder
from diptych.errors import ConfigError
from diptych.zoo.keymaps import OPEN_CLIP, rename

CAPTION = "A young man sitting near the wooden table watching {} birds on a busy street."
QUERY = "two dogs playing in the snow near a red house"
PARTS = {  # name -> model, side, batch
    "b32-images": ("ViT-B-32", "image", 32),
    "b1-image": ("ViT-B-32", "image", 1),
    "b32-texts": ("ViT-B-32", "text", 32),
    "query": ("ViT-B-32", "text", 1),
    "l14-images": ("ViT-L-14", "image", 8),
}
LARGE = "ViT-L-14"  # minutes go by until each of its graphs is ready
PRECISIONS = ("auto", "fp32", "bf16", "int8")
Call = Callable[[], Tensor]


def products() -> dict[str, Call]:
    """Type -> one product at the shape of ViT-B/32's MLP for 32 images: the roof of that type."""
    x, w = torch.randn(1600, 768), torch.randn(3072, 768)
    calls: dict[str, Call] = {"fp32": lambda: F.linear(x, w)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        half = x.bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(w.bfloat16(), 1600)
        run = torch.ops.mkldnn._linear_pointwise
        calls["bf16"] = lambda: run(half, packed, None, "none", [], "")
    return calls


def flops(case: Case, positions: int | None) -> float:
    """Of one item: two for each multiply and add of the products, attention included."""
    side = case.config.visual if case.side == "image" else case.config.text
    patches = 0
    if positions is None:
        patches = (224 // case.config.visual.patch_size) ** 2
        positions = patches + 1
    block = 8 * side.width**2 + 4 * side.width * side.mlp_dim + 4 * positions * side.width
    stem = 2 * patches * 3 * case.config.visual.patch_size**2 * side.width if patches else 0
    return side.layers * positions * block + stem + 2 * side.width * case.config.embed_dim


def best(calls: dict[str, Call], seconds: float) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The fastest run of each, and what it gave; they take turns until each has had `seconds`."""
    fastest = dict.fromkeys(calls, float("inf"))
    spent = dict.fromkeys(calls, 0.0)
    made = {}
    for round_ in range(200):
        for name, call in calls.items():
            if spent[name] > seconds:
                continue
            start = time.perf_counter()
            made[name] = call()
            took = time.perf_counter() - start
            if round_:  # the first warms up
                fastest[name] = min(fastest[name], took)
                spent[name] += took
    return fastest, made


def own(case: Case, encoder: Encoder) -> Iterator[Variant]:
    """Our variants on the weights of `encoder`; a precision that does not exist yet is left out."""
    batch = case.batch
    with torch.no_grad():
        model = encoder.model
        encode = model.encode_image if case.side == "image" else model.encode_text
        reference = encode(batch).clone()
    for precision in PRECISIONS:
        try:
            made = Encoder(
                encoder.model,
                config=encoder.config,
                preprocess=encoder.preprocess,
                tokenizer=encoder.tokenizer_config,
                device="cpu",
                precision=precision,
            )
        except ConfigError as error:
            print(f"  left out: precision {precision} ({error})", flush=True)
            continue
        run = made.run_image if case.side == "image" else made.run_text
        positions = None if case.side == "image" else case.longest
        dtype = made.precision
        name = f"Diptych {precision}" + (f" ({dtype})" if precision == "auto" else "")
        yield Variant(name, lambda run=run: run(batch), dtype, positions, reference)


def measure(part: str, args: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows of one part. `folder` keeps graphs that another part can use."""
    arch, side, n = PARTS[part]
    encoder = diptych.build(f"{arch}/openai", device="cpu", precision="fp32")
    peer = open_clip_model(arch, encoder.config)
    weights = rename(peer.state_dict(), OPEN_CLIP, source="open_clip")
    encoder.model.load_state_dict(weights)
    texts = [QUERY] if n == 1 else [CAPTION.format(i) for i in range(n)]
    tokens = encoder.tokenizer.tokenize(texts)
    batch = pixels(n, 224) if side == "image" else tokens.ids
    case = Case(arch, side, batch, encoder.config, int(tokens.lengths.max()), args.threads)
    print(f"\n{part}: {arch}, {side}s, batch {n}, {args.threads} threads", flush=True)
    variants = list(own(case, encoder))
    graphs = args.all or arch != LARGE
    if not graphs:
        print(f"  left out: compiled, onnxruntime, openvino, nncf for {arch}; add --all")
    variants += peers_of(case, peer, folder, compile_=args.compile and graphs, graphs=graphs)
    rows = timed(part, case, variants, args.seconds)
    for row in rows:
        print(text(row), flush=True)
    return rows


@torch.no_grad()
def timed(part: str, case: Case, variants: list[Variant], seconds: float) -> list[Row]:
    roofs = products()
    took, made = best({v.name: v.call for v in variants} | roofs, seconds)
    peak = {dtype: 2 * 1600 * 768 * 3072 / took[dtype] for dtype in roofs}
    found = ", ".join(f"{dtype} {value / 1e9:,.0f}" for dtype, value in peak.items())
    print(f"  GFLOP/s at 1600x768x3072: {found}")
    rows = []
    for v in variants:
        rate = len(case.batch) / took[v.name]
        cosine = F.cosine_similarity(made[v.name].double(), v.reference.double())
        error = float((1 - cosine).max().clamp_min(0))
        share = rate * flops(case, v.positions) / peak[v.dtype] if v.dtype in peak else None
        ratio = took[BASE] / took[v.name]
        rows.append(Row(part, v.name, rate, ratio, error, share, v.positions))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each variant of a part")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--out", type=Path, help="a FILE.md; FILE.svg is written too")
    args = parser.parse_args()
    if wrong := [name for name in args.only.split(",") if name not in PARTS]:
        parser.error(f"no part {wrong[0]!r}; there are {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    notes = f"{machine()}\nThreads: {args.threads}. {time.strftime('%Y-%m-%d')}."
    print(notes)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in args.only.split(","):
            rows += measure(part, args, Path(folder))
            gc.collect()
    if args.out:
        plot = args.out.with_suffix(".svg")
        plot.write_text(svg(rows), "utf-8")
        args.out.write_text(markdown(rows, notes, plot.name), "utf-8")


if __name__ == "__main__":
    main()
