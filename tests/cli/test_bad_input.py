"""Everything that can be wrong at once, through the real command: named, fixed, the rest done.

The inputs are those of the list "Bad input" of the first landing; the slow test runs them in a
process of its own and holds its memory against a run on one good photo.
"""

import json
import os
import pickle
import struct
import subprocess
import sys
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file


def png(width: int, height: int) -> bytes:
    """A black 1-bit PNG: a few bytes that promise many pixels."""
    row, z = b"\0" * (1 + (width + 7) // 8), zlib.compressobj(9)
    data = b"".join(z.compress(row) for _ in range(height)) + z.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


# file name: (its bytes, what the error must say)
BAD = {
    "zero.jpg": (b"", "is empty"),
    "page.jpg": (b"<!doctype html><html><body>404", "is an HTML page"),
    "bomb.png": (png(13000, 13000), "pixels, more than"),
    "strip20.png": (png(20000, 1), "is a strip of 20000x1"),
    "strip60.png": (png(60000, 1), "is a strip of 60000x1"),
}


@pytest.fixture
def zoo_of_images(photos):
    good = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(good[: len(good) // 2])
    for name, (data, _) in BAD.items():
        (photos / name).write_bytes(data)
    return photos


def test_bad_images_are_named_and_the_rest_is_done(run, model, zoo_of_images):
    ran = run("classify", zoo_of_images, "--labels", "a,b", "--json", "--model", model)
    assert ran.code == 1
    failed = {os.path.basename(r["path"]): r["error"] for r in ran.records if "error" in r}  # noqa: PTH119
    assert failed.keys() == {*BAD, "cut.jpg"}
    assert "damaged or cut short" in failed["cut.jpg"]
    for name, (_, message) in BAD.items():
        assert message in failed[name]
        assert name in failed[name]
    assert len([r for r in ran.records if "labels" in r]) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file(run, model, photos):
    (photos / "a.jpg").chmod(0)
    ran = run("classify", photos, "--labels", "a,b", "--json", "--model", model)
    assert ran.code == 1
    (error,) = (r["error"] for r in ran.records if "error" in r)
    assert error.endswith(f"chmod +r {photos / 'a.jpg'}")


@pytest.mark.slow
def test_memory_stays_within_1_gb_of_one_good_photo(model, zoo_of_images):
    """Peak resident memory of the whole command, from the system's own account of the child."""
    measure = (
        "import resource, subprocess, sys; p = subprocess.run(sys.argv[1:], capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, p.returncode)"
    )

    def peak(*images) -> tuple[int, int]:
        command = [sys.executable, "-m", "diptych.cli.main", "classify", *map(str, images)]
        command += ["--labels", "a,b", "--json", "--model", model]
        ran = subprocess.run(
            [sys.executable, "-c", measure, *command], capture_output=True, text=True
        )
        kilobytes, code = map(int, ran.stdout.split())
        return kilobytes, code

    one, code = peak(zoo_of_images / "a.jpg")
    assert code == 0
    large = [zoo_of_images / f"{i}.png" for i in range(6)]
    for path in large:  # real pixels too: 48 megapixels each
        path.write_bytes(png(8000, 6000))
    all_of_them, code = peak(zoo_of_images)
    assert code == 1
    print(f"peak memory: {one / 1e3:.0f} MB for one photo, {all_of_them / 1e3:.0f} MB for all")
    assert all_of_them - one < 1_000_000


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def edited(model, path, change):
    """The model with its tensors changed, in a file of the same layout."""
    with safe_open(model, "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, path, metadata)


def missing_key(model, path):
    edited(model, path, lambda t: t.pop("visual.ln_post.bias"))


def nan(model, path):
    edited(model, path, lambda t: t["text.proj.weight"].fill_(torch.nan))


def wrong_shape(model, path):
    edited(model, path, lambda t: t.update({"text.proj.weight": torch.zeros(7, 64)}))


def duplicate_key(model, path):
    body = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    header = f'{{"a": {body}, "a": {body}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


def code_in_a_pickle(model, path):
    path.write_bytes(pickle.dumps({"state_dict": Evil(path.with_name("PWNED"))}))


def an_image(model, path):
    path.write_bytes(png(4, 4))


def a_page(model, path):
    path.write_text("<html>moved</html>")


def cut_short(model, path):
    with open(model, "rb") as file:  # noqa: PTH123
        path.write_bytes(file.read(200_000))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_key, "visual.ln_post.bias: missing"),
        (nan, "NaN or infinity in text.proj.weight"),
        (wrong_shape, "asks for [24, 64], the file has [7, 64]"),
        (duplicate_key, "'a'"),
        (code_in_a_pickle, "Nothing was run"),
        (an_image, "is a PNG image"),
        (a_page, "is a web page"),
        (cut_short, "cut short"),
    ],
)
def test_bad_model_files(run, model, photos, tmp_path, spoil, message):
    path = tmp_path / "spoilt.safetensors"
    spoil(model, path)
    ran = run("classify", photos, "--labels", "a,b", "--model", path)
    assert ran.code == 2
    assert ran.out == ""
    assert path.name in ran.err
    assert message in ran.err
    assert not (tmp_path / "PWNED").exists()


def test_a_model_that_is_not_there_or_is_a_folder_of_photos(run, photos, tmp_path):
    ran = run("classify", photos, "--labels", "a,b", "--model", tmp_path / "none.pt")
    assert (ran.code, "no such file" in ran.err) == (2, True)
    ran = run("classify", photos, "--labels", "a,b", "--model", photos)
    assert (ran.code, "holds no model" in ran.err) == (2, True)


def test_bare_weights_say_what_to_type(run, model, photos, tmp_path):
    with safe_open(model, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    torch.save(tensors, tmp_path / "bare.pt")
    ran = run("classify", photos, "--labels", "a,b", "--model", tmp_path / "bare.pt")
    assert ran.code == 2
    assert "--config" in ran.err
    ran = run("classify", photos, "--labels", "a,b", "--model", tmp_path / "bare.pt",
              "--config", "ViT-B-32/openai")  # fmt: skip
    assert ran.code == 2
    assert "is not a checkpoint of this config" in ran.err
