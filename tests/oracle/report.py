"""Measured differences to the originals: kept by the oracle tests, printed as one page.

    from report import record
    record("Activations", "ViT-B/32, image", difference, 2e-6, "open_clip_torch")

    python tests/oracle/report.py --write   make docs/reference/exactness.md of what was recorded
    python tests/oracle/report.py --check   the page and the recorded rows name the same things

- A row is kept whether it holds or not; a page is written only if every row holds.
- One file for each test module in `.cache/exactness/`, so partial runs add up.
"""

import argparse
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diptych.engine.device import has_fast_bf16

__all__ = ["forget", "record"]

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / ".cache" / "exactness"
PAGE = ROOT / "docs" / "reference" / "exactness.md"
COMMAND = "./scripts/oracle --write"

# The order of the sections, and what stands above each table; others follow by name.
SECTIONS = {
    "Activations": (
        "Unit feature vectors of both towers in float32, largest absolute difference of any "
        "component, on identical weights. Every tensor of the peer is filled with seeded noise "
        "(`tests/oracle/peers.py`), those that start at zero or one and batch-norm statistics "
        "included, so that nothing hides; scales keep activations near those of trained models."
    ),
    "Hidden states": (
        "Tokens and attention weights of every layer of either tower; largest absolute difference, "
        "for tokens divided by the largest absolute value of that layer."
    ),
    "Resolutions": "Position embeddings resized to another image size.",
    "Training": (
        "One step in training mode. Gradients: the largest, over all parameters, of "
        "|g - g'| / (|g'| + 0.001 |G|), where g' is the peer's gradient of that parameter and G "
        "all of them together (Euclidean norms)."
    ),
    "Prompts and class names": (
        "Templates and names that are data of this package, against those in the peers; the figure "
        "counts what differs. And the classifiers that are made of them: largest difference of any "
        "component, on identical weights."
    ),
    "Probes": (
        "Linear probes and nearest neighbours against scikit-learn on the same features, both "
        "solved to a tolerance of 1e-9 where probabilities are compared; largest absolute "
        "difference."
    ),
    "Retrieval and choice": (
        "Ranks and what is made of them, several captions an image, choices and overlap, on random "
        "vectors; absolute differences, or how many ranks and choices differ."
    ),
    "Losses": "Contrastive losses: value and gradients, relative to the largest number of each.",
    "Exact gradients": (
        "One training step over several ranks (gloo, DDP) and pieces (accumulation), with half of "
        "the patches dropped, against the peer's loss over the single big batch: |g - g'| / |g'| "
        "of the gradient of either tower, of the logit scale and of the bias, and of the loss; the "
        "worst of these, the worst rank."
    ),
    "Tokens": "Token ids; the figure counts the texts whose ids differ.",
    "Pixels": "Preprocessed pixels against the peer's arithmetic.",
    "Exports": (
        "ONNX files written by `export`, run by ONNX Runtime and OpenVINO, against the peer's own "
        "model; largest absolute difference of unit rows."
    ),
    "Look-alikes": (
        "`diptych.compat` through the peers' own calls, on the same weights: features that are "
        "not normalised, logits, gradients, and what whole scripts print. SigLIP and CLIPA are "
        "compared with open_clip's activation (`exact_gelu_`); one row says how far that is from "
        "the training code's."
    ),
    "Zoo": (
        "The rows of the registry against the peer's; the figure counts what differs without a "
        "reason that the test states."
    ),
    "Formats": "Weights through every publisher's format and back.",
    "Precision": (
        "1 - cosine, the largest over 200 inputs (smooth noise of many spectra, contrasts and "
        "tints; sentences of 1 to 60 words), between the bfloat16 path and the float32 reference "
        "of the same full-size model. The weights are the noise described above, which is harder "
        "than a fresh ResNet, whose residual branches are zero. The image towers of ResNets run "
        "in float32 unless bfloat16 is asked for: with noise that lets activations grow from "
        "block to block they magnify any rounding (RN50 fell to a cosine of 0.91), and what "
        "trained ones do was not measured."
    ),
    "Batches": (
        "The vector of an input among 63 others, against the same input alone and among 15 others "
        "in another order: largest absolute difference in float32, 1 - cosine in bfloat16."
    ),
    "Metrics": (
        "Figures of evaluations on the same random scores, labels and differences, which are made "
        "so that a model is sometimes too sure and sometimes not sure enough: largest absolute "
        "difference, unless the row says that it is relative or counts."
    ),
}

INTRODUCTION = f"""\
# How exact Diptych is

Each row compares Diptych with the package that people use today (the peer), on the same weights and
the same inputs, and gives the largest difference that was seen; the tests fail above the bound. A 0
means identical bits. The last digits of float32 figures depend on the processor and on the
libraries' order of summation: expect the same magnitude on another machine, not the same number.
Figures of the bfloat16 path come from a processor with AMX or AVX512-BF16.

This page is generated. Do not edit it; type `{COMMAND}`.
"""


