"""`diptych search`: ranked hits equal to the cosines, bad input, examples, the page."""

import os

import numpy as np
import pytest

import diptych


def test_hits_are_the_cosines_in_order(run, model, photos):
    ran = run("search", "a dog", photos, "--json", "--model", model)
    assert ran.code == 0
    paths = sorted(str(path) for path in photos.iterdir())
    scores = diptych.load(model).similarity(paths, "a dog")[:, 0]
    order = np.argsort(-scores, kind="stable")
    assert [r["path"] for r in ran.records] == [paths[i] for i in order]
    assert [r["rank"] for r in ran.records] == [1, 2, 3]
    np.testing.assert_allclose([r["score"] for r in ran.records], scores[order], atol=1e-6)


def test_text_for_people_and_top(run, model, photos):
    ran = run("search", "a dog", photos, "--top", 2, "--model", model)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert all(str(photos) in line for line in lines)
    assert ran.err == ""


def test_an_image_finds_itself_first(run, model, photos):
    ran = run("search", "--image", photos / "b.png", photos, "--json", "--model", model)
    assert ran.code == 0
    assert ran.records[0]["path"] == str(photos / "b.png")
    assert ran.records[0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_file_is_taken_as_a_picture_with_a_note(run, model, photos):
    ran = run("search", photos / "b.png", photos, "--json", "--model", model)
    assert ran.code == 0
    assert ran.records[0]["path"] == str(photos / "b.png")
    assert "is taken as a picture. As words: --words" in ran.err
    ran = run("search", photos / "b.png", photos, "--words", "--json", "--model", model)
    assert ran.code == 0
    assert (ran.records[0]["score"], ran.err) == (pytest.approx(0, abs=0.95), "")


def test_stdin(run, model, photos):
    names = "\n".join(str(p) for p in sorted(photos.iterdir()))
    ran = run("search", "a dog", "-", "--json", "--model", model, stdin=names)
    assert {r["path"] for r in ran.records} == set(names.splitlines())
    image = (photos / "a.jpg").read_bytes()
    ran = run("search", "a dog", "-", "--html", photos / "found.html", "--model", model,
              stdin=image)  # fmt: skip
    assert ran.code == 0
    assert ran.out.split()[-1] == "-"


def test_an_image_cut_short_is_named_and_the_rest_is_searched(run, model, photos):
    good = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(good[: len(good) // 2])
    ran = run("search", "a dog", photos, "--model", model)
    assert ran.code == 1
    assert "cut.jpg" in ran.err
    assert "cut short" in ran.err
    assert len(ran.out.splitlines()) == 3
    ran = run("search", "a dog", photos, "--json", "--model", model)
    assert ran.code == 1
    (failed,) = (r for r in ran.records if "error" in r)
    assert failed["path"] == str(photos / "cut.jpg")


def test_nothing_to_search(run, model, photos, tmp_path):
    ran = run("search", "a dog", tmp_path / "none", "--model", model)
    assert (ran.code, ran.out) == (2, "")
    assert "none: no such file" in ran.err
    (tmp_path / "empty").mkdir()
    page = tmp_path / "found.html"
    ran = run("search", "a dog", tmp_path / "empty", "--html", page, "--model", model)
    assert ran.code == 2
    assert "no images" in ran.err
    assert not page.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["   "], "the query is empty. Give some words."),
        ([""], "the query is empty"),
        ([os.fsdecode(b"caf\xe9")], "is not UTF-8"),
        (["a dog", "--top", "0"], "--top must be at least 1, got 0"),
        (["a dog", "--top", "-3"], "--top must be at least 1"),
        (["--image", "nowhere.jpg"], "nowhere.jpg: no such file"),
        (["--image", "."], "is a folder"),
        (["a dog", "--precision", "int4"], "'int4' is not one of"),
    ],
)
def test_wrong_use(run, model, photos, args, message):
    ran = run("search", *args, photos, "--model", model)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_a_query_without_images(run, model):
    ran = run("search", "a dog", "--model", model)
    assert ran.code == 2
    assert "there is no collection. Type: diptych index FOLDER" in ran.err


def test_the_page_holds_the_pictures_and_escapes_names(run, model, photos):
    (photos / "b.png").rename(photos / '<img src=x onerror="alert(1)">.png')
    page = photos / "found.html"
    ran = run("search", "<b>dogs</b> & cats", photos, "--html", page, "--model", model)
    assert ran.code == 0
    assert str(page) in ran.err
    html = page.read_text("utf-8")
    assert html.count("data:image/jpeg;base64,") == 3
    assert "<img src=x" not in html
    assert "&lt;b&gt;dogs&lt;/b&gt; &amp; cats" in html
    assert "<script" not in html
    run("search", "--image", photos / "a.jpg", photos, "--html", page, "--model", model)
    assert page.read_text("utf-8").count("data:image/jpeg;base64,") == 4


@pytest.mark.skipif(os.name != "posix", reason="bytes in file names")
def test_a_file_name_that_is_not_utf8(run, model, photos):
    (photos / "b.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    page = photos / "found.html"
    ran = run("search", "a dog", photos, "--html", page, "--model", model)
    assert ran.code == 0
    assert r"caf\udce9.png" in ran.out
    assert r"caf\udce9.png" in page.read_text("utf-8")


def test_words_without_quotes(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("search", "a", "dog", "at", "night", "--model", model)
    assert ran.code == 2
    assert "dog: no such file" in ran.err
    assert 'stand in quotes: diptych search "a dog"' in ran.err
