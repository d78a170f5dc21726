"""Scripts written for the peers run with one line changed, and give the encoder's numbers."""

import sys
from types import ModuleType

import numpy as np
import pytest
import small

import diptych

NAMES = {  # script: the row it loads
    "aesthetic": "ViT-B-32/openai",
    "coop": "ViT-B-32/openai",
    "ensemble": "ViT-B-32/openai",
    "linear_probe": "ViT-B-32/laion2b_s34b_b79k",
    "readme_linear_probe": "ViT-B-32/openai",
    "readme_open_clip": "ViT-B-32/laion2b_s34b_b79k",
    "readme_openai": "ViT-B-32/openai",
    "readme_zero_shot": "RN50/openai",
    "retrieval": "ViT-B-32/laion2b_s34b_b79k",
}


def test_every_script_is_run():
    assert {path.stem for path in small.SCRIPTS.glob("*.py")} == NAMES.keys()


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("script", NAMES)
def test_script(script, tmp_path, monkeypatch):
    path = small.SCRIPTS / f"{script}.py"
    if "sklearn" in path.read_text("utf-8"):
        pytest.importorskip("sklearn")
    small.put_rows(monkeypatch)
    small.put_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", small.datasets())
    result = small.run(path, swap=True)
    enc = diptych.load(NAMES[script], precision="fp32", device="cpu", mode="original")
    vectors = unit(result["image_features"])
    assert np.abs(vectors - enc.encode_image(result["images"])).max() < 2e-6
    assert vectors.std(axis=0).max() > 1e-3 or len(vectors) == 1
    if "texts" in result:
        assert np.abs(unit(result["text_features"]) - enc.encode_text(result["texts"])).max() < 2e-6
