"""Pictures in a terminal: what was written is decoded again, and its pixels are compared."""

import base64
import io
import os
import pty
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.terminal import CELL, cell_size, detect, num_colours, render, show
from diptych.errors import ConfigError

CASES = {
    "kitty": {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"},
    "kitty ghostty": {"TERM": "xterm-ghostty"},
    "kitty ghostty by program": {"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"},
    "kitty konsole": {"TERM": "xterm-256color", "KONSOLE_VERSION": "220401"},
    "iterm": {"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"},
    "iterm over ssh": {"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"},
    "iterm wezterm": {"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"},
    "iterm mintty": {"TERM": "xterm", "TERM_PROGRAM": "mintty"},
    "sixel": {"TERM": "foot"},
    "sixel by name": {"TERM": "xterm-sixel"},
    "blocks": {"TERM": "xterm-256color"},
    "blocks old konsole": {"TERM": "xterm-256color", "KONSOLE_VERSION": "210800"},
    "blocks vscode": {"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"},
    "blocks xterm from kitty": {"TERM": "xterm", "KITTY_WINDOW_ID": "1"},
    "blocks windows": {"WT_SESSION": "x"},
    "blocks tmux in kitty": {"TERM": "tmux-256color", "TMUX": "1", "KITTY_WINDOW_ID": "1"},
    "blocks tmux in iterm": {"TERM": "xterm", "TMUX": "1", "TERM_PROGRAM": "iTerm.app"},
    "blocks screen": {"TERM": "screen", "STY": "1.x"},
    "none dumb": {"TERM": "dumb"},
    "none": {},
    "none colours unwanted": {"TERM": "xterm", "NO_COLOR": "1"},
    "kitty colours unwanted": {"TERM": "xterm-kitty", "NO_COLOR": "1"},
}


@pytest.mark.parametrize("case", CASES)
def test_detect(case):
    assert detect(CASES[case], True) == case.split()[0]
    assert detect(CASES[case], False) == "none"


def test_num_colours():
    assert num_colours({"COLORTERM": "truecolor"}) == num_colours({"TERM": "x-direct"}) == 2**24
    assert num_colours({"TERM": "xterm-256color"}) == 256


def photo(width=120, height=80) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], -1)
    values[height // 4 : height // 2, width // 4 : width // 2] = (255, 0, 0)
    return Image.fromarray(values.astype(np.uint8))


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_kitty_sends_the_png_in_chunks():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))
    text = render(noise, protocol="kitty", columns=20, rows=10)
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) + "\n" == text
    keys = [dict(key.split("=") for key in part.split(",")) for part, _ in parts]
    assert len(parts) > 5 and all(len(data) == 4096 for _, data in parts[:-1])
    assert keys[0] == {"a": "T", "f": "100", "q": "2", "c": "13", "r": "5", "m": "1"}
    assert all(key == {"q": "2", "m": "1"} for key in keys[1:-1]) and keys[-1]["m"] == "0"
    shown = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in parts))))
    assert shown.format == "PNG" and (pixels(shown) == pixels(noise)).all()


def test_iterm_sends_the_png():
    text = render(photo(), protocol="iterm", columns=20, rows=10)
    keys, data = re.fullmatch(r"\x1b\]1337;File=([^:]*):([^\a]*)\a\n", text).groups()
    png = base64.b64decode(data, validate=True)
    assert f"size={len(png)};width=12;height=4" in keys and "inline=1" in keys
    assert (pixels(Image.open(io.BytesIO(png))) == pixels(photo())).all()


