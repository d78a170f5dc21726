"""`diptych index` and the collection behind `diptych search`, through the commands."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.errors import CheckpointError


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def many(photos):
    """30 pictures in two folders."""
    (photos / "2023").mkdir()
    for i in range(27):
        pixels = np.random.default_rng(100 + i).integers(0, 256, (5, 7, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0132] = f"20{i:02}:05:01 12:00:00"  # DateTime
        picture.save(photos / "2023" / f"{i}.jpg", exif=exif)
    return photos


def test_index_then_search(run, model, many):
    ran = run("index", many, "--model", model)
    assert ran.code == 0
    assert "30 files: 30 encoded, 0 known by their content, 0 failed, 0 gone" in ran.out
    ran = run("search", "a dog", "--all", "--top", 30, "--json", "--no-fold")
    assert ran.code == 0
    paths = sorted(str(path) for path in many.rglob("*.*"))
    scores = diptych.load(model).similarity(paths, "a dog")[:, 0]
    found = {r["path"]: r["score"] for r in ran.records}
    assert sorted(found) == paths
    np.testing.assert_allclose([found[p] for p in paths], scores, atol=1e-3)
    assert [r["score"] for r in ran.records] == sorted(found.values(), reverse=True)
    assert [r["rank"] for r in ran.records] == list(range(1, 31))


def test_a_second_time_without_a_folder_and_without_a_model(run, model, many):
    run("index", many, "--model", model)
    (many / "a.jpg").rename(many / "new name.jpg")
    ran = run("index", "--json")
    assert ran.code == 0
    assert ran.records[0] == {"path": str(many / "new name.jpg"), "state": "known"}
    assert ran.records[-1]["removed"] == 1
    assert ran.records[-1]["added"] == 0


def test_a_picture_finds_itself_and_can_be_mixed_with_words(run, model, many):
    run("index", many, "--model", model)
    path = many / "2023" / "3.jpg"
    ran = run("search", path, "--json", "--top", 1)
    assert ran.records[0]["path"] == str(path)
    assert ran.records[0]["score"] == pytest.approx(1, abs=2e-3)
    assert "is taken as a picture. As words: --words" in ran.err
    ran = run("search", path, "+", "0.01:a dog", "-", "0.01:a cat", "--json", "--top", 1)
    assert ran.records[0]["path"] == str(path)
    words = run("search", path, "--words", "--all", "--json", "--top", 1)
    assert words.records[0]["score"] < 0.99


def test_filters(run, model, many):
    run("index", many, "--model", model)
    ran = run("search", "x", "--all", "--after", "2010", "--before", "2015", "--json")
    assert {r["path"] for r in ran.records} == {
        str(many / "2023" / f"{i}.jpg") for i in range(10, 15)
    }
    assert all(r["taken"].startswith("201") for r in ran.records)
    ran = run("search", "x", "--all", "--in", many / "2023", "--top", 50, "--no-fold", "--json")
    assert len(ran.records) == 27
    ran = run("search", "x", "--camera", "Leica")
    assert (ran.code, ran.out) == (0, "")
    assert "no picture passes the filters" in ran.err
    assert run("search", "x", "--after", "soon").code == 2
    assert run("search", "x", "--box", "1,2").code == 2


def test_nothing_found_is_an_answer(run, model, many):
    run("index", many, "--model", model)
    ran = run("search", "a dog", "--strict", 1)
    assert (ran.code, ran.out) == (0, "")
    assert "Nothing found among 30" in ran.err
    assert "--all" in ran.err
    assert run("search", "a dog", "--strict", 0).out


def test_copies_and_print0(run, model, many):
    shutil.copy(many / "2023" / "3.jpg", many / "zz copy.jpg")
    run("index", many, "--model", model)
    path = many / "2023" / "3.jpg"
    (hit,) = run("search", path, "--json", "--top", 1).records
    assert (hit["path"], hit["copies"]) == (str(path), [str(many / "zz copy.jpg")])
    ran = run("search", path, "--print0", "--top", 1)
    assert ran.out == f"{path}\0"
    assert "(+ 1 copies)" in run("search", path, "--top", 1).out
    assert run("search", path, "--print0", "--json").code == 2


def test_a_page_and_a_picture_in_the_terminal(run, model, many, tmp_path):
    run("index", many, "--model", model)
    page = tmp_path / "found.html"
    ran = run("search", "a dog", "--all", "--top", 3, "--html", page, "--preview", "blocks")
    assert ran.code == 0
    assert page.read_text().count("<figure") == 3
    assert ran.out.count("\x1b[") > 100


def test_failures_are_named_and_listed(run, model, many):
    (many / "cut.jpg").write_bytes((many / "a.jpg").read_bytes()[:300])
    ran = run("index", many, "--model", model)
    assert ran.code == 1
    assert "cut.jpg" in ran.err
    assert "diptych index --errors" in ran.err
    assert "cut.jpg" in run("index", "--errors").out
    (record,) = run("index", "--errors", "--json").records
    assert record["path"] == str(many / "cut.jpg")
    assert run("index").code == 0  # nothing new failed
    assert run("index", "--retry-failed").code == 1


def test_status_and_forget(run, model, many, tmp_path):
    other = tmp_path / "other.safetensors"
    diptych.zoo.save(diptych.build("ViT-B-32/openai", seed=1), other)
    run("index", many, "--model", model)
    run("index", "--model", other)
    status = run("index", "--status").out
    assert str(many) in status
    assert status.count("30 vectors") == 2
    first, second = run("index", "--status", "--json").records[0]["models"]
    assert (first["answers"], second["answers"]) == (True, False)
    assert run("search", "x", "--all", "--model", model).code == 0
    ran = run("index", "--forget-model", second["fingerprint"])
    assert ran.code == 0
    assert run("search", "x", "--all", "--model", model).code == 2
    ran = run("index", "--forget", many / "2023", "--json")
    assert ran.records == [{"removed": 27, "purged": 27}]
    assert run("index", "--forget", tmp_path / "elsewhere").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "a dog"], "there is no collection. Type: diptych index FOLDER"),
        (["index"], "there is no collection. Type: diptych index FOLDER"),
        (["index", "nowhere"], "nowhere: no such folder. Check the path."),
        (["index", "~nobody-of-this-name"], "~nobody-of-this-name: no such folder."),
        (["index", "n" * 300], "no such folder. Check the path."),
        (["index", ".", "--forget", "."], "--forget takes no FOLDERS beside it"),
        (["search", "cat", "+"], "a term is missing behind the '+'"),
        (["search", "-"], "a query begins with words or a picture"),
        (["search", "a dog", "--mode", "original"], "--mode belongs to IMAGES"),
        (["search", "a dog", "--min-side", "9" * 30], "min_side must be from 0"),
        (["search", "a dog", "--collection", "~nobody/x"], "there is no collection"),
        (["index", "--status"], "there is no collection"),
        (["search", "a dog", ".", "--after", "2024"], "--after belongs to collections"),
    ],
)
def test_wrong_use(run, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(*arguments)
    assert ran.code == 2
    assert said in ran.err


def test_another_model_file_under_the_same_name_is_refused(run, many, tmp_path, model):
    own = tmp_path / "own.safetensors"
    shutil.copy(model, own)
    run("index", many, "--model", own)
    own.unlink()
    diptych.zoo.save(diptych.build("ViT-B-32/openai", seed=3), own)
    ran = run("search", "a dog")
    assert ran.code == 2
    assert "its fingerprint is" in ran.err
    assert "the vectors were made by" in ran.err


def test_one_writer(run, model, many):
    from diptych.search.store import Store

    run("index", many, "--model", model)
    with Store("default") as store, store.writer():
        ran = run("index")
    assert ran.code == 2
    assert f"process {os.getpid()} is writing to this collection" in ran.err


def test_a_name_that_a_terminal_would_obey(run, model, photos):
    name = "a\n\x1b[31mred.png"
    shutil.copy(photos / "b.png", photos / name)
    run("index", photos, "--model", model)
    ran = run("search", photos / "b.png", "--top", 1)
    assert "\x1b" not in ran.out
    assert len(ran.out.splitlines()) == 1
    records = run("search", photos / "b.png", "--top", 1, "--json").records
    assert name in records[0]["path"] + "".join(records[0]["copies"])


@pytest.mark.slow
def test_watch_until_it_is_interrupted(model, many, tmp_path):
    command = [sys.executable, "-m", "diptych.cli.main", "index", many, "--model", model]
    child = subprocess.Popen(
        [*map(str, command), "--watch", "1", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    lines = iter(child.stdout.readline, "")
    assert next(line for line in lines if '"collection"' in line)
    shutil.copy(many / "a.jpg", many / "2023" / "copy.jpg")
    assert "copy.jpg" in next(lines)
    assert '"known": 1' in next(lines)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Stopped. What was indexed is kept" in err


def test_what_cannot_be_read_is_named_once(run, model, many, monkeypatch):
    run("index", many, "--model", model)
    scandir, opened = os.scandir, open

    def no_scandir(path):
        if os.fspath(path).endswith("2023"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    def no_open(path, *rest, **more):
        if os.fspath(path) == str(many / "a.jpg"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **more)

    os.utime(many / "a.jpg", (0, 0))
    monkeypatch.setattr("os.scandir", no_scandir)
    monkeypatch.setattr("diptych.search.indexing.open", no_open, raising=False)
    ran = run("index")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        f"Error: {many / 'a.jpg'}: cannot be read: Permission denied",
        f"Error: {many / '2023'}: cannot be read: Permission denied. Nothing of it was taken out.",
    ]
    assert [r["path"] for r in run("index", "--json").records if "error" in r] == [
        str(many / "a.jpg"), str(many / "2023"),
    ]  # fmt: skip


def test_rules_of_a_folder_stay_until_others_are_given(run, model, many):
    run("index", many, many, f"{many}/", "--exclude", "2023/", "--model", model)
    assert "folders" in (status := run("index", "--status", "--json").records[0])
    assert (status["folders"], status["files"]) == ([str(many)], 3)
    (many / ".hidden").mkdir()
    shutil.copy(many / "a.jpg", many / ".hidden")
    run("index", many, "--hidden")
    assert run("index", "--status", "--json").records[0]["files"] == 4  # still without 2023
    run("index", many, "--exclude", "*.png")
    assert run("index", "--status", "--json").records[0]["files"] == 29  # and still with .hidden


def test_a_model_named_by_a_relative_path_is_found_from_elsewhere(
    run, model, many, tmp_path, monkeypatch
):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.safetensors").symlink_to(model)
    monkeypatch.chdir(tmp_path / "models")
    assert run("index", many, "--model", "tiny.safetensors").code == 0
    assert run("search", "x", "--all", "--model", "tiny.safetensors").code == 0
    monkeypatch.chdir(tmp_path)
    assert run("search", "x", "--all").code == 0
    assert run("search", "x", "--all", "--model", "models/tiny.safetensors").code == 0


def test_the_same_model_in_two_modes(run, model, many):
    run("index", many, "--model", model)
    ran = run("index", "--mode", "original")
    assert (ran.code, "--mode belongs to --model" in ran.err) == (2, True)
    run("index", "--model", model, "--mode", "original")
    first, second = run("index", "--status", "--json").records[0]["models"]
    ran = run("index", "--forget-model", first["model"])
    assert ran.code == 2
    assert first["fingerprint"] in ran.err and second["fingerprint"] in ran.err
    for record in (first, second):
        assert run("search", "x", "--all", "--model", record["fingerprint"]).code == 0
    assert run("index", "--forget-model", second["fingerprint"]).code == 0
    assert run("search", "x", "--all", "--model", first["fingerprint"]).code == 0


def test_a_matrix_that_cannot_be_written_costs_time_only(run, model, many, monkeypatch):
    def full(*_, **__):
        raise CheckpointError("rows: cannot be written (No space left on device). It is as it was.")

    monkeypatch.setattr("diptych.search.rows.refresh", full)
    ran = run("index", many, "--model", model)
    assert (ran.code, "30 encoded" in ran.out) == (0, True)
    assert "Note: rows: cannot be written" in ran.err and "A search works without it" in ran.err


def test_a_page_when_files_went_and_when_nothing_was_found(run, model, many, tmp_path, monkeypatch):
    run("index", many, "--model", model)
    page = tmp_path / "found.html"
    (many / "a.jpg").unlink()
    monkeypatch.setattr("click.launch", lambda url: 3)
    ran = run("search", "x", "--all", "--top", 30, "--no-fold", "--html", page, "--open")
    assert (ran.code, page.read_text().count("<figure")) == (0, 29)
    assert "a.jpg: no such file" in ran.err
    assert f"No browser could be started. Open it yourself: {page}" in ran.err
    page.unlink()
    ran = run("search", "x", "--after", 9999, "--html", page)
    assert (ran.code, page.exists()) == (0, False)
    assert f"{page}: not written" in ran.err


def test_an_empty_collection_says_so(run, model, many):
    run("index", many, "--model", model)
    run("index", "--forget", many)
    assert "the collection is empty. Type: diptych index FOLDER" in run("search", "x").err
