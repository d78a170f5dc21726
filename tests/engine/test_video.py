"""Pictures out of videos: the right ones, upright, whatever the container and its damage."""

import logging
import re
import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from diptych.engine import video
from diptych.engine.video import frames
from diptych.errors import ConfigError, ImageError, MissingExtraError
from diptych.preprocess import Limits

av = pytest.importorskip("av")

KINDS = {  # name: (codec, frames in a group, B-frames)
    "h264.mp4": ("libx264", 12, 2),
    "long.mp4": ("libx264", 100, 2),
    "mpeg4.avi": ("mpeg4", 12, 0),
    "h264.mkv": ("libx264", 12, 2),
    "vp8.webm": ("libvpx", 25, 0),
    "h264.ts": ("libx264", 12, 2),
}
SIZE = (64, 48)


def pattern(i: int, size=SIZE) -> np.ndarray:
    """A grey that changes with each frame, and a white corner at the top left."""
    image = np.full((size[1], size[0], 3), (i * 7) % 200, np.uint8)
    image[:10, :20] = 255
    return image


def write(path, codec="mpeg4", *, group=12, b_frames=0, count=100, pictures=None, **options) -> str:
    """A video of 25 pictures a second."""
    pictures = pictures or [pattern(i) for i in range(count)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = group
        if codec != "libvpx":
            stream.codec_context.max_b_frames = b_frames
        if "turn" in options:
            stream.set_display_rotation(options["turn"])
        if "shape" in options:
            stream.codec_context.sample_aspect_ratio = options["shape"]
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="module", params=KINDS)
def each_kind(request, tmp_path_factory):
    codec, group, b_frames = KINDS[request.param]
    path = tmp_path_factory.mktemp("videos") / request.param
    return write(path, codec, group=group, b_frames=b_frames)


@pytest.fixture
def plain(tmp_path):
    return write(tmp_path / "plain.mp4")


def everything(path) -> list[tuple[float, np.ndarray]]:
    """All pictures, by PyAV alone: nothing is skipped."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        start = stream.start_time or 0
        return [
            (float((f.pts - start) * stream.time_base), f.to_ndarray(format="rgb24"))
            for f in container.decode(stream)
        ]


@pytest.mark.parametrize("every", [0.04, 0.3, 1.0, 1.7, 2.5])
def test_skipping_changes_nothing(each_kind, every):
    wanted, target = [], 0.0
    for second, pixels in everything(each_kind):
        if second >= target - 1e-6:
            wanted.append((second, pixels))
            while target <= second + 1e-6:
                target += every
    got = list(frames(each_kind, every=every))
    assert [second for second, _ in got] == [second for second, _ in wanted]
    for (_, image), (_, pixels) in zip(got, wanted, strict=True):
        assert image.mode == "RGB" and (np.asarray(image) == pixels).all()


def test_it_does_skip(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", count=300)
    decoded = []
    keep = video._Video._time
    monkeypatch.setattr(
        video._Video, "_time", lambda self, f: (decoded.append(1), keep(self, f))[1]
    )
    assert [second for second, _ in frames(path, every=4.0)] == [0.0, 4.0, 8.0]
    assert len(decoded) < 210


def test_the_picture_is_the_one_of_its_second(plain):
    for second, image in frames(plain, every=0.48):
        grey = np.asarray(image)[20:, 30:].mean()
        assert abs(grey - (round(second * 25) * 7) % 200) < 6, second


def test_shots(tmp_path):
    """Three shots with noise, key frames twelve frames apart: one picture each."""
    rng = np.random.default_rng(0)
    colours = [(200, 30, 30)] * 60 + [(30, 30, 200)] * 36 + [(200, 200, 40)] * 40
    pictures = [
        np.clip(np.array(c) + rng.normal(0, 4, (48, 64, 3)), 0, 255).astype(np.uint8)
        for c in colours
    ]
    path = write(tmp_path / "shots.mp4", pictures=pictures)
    got = list(frames(path, every=None))
    assert [round(second, 2) for second, _ in got] == [0.0, 2.4, 3.84]
    for (_, image), colour in zip(got, [(200, 30, 30), (30, 30, 200), (200, 200, 40)], strict=True):
        assert np.abs(np.asarray(image).mean((0, 1)) - colour).max() < 12


def with_matrix(path, a: int, b: int, c: int, d: int) -> None:
    """Puts a display matrix into the track header, as ISO 14496-12, 8.3.2 lays it out."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