def sixel_to_rgb(text: str) -> np.ndarray:
    """A decoder of what the manual says, -1 where nothing was drawn."""
    body = re.fullmatch(r"\x1bP0;1;0q(.*)\x1b\\\n", text, re.DOTALL).group(1)
    width, height = map(int, re.match(r'"1;1;(\d+);(\d+)', body).groups())
    out = np.full((-(-height // 6) * 6, width, 3), -1)
    palette, colour, x, top = {}, None, 0, 0
    tokens = r'("[\d;]+)|#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])'
    for raster, number, r, g, b, count, run, one, move in re.findall(tokens, body):
        if raster:
            continue
        if number:
            colour = int(number)
            if r:
                palette[colour] = [round(int(v) * 255 / 100) for v in (r, g, b)]
        elif move:
            x, top = 0, top + 6 * (move == "-")
        else:
            code = ord(run or one) - 63
            end = x + int(count or 1)
            for bit in range(6):
                if code >> bit & 1:
                    out[top + bit, x:end] = palette[colour]
            x = end
    assert (out[height:] == -1).all()
    return out[:height]


@pytest.mark.parametrize("size", [(120, 80), (7, 5), (1, 1), (64, 6), (33, 13)])
def test_sixel(size):
    image = photo(*size)
    shown = sixel_to_rgb(render(image, protocol="sixel", columns=20, rows=10))
    assert shown.min() >= 0, "a pixel was not drawn"
    expected = pixels(image.quantize(256, Image.Quantize.MEDIANCUT).convert("RGB"))
    assert np.abs(shown - expected).max() <= 2  # percents
    assert np.abs(shown - pixels(image)).mean() < 6


def test_sixel_runs_are_short():
    text = render(Image.new("RGB", (200, 60), "navy"), protocol="sixel", columns=20, rows=10)
    assert len(text) < 150 and "!200~" in text


@pytest.mark.slow
def test_sixel_by_libsixel(tmp_path):
    if shutil.which("sixel2png") is None:
        pytest.skip("sixel2png is missing: apt-get install libsixel-bin")
    text = render(photo(), protocol="sixel", columns=20, rows=10)
    (tmp_path / "a.six").write_text(text)
    command = ["sixel2png", "-i", str(tmp_path / "a.six"), "-o", str(tmp_path / "a.png")]
    subprocess.run(command, check=True)
    shown = pixels(Image.open(tmp_path / "a.png").convert("RGB"))
    assert np.abs(shown - sixel_to_rgb(text)).max() <= 2


STEPS = (0, 95, 135, 175, 215, 255)


def colour_of(codes: list[int]) -> tuple[tuple[int, int, int], list[int]]:
    if codes[0] == 2:
        return tuple(codes[1:4]), codes[4:]
    number = codes[1]
    if number >= 232:
        return (8 + 10 * (number - 232),) * 3, codes[2:]
    number -= 16
    return (STEPS[number // 36], STEPS[number // 6 % 6], STEPS[number % 6]), codes[2:]


def blocks_to_rgb(text: str) -> np.ndarray:
    """-1 where the terminal's own ground shows."""
    rows = []
    for line in text.split("\n")[:-1]:
        inks, grounds, ink, ground = [], [], None, (-1, -1, -1)
        for sequence, character in re.findall(r"\x1b\[([\d;]*)m|(.)", line):
            if character:
                assert character == "▀"
                inks.append(ink)
                grounds.append(ground)
                continue
            codes = [int(code) for code in sequence.split(";")]
            while codes:
                which, *codes = codes
                if which == 0:
                    ink, ground = None, (-1, -1, -1)
                elif which == 38:
                    ink, codes = colour_of(codes)
                else:
                    assert which == 48
                    ground, codes = colour_of(codes)
        assert ink is None, "colours run on after the line"
        rows += [inks, grounds]
    return np.array(rows)


@pytest.mark.parametrize("height", [8, 9, 1])
def test_blocks_in_true_colour(height):
    image = photo(24, height)
    shown = blocks_to_rgb(render(image, protocol="blocks", columns=24, rows=10))
    assert (shown[:height] == pixels(image)).all()
    assert (shown[height:] == -1).all() and len(shown) - height == height % 2


def test_blocks_in_256_colours():
    image = photo(24, 16)
    shown = blocks_to_rgb(render(image, protocol="blocks", columns=24, rows=8, colours=256))
    table = [(r, g, b) for r in STEPS for g in STEPS for b in STEPS]
    table = np.array(table + [(v, v, v) for v in range(8, 239, 10)])
    far = ((pixels(image)[:, :, None] - table) ** 2).sum(-1)
    got = ((shown - pixels(image)) ** 2).sum(-1)
    assert (got <= far.min(-1) * 1.1 + 60).all()  # Pillow looks it up in a table of its own


@pytest.mark.parametrize("protocol", ["kitty", "iterm", "sixel", "blocks"])
@pytest.mark.parametrize("size", [(4000, 30), (30, 4000), (3, 2), (1, 1), (1000, 1000)])
def test_it_fits_and_keeps_its_shape(protocol, size):
    image = Image.new("RGB", size, (10, 200, 30))
    text = render(image, protocol=protocol, columns=12, rows=5)
    if protocol == "blocks":
        drawn = (blocks_to_rgb(text) != -1).any(-1)
        height, width = drawn.any(1).sum(), drawn.shape[1]
        limit = (12, 10)
    elif protocol == "sixel":
        height, width = sixel_to_rgb(text).shape[:2]
        limit = (120, 100)
    else:
        data = "".join(re.findall(r"[;:]([A-Za-z0-9+/=]{30,})", text))
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        limit = (120, 100)
    assert width <= min(limit[0], size[0]) and height <= min(limit[1], size[1])
    scale = min(limit[0] / size[0], limit[1] / size[1], 1)
    assert abs(width - size[0] * scale) <= 1 and abs(height - size[1] * scale) <= 1
    assert text.endswith("\n")


def test_refusals():
    assert render(photo(), protocol="none", columns=1, rows=1) == ""
    with pytest.raises(ConfigError, match="at least 1, got 0x3"):
        render(photo(), protocol="blocks", columns=0, rows=3)
    with pytest.raises(ConfigError, match="got mode 'RGBA'"):
        render(Image.new("RGBA", (2, 2)), protocol="blocks", columns=1, rows=1)


def test_show_and_cell_size_of_a_real_terminal(monkeypatch):
    import fcntl
    import termios

    here, there = pty.openpty()
    try:
        assert cell_size(there) == CELL  # a terminal that does not know its pixels
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 1280, 816))
        assert cell_size(there) == (16, 34)
        monkeypatch.setenv("TERM", "foot")
        for name in ("TMUX", "STY", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        with open(there, "w", closefd=False) as stream:
            shown = show(photo(300, 300), columns=5, rows=5, stream=stream)
        assert sixel_to_rgb(shown).shape == (80, 80, 3)
    finally:
        os.close(here)
        os.close(there)
    with Path(os.devnull).open("w") as stream:
        assert show(photo(), columns=5, rows=5, stream=stream) == ""
