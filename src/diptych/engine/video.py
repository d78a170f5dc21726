"""Pictures out of a video: one in so many seconds, or one a shot, each with its time.

Needs the extra `photos` (PyAV, which brings ffmpeg's libraries).

- Upright, with square pixels: the display matrix and the pixel shape of the file are applied.
- What lies between two samples is skipped where the file has an index of its key frames, and the
  pictures are the same as if everything had been decoded (a test compares).
- One picture is in memory at a time, beside what the decoder holds.
- A file is opened as a file: no address, playlist or device, whatever its name or content says.
"""

import contextlib
import logging
import math
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image as PILImage

from diptych.engine.stream import num_threads
from diptych.errors import ConfigError, ImageError, MissingExtraError
from diptych.preprocess.open import (
    DEFAULT_LIMITS,
    PILLOW_ERRORS,
    Limits,
    check_cost,
    check_shape,
)

__all__ = ["frames"]

log = logging.getLogger("diptych")

_MOST = 100_000  # pictures of one video: 28 hours at one a second
# ffmpeg's demuxers that read one file of video; what reads other files or devices is not here
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,h264,hevc,m4v,"
    "mxf,dv,ivf,gif"
)
# A key frame may be shown later than it is decoded (B-frames): aim so much before the target.
_LEAD = 1.0
# Shots: a key frame whose 16x16 picture differs less from the last kept one, in levels of 255 on
# average over pixels and channels, shows the same. Noise of a camera is 1 to 3, a cut 30 to 100.
_SAME, _SIDE = 10.0, 16
_MISSING = 2.0  # seconds, and 5 %, by which a video may end before the length in its header
_BYTES = 8  # of a pixel: some 4:2:0 pictures of the decoder, and the RGB

_T = PILImage.Transpose
# by the signs of a, b, c, d in the display matrix: x' = a x + c y, y' = b x + d y (y is downwards)
_TURNS = {
    (-1, 0, 0, 1): _T.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): _T.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): _T.ROTATE_180,
    (0, -1, 1, 0): _T.ROTATE_90,
    (0, 1, -1, 0): _T.ROTATE_270,
    (0, 1, 1, 0): _T.TRANSPOSE,
    (0, -1, -1, 0): _T.TRANSVERSE,
}


def frames(
    path: str | Path, *, every: float | None = 1.0, limits: Limits = DEFAULT_LIMITS
) -> Iterator[tuple[float, PILImage.Image]]:
    """(second, picture) of a video's first video stream, in order of time.

    Args:
        path: a file.
        every: x: of each x seconds the first picture at or after 0, x, 2x ...; None: the key
            frames, without those that hardly differ from the last one given (in 16x16 pixels by
            less than 10 levels of 255 on average): about one a shot.
        limits: of the size and shape of a picture. The file may have any number of bytes.

    Yields:
        The time in seconds since the start of the stream, and an upright RGB picture. At most
        100,000 of them; more is logged. Where the file is damaged or cut short, what can be read,
        and an error in the log.

    Raises:
        ImageError: no such file, no video in it, nothing readable, or pictures above the limits.
        MissingExtraError: PyAV is not installed.
        ConfigError: `every` is not a positive number.
    """
    if every is not None and not (0 < every < math.inf):
        raise ConfigError(f"every must be a positive number of seconds or None, got {every!r}")
    with _Video(path, limits) as video:
        chosen = video.shots() if every is None else video.samples(every)
        count = 0
        for second, frame in chosen:
            if count == _MOST:
                log.warning(
                    "%s: has more than %d pictures; stopped at second %.2f. Give a larger every=.",
                    *(video.name, _MOST, second),
                )
                return
            count += 1
            yield second, video.picture(second, frame)
        video.report(count)


