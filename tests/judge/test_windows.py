"""Windows: where they lie, and maps made of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.judge.windows import MAP_SIDE, check_scales, cut, harmonic, mean_map


def test_windows_of_a_square():
    boxes = cut(12, 12, 1 / 2)
    assert len(boxes) == 9
    assert boxes[:3] == [(0, 0, 6, 6), (3, 0, 9, 6), (6, 0, 12, 6)]
    assert cut(12, 12, 1.0) == [(0, 0, 12, 12)]
    assert len(cut(12, 12, 1 / 3)) == 25


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.2, 1))
def test_windows_are_square_and_reach_every_pixel(width, height, scale):
    boxes = cut(width, height, scale)
    side = boxes[0][2]
    seen = torch.zeros(height, width)
    for left, top, right, bottom in boxes:
        assert right - left == bottom - top == side
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        seen[top:bottom, left:right] += 1
    assert (seen > 0).all()


def test_too_many_windows():
    with pytest.raises(ConfigError, match="more than"):
        cut(1000, 10, 0.1)
    for scales in ((), (0,), (1.5,)):
        with pytest.raises(ConfigError, match="shares"):
            check_scales(scales)


def test_maps_are_means_over_windows():
    boxes = [(0, 0, 64, 128), (32, 0, 96, 128), (64, 0, 128, 128)]
    values = torch.tensor([1.0, 0.5, 0.0])
    found = mean_map(values, boxes, 128, 128)
    assert found.shape == (MAP_SIDE, MAP_SIDE)
    assert found[5, [0, 40, 70, 100]].tolist() == [1, 0.75, 0.25, 0]
    # 2 / (1/1 + 1/0.5) = 2/3
    assert float(harmonic(values, boxes, 128, 128)[5, 40]) == pytest.approx(2 / 3)


def test_a_map_has_the_picture_s_shape():
    boxes = cut(300, 100, 1.0)
    found = mean_map(torch.ones(len(boxes)), boxes, 300, 100)
    assert found.shape == (43, MAP_SIDE)
    assert torch.equal(found, torch.ones(43, MAP_SIDE))
