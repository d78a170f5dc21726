"""Queries: rclip's syntax, and one unit vector of weighted terms."""

import numpy as np
import pytest
from pictures import picture

from diptych.errors import ConfigError
from diptych.search.query import Term, parse, vector


def terms(*words):
    return parse(words, is_image=lambda text: text.endswith(".jpg"))


def test_the_syntax_of_rclip():
    assert terms("cat") == ([Term("cat")], [])
    assert terms("cat", "+", "at night", "-", "person") == (
        [Term("cat"), Term("at night"), Term("person", -1.0)], [],
    )  # fmt: skip
    assert terms("2:golden retriever", "+", "./pool.jpg", "-", "0.5:fruit") == (
        [Term("golden retriever", 2.0), Term("./pool.jpg", 1.0, True), Term("fruit", -0.5)], [],
    )  # fmt: skip


def test_what_follows_the_terms():
    assert terms("cat", "photos", "-") == ([Term("cat")], ["photos", "-"])
    assert terms("cat", "-") == ([Term("cat")], ["-"])  # stdin
    assert terms("cat", "+", "dog", "a", "b") == ([Term("cat"), Term("dog")], ["a", "b"])
    assert terms("a clock at 1:30") == ([Term("a clock at 1:30")], [])


@pytest.mark.parametrize(
    "words",
    [
        [], [""], ["2: "], ["cat", "+", " "], ["0:cat"], ["+"], ["-"], ["+", "cat"], ["-", "cat"],
        ["cat", "+"], ["cat", "-", "dog", "+"], ["2000000:cat"], ["9" * 400 + ":cat"],
    ],
)  # fmt: skip
def test_no_query(words):
    with pytest.raises(ConfigError, match=r"Type|Give|Leave"):
        terms(*words)


def made(encoder, terms):
    return vector(
        terms,
        encode_text=lambda text: encoder.encode_text(text)[0],
        encode_image=lambda image: encoder.encode_image(image)[0],
    )


def test_the_vector_is_the_weighted_sum_at_unit_length(encoder):
    image = picture(3)
    found = made(encoder, [Term("a", 2.0), Term(image, 0.5, True), Term("b", -1.0)])
    a, b = encoder.encode_text(["a", "b"])
    expected = 2 * a + 0.5 * encoder.encode_image(image)[0] - b
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-6)


def test_terms_that_cancel_out(encoder):
    with pytest.raises(ConfigError, match="cancel each other out"):
        made(encoder, [Term("a"), Term("a", -1.0)])
