"""Errors: one tree, stable codes, texts that end with what to type."""

import ast
import pickle
import re
import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from diptych import errors
from diptych.errors import DiptychError, MissingExtraError, nearest

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, DiptychError)
]


def test_codes_are_stable():
    assert {cls.__name__: cls.code for cls in CLASSES} == {
        "DiptychError": "error",
        "ConfigError": "config",
        "ModelNotFoundError": "model_not_found",
        "DownloadError": "download",
        "CheckpointError": "checkpoint",
        "UnsafeFileError": "unsafe_file",
        "CollectionError": "collection",
        "CollectionBusyError": "collection_busy",
        "IndexFileError": "index_file",
        "DataError": "data",
        "ImageError": "image",
        "ShardError": "shard",
        "TextError": "text",
        "TextTooLongError": "text_too_long",
        "TrainError": "train",
        "MissingExtraError": "missing_extra",
    }


def test_the_drawn_tree_is_the_tree():
    drawn = re.findall(r"(\w+Error)\b", errors.__doc__)
    assert {name for name in drawn if name != "ValueError"} == {cls.__name__ for cls in CLASSES}
    assert issubclass(DiptychError, ValueError)
    assert {*errors.__all__} == {cls.__name__ for cls in CLASSES} | {"nearest"}


def test_a_missing_extra_says_what_to_type():
    error = MissingExtraError("pyarrow", extra="parquet", needed_for="writing Parquet")
    assert str(error) == (
        "writing Parquet needs the package 'pyarrow'. Type: pip install 'diptych[parquet]'"
    )


def test_a_missing_extra_travels_between_processes():
    error = MissingExtraError("pyarrow", extra="parquet", needed_for="writing Parquet")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (MissingExtraError, str(error))


def test_extras_named_in_the_source_exist():
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    for path in (root / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.keyword(arg="extra", value=ast.Constant(value=extra)):
                    assert extra in extras["optional-dependencies"], path


def test_nearest_names_three():
    names = ["ViT-B-32/openai", "ViT-B-16/openai", "RN50/openai", "ViT-L-14/openai"]
    assert nearest("ViT-B32", names).startswith("Nearest: ViT-B-32/openai, ")
    assert nearest("ViT-B32", names).count(",") == 2
    assert nearest("x", []) == ""


@given(st.text(max_size=30))
def test_nearest_takes_any_text(name):
    assert nearest(name, ["a", "b"], n=1).startswith("Nearest: ")
