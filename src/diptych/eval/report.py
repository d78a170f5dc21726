"""An evaluation as one HTML page: all sets at a glance, then each with diagrams and worst examples.

It is made of what lies in the folder of `eval.run` alone, so the same folder gives the same page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.engine import page
from diptych.engine.page import text
from diptych.eval.chart import Curve, chart
from diptych.eval.diagrams import confusion_picture, interval_bar, reliability_diagram
from diptych.eval.robustness import robustness_section
from diptych.eval.run import read_report

__all__ = ["PAGE", "write_report"]

PAGE = "report.html"
_MANY = 10  # lines of a list of classes, at either end
Result = Mapping[str, Any]


def write_report(out: str | Path) -> Path:
    """Write `report.html` beside `report.json`, whole or not at all, and return its path.

    Raises:
        DataError: there is no evaluation in the folder.
    """
    out = Path(out)
    report = read_report(out)
    sets = report["sets"]
    body = [
        _head(report),
        _summary(sets),
        _missing(report["not_measured"]),
        robustness_section({r["set"]: r["figures"][r["headline"]]["value"] for r in sets}),
        *(_set(result, out / "sets" / result["set"]) for result in sets),
        f"<style>{_STYLE}</style>",
    ]
    title = f"{report['model']['name']}: evaluation"
    path = out / PAGE
    page.write(path, page.document(title, "\n".join(part for part in body if part)))
    return path


def _head(report: Mapping[str, Any]) -> str:
    model, sets = report["model"], report["sets"]
    unused = sum(len(result["unused"]) for result in sets)
    cards = [
        (f"{len(sets):,}", "sets measured", f"{len(report['not_measured'])} could not be"),
        (f"{sum(r['num_measured'] for r in sets):,}", "samples", f"{unused:,} could not be used"),
    ]
    anchors = [v for result in sets for v in result["published"]]
    if anchors:
        same = sum(v["reproduces"] for v in anchors)
        cards.append((f"{same} of {len(anchors)}", "published figures reproduced", ""))
    shown = "".join(f"<li><b>{a}</b>{b}<small>{c}</small></li>" for a, b, c in cards)
    return (
        f"<header><h1>{text(model['name'])}</h1>"
        f'<p class="quiet">{text(model["precision"])}, mode {text(model["mode"])}, fingerprint '
        f"<code>{text(model['fingerprint'][:16])}</code></p></header>"
        f'<ul class="totals">{shown}</ul>'
    )


def _summary(sets: Sequence[Result]) -> str:
    lines = []
    for result in sets:
        figure = result["figures"][result["headline"]]
        value, low, high = figure["value"], figure["low"], figure["high"]
        chance = result["chance"]
        told = "; ".join(v["verdict"] for v in result["published"])
        lines.append(
            [
                f'<a href="#{text(result["set"])}">{text(result["title"])}</a>',
                text(_spoken(result["headline"])),
                f"<b>{value:.1%}</b>",
                "" if low is None else f'<span class="one">{low:.1%} to {high:.1%}</span>',
                interval_bar(value, low, high, chance=chance),
                "" if chance is None else f"{chance:.1%}",
                f"{result['num_measured']:,}",
                text(told),
            ]
        )
    head = ("set", "figure", "", "95 %", "", "chance", "samples", "published")
    return f"<h2>All sets</h2>{page.table(head, lines)}"


def _missing(missing: Sequence[Mapping[str, str]]) -> str:
    if not missing:
        return ""
    lines = [[text(line["set"]), text(line["reason"])] for line in missing]
    return f"<h2>Not measured</h2>{page.table(('set', 'why'), lines)}"


# --- one set --------------------------------------------------------------------------------------


def _set(result: Result, folder: Path) -> str:
    tables, protocol = result["tables"], result["protocol"]
    about = [f"Split {protocol['split']}", f"templates {protocol['templates']}"]
    if protocol["num_classes"]:
        about.append(f"{protocol['num_classes']:,} classes ({protocol['classes']})")
    if result["source"]:
        about.append(f"source: {result['source']}")
    if result["licence"]:
        about.append(f"licence: {result['licence']}")
    parts = [
        f'<h2 id="{text(result["set"])}">{text(result["title"])}</h2>',
        f'<p class="quiet">{text("; ".join(about))}.</p>',
        f"<p>{text(result['note'])}</p>" if result["note"] else "",
        _unused(result),
        _figures(result["figures"]),
        f'<div class="side">{_diagrams(result, tables)}</div>',
        _wording(tables.get("wording", ())),
        _held_out(tables.get("held_out", {})),
        _shares("Groups", "group", "top1", tables.get("groups", ())),
        _shares(
            "Languages, image to text R@1",
            "language",
            "image_to_text_r1",
            tables.get("languages", ()),
        ),
        _classes(tables.get("per_class", ())),
        _confusions(tables.get("confusions", {}), tables.get("per_class", ())),
        _worst(result["worst"], folder),
    ]
    return f"<section>{''.join(part for part in parts if part)}</section>"


def _unused(result: Result) -> str:
    told = [f"<p><b>{text(note)}</b></p>" for note in result["notes"]]
    if result["unused"]:
        lines = [[text(line["key"]), text(line["reason"])] for line in result["unused"][:100]]
        told.append(
            f"<details><summary>Not used: {len(result['unused']):,} samples</summary>"
            f"{page.table(('sample', 'why'), lines)}</details>"
        )
    return "".join(told)


def _figures(figures: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for key, figure in figures.items():
        value, low, high = figure["value"], figure["low"], figure["high"]
        shown = _value(key, value)
        interval = "" if low is None else f"{_value(key, low)} to {_value(key, high)}"
        lines.append([text(_spoken(key)), f"<b>{shown}</b>", interval, text(figure["how"])])
    made = page.table(("", "", "95 %", ""), lines)
    return f"<details open><summary>Figures</summary>{made}</details>"


def _diagrams(result: Result, tables: Mapping[str, Any]) -> str:
    parts = []
    if bins := tables.get("reliability"):
        parts.append(reliability_diagram(bins, title="Is it as sure as it is right?"))
    curve = tables.get("number_of_labels", ())
    if len(curve) > 2:
        line = Curve(name="accuracy", x=[k for k, _ in curve], y=[y for _, y in curve])
        parts.append(
            chart([line], title="Accuracy over the number of labels", x_name="labels", zero=True)
        )
    return "".join(parts)


def _wording(table: Iterable[Mapping[str, Any]]) -> str:
    lines = [
        [
            text(line["templates"]),
            f"<b>{line['top1']['value']:.1%}</b>",
            f"{line['top1']['low']:.1%} to {line['top1']['high']:.1%}",
            f"{line['ece']:.3f}",
        ]
        for line in table
    ]
    head = ("sentence around the label", "top-1", "95 %", "ECE")
    return f"<h3>Wording</h3>{page.table(head, lines)}" if lines else ""


def _held_out(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    conformal, rejection = found["conformal"], found["rejection"]
    covered = conformal["coverage"]
    lines = [
        f"Temperature {found['temperature']:.2f}: calibration error {found['ece_before']:.3f} "
        f"before, {found['ece_after']:.3f} after.",
        f"Sets of labels that promise to hold the right one in {conformal['promised']:.0%}: do in "
        f"{covered['value']:.1%} ({covered['low']:.1%} to {covered['high']:.1%}), with "
        f"{conformal['mean_size']:.1f} labels in the mean.",
    ]
    if "why_not" in rejection:
        lines.append(f"“None of these”: {rejection['why_not']}")
    elif rejection["precision"] is not None:
        lines.append(
            f"Answering only when sure enough for a precision of {rejection['promised']:.0%}: "
            f"{rejection['answered']['value']:.1%} are answered, "
            f"{rejection['precision']['value']:.1%} of these are right."
        )
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return (
        f"<h3>Fitted on {found['fitted_on']:,} samples, measured on {found['measured_on']:,} "
        f"others</h3><ul>{items}</ul>"
    )


def _shares(title: str, name: str, key: str, table: Iterable[Mapping[str, Any]]) -> str:
    lines = [
        [
            text(line[name]),
            f"{line['num']:,}",
            f"<b>{line[key]['value']:.1%}</b>",
            interval_bar(
                *(line[key][k] for k in ("value", "low", "high")), chance=line.get("chance")
            ),
        ]
        for line in table
    ]
    if not lines:
        return ""
    made = page.table((name, "samples", "", ""), lines)
    return f"<details><summary>{text(title)}: {len(lines)}</summary>{made}</details>"


def _classes(table: Sequence[Mapping[str, Any]]) -> str:
    """The classes that go best and worst, by recall or average precision."""
    if not table:
        return ""
    key = "recall" if "recall" in table[0] else "average_precision"
    known = sorted((line for line in table if line[key] is not None), key=lambda x: -x[key])

    def listed(lines: Sequence[Mapping[str, Any]]) -> str:
        return page.bars((f"{line['class']} ({line['num']:,})", line[key]) for line in lines)

    if len(known) <= 2 * _MANY:
        shown = f"<div>{listed(known)}</div>"
    else:
        shown = f"<div>{listed(known[:_MANY])}</div><div>{listed(known[-_MANY:])}</div>"
    return f'<h3>{_spoken(key).capitalize()} of classes</h3><div class="side">{shown}</div>'


def _confusions(found: Mapping[str, Any], per_class: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    parts = []
    if found["matrix"] and len(found["matrix"]) == len(per_class):
        names = [line["class"] for line in per_class]
        parts.append(confusion_picture(found["matrix"], names, title="What is taken for what"))
    if found["common"]:
        lines = [
            [text(line["label"]), text(line["taken_for"]), f"{line['num']:,}"]
            for line in found["common"]
        ]
        made = page.table(("is", "taken for", "times"), lines)
        parts.append(f"<details><summary>Commonest mistakes</summary>{made}</details>")
    return "".join(parts)


def _worst(worst: Sequence[Mapping[str, str]], folder: Path) -> str:
    shown = [
        page.figure(
            page.picture(folder / line["picture"], alt=line["key"], side=200),
            f"{text(line['told'])}<br><small>{text(line['key'])}</small>",
        )
        for line in worst
        if (folder / line["picture"]).is_file()
    ]
    if not shown:
        return ""
    return f'<h3>Wrong, and sure of it</h3><div class="sheet small">{"".join(shown)}</div>'


# --- small things ---------------------------------------------------------------------------------


def _spoken(key: str) -> str:
    words = {"top1": "top-1", "top5": "top-5", "map": "mAP", "ece": "ECE", "nll": "NLL"}
    words |= {f"r{k}": f"R@{k}" for k in (1, 5, 10)}
    return " ".join(words.get(word, word) for word in key.split("_"))


def _value(key: str, value: float) -> str:
    """Shares in percent; ranks and errors as they are."""
    if key.endswith(("rank", "nll", "brier")) or key in ("ece", "ece_equal_mass", "mce", "ace"):
        return f"{value:.3f}" if value < 10 else f"{value:,.1f}"
    return f"{value:.1%}"


_STYLE = """
section h2 { border-top: 1px solid var(--line); padding-top: 28px; }
section h3 { margin: 18px 0 4px; }
.side { display: grid; gap: 18px; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
.one { white-space: nowrap; }
.diagram { margin: 12px 0; }
.sheet.small { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
"""
