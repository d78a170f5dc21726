"""The tables and the plot of `encoding.py`, and what it says of the machine."""

import html
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["Row", "machine", "markdown", "svg", "text"]

PEERS = ("torch", "open_clip_torch", "transformers", "onnxruntime", "openvino", "nncf")
NAME, BAR, LINE = 230, 420, 20  # pixels: of the names, of the longest bar, of a row


@dataclass(frozen=True)
class Row:
    """One variant of one part. rate: items a second. ratio: to open_clip fp32. error: the worst
    1 - cosine to fp32 of the same weights. share: of the measured peak; None for int8.
    """

    part: str
    name: str
    rate: float
    ratio: float
    error: float
    share: float | None
    positions: int | None


def machine() -> str:
    """One line on the processor and one on the versions of what is installed."""
    name, flags = platform.processor() or platform.machine(), set()
    if (info := Path("/proc/cpuinfo")).is_file():
        fields = dict(
            line.split(":", 1) for line in info.read_text().splitlines() if line.count(":")
        )
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = fields.get("model name", name), set(fields.get("flags", "").split())
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    found = [flag for flag in known if flag in flags]
    versions = []
    for package in PEERS:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return f"{name}; {' '.join(found) or 'no AVX2'}\n{', '.join(versions)}"


def _cells(row: Row) -> list[str]:
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    positions = "" if row.positions is None else f"{row.positions}"
    rate = f"{row.rate:,.1f}" if row.rate < 1000 else f"{row.rate:,.0f}"
    return [row.name, rate, f"{row.ratio:.2f}x", f"{row.error:.1e}", share, positions]


def text(row: Row) -> str:
    """`row` as a line for the terminal."""
    name, rate, ratio, error, share, positions = _cells(row)
    of = f"  {positions} positions" if positions else ""
    return f"  {name:<26}{rate:>9}/s {ratio:>8}  error {error}  {share:>5}{of}"


def markdown(rows: Sequence[Row], notes: str, plot: str) -> str:
    """The whole page: notes, the plot, one table a part."""
    lines = ["# Encoding", "", *(line + "  " for line in notes.splitlines()), "", f"![]({plot})"]
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", f"## {part}", ""]
        lines += ["| | items/s | to open_clip fp32 | 1 - cosine | of the peak | positions |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in rows if row.part == part]
    return "\n".join(lines) + "\n"


def svg(rows: Sequence[Row]) -> str:
    """Bars of the ratio to open_clip fp32, a block for each part, each on its own scale."""
    parts, y = [], 10
    for part in dict.fromkeys(row.part for row in rows):
        parts.append(f'<text x="0" y="{y + 14}" font-weight="bold">{html.escape(part)}</text>')
        y += LINE + 4
        block = [row for row in rows if row.part == part]
        most = max(row.ratio for row in block)
        for row in sorted(block, key=lambda row: -row.ratio):
            colour = "#d55e00" if row.name.startswith("Diptych") else "#0072b2"
            width = max(1, round(BAR * row.ratio / most))
            label = f"{row.ratio:.2f}x  {_cells(row)[1]}/s"
            parts.append(
                f'<text x="{NAME - 8}" y="{y + 14}" text-anchor="end">{html.escape(row.name)}'
                f'</text><rect x="{NAME}" y="{y + 2}" width="{width}" height="{LINE - 4}" '
                f'fill="{colour}"/><text x="{NAME + width + 6}" y="{y + 14}">{label}</text>'
            )
            y += LINE
        y += 12
    width = NAME + BAR + 150
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{y}" '
        f'fill="#fff"/>{"".join(parts)}</svg>\n'
    )
