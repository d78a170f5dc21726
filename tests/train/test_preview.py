"""A dry run: the plan is JSON, and nothing of the run is left behind."""

import json
import tempfile
from dataclasses import replace

import pytest
from miniature import config, pictures

from diptych.train.config import EvalConfig, LoraConfig, Source
from diptych.train.preview import preview


def test_a_plan(tmp_path, own_cache, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = pictures(tmp_path / "data")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"image": "gone.png", "caption": "gone"}\n')
    run = config(path, "model.patch_dropout=0", "data.max_bad_fraction=0.1")
    run = replace(run, evaluate=EvalConfig(sources=(Source(path=str(path)),)))
    plan, text = preview(replace(run, model=replace(run.model, lora=LoraConfig(rank=2))))
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert plan["data"]["pairs"] == 24 and plan["data"]["not used"] == {"no such file": 1}
    assert plan["gradient"]["relative error"] < 1e-4
    assert plan["first loss"]["measured"] == pytest.approx(plan["first loss"]["ln of that"], abs=3)
    assert "24" in text and "model.lora.rank" in text
    assert not list((tmp_path / "temporary").rglob("config.json"))
