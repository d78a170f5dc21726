"""The page of a run: while it goes, after it died, at its end; and it is safe to open."""

import html.parser
import json
import math
import time

import pytest

from diptych.config import to_dict
from diptych.errors import TrainError
from diptych.eval.uncertainty import wilson
from diptych.train.config import TrainConfig
from diptych.train.report import write_report

EVIL = "<script>alert(1)</script>\"'&"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text; checks that tags are closed in order."""

    VOID = {"meta", "br", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.words, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def line(kind: str, step: int, **more) -> str:
    return json.dumps({"kind": kind, "step": step, "time": time.time(), **more}) + "\n"


def run(folder, *, steps=40, more="", config=True):
    """A run of `steps` steps with an evaluation each ten."""
    text = ""
    for step in range(1, steps + 1):
        numbers = {"loss": 4.0 / step, "lr": 1e-3, "grad_norm": 1.0, "logit_scale": 14.3}
        numbers |= {"pairs": 64 * step, "seconds": 0.5 * step, "pairs_per_second": 128.0}
        text += line("step", step, **numbers, dropped=2)
        if step % 10 == 0:
            shares = {"image_to_text_r1": step / 100, "text_to_image_r1": 0.5 - step / 100}
            counts = {"num_images": 200, "num_texts": 1000, "image_to_text_mean_rank": 100 / step}
            text += line("evaluation", step, **shares, **counts)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(text + more, "utf-8")
    if config:
        given = to_dict(TrainConfig(name="first run", steps=steps, batch_size=64))
        (folder / "config.json").write_text(json.dumps(given), "utf-8")
    return folder


def page_of(folder) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text("utf-8"))


def test_a_run_that_ended(tmp_path):
    folder = run(tmp_path / "run")
    data = {"seen": 5000, "drops": {"no caption": 7}, "bad": {"cannot be decoded": 3}}
    (folder / "summary.json").write_text(json.dumps({"steps": 40, "data": data}))
    (folder / "data.json").write_text(json.dumps({"sources": [{"path": "a.tar"}], "hash": "ab12"}))
    page = page_of(folder)
    assert "Finished after 40 steps." in page.text
    assert "2,560 pairs" in page.text
    assert "samples of 5,000 seen no caption when the data was read 7" in page.text
    assert "cannot be decoded while training 3" in page.text
    assert "ab12" in page.text
    assert "batch_size 64" in page.text
    assert "ln 64" in page.text
    low, high = wilson(0.4, 200)
    assert f"40.00% {low:.2%} to {high:.2%}" in page.text
    low, high = wilson(0.1, 1000)
    assert f"10.00% {low:.2%} to {high:.2%} 40.00% at step 10" in page.text  # best: the first
    assert "image to text mean rank 2.5 2.5 at step 40" in page.text
    assert page.tags.count("svg") >= 6


def test_a_run_that_goes_on_or_died(tmp_path):
    folder = run(tmp_path / "run", more='{"kind": "step", "st')
    assert "Not finished: the last report was at" in page_of(folder).text
    old = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(row) | {"time": 1.7e9} for row in old[:-1]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text('{"steps": 4')  # torn
    text = page_of(folder).text
    assert "silent since 2023-11-14 22:13:20 UTC" in text
    assert "while training 2" in text  # without a summary, what the steps say


def test_a_run_that_has_just_begun(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    assert "Nothing was reported yet" in page_of(folder).text
    run(folder, steps=1, config=False)
    assert "1 steps" in page_of(folder).text


def test_a_run_whose_loss_was_never_a_number(tmp_path):
    more = line("step", 1, loss=None, grad_norm=None) + line("event", 1, text="step 1: skipped")
    (tmp_path / "metrics.jsonl").write_text(more)
    assert "step 1: skipped" in page_of(tmp_path).text


def test_nothing_in_it_runs_or_leaves_the_page(tmp_path):
    """File names, captions and settings are shown, never obeyed."""
    event = line("event", 3, text=f"skipped {EVIL}") + line("evaluation", 3, **{EVIL: 1.0})
    folder = run(tmp_path / "run", more=event)
    (folder / "summary.json").write_text(json.dumps({"steps": 4, "data": {"bad": {EVIL: EVIL}}}))
    (folder / "data.json").write_text(json.dumps({EVIL: {EVIL: EVIL}}))
    (folder / "config.json").write_text(json.dumps({"name": EVIL, "batch_size": EVIL}))
    page = page_of(folder)
    assert "script" not in page.tags
    assert EVIL in page.text
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "href"), value
        assert "url(" not in (value or "")


def test_a_sigmoid_run_has_no_ln_n(tmp_path):
    more = line("step", 41, loss=1.0, logit_bias=-10.0)
    assert "ln 64" not in page_of(run(tmp_path / "run", more=more)).text


def test_a_run_that_dropped_nothing(tmp_path):
    folder = run(tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({"data": {"drops": {}, "bad": {}}}))
    assert "Dropped samples None." in page_of(folder).text


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(TrainError, match=r"no metrics.jsonl"):
        write_report(tmp_path)


def test_a_long_run_makes_a_small_page(tmp_path):
    rows = [
        line("step", s, loss=math.exp(-s / 9000), pairs=s, seconds=1.0, grad_norm=1.0)
        for s in range(30_000)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    assert write_report(tmp_path).stat().st_size < 200_000
