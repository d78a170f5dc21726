"""What `examine` says of data, against what was put there."""

import math

import pytest

from diptych.data.doctor import examine
from diptych.errors import DataError, ImageError


def decode(data, name):
    if not data.startswith(b"\xff\xd8"):
        raise ImageError(f"{name}: is not an image")
    return 24, 20


@pytest.fixture
def look(tmp_path):
    how = {"decode": decode, "count": lambda text: len(text.split()), "context": 5}
    return lambda path, **more: examine(
        path, folder=tmp_path / "indexes", batch_size=32, **how, **more
    )


def test_a_folder_with_faults(made, look, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    meta = {"licence": "CC0", "source": "museum"}
    made.tar(folder / "0.tar", [m for i in range(10) for m in made.pair(i, meta=meta)])
    members = [
        *made.pair(10, text="Picture  number 3"),
        *made.pair(11, image=made.picture(4)),
        *made.pair(12, text=""),
        *made.pair(13, image=b"broken"),
        *made.pair(14, text="one two three four five six"),
        ("15.png", b""),
    ]
    made.tar(folder / "1.tar", members)
    found = look(folder)
    assert (found["samples"], found["seen"], found["fit"]) == (14, 16, False)
    assert found["drops"] == {"empty caption": 1, "no caption": 1, "cannot be decoded": 1}
    assert {told[0] for told in found["told"]} == set(found["drops"])
    assert found["pictures"]["checked"] == 14 and found["pictures"]["bad"] == 1
    assert found["pictures"]["width"]["max"] == 24
    assert found["captions"]["number"] == 14 and found["captions"]["cut"] == 1
    assert found["captions"]["tokens"] == {"min": 3, "50%": 3, "90%": 3, "99%": 6, "max": 6}
    assert found["duplicates"] == {"captions": 1, "images": 1}
    assert found["origin"]["licence"] == {"CC0": 10} and found["origin"]["without"]["source"] == 4
    assert found["loss"] == {"batch_size": 32, "ln_n": math.log(32)}
    assert found["sources"][0]["files"] == 2 and found["sources"][0]["names"]["txt"] == 15
    some = look(folder, check=5)
    assert some["pictures"]["checked"] == some["captions"]["counted"] == 5
    assert look(folder / "0.tar")["fit"]


def test_nothing_to_train_on(made, look, tmp_path):
    made.tar(tmp_path / "a.tar", [("1.picture", b"")])
    found = look(tmp_path / "a.tar")
    assert (found["samples"], found["fit"]) == (0, False)
    assert found["sources"][0]["names"] == {"picture": 1}
    with pytest.raises(DataError, match="not there"):
        look(tmp_path / "gone.tar")
