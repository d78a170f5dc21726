"""Pictures in a terminal: kitty's and iTerm2's protocols, sixel, or half blocks of colour.

- What a terminal can do is told from the environment alone. Asking it means waiting for an answer
  that may never come, or that the next program reads.
- Inside tmux and screen pictures need a pass-through that is off by default, and stay behind when
  the pane scrolls; half blocks are text and work everywhere.
- Sources: the kitty graphics protocol; iTerm2's inline images (OSC 1337); the VT330/VT340 manual,
  chapter 14 (sixel); ECMA-48 with 38;2 and 38;5 (colours).
"""

from __future__ import annotations

import base64
import io
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TextIO

from diptych.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

Protocol = Literal["kitty", "iterm", "sixel", "blocks", "none"]

TRUE_COLOURS = 2**24
CELL = (10, 20)  # pixels of a cell, width and height, where nothing says
_CHUNK = 4096  # bytes of base64 in one escape sequence of kitty
_SIXEL_COLOURS = 256
_ESC, _ST = "\x1b", "\x1b\\"

_TERMS: dict[str, Protocol] = {
    "xterm-kitty": "kitty",
    "xterm-ghostty": "kitty",
    "foot": "sixel",
    "foot-extra": "sixel",
    "mlterm": "sixel",
    "mlterm-256color": "sixel",
    "yaft-256color": "sixel",
    "contour": "sixel",
}
_PROGRAMS: dict[str, Protocol] = {
    "ghostty": "kitty",
    "iTerm.app": "iterm",
    "WezTerm": "iterm",
    "mintty": "iterm",
}
_KONSOLE = 220400  # KONSOLE_VERSION since which it speaks kitty's protocol


def detect(environ: Mapping[str, str], isatty: bool) -> Protocol:
    """How to show pictures on the terminal that `environ` describes.

    Args:
        environ: `os.environ`.
        isatty: whether the output is a terminal at all.
    """
    term = environ.get("TERM", "")
    if not isatty or term in ("dumb", "unknown"):
        return "none"
    blocks: Protocol = "none" if environ.get("NO_COLOR") else "blocks"
    if "TMUX" in environ or "STY" in environ or term.startswith(("screen", "tmux")):
        return blocks
    if term in _TERMS:
        return _TERMS[term]
    # A terminal started from kitty inherits its variables, but not its TERM: they prove nothing.
    for variable in ("TERM_PROGRAM", "LC_TERMINAL"):  # the second one travels over ssh
        program = environ.get(variable, "")
        found = _PROGRAMS.get("iTerm.app" if program == "iTerm2" else program)
        if found is not None:
            return found
    version = environ.get("KONSOLE_VERSION", "")
    if version.isdecimal() and int(version) >= _KONSOLE:
        return "kitty"
    if "sixel" in term:
        return "sixel"
    return blocks if term or "WT_SESSION" in environ else "none"


def num_colours(environ: Mapping[str, str]) -> int:
    """2**24 where the terminal says that it shows them, else 256."""
    direct = environ.get("COLORTERM", "") in ("truecolor", "24bit")
    known = "WT_SESSION" in environ or environ.get("TERM", "").endswith("-direct")
    return TRUE_COLOURS if direct or known else 256


def cell_size(descriptor: int = 1) -> tuple[int, int]:
    """(width, height) in pixels of a cell of the terminal; `CELL` where the system does not know.

    The kernel knows it, so the terminal need not be asked.
    """
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError):
        return CELL
    rows, columns, width, height = struct.unpack("HHHH", answer)
    if not (rows and columns and width >= columns and height >= rows):
        return CELL
    return width // columns, height // rows