def record(section: str, what: str, value: float, bound: float, peer: str) -> None:
    """Keep one measured difference, then assert `value <= bound` (NaN fails).

    `value` is always a difference: of cosines, give 1 - cosine. `peer` is a distribution's name
    (its version is added) or a phrase. A row recorded twice in one test keeps the larger value;
    rows that the test left in an earlier run are dropped.
    """
    test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
    row = {"section": section, "what": what, "peer": _versioned(peer), "test": test}
    row |= {"value": float(value), "bound": float(bound)}
    file = _file(test)
    rows = _read(file)
    if test not in _RUN:
        rows = {key: old for key, old in rows.items() if old["test"] != test}
        _RUN.add(test)
    key = (section, what, row["peer"])
    if key in rows and rows[key]["test"] == test:
        row["value"] = max(row["value"], rows[key]["value"])
    rows[key] = row
    _save(file, rows)
    print(f"{section}: {what} | {row['peer']} | {_number(value)} <= {_number(bound)}")
    assert value <= bound, f"{what}: {value:.3g} is above {bound:.3g} ({row['peer']})"


def forget(module: str, tests: set[str]) -> None:
    """Drop the rows of `module`'s file whose test is not among `tests` (renamed, deleted)."""
    file = _file(module)
    rows = _read(file)
    kept = {key: row for key, row in rows.items() if row["test"] in tests}
    if kept != rows:
        _save(file, kept)


_RUN: set[str] = set()  # tests that have recorded something in this process


def _versioned(peer: str) -> str:
    try:
        return f"{peer} {version(peer)}"
    except PackageNotFoundError:
        return peer


def _file(test: str) -> Path:
    return STORE / f"{Path(test.split('::')[0]).stem or 'by_hand'}.json"


def _read(file: Path) -> dict[tuple[str, str, str], dict]:
    if not file.exists():
        return {}
    rows = json.loads(file.read_text("utf-8"))
    return {(row["section"], row["what"], row["peer"]): row for row in rows}


def _save(file: Path, rows: dict[tuple[str, str, str], dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(list(rows.values()), indent=1), "utf-8")
    part.replace(file)


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    if value >= 1:
        return f"{value:.1f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _recorded() -> list[dict]:
    rows = [row for file in sorted(STORE.glob("*.json")) for row in _read(file).values()]
    order = {name: i for i, name in enumerate(SECTIONS)}
    return sorted(rows, key=lambda row: (order.get(row["section"], len(order)), row["section"]))


def _page(rows: list[dict]) -> str:
    lines = [INTRODUCTION, f"torch {version('torch').split('+')[0]}."]
    for section in dict.fromkeys(row["section"] for row in rows):
        lines += ["", f"## {section}", ""]
        if section in SECTIONS:
            lines += [SECTIONS[section], ""]
        lines += ["| what | peer | largest difference | bound |", "|---|---|---|---|"]
        for row in rows:
            if row["section"] == section:
                value, bound = _number(row["value"]), _number(row["bound"])
                lines.append(f"| {row['what']} | {row['peer']} | {value} | {bound} |")
    return "\n".join([*lines, ""])


def _names(page: str) -> set[tuple[str, str]]:
    """(section, what) of each row of a page."""
    names, section = set(), ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| ") and not line.startswith("| what |"):
            names.add((section, line.split(" | ")[0].removeprefix("| ")))
    return names


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--write", action="store_true", help=f"make {PAGE.name}")
    todo.add_argument("--check", action="store_true", help="are the rows those of the page?")
    args = parser.parse_args(argv)
    rows = _recorded()
    failed = [row for row in rows if not row["value"] <= row["bound"]]
    for row in failed:
        print(f"does not hold: {row['section']}: {row['what']}: {row['value']:.3g}")
    if failed or not rows:
        print(f"nothing to stand on: run {COMMAND} and look at its failures")
        return 1
    page = _page(rows)
    if args.write:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page, "utf-8")
        print(f"{PAGE.relative_to(ROOT)}: {len(rows)} rows")
        return 0
    there = _names(PAGE.read_text("utf-8")) if PAGE.exists() else set()
    if not has_fast_bf16():  # what this machine cannot measure
        there = {name for name in there if "bfloat16" not in name[1]}
    for section, what in sorted(there - _names(page)):
        print(f"on the page, not measured: {section}: {what}")
    for section, what in sorted(_names(page) - there):
        print(f"measured, not on the page: {section}: {what}")
    if there != _names(page):
        print(f"run {COMMAND}")
        return 1
    print(f"{len(there)} rows, all measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
