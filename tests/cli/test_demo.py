"""`diptych demo`: the packaged photos, one's own, the truth told, the page."""

import json
import os
import re
import webbrowser
from html.parser import HTMLParser

import pytest
from PIL import Image

import diptych
from diptych.engine import demo as engine

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Every tag is closed; the pictures and what they are called."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        assert tag not in ("script", "link", "iframe")
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def truth(photos):
    """A folder of samples as it is packaged."""
    rows = [
        {"file": path.name, "caption": f"Noise <{i}>", "labels": [f"noise {i}", "snow"],
         "author": "A & B", "licence": "CC0-1.0", "source": "https://example.org/?a=1&b=2",
         "changes": "cropped"}
        for i, path in enumerate(sorted(photos.iterdir()))
    ]  # fmt: skip
    asked = [
        {"query": "noise", "relevant": [row["file"] for row in rows]},
        {"query": "one of them", "relevant": [rows[0]["file"]]},
    ]
    (photos / "samples.json").write_text(json.dumps(rows), "utf-8")
    (photos / "queries.json").write_text(json.dumps(asked), "utf-8")
    return photos


@pytest.fixture
def report(model, truth):
    photos, queries = engine.samples(truth)
    labels = [photo.labels[0] for photo in photos]
    return engine.run(diptych.load(model), photos, queries, labels, judged=True)


def test_the_samples_of_the_package(run, model, tmp_path):
    out = tmp_path / "new" / "demo.html"
    ran = run("demo", "--out", out, "--model", model)
    assert ran.code == 0
    assert 'diptych search "a dog" ~/Pictures --model' in ran.out
    assert str(out) in ran.out.replace("\n", "")
    text = out.read_text("utf-8")
    assert len(text) < 1_500_000
    photos, queries = engine.samples()
    page = Page(text)
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg") for image in page.images)
    assert len(page.images) == len(photos) + 5 * len(queries)
    words = " ".join(page.words)
    for photo in photos:
        assert photo.author in words
        assert photo.licence in words
    for query in queries:
        assert f"“{query.text}”" in words


def test_the_truth_of_the_package_is_whole():
    photos, queries = engine.samples()
    paths = {photo.path for photo in photos}
    assert len(queries) >= 12
    assert all(query.relevant and query.relevant <= paths for query in queries)
    assert any(len(query.relevant) > 2 for query in queries)
    assert all(p.author and p.licence and p.source and p.caption and p.labels for p in photos)


def test_json(run, model, tmp_path):
    ran = run("demo", "--query", "a dog", "--json", "--out", tmp_path / "d.html", "--model", model)
    assert ran.code == 0
    photos, queries = engine.samples()
    *rows, last = ran.records
    asked = [r for r in rows if "query" in r]
    assert [r["query"] for r in asked] == [*(q.text for q in queries), "a dog"]
    assert ["right_at" in r for r in asked] == [True] * len(queries) + [False]
    assert all([hit["rank"] for hit in r["hits"]] == [1, 2, 3, 4, 5] for r in asked)
    named = [r for r in rows if "labels" in r]
    assert [r["path"] for r in named] == [p.path for p in photos]
    assert last["page"] == str(tmp_path / "d.html")
    assert len(last["totals"]) == 4


def test_what_is_wrong_is_counted_and_shown(report):
    """With the answers turned over: right becomes wrong, on the page and in the totals."""
    first, second = report.answers
    assert first.right_at == 1
    assert all(first.is_right(path) for path, _ in first.hits)
    relevant = [path for path, _ in second.hits]
    for rank, (count, kind, words) in enumerate(
        [("2 of 2", "right", "✓ first"), ("1 of 2", "known", "2nd"), ("1 of 2", "known", "3rd")], 1
    ):
        query = engine.Query(text="x", relevant=frozenset(relevant[rank - 1 : rank]))
        report.answers[1] = engine._answer(query, relevant, [0.3, 0.2, 0.1])
        assert engine.verdict(report.answers[1]) == (kind, words)
        assert report.totals()[0][0] == count
        assert report.totals()[1][0] == "2 of 2"
        assert f'<span class="verdict {kind}">{words}</span>' in html_of(report)
    nowhere = engine.Query(text="x", relevant=frozenset(["elsewhere"]))
    report.answers[1] = engine._answer(nowhere, relevant, [0.3, 0.2, 0.1])
    assert "✗ MISS" in html_of(report)


def html_of(report):
    return engine.demo_page(report, title="t", commands=["diptych demo"])


