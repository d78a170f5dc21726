"""`diptych curate pack`."""

from PIL import Image

from diptych.data.pairs import Pairs


def test_pack(run, photos, tmp_path, own_cache):
    for path in photos.iterdir():
        path.with_suffix(".txt").write_text(f"a photo of {path.name}")
    out = tmp_path / "out"
    ran = run("curate", "pack", photos, "--out", out, "--shard-size", 2, "--max-side", 32)
    assert ran.code == 0, ran.err
    assert "3 pairs in 2 shards" in ran.out
    pairs = Pairs.open(out, folder=tmp_path / "indexes")
    assert pairs.size == 3
    (tmp_path / "x.jpg").write_bytes(pairs.indexes[0][0].image(0))
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.size == (32, 26)
    again = run("curate", "pack", photos, "--out", out, "--shard-size", 2, "--json")
    assert again.code == 2 and "other inputs or options" in again.err


def test_what_is_left_out(run, photos, tmp_path, own_cache):
    (photos / "a.txt").write_text("a")
    ran = run("curate", "pack", photos, "--out", tmp_path / "out", "--json")
    assert ran.code == 1
    assert ran.records[0]["samples"] == 1 and ran.records[0]["drops"] == {"no caption": 2}
    assert run("curate", "pack", photos / "gone", "--out", tmp_path / "out2").code == 2
