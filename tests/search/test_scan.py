"""What a scan takes for a file, for gone, and for out of reach."""

import os
import shutil
import time

import pytest
from pictures import picture

from diptych.search.indexing import _Run
from diptych.search.records import Root


@pytest.mark.skipif(os.name == "nt", reason="no pipes with names")
def test_a_pipe_with_the_name_of_a_picture_is_not_waited_for(index, library):
    os.mkfifo(library / "pipe.jpg")
    (library / "folder.jpg").mkdir()
    (library / "link to nothing.jpg").symlink_to(library / "nothing.jpg")
    (library / "loop").symlink_to(library)
    outcome, told = index()
    assert (outcome.found.num_files, outcome.failed, outcome.found.unreadable) == (8, 0, {})
    assert len(told) == 8


def test_what_cannot_be_looked_at_is_not_taken_for_gone(index, library, vectors, monkeypatch):
    """A folder that may be listed, but not entered."""
    index()
    real = os.stat

    def stat(path, **rest):
        if isinstance(path, str) and path.endswith("/5.png"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **rest)

    monkeypatch.setattr("os.stat", stat)
    outcome, _ = index()
    path = str(library / "holiday" / "5.png")
    assert (outcome.removed, outcome.found.unreadable) == (0, {path: "Permission denied"})
    assert path in vectors()


def test_a_folder_indexed_by_itself_is_left_alone_by_the_one_around_it(index, library, vectors):
    around, inside = str(library), str(library / "holiday")
    index(roots=[Root(path=around, exclude=("holiday",))])
    index(roots=[Root(path=inside)])
    assert len(vectors()) == 8
    outcome, _ = index(roots=[Root(path=around, exclude=("holiday",))])
    assert (outcome.removed, len(vectors())) == (0, 8)
    outcome, _ = index(roots=[Root(path=around, exclude=("holiday",)), Root(path=inside)])
    assert (outcome.removed, outcome.found.num_files) == (0, 8)
    (library / "holiday" / "5.png").unlink()
    assert index(roots=[Root(path=inside)])[0].removed == 1


def test_a_drive_inside_another_folder_that_is_not_mounted(index, library, vectors):
    roots = [Root(path=str(library)), Root(path=str(library / "holiday"))]
    index(roots=roots)
    shutil.rmtree(library / "holiday")
    (library / "holiday").mkdir()
    outcome, _ = index(roots=roots)
    assert (outcome.removed, len(vectors())) == (0, 8)
    outcome, _ = index(roots=roots, remove_empty=True)
    assert (outcome.removed, len(vectors())) == (4, 4)


def test_every_file_counts_once(index, library):
    roots = [Root(path=str(library)), Root(path=str(library / "holiday"))]
    outcome, _ = index(roots=roots)
    assert (outcome.found.num_files, outcome.added) == (8, 8)


def test_a_copy_that_was_read_just_before_its_content_was_committed(
    index, library, vectors, encoder, monkeypatch
):
    """The batch ends with the first of many copies; others were read while it was encoded."""
    for i in range(encoder.batch_size - 5):  # after 0.png to 3.png
        picture(100 + i).save(library / f"a{i}.png")
    picture(99).save(library / "b.png")
    for i in range(20):
        shutil.copy(library / "b.png", library / f"c{i}.png")
    encode = _Run._encode

    def slow(self, pixels):
        time.sleep(0.3)  # the threads go on
        return encode(self, pixels)

    monkeypatch.setattr(_Run, "_encode", slow)
    outcome, told = index()
    assert (outcome.added, outcome.known) == (encoder.batch_size + 4, 20)
    assert len(told) == len(vectors()) == encoder.batch_size + 24


def test_copies_of_a_broken_file_are_each_named(index, library, store):
    for name in ("a.jpg", "b.jpg"):
        (library / name).write_bytes(b"<html>not found</html>")
    _, told = index()
    for name in ("a.jpg", "b.jpg"):
        path = str(library / name)
        assert (told[path].error or "").startswith(f"{path}: is an HTML page")
    whys = dict(store.failures())
    assert len(whys) == 2 and all(why.startswith("is an HTML page") for why in whys.values())
