"""A run as one HTML page: curves, evaluations with intervals, what was dropped, what was asked for.

It reads what lies in the run's folder, so it works while the run is going and after it has died.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.engine import page
from diptych.errors import TrainError
from diptych.eval import less_is_better
from diptych.eval.chart import Curve, chart, number
from diptych.eval.uncertainty import wilson
from diptych.train.sinks import duration
from diptych.train.watch import METRICS, SUMMARY, read_metrics

__all__ = ["write_report"]

CONFIG, DATA, REPORT = "config.json", "data.json", "report.html"
SILENT = 300  # seconds after which a run without a summary is said to be silent
EVENTS = 200  # shown, the newest

Row = Mapping[str, Any]


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run's folder, whole or not at all, and return its path.

    Raises:
        TrainError: there is no run in the folder.
        CheckpointError: the page cannot be written.
    """
    folder = Path(folder)
    if not (folder / METRICS).is_file():
        raise TrainError(
            f"{folder}: has no {METRICS}, so no run was started there. Give the folder that was "
            "the --out of `diptych train`."
        )
    rows = list(read_metrics(folder / METRICS))
    config, data, summary = (_read(folder / name) for name in (CONFIG, DATA, SUMMARY))
    by_kind = {k: [r for r in rows if r["kind"] == k] for k in ("step", "evaluation", "event")}
    steps, evaluations, events = by_kind.values()
    title = str(config.get("name", folder.resolve().name))
    body = [
        _head(title, folder, rows, steps, evaluations, summary),
        _curves(steps, evaluations, config),
        _evaluations(evaluations),
        _dropped(steps, summary),
        _events(events),
        _facts("Data", data),
        _config(config),
        _facts("Summary", summary),
    ]
    path = folder / REPORT
    page.write(path, page.document(title, "\n".join(part for part in body if part)))
    return path


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} if it is not there or torn: a page with less is better than none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- the top ---


def _head(
    title: str,
    folder: Path,
    rows: Sequence[Row],
    steps: Sequence[Row],
    evaluations: Sequence[Row],
    summary: Row,
) -> str:
    last = steps[-1] if steps else {}
    totals: list[tuple[str, str, str]] = []
    if steps:
        totals.append((f"{last['step']:,}", "steps", f"{last.get('pairs', 0):,} pairs"))
        totals.append((duration(last.get("seconds", 0.0)), "time", "hours:minutes:seconds"))
    if _number(last.get("pairs_per_second")):
        waiting = last.get("waiting")
        told = f"{waiting:.0%} of the time waiting for data" if _number(waiting) else ""
        totals.append((number(last["pairs_per_second"]), "pairs/s at the end", told))
    if _number(last.get("loss")):
        totals.append((f"{last['loss']:.4f}", "loss at the end", ""))
    if evaluations:
        newest = evaluations[-1]
        for way in ("image_to_text", "text_to_image"):
            share = _value(newest.get(f"{way}_r1"))
            if math.isfinite(share):
                n = int(newest.get(_trials(way), 0))
                low, high = wilson(share, n)
                told = f"95 %: {low:.1%} to {high:.1%} of {n:,}" if n else ""
                totals.append((f"{share:.1%}", f"R@1 {way.replace('_', ' ')}", told))
    cards = "".join(
        f"<li><b>{page.text(a)}</b>{page.text(b)}<small>{page.text(c)}</small></li>"
        for a, b, c in totals
    )
    return (
        f"<header><h1>{page.text(title)}</h1><p>{page.text(_state(rows, summary))}</p>"
        f'<p class="quiet">{page.text(folder.name)}</p></header>'
        f'<ul class="totals">{cards}</ul>'
    )


def _state(rows: Sequence[Row], summary: Row) -> str:
    if summary:
        return f"Finished after {summary.get('steps', 0):,} steps."
    if not rows:
        return "Nothing was reported yet."
    when = rows[-1].get("time", 0.0)
    ago = time.time() - when
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
    if ago < SILENT:
        return f"Not finished: the last report was at {at}."
    return (
        f"Not finished, and silent since {at}: the run was stopped or has died. The same command "
        "goes on from its last checkpoint."
    )


# --- curves ---


def _curves(steps: Sequence[Row], evaluations: Sequence[Row], config: Row) -> str:
    def of(key: str, name: str = "", rows: Sequence[Row] = steps) -> Curve:
        x = [row["step"] for row in rows if key in row]
        # null in the file is a number that was not finite
        y = [_value(row[key]) for row in rows if key in row]
        return Curve(name=name or key.replace("_", " "), x=x, y=y)

    batch = config.get("batch_size")
    chance = None
    if isinstance(batch, int) and batch > 1 and not any("logit_bias" in row for row in steps):
        chance = (f"ln {batch:,}: chance", math.log(batch))
    found = [
        chart([of("loss")], title="Loss", scale="auto", level=chance),
        chart(
            [
                of("held_out_loss", "loss", evaluations),
                of("held_out_chance", "chance", evaluations),
            ],
            title="Loss, held-out pairs",
            scale="auto",
        ),
        _retrieval(evaluations, of),
        chart(
            [of(f"zero_shot_top{k}", f"top {k}", evaluations) for k in (1, 5)],
            title="Zero-shot accuracy",
            zero=True,
        ),
        chart([of("lr", "learning rate")], title="Learning rate", zero=True),
        chart([of("logit_scale", "exp(logit_scale)")], title="Scale of the logits", scale="auto"),
        chart([of("logit_bias", "bias")], title="Bias of the logits"),
        chart([of("grad_norm", "norm before clipping")], title="Gradient", scale="auto"),
        chart([of("pairs_per_second", "pairs/s")], title="Speed", unit="pairs/s", zero=True),
        chart(
            [of("utilisation"), of("waiting", "waiting for data")],
            title="Share of the peak, and of the time",
            zero=True,
        ),
        chart([of("modality_gap", rows=evaluations)], title="Gap between images and texts"),
        chart(
            [of(f"uniformity_{side}", side, evaluations) for side in ("image", "text")],
            title="Uniformity",
        ),
        chart([of("alignment", rows=evaluations)], title="Alignment"),
    ]
    shown = "".join(figure for figure in found if figure)
    if not shown:
        return ""
    how = "display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))"
    return f'<section><h2>Curves</h2><div style="{how}">{shown}</div></section>'


