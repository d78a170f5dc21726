"""The shapes in the signatures are true: they are checked while the tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from diptych import towers


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_wrong_pixels_raise(tiny_vit, shape):
    with pytest.raises(TypeCheckError, match="image"):
        towers.build(tiny_vit, 8)(torch.randn(shape))


def test_wrong_ids_raise(tiny_text, ids):
    text = towers.build(tiny_text, 8)
    with pytest.raises(TypeCheckError, match="ids"):
        text(ids.float())
    with pytest.raises(TypeCheckError, match="embeddings"):
        text(ids, embeddings=torch.randn(2, 16, 32))


def test_logits_want_vectors_of_one_width(tiny_clip):
    model = towers.build(tiny_clip)
    with pytest.raises(TypeCheckError, match="text_features"):
        model.logits(torch.randn(2, 24), torch.randn(3, 23))