# matrix: where the corner that is stored at the top left is shown
MATRICES = {
    (1, 0, 0, 1): "top left",
    (0, 1, -1, 0): "top right",  # what a phone that is held upright writes: clockwise
    (-1, 0, 0, -1): "bottom right",
    (0, -1, 1, 0): "bottom left",
    (-1, 0, 0, 1): "top right",
    (1, 0, 0, -1): "bottom left",
    (0, 1, 1, 0): "top left",
    (0, -1, -1, 0): "bottom right",
}


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_upright(tmp_path, matrix):
    """The point (x, y) is shown at (a x + c y, b x + d y)."""
    path = tmp_path / "turned.mp4"
    write(path, count=3)
    with_matrix(path, *matrix)
    ((_, image),) = frames(path)
    quarter = matrix[0] == 0
    assert image.size == (SIZE[::-1] if quarter else SIZE)
    grey = np.asarray(image.convert("L"))
    corners = {"top left": grey[2, 2], "top right": grey[2, -3]}
    corners |= {"bottom left": grey[-3, 2], "bottom right": grey[-3, -3]}
    assert max(corners, key=corners.__getitem__) == MATRICES[matrix]
    # the white corner is 20 wide and 10 high where it is stored
    white = grey > 180
    assert (white.any(0).sum() > white.any(1).sum()) != quarter


def test_a_quarter_turn_as_pyav_writes_it(tmp_path):
    ((_, image),) = frames(write(tmp_path / "a.mp4", count=3, turn=90))
    assert image.size == SIZE[::-1]
    assert np.asarray(image.convert("L"))[-3, 2] > 240  # counter-clockwise


def test_pixels_become_square(tmp_path):
    ((_, wide),) = frames(write(tmp_path / "a.mp4", count=3, shape=2))
    assert wide.size == (128, 48)
    ((_, high),) = frames(write(tmp_path / "b.mp4", count=3, shape=Fraction(1, 2)))
    assert high.size == (64, 96)


def test_cut_short(tmp_path, caplog):
    whole = write(tmp_path / "whole.mkv", "libx264", b_frames=2, count=250)
    cut = tmp_path / "cut.mkv"
    data = (tmp_path / "whole.mkv").read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.ERROR, "diptych"):
        got = list(frames(cut))
        assert len(list(frames(whole))) == 10  # no error about the whole one
    assert [round(second) for second, _ in got] == list(range(len(got))) and 3 <= len(got) <= 6
    (record,) = caplog.records
    assert re.fullmatch(
        rf"{cut}: ends at second \d\.\d\d of 10\.00: it is damaged or cut short",
        record.getMessage(),
    )


def test_damage_in_the_middle(tmp_path, caplog):
    path = tmp_path / "a.mp4"
    write(path, "libx264", group=10, count=200)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 3000
    data[at : at + 800] = np.random.default_rng(0).bytes(800)
    path.write_bytes(data)
    with caplog.at_level(logging.ERROR, "diptych"):
        seconds = [round(second) for second, _ in frames(path)]
    assert seconds[0] == 0 and seconds[-1] == 7, seconds
    (record,) = caplog.records
    assert re.match(rf"{path}: \d+ damaged places, the first at second ", record.getMessage())