def render(
    image: Image.Image,
    *,
    protocol: Protocol,
    columns: int,
    rows: int,
    cell: tuple[int, int] = CELL,
    colours: int = TRUE_COLOURS,
) -> str:
    """What to write to show `image` in at most `columns` x `rows` cells; it ends a line.

    The picture keeps its shape and is never enlarged beyond a pixel for a pixel (a half cell for a
    pixel with blocks).

    Args:
        image: RGB.
        protocol: of `detect`; "none" gives "".
        cell: pixels of a cell, of `cell_size`: for kitty, iTerm2 and sixel.
        colours: for blocks, 2**24 or 256, of `num_colours`.

    Raises:
        ConfigError: no cells, or an image that is not RGB.
    """
    if columns < 1 or rows < 1:
        raise ConfigError(f"a picture needs columns and rows of at least 1, got {columns}x{rows}")
    if image.mode != "RGB":
        raise ConfigError(f"render takes RGB, got mode {image.mode!r}: image.convert('RGB')")
    match protocol:
        case "none":
            return ""
        case "blocks":
            return _blocks(_fit(image, columns, 2 * rows), colours)
    small = _fit(image, columns * cell[0], rows * cell[1])
    wide, high = -(-small.width // cell[0]), -(-small.height // cell[1])
    match protocol:
        case "kitty":
            return _kitty(_png(small), wide, high)
        case "iterm":
            return _iterm(_png(small), wide, high)
        case "sixel":
            return _sixel(small)


def show(
    image: Image.Image,
    *,
    columns: int,
    rows: int,
    stream: TextIO,
    protocol: Protocol | None = None,
) -> str:
    """`render` for what is behind `stream`, by this process's environment.

    protocol: in place of what the terminal shows; then also into a pipe.
    """
    terminal = stream.isatty()
    protocol = protocol or detect(os.environ, terminal)
    if protocol == "none":
        return ""
    return render(
        image,
        protocol=protocol,
        columns=columns,
        rows=rows,
        cell=cell_size(stream.fileno()) if terminal else CELL,
        colours=num_colours(os.environ) if terminal else TRUE_COLOURS,
    )


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image as PILImage

    scale = min(width / image.width, height / image.height, 1)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image if size == image.size else image.resize(size, PILImage.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _kitty(png: bytes, columns: int, rows: int) -> str:
    """a=T: send and show; f=100: PNG; q=2: no answer, not even about an error."""
    coded = base64.standard_b64encode(png).decode()
    chunks = [coded[i : i + _CHUNK] for i in range(0, len(coded), _CHUNK)]
    out = []
    for i, chunk in enumerate(chunks):
        first = f"a=T,f=100,q=2,c={columns},r={rows}," if i == 0 else "q=2,"
        out.append(f"{_ESC}_G{first}m={int(i < len(chunks) - 1)};{chunk}{_ST}")
    return "".join(out) + "\n"


def _iterm(png: bytes, columns: int, rows: int) -> str:
    coded = base64.standard_b64encode(png).decode()
    size = f"size={len(png)};width={columns};height={rows};preserveAspectRatio=1"
    return f"{_ESC}]1337;File=inline=1;{size}:{coded}\a\n"


def _sixel(image: Image.Image) -> str:
    """Bands of six rows; in a band one line of characters for each colour that is in it.

    A character holds a column of six pixels: 63 plus a bit for each, the top one lowest.
    """
    import numpy as np
    from PIL import Image as PILImage

    paletted = image.quantize(_SIXEL_COLOURS, PILImage.Quantize.MEDIANCUT)
    pixels = np.asarray(paletted)
    flat = paletted.getpalette() or []
    # P2=1: what is not drawn stays; then 1:1 pixels and the size
    out = [f"{_ESC}P0;1;0q", f'"1;1;{image.width};{image.height}']
    for colour in np.unique(pixels).tolist():
        red, green, blue = (round(100 * v / 255) for v in flat[3 * colour : 3 * colour + 3])
        out.append(f"#{colour};2;{red};{green};{blue}")
    weights = (1 << np.arange(6, dtype=np.uint8))[:, None]
    for top in range(0, image.height, 6):
        band = pixels[top : top + 6]
        lines = []
        for colour in np.unique(band).tolist():
            bits = ((band == colour) * weights[: len(band)]).sum(0, dtype=np.uint8)
            lines.append(f"#{colour}{_run_lengths(bits + 63)}")
        out.append("$".join(lines) + "-")  # "$": to the left again; "-": the next band
    out[-1] = out[-1].removesuffix("-")
    return "".join(out) + _ST + "\n"


def _run_lengths(codes: np.ndarray) -> str:
    """uint8 [n] as characters; four or more of the same as "!n" and one; none of it at the end."""
    import numpy as np

    starts = np.flatnonzero(np.diff(codes, prepend=0))
    lengths = np.diff(starts, append=len(codes))
    runs = list(zip(codes[starts].tolist(), lengths.tolist(), strict=True))
    if runs[-1][0] == 63:  # nothing is drawn
        runs.pop()
    return "".join(
        f"!{length}{chr(code)}" if length > 3 else chr(code) * length for code, length in runs
    )


def _blocks(image: Image.Image, colours: int) -> str:
    """Two rows of pixels in a line of upper half blocks: ink above, ground below."""
    import numpy as np

    if colours < TRUE_COLOURS:
        names = [[f"5;{n}" for n in row] for row in _of_256(image).tolist()]
    else:
        names = [[f"2;{r};{g};{b}" for r, g, b in row] for row in np.asarray(image).tolist()]
    lines = []
    for top in range(0, len(names), 2):
        below = names[top + 1] if top + 1 < len(names) else [None] * image.width
        line, ink, ground = [], "", ""
        for upper, lower in zip(names[top], below, strict=True):
            codes = [f"38;{upper}"] if upper != ink else []
            if lower is not None and lower != ground:
                codes.append(f"48;{lower}")
            ink, ground = upper, lower or ""
            line.append(f"{_ESC}[{';'.join(codes)}m▀" if codes else "▀")
        lines.append("".join(line) + f"{_ESC}[0m\n")
    return "".join(lines)


def _of_256(image: Image.Image) -> np.ndarray:
    """For each pixel the nearest of xterm's cube (16 to 231) and greys (232 to 255).

    Not dithered: at so few pixels the speckles are larger than what they show.
    """
    import numpy as np
    from PIL import Image as PILImage

    steps = (0, 95, 135, 175, 215, 255)
    colours = [(r, g, b) for r in steps for g in steps for b in steps]
    colours += [(grey, grey, grey) for grey in range(8, 239, 10)]
    palette = PILImage.new("P", (1, 1))
    palette.putpalette([value for colour in colours for value in colour])
    near = image.quantize(palette=palette, dither=PILImage.Dither.NONE)
    return np.asarray(near).astype(np.int32) + 16
