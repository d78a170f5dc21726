"""Tagged pictures from lists."""

import json

import numpy as np
import pytest

from diptych.errors import DataError
from diptych.judge.labelled import read_examples
from diptych.judge.vocabulary import Label, Vocabulary

WORDS = Vocabulary(
    labels=(
        Label(name="animal"),
        Label(name="dog", parents=("animal",)),
        Label(name="fruit"),
        Label(name="orange", parents=("fruit",)),
        Label(name="colour"),
        Label(name="orange", parents=("colour",)),
    )
)


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl", "e.tsv"])
def test_labels_with_what_they_imply(tmp_path, name):
    rows = [("a.jpg", "dog"), ("b.jpg", "fruit|orange; animal"), ("c.jpg", "")]
    match name:
        case "e.jsonl":
            lines = [json.dumps({"path": p, "labels": x.split(";")}) for p, x in rows]
        case "e.csv":
            lines = ["path,labels", *(f"{p},{x}" for p, x in rows)]
        case _:
            lines = ["file_name\tTags", *(f"{p}\t{x}" for p, x in rows)]
    (tmp_path / name).write_text("\n".join(lines))
    paths, truth = read_examples(tmp_path / name, WORDS)
    assert paths == [str(tmp_path / p) for p, _ in rows]
    assert truth.astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0], [0] * 6]
    assert truth.dtype == np.bool_


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,labels\n", "holds no example"),
        ("labels\ndog\n", "no path"),
        ("path,words\na.jpg,dog\n", "no labels"),
        ("path,labels\na.jpg,dgo\n", "Nearest: .*dog"),
        ("path,labels\na.jpg,orange\n", r"fruit\|orange, colour\|orange"),
        ("path,labels\na.jpg,dog\na.jpg,dog\n", "as well"),
        ("path,labels\na.jpg,dog,dog\n", "too many cells"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, text, told):
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(DataError, match=told) as error:
        read_examples(tmp_path / "e.csv", WORDS)
    assert "e.csv" in str(error.value)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "e.csv", WORDS)