def _retrieval(evaluations: Sequence[Row], of: Any) -> str:
    ways = (("image_to_text", "to text"), ("text_to_image", "to image"))
    curves = [of(f"{way}_r{k}", f"{name} R@{k}", evaluations) for way, name in ways for k in (1, 5)]
    return chart(curves, title="Retrieval, held-out pairs", zero=True)


# --- tables ---


def _evaluations(evaluations: Sequence[Row]) -> str:
    """All metrics of the newest one and of the best of each; shares with their interval."""
    if not evaluations:
        return ""
    newest = evaluations[-1]
    lines = []
    for key, value in newest.items():
        if key in ("kind", "step", "time") or not _number(value):
            continue
        others = [(row[key], row["step"]) for row in evaluations if _number(row.get(key))]
        best, at = (min if less_is_better(key) else max)(others, key=lambda pair: pair[0])
        plain = "num_" in key or key.endswith("chance")
        lines.append(
            (
                key.replace("_", " "),
                _shown(key, value),
                _interval(key, value, newest),
                "" if plain else f"{_shown(key, best)} at step {at:,}",
            )
        )
    head = ("metric", f"step {newest['step']:,}", "95 % interval", "best")
    return (
        f"<section><h2>Evaluation</h2>{_table(head, lines)}"
        '<p class="quiet">Ties count against the model. Intervals are Wilson’s, as if all trials '
        "were independent; captions of one image are not.</p></section>"
    )


def _is_share(key: str) -> bool:
    return key.endswith(("_r1", "_r5", "_r10", "top1", "top5"))


def _trials(share: str) -> str:
    """The key of the number of trials behind a share."""
    if share.startswith("zero_shot"):
        return "zero_shot_num_images"
    return "num_texts" if share.startswith("text_to_image") else "num_images"


def _shown(key: str, value: float) -> str:
    if _is_share(key) or key.endswith("mean_per_class"):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else number(value)


def _interval(key: str, value: float, row: Row) -> str:
    n = row.get(_trials(key))
    if not _is_share(key) or not isinstance(n, int):
        return ""
    low, high = wilson(value, n)
    return f"{low:.2%} to {high:.2%}"


def _dropped(steps: Sequence[Row], summary: Row) -> str:
    """Samples by reason: those of the index and those of the run; before its end, their number."""
    data = summary.get("data")
    if isinstance(data, Mapping):
        parts = (("drops", "when the data was read"), ("bad", "while training"))
        lines = [
            (str(why), when, f"{n:,}" if isinstance(n, int) else str(n))
            for key, when in parts
            for why, n in dict(data.get(key) or {}).items()
        ]
        seen = data.get("seen")
        told = f" of {seen:,} seen" if isinstance(seen, int) else ""
        table = _table(("reason", "noticed", f"samples{told}"), lines)
    else:
        known = [row["dropped"] for row in steps if _number(row.get("dropped"))]
        lines = [("any, so far, while training", f"{known[-1]:,}")] if known else []
        table = _table(("reason", "samples"), lines)
        if not known:
            return ""
    return f"<section><h2>Dropped samples</h2>{table if lines else '<p>None.</p>'}</section>"


def _events(events: Sequence[Row]) -> str:
    if not events:
        return ""
    lines = [
        (f"{row['step']:,}", _clock(row.get("time")), str(row.get("text", "")))
        for row in reversed(events[-EVENTS:])
    ]
    more = len(events) - len(lines)
    rest = f'<p class="quiet">and {more:,} before these</p>' if more else ""
    return (
        f"<section><h2>Events</h2>{_table(('step', 'when (UTC)', 'what'), lines)}{rest}</section>"
    )


def _clock(when: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(when)) if _number(when) else ""


def _config(config: Row) -> str:
    if not config:
        return ""
    lines = list(flat(config))
    return (
        f"<details><summary>Config ({len(lines)} values)</summary>"
        f"{_table(('key', 'value'), lines)}</details>"
    )


def _facts(title: str, facts: Row) -> str:
    """Nested facts as a table that opens."""
    if not facts:
        return ""
    lines = list(flat(facts))
    shown = lines[:1000]
    more = f'<p class="quiet">and {len(lines) - 1000:,} more</p>' if len(lines) > 1000 else ""
    return (
        f"<details><summary>{title} ({len(lines):,} values)</summary>"
        f"{_table(('key', 'value'), shown)}{more}</details>"
    )


def flat(facts: Row, *, before: str = "") -> Iterable[tuple[str, str]]:
    """("a.b", "value") of nested mappings; the "type" of a config is left out."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from flat(value, before=f"{before}{key}.")
        elif key != "type":
            yield f"{before}{key}", value if isinstance(value, str) else json.dumps(value)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return page.table(head, ([page.text(cell) for cell in line] for line in lines))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(value: Any) -> float:
    return float(value) if _number(value) else math.nan