class _Video:
    """An open video file. `faults` counts the packets that could not be decoded."""

    def __init__(self, path: str | Path, limits: Limits):
        try:
            import av
        except ImportError as error:
            raise MissingExtraError("av", extra="photos", needed_for=f"{path}: a video") from error
        # only calls of PyAV are guarded with it; damaged files make it raise some of Python's own
        self._errors = (av.error.FFmpegError, *PILLOW_ERRORS)
        self.name, self.limits = str(path), limits
        self.faults, self.first_fault = 0, ""
        self._looked = False
        self._turn: PILImage.Transpose | None = None
        self.second = self.end = 0.0  # of the last picture, and of the last packet
        _check_file(Path(path), self.name)
        try:
            # "file:": a name with a colon would be taken for an address
            self._container = av.open(
                f"file:{path}",
                metadata_errors="replace",
                container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            )
        except self._errors as error:
            raise ImageError(
                f"{self.name}: is not a video that can be read, or is cut short ({_text(error)}). "
                "Check where it came from."
            ) from error
        try:
            self._stream = self._first_stream()
        except ImageError:
            self._container.close()
            raise
        self._start = self._stream.start_time or 0

    def __enter__(self) -> "_Video":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(*self._errors):
            self._container.close()

    def _first_stream(self) -> Any:
        from av.stream import Disposition

        for stream in self._container.streams.video:
            if stream.disposition & Disposition.attached_pic:  # the cover of a piece of music
                continue
            context = stream.codec_context
            if context is None:
                raise ImageError(f"{self.name}: its video is coded in a way that is not read.")
            self._check_size((context.width, context.height))
            context.options = {"max_pixels": str(self.limits.pixels)}
            context.thread_type, context.thread_count = "AUTO", num_threads()
            return stream
        raise ImageError(f"{self.name}: holds no video. Check where it came from.")

    def _check_size(self, size: tuple[int, int]) -> None:
        if not all(size):
            raise ImageError(f"{self.name}: the size of its pictures is not known: it is damaged.")
        cost = _BYTES * size[0] * size[1]
        check_cost(size, cost, self.limits, self.name, what="video")

    def shots(self) -> Iterator[tuple[float, Any]]:
        """The key frames that show something new."""
        self._stream.codec_context.skip_frame = "NONKEY"
        last = None
        for second, frame in self._decoded():
            small = frame.reformat(_SIDE, _SIDE, format="rgb24", interpolation="AREA").to_ndarray()
            small = small.astype(np.float32)
            if last is None or np.abs(small - last).mean() >= _SAME:
                last = small
                yield second, frame

    def samples(self, every: float) -> Iterator[tuple[float, Any]]:
        """The first frame at or after each multiple of `every`."""
        target, slack = 0.0, 1e-6  # times are products of fractions
        if len(self._stream.index_entries) == 1:  # Matroska: its index is read by the first seek
            with contextlib.suppress(*self._errors):
                self._container.seek(self._start, stream=self._stream)
        running = self._decoded()
        while True:
            reached = ((t, frame) for t, frame in running if t >= target - slack)
            second, frame = next(reached, (None, None))
            if second is None:
                return
            yield second, frame
            target = (math.floor((second + slack) / every) + 1) * every
            if self._skip(second, target):
                running = self._decoded()

    def _skip(self, now: float, target: float) -> bool:
        """Goes to the last key frame before `target`, if one lies between. False: it did not."""
        base, entries = self._stream.time_base, self._stream.index_entries
        aim = self._start + int((target - _LEAD) / base)
        at = entries.search_timestamp(aim, backward=True) if len(entries) else -1
        if at < 0 or entries[at].timestamp <= self._start + now / base:
            return False
        try:
            self._container.seek(aim, stream=self._stream, backward=True)
        except self._errors:
            return False
        return True

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        """(second, frame) from the present place to the end, without damaged frames."""
        try:
            for packet in self._packets():
                if packet.pts is not None:
                    self.end = max(self.end, self._seconds(packet.pts))
                try:
                    decoded = packet.decode()
                except self._errors as error:
                    self._fault(error)
                    continue
                for frame in decoded:
                    if frame.is_corrupt:
                        self._fault(None)
                        continue
                    self.second = self._time(frame)
                    yield self.second, frame
        except self._errors as error:  # the container itself
            self._fault(error)

    def _packets(self) -> Iterator[Any]:
        for _ in range(_MOST):
            try:
                yield from self._container.demux(self._stream)
                return
            except LookupError:  # a packet of a stream that begins later: PyAV has no place for it
                continue

    def _time(self, frame: Any) -> float:
        if frame.pts is None:  # a bare stream without times
            return self.second + float(1 / (self._stream.average_rate or 25))
        return self._seconds(frame.pts)

    def _seconds(self, pts: int) -> float:
        return float((pts - self._start) * self._stream.time_base)

    def _fault(self, error: BaseException | None) -> None:
        if not self.faults:
            self.first_fault = f"second {self.second:.2f}" + (f" ({_text(error)})" if error else "")
        self.faults += 1

    def picture(self, second: float, frame: Any) -> PILImage.Image:
        """The frame in RGB, upright, with square pixels."""
        width, height = frame.width, frame.height
        shape = self._stream.sample_aspect_ratio
        if shape and shape != 1:  # DVDs, DV: stretch the short side, lose nothing
            wide = shape > 1
            width = round(width * shape) if wide else width
            height = height if wide else round(height / shape)
        try:
            check_shape((width, height), self.limits, self.name)
            self._check_size((width, height))
            image = PILImage.fromarray(frame.to_ndarray(width=width, height=height, format="rgb24"))
        except self._errors as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(
                f"{self.name}: the picture at second {second:.2f} cannot be made RGB "
                f"({_text(error)}). Convert the video to MP4."
            ) from error
        if not self._looked:
            # of the first frame only: who asks PyAV for it keeps the frame until a collection
            self._looked, self._turn = True, _turn(frame)
        return image if self._turn is None else image.transpose(self._turn)

    def report(self, count: int) -> None:
        """Logs damage; raises ImageError if nothing was read."""
        if not count:
            where = self.first_fault or "second 0.00"
            raise ImageError(
                f"{self.name}: no picture can be read, from {where} on: the video is damaged or "
                "cut short. Get the file again."
            )
        if self.faults:
            log.error(
                "%s: %d damaged places, the first at %s; the rest was read",
                *(self.name, self.faults, self.first_fault),
            )
        elif self.end < 0.95 * self._length() - _MISSING:
            log.error(
                "%s: ends at second %.2f of %.2f: it is damaged or cut short",
                *(self.name, self.end, self._length()),
            )

    def _length(self) -> float:
        """Seconds that the header promises; 0 if it does not."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1e6  # of the longest stream


def _turn(frame: Any) -> PILImage.Transpose | None:
    """How to turn the frame, by its display matrix (ISO 14496-12, tkhd)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None or len(bytes(data)) != 36:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    unit = max(abs(a), abs(b), 1)
    return _TURNS.get(tuple(round(value / unit) for value in (a, b, c, d)))


def _check_file(path: Path, name: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file. Check the path.") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read: {_text(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name}: is not a file. Give a video file.")
    if not status.st_size:
        raise ImageError(f"{name}: is empty (0 bytes). Get the file again.")


def _text(error: BaseException) -> str:
    """One line about an error of ffmpeg, without numbers and paths."""
    text = (str(error).splitlines() or [""])[0]
    return re.sub(r"^\[Errno -?\d+\] |: '.*$", "", text) or type(error).__name__