def test_labels_are_held_against_the_truth(report):
    for path in report.labels:
        report.labels[path] = [("noise 1", 0.7), ("snow", 0.3)]
    assert [report.label_is_right(photo) for photo in report.photos] == [False, True, False]
    assert report.totals()[2][:2] == ("1 of 3", "photos got a right label, out of 3 labels")
    html = html_of(report)
    assert html.count("✗ MISS") == 2
    assert "right is noise 0, snow" in html
    for path in report.labels:  # the second best noun of a photo is right, too
        report.labels[path] = [("snow", 0.7), ("noise 1", 0.3)]
    assert report.totals()[2][0] == "3 of 3"


def test_guessing(report):
    """1 of 3 right: blindly 1/3 first, surely among 3; 3 of 3 right: surely."""
    notes = [note for _, _, note in report.totals()]
    assert notes[:3] == ["guessing: 1.3", "guessing: 2.0", "guessing: 1.0"]


def test_captions_credits_and_links_are_escaped(report):
    html = html_of(report)
    page = Page(html)
    assert "Noise <0>" in [image["alt"] for image in page.images]
    assert "<0>" not in html
    assert '<a href="https://example.org/?a=1&amp;b=2" rel="noreferrer">A &amp; B</a>' in html


def test_own_photos(run, model, photos, tmp_path):
    (photos / "b.png").rename(photos / '"><script>alert(1)<!--.png')
    out = tmp_path / "demo.html"
    ran = run("demo", "--folder", photos, "--query", "a <dog>", "--labels", "cat,dog", "--label",
              "a, b", "--out", out, "--model", model)  # fmt: skip
    assert ran.code == 0
    text = out.read_text("utf-8")
    page = Page(text)
    assert len(page.images) == 3 + 3
    assert "MISS" not in text + ran.out
    assert "guessing" not in text + ran.out
    assert "“a <dog>”" in page.words


def test_own_photos_as_json_and_only_labels(run, model, photos, tmp_path):
    ran = run("demo", "--folder", photos, "--labels", "cat,dog", "--json", "--out",
              tmp_path / "d.html", "--model", model)  # fmt: skip
    assert ran.code == 0
    *rows, _ = ran.records
    assert [set(r) for r in rows] == [{"path", "labels"}] * 3


def test_an_image_cut_short_is_named(run, model, photos, tmp_path):
    good = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(good[: len(good) // 2])
    out = tmp_path / "demo.html"
    ran = run("demo", "--folder", photos, "--query", "a dog", "--out", out, "--model", model)
    assert ran.code == 1
    assert "cut.jpg" in ran.err
    assert "cut short" in ran.err
    assert "cut.jpg" in out.read_text("utf-8")


def test_nothing_done_writes_nothing(run, model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "zero.jpg").write_bytes(b"")
    out = tmp_path / "demo.html"
    for folder, message in (
        ("none", "is not a folder"),
        ("empty", "no images"),
        ("bad", "is empty"),
    ):
        ran = run("demo", "--folder", tmp_path / folder, "--query", "a", "--out", out,
                  "--model", model)  # fmt: skip
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--query", "  "], "the query is empty. Give some words."),
        (["--labels", "a,b"], "go with --folder"),
        (["--folder", "."], 'say what to look for in .: --query "a dog"'),
        (["--folder", ".", "--labels", ","], "no labels"),
        (["--folder", ".", "--query", os.fsdecode(b"\xe9")], "is not UTF-8"),
    ],
)
def test_wrong_use(run, model, tmp_path, args, message):
    ran = run("demo", *args, "--out", tmp_path / "d.html", "--model", model)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "d.html").exists()


def test_a_page_that_cannot_be_written(run, model, photos, tmp_path):
    (tmp_path / "file").write_text("")
    ran = run("demo", "--folder", photos, "--query", "a dog", "--out", tmp_path / "file" / "d.html",
              "--model", model)  # fmt: skip
    assert ran.code == 2
    assert "cannot be written" in ran.err


def test_open(run, model, photos, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    run("demo", "--folder", photos, "--query", "a dog", "--open", "--out", tmp_path / "d.html",
        "--model", model)  # fmt: skip
    assert shown == [(tmp_path / "d.html").resolve().as_uri()]


def test_thumbnails_mean_what_the_file_means(tmp_path):
    """EXIF turns them; 16 bits, palettes and alpha become what a viewer shows; none grows."""
    from diptych.engine.page import picture

    turned = Image.new("RGB", (60, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("I;16", (30, 30), 40_000).save(tmp_path / "deep.png")
    Image.new("RGBA", (900, 300)).save(tmp_path / "alpha.png")
    sizes = [
        re.findall(r'width="(\d+)" height="(\d+)"', picture(path, alt="x", side=300))
        for path in (tmp_path / "turned.jpg", tmp_path / "deep.png", tmp_path / "alpha.png")
    ]
    assert sizes == [[("20", "60")], [("30", "30")], [("300", "100")]]
