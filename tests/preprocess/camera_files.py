"""Small files as cameras and phones write them, made by the tests: RAW files and HEIC photos."""

import io
import struct

import numpy as np
import pillow_heif
from PIL import Image

TYPES = {1: "B", 3: "H", 4: "I"}


def directory(entries: dict, base: int, order: str = "<") -> bytes:
    """A TIFF directory that will stand at `base`. `entries`: {tag: (type, numbers or bytes)}."""
    out, extra = b"", b""
    after = base + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        if isinstance(values, bytes):
            raw, count = values, len(values)
        elif kind == 5:
            raw = b"".join(struct.pack(order + "II", *value) for value in values)
            count = len(values)
        else:
            raw = struct.pack(f"{order}{len(values)}{TYPES[kind]}", *values)
            count = len(values)
        out += struct.pack(order + "HHI", tag, kind, count)
        if len(raw) <= 4:
            out += raw.ljust(4, b"\0")
        else:
            out += struct.pack(order + "I", after + len(extra))
            extra += raw + b"\0" * (len(raw) % 2)
    head = struct.pack(order + "H", len(entries))
    return head + out + struct.pack(order + "I", 0) + extra


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def raw_file(
    preview: bytes,
    size: tuple[int, int],
    *,
    make: str = "Diptych",
    model: str = "One",
    turn: int = 1,
    dng: bool = True,
    magic: bytes = b"II*\0",
    coding: tuple[int, int] = (7, 6),
    sensor: tuple[int, int] = (96, 64),
    place: bool = False,
) -> bytes:
    """A RAW file as most cameras lay it out: a TIFF whose first picture is the preview.

    Args:
        preview: the bytes of the preview, of `size`; `coding` is its compression and photometric
            interpretation (JPEG in YCC, or (1, 2): RGB).
        turn: EXIF orientation.
        dng: with DNG's own tags.
        magic: ORF and RW2 change it.
    """
    order = "<" if magic[:1] == b"I" else ">"
    width, height = sensor
    mosaic = struct.pack(f"{order}{width * height}H", *[1000] * (width * height))
    out = bytearray(magic + bytes(4))

    def put(data: bytes) -> int:
        out.extend(bytes(len(out) % 2))
        out.extend(data)
        return len(out) - len(data)

    at_preview, at_mosaic = put(preview), put(mosaic)
    out.extend(bytes(len(out) % 2))
    inner = {
        254: (4, [0]), 256: (4, [width]), 257: (4, [height]), 258: (3, [16]), 259: (3, [1]),
        262: (3, [32803]), 273: (4, [at_mosaic]), 277: (3, [1]), 278: (4, [height]),
        279: (4, [len(mosaic)]), 284: (3, [1]), 33421: (3, [2, 2]), 33422: (1, [0, 1, 1, 2]),
    }  # fmt: skip
    at_sensor = put(directory(inner, len(out), order))
    out.extend(bytes(len(out) % 2))
    taken = {36867: (2, b"2024:05:01 12:30:00\0"), 36868: (2, b"2024:05:02 00:00:00\0")}
    at_exif = put(directory(taken, len(out), order))
    main = {
        254: (4, [1]), 256: (4, [size[0]]), 257: (4, [size[1]]), 258: (3, [8, 8, 8]),
        259: (3, [coding[0]]), 262: (3, [coding[1]]), 271: (2, make.encode() + b"\0"),
        272: (2, model.encode() + b"\0"), 273: (4, [at_preview]), 274: (3, [turn]),
        277: (3, [3]), 278: (4, [size[1]]), 279: (4, [len(preview)]), 284: (3, [1]),
        330: (4, [at_sensor]), 34665: (4, [at_exif]),
    }  # fmt: skip
    if dng:
        main |= {50706: (1, [1, 4, 0, 0]), 50708: (2, model.encode() + b"\0")}
    if place:
        out.extend(bytes(len(out) % 2))
        degrees = [(53, 1), (22, 1), (5825, 100)]
        where = {1: (2, b"N\0"), 2: (5, degrees), 3: (2, b"W\0"), 4: (5, degrees)}
        main[34853] = (4, [put(directory(where, len(out), order))])
    out.extend(bytes(len(out) % 2))
    at_main = put(directory(main, len(out), order))
    out[4:8] = struct.pack(order + "I", at_main)
    return bytes(out)


RAWS = {
    "dng": {},
    "dng, the other byte order": {"magic": b"MM\0*"},
    "nef": {"make": "NIKON CORPORATION", "model": "NIKON D70", "dng": False},
    "arw": {"make": "SONY", "model": "ILCE-7", "dng": False, "coding": (6, 6)},
    "orf": {"make": "OLYMPUS", "model": "E-M1", "dng": False, "magic": b"IIRO"},
    "pef": {"make": "PENTAX", "model": "PENTAX K-1", "dng": False},
}


def heic(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=90, **options)
    return out.getvalue()


def deep_heic(values: np.ndarray) -> bytes:
    """10 bits. `values`: uint16 [h, w, 3]."""
    out = io.BytesIO()
    photo = pillow_heif.from_bytes("RGB;16", values.shape[1::-1], values.tobytes())
    photo.save(out, quality=95, chroma=444)
    return out.getvalue()


def heic_of_many(pictures: int, described_by: int) -> bytes:
    """A HEIC file whose pictures all refer to one EXIF block of so many bytes.

    pillow-heif writes a block and a reference for each; the references become one.
    """
    head = b"Exif\0\0MM\0*\0\0\0\x08\0\0"
    small, out = Image.new("RGB", (64, 64)), io.BytesIO()
    photo = pillow_heif.from_pillow(small)
    photo.info["exif"] = head + bytes(described_by)
    for i in range(1, pictures):
        photo.add_from_pillow(small)
        photo[i].info["exif"] = head
    photo.save(out)
    data = bytearray(out.getvalue())
    start, step = data.index(b"cdsc") - 4, 14
    places = range(start, start + step * pictures, step)
    items = [struct.unpack(">HHH", data[at + 8 : at + 14]) for at in places]
    count = (step * pictures - 12) // 2
    images = [image for _, _, image in items] * (count // pictures + 1)
    box = struct.pack(">I4sHH", step * pictures, b"cdsc", items[0][0], count)
    data[start : start + len(box) + 2 * count] = box + struct.pack(f">{count}H", *images[:count])
    return bytes(data)
