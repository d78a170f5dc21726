"""Videos: files and folders of frames, with UCF101's list and without."""

import pytest
from layouts_made import put, row, video

from diptych.errors import DataError
from diptych.eval.sets import read


def test_middle_picture_of_files(tmp_path):
    pytest.importorskip("av")
    video(tmp_path / "Archery" / "v_1.avi")
    video(tmp_path / "Bowling" / "v_2.avi", seconds=1)
    found = read(row(), tmp_path)
    assert [(s.key, s.labels) for s in found.samples] == [
        ("Archery/v_1.avi", (0,)),
        ("Bowling/v_2.avi", (1,)),
    ]
    (image,) = found.samples[0].image
    assert abs(image().getpixel((32, 32))[0] - 60) < 6  # second 1 of three
    assert found.notes == ("the middle picture of each video stands for it",)


def test_long_videos_keep_few_pictures(tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr("diptych.eval.sets.videos._KEPT", 4)
    from diptych.eval.sets.videos import Middle

    path = video(tmp_path / "x.avi", seconds=4)  # 8 pictures: 0 2 4 6 are kept
    assert abs(Middle(path)().getpixel((32, 32))[0] - 120) < 6


def test_list_of_ucf101(tmp_path):
    for name in ("v_1", "v_2", "v_3"):
        put(tmp_path / "ApplyLipstick" / name / "frame_0001.jpg", 1)
        put(tmp_path / "ApplyLipstick" / name / "frame_0002.jpg", 2)
        put(tmp_path / "ApplyLipstick" / name / "frame_0003.jpg", 3)
    put(
        tmp_path / "ucfTrainTestlist" / "testlist01.txt",
        "ApplyLipstick/v_2.avi\nApplyLipstick/v_9.avi\n",
    )
    found = read(row(classes="ucf101"), tmp_path, partial=True)
    assert [s.key for s in found.samples] == ["ApplyLipstick/v_2"]
    assert found.samples[0].image[0].name == "frame_0002.jpg"
    assert found.classes[found.samples[0].labels[0]] == "Apply Lipstick"
    assert [u.key for u in found.unused] == ["ApplyLipstick/v_9.avi"]


def test_missing_class(tmp_path):
    put(tmp_path / "val" / "archery" / "v_1" / "frame_1.jpg", 1)
    with pytest.raises(DataError, match="699 of 700 classes have no folder"):
        read(row(classes="kinetics700", split="val"), tmp_path)
