"""`diptych dedup`: text, JSON, paths for xargs, a page; nothing is deleted."""

import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def doubled(run, model, photos):
    pixels = np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8)
    large = Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC)
    large.save(photos / "large.png")
    large.resize((150, 100)).save(photos / "small.png")
    shutil.copy(photos / "large.png", photos / "a large copy.png")
    assert run("index", photos, "--model", model).code == 0
    return photos


def test_text(run, doubled):
    ran = run("dedup")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"{doubled / 'large.png'}  (300x200")
    assert lines[1] == f"  =  {doubled / 'a large copy.png'}"
    assert lines[2].startswith(f"  ~  {doubled / 'small.png'}  (150x100")
    assert lines[-1].startswith("1 groups, 2 spare files")
    assert len(list(doubled.iterdir())) == 6


def test_json_and_print0(run, doubled):
    (record,) = run("dedup", "--json").records
    assert record["path"] == str(doubled / "large.png")
    assert record["copies"] == [str(doubled / "a large copy.png")]
    assert [s["path"] for s in record["similar"]] == [str(doubled / "small.png")]
    ran = run("dedup", "--exact", "--print0")
    assert ran.out == f"{doubled / 'a large copy.png'}\0"
    assert run("dedup", "--json", "--print0").code == 2


def test_page(run, doubled, tmp_path):
    page = tmp_path / "twice.html"
    (doubled / "small.png").unlink()  # since it was indexed
    assert run("dedup", "--html", page).code == 0
    text = page.read_text()
    assert text.count("<figure") == 3
    assert text.count("<img") == 2
    assert "small.png: no such file" in text


def test_without_a_collection(run):
    ran = run("dedup")
    assert ran.code == 2
    assert "Type: diptych index FOLDER" in ran.err


def test_nothing_to_show_and_a_folder_that_is_not_there(run, doubled, tmp_path, monkeypatch):
    page = tmp_path / "twice.html"
    (doubled / "alone").mkdir()
    shutil.copy(doubled / "b.png", doubled / "alone" / "x.png")
    run("index")
    monkeypatch.chdir(doubled / "alone")
    ran = run("dedup", "../alone", "--html", page)
    assert (ran.code, page.exists(), "not written" in ran.err) == (0, False, True)
    ran = run("dedup", "nowhere")
    assert (ran.code, "nowhere: is not in the collection" in ran.err) == (2, True)
