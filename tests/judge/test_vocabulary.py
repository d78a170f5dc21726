"""Vocabularies: three ways to write one down, and what is wrong with others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import ConfigError, DataError
from diptych.judge.vocabulary import (
    Label,
    Vocabulary,
    from_names,
    read_vocabulary,
    write_vocabulary,
)

TEXT = "# of a farm\nanimal\n\tdog, puppy = 0.2\n\tcat\n\t\tsiamese cat\n\noutdoors\n"
LABELS = (
    Label(name="animal"),
    Label(name="dog", parents=("animal",), synonyms=("puppy",), threshold=0.2),
    Label(name="cat", parents=("animal",)),
    Label(name="siamese cat", parents=("animal", "cat")),
    Label(name="outdoors"),
)
JSON = """[{"label": "animal", "children": [
  {"label": "dog", "synonyms": ["puppy"], "threshold": 0.2},
  {"label": "cat", "children": ["siamese cat"]}]}, "outdoors"]"""
CSV = (
    "label,parent,synonyms,threshold\nanimal,,,\ndog,animal,puppy,0.2\ncat,animal,,\n"
    "siamese cat,animal|cat,,\noutdoors,,,\n"
)


@pytest.mark.parametrize(("name", "text"), [("v.txt", TEXT), ("v.json", JSON), ("v.csv", CSV)])
def test_a_vocabulary_from_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_vocabulary(path).labels == LABELS
    path.write_text("\ufeff" + text.replace("\n", "\r\n"))
    assert read_vocabulary(path).labels == LABELS


def test_positions_of_parents_and_names():
    words = Vocabulary(labels=LABELS)
    assert words.parents == (None, 0, 0, 2, None)
    assert words.find("dog") == words.find("animal|dog") == 1
    assert words.find("puppy") is None


def test_a_name_may_stand_in_two_places(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("fruit\n  orange\ncolour\n  orange\n")
    words = read_vocabulary(path)
    assert words.find("orange") is None  # which?
    assert words.find("colour|orange") == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no label"),
        ("# only this\n", "no label"),
        ("a\na\n", "twice"),
        ("a\n    b\n  c\n", "line 3"),
        ("a\n\tb\n    c\n", "line 3"),
        ("a, \n", "line 1"),
        ("a|b\n", "line 1"),
        ("dog = much\n", "is no number"),
        ("dog = 1.5\n", "must be a cosine"),
        ("dog = nan\n", "is no number"),
    ],
)
def test_text_that_is_no_vocabulary(tmp_path, text, told):
    path = tmp_path / "v.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        read_vocabulary(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("v.json", "{}", "a list of labels"),
        ("v.json", "[", "v.json"),
        ("v.json", '[{"name": "a"}]', "'label'"),
        ("v.json", '[{"label": "a", "weight": 1}]', "unknown 'weight'"),
        ("v.json", '[{"label": "a", "threshold": true}]', "no number"),
        ("v.json", '[{"label": "a", "synonyms": "b"}]', "list of texts"),
        ("v.json", "[" * 100_000, "levels|v.json"),
        ("v.csv", "word\na\n", "without a label"),
        ("v.csv", "label,parent\ndog,animal\n", "before its parent"),
        ("v.csv", "label\na,b\n", "too many cells"),
        ("v.txt", None, "no such file"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path, name, text, told):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_vocabulary(path)


def test_bytes_that_are_not_utf_8(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"v\.txt"):
        read_vocabulary(tmp_path / "v.txt")


def test_names_without_a_file():
    assert [label.name for label in from_names(["a, b", "c"]).labels] == ["a, b", "c"]
    with pytest.raises(ConfigError, match="spaces around"):
        from_names([" a"])


WORDS = st.text("abc é日-'", min_size=1, max_size=5).map(str.strip).filter(bool)


@given(
    st.recursive(
        st.dictionaries(WORDS, st.none(), min_size=1, max_size=3),
        lambda below: st.dictionaries(WORDS, below | st.none(), min_size=1, max_size=3),
        max_leaves=8,
    ),
    st.one_of(st.none(), st.floats(-1, 1)),
)
def test_what_is_written_is_read_again(tmp_path_factory, tree, threshold):
    def walk(node, parents=()):
        for name, below in node.items():
            yield Label(name=name, parents=parents, threshold=threshold, synonyms=("x",))
            yield from walk(below or {}, (*parents, name))

    words = Vocabulary(labels=tuple(walk(tree)))
    path = tmp_path_factory.mktemp("v") / "v.json"
    write_vocabulary(path, words)
    assert read_vocabulary(path) == words


def test_only_json_is_written(tmp_path):
    with pytest.raises(ConfigError, match="JSON"):
        write_vocabulary(tmp_path / "v.txt", from_names(["a"]))


def test_errors_of_tables_are_errors_of_data(tmp_path):
    from diptych.judge.vocabulary import Strict

    with pytest.raises(DataError, match="where: bad"):
        Strict().flaw("bad", "where")