def only_sound(path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def test_what_is_no_video(tmp_path):
    good = write(tmp_path / "good.mp4")
    only_sound(tmp_path / "sound.mp4")
    (tmp_path / "text.mp4").write_text("nothing of the kind\n" * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    # a moov box at the end is lost when the file is cut
    (tmp_path / "headless.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:2000])
    # nothing that makes ffmpeg open another file
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {good}\n")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{good}\n#EXT-X-ENDLIST\n"
    (tmp_path / "hls.mp4").write_text(playlist)
    expected = {
        "sound.mp4": "holds no video",
        "text.mp4": "is not a video that can be read",
        "empty.mp4": "is empty",
        "noise.mp4": "is not a video that can be read",
        "headless.mp4": "is not a video that can be read, or is cut short",
        "list.mp4": "is not a video that can be read",
        "hls.mp4": "is not a video that can be read",
        "none.mp4": "no such file",
        ".": "is not a file",
    }
    for name, match in expected.items():
        path = tmp_path / name
        with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: {match}"):
            list(frames(path))


def test_an_address_is_no_file():
    for address in ("http://127.0.0.1:9/a.mp4", "concat:a.mp4", "lavfi:testsrc", "pipe:0"):
        with pytest.raises(ImageError, match="no such file"):
            list(frames(address))


@pytest.mark.parametrize("name", ["a:b c%20.mp4", "ü.mp4", "a\udcff.mp4"])
def test_names(tmp_path, monkeypatch, name):
    write(tmp_path / "x.mp4", count=3)
    (tmp_path / "x.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(frames(name))) == 1


def test_limits(plain, monkeypatch, caplog):
    with pytest.raises(ImageError, match="has 64x48 pixels, more than 3,000"):
        list(frames(plain, limits=Limits(pixels=3000)))
    with pytest.raises(ImageError, match="MB, more than"):
        list(frames(plain, limits=Limits(memory=1000)))
    with pytest.raises(ImageError, match="is a strip"):
        list(frames(plain, limits=Limits(aspect=1)))
    monkeypatch.setattr(video, "_MOST", 3)
    assert len(list(frames(plain))) == 3
    assert "more than 3 pictures; stopped at second 3.00" in caplog.text


@pytest.mark.parametrize("every", [0, -1.0, float("nan"), float("inf")])
def test_every_is_positive(plain, every):
    with pytest.raises(ConfigError, match="positive number of seconds"):
        list(frames(plain, every=every))


def test_without_the_package(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diptych\[photos\]'$"):
        list(frames(plain))


def test_the_file_is_closed_when_the_reader_stops(plain):
    for _ in range(300):  # more than a process may open, were they kept
        next(frames(plain))


def test_encode_video(enc, plain):
    vectors, seconds = enc.encode_video(plain, every=0.4)
    assert vectors.dtype == np.float32 and seconds.dtype == np.float64
    np.testing.assert_allclose(seconds, np.arange(10) * 0.4, atol=1e-9)
    images = [image for _, image in frames(plain, every=0.4)]
    np.testing.assert_allclose(vectors, enc.encode_image(images), atol=2e-6)
    shots, times = enc.encode_video(plain, every=None)
    assert times.tolist() == [second for second, _ in frames(plain, every=None)]
    assert shots.shape == (len(times), 24)


def test_encode_video_names_what_fails(enc, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"a\.mp4: is not a video"):
        enc.encode_video(tmp_path / "a.mp4")


FUZZ = """
import logging, random, sys
from pathlib import Path
from diptych.engine.video import frames
from diptych.errors import ImageError
logging.disable(logging.CRITICAL)
for path in map(Path, sys.argv[1:]):
    whole, damaged = path.read_bytes(), path.with_name("damaged")
    for seed in range(80):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice((1, 5, 50))):
            at = rng.randrange(rng.choice((64, 1000, len(data))))
            data[at if rng.random() < 0.5 else -1 - at] = rng.randrange(256)
        damaged.write_bytes(data)
        for every in (1.0, None):
            try:
                list(frames(damaged, every=every))
            except ImageError:
                pass
    print(path)
"""


@pytest.mark.slow
def test_no_error_but_imageerror(tmp_path):
    """In a child, since a fault in C would end it."""
    paths = [
        write(tmp_path / name, codec, group=group, b_frames=b_frames)
        for name, (codec, group, b_frames) in KINDS.items()
    ]
    command = [sys.executable, "-c", FUZZ, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == paths
