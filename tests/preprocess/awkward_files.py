"""Makes the files that pipelines disagree about: every mode, depth, orientation and damage."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms


def picture(width: int = 61, height: int = 47, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth, asymmetric, with some noise: uint8 [height, width, channels]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = [x * 255 / width, y * 255 / height, (x + 2 * y) * 85 / max(width, height), 255 - x * 2]
    out = np.stack(base[:channels], axis=-1) + random.normal(0, 25, (height, width, channels))
    return np.clip(out, 0, 255).astype(np.uint8)


def encode(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(values: np.ndarray, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG of big-endian samples; colour 0 grey, 2 RGB, 4 grey + alpha, 6 RGBA."""
    height, width = values.shape[:2]
    rows = values.astype(f">u{depth // 8}")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
        + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )  # fmt: skip


def black_png(width: int, height: int, extra: bytes = b"") -> bytes:
    """1-bit black: 20000x1 is 82 bytes, 13000x13000 is 20,625."""
    row, z = b"\0" * (1 + (width + 7) // 8), zlib.compressobj(9)
    data = b"".join(z.compress(row) for _ in range(height)) + z.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
        + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )  # fmt: skip


def interlaced_png(values: np.ndarray) -> bytes:
    """Adam7 RGB; Pillow reads it but does not write it."""
    height, width = values.shape[:2]
    data = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):  # fmt: skip
        data += b"".join(b"\0" + row.tobytes() for row in values[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )  # fmt: skip


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def ycck_jpeg(cmyk: Image.Image) -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK: decoders then turn YCC into CMY first."""
    data = encode(cmyk, "JPEG", quality=95)
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\x02" + data[at + 12 :]


def awkward() -> dict[str, bytes]:
    """Name -> bytes of about 40 files, all readable."""
    rgb, rgba = picture(), picture(channels=4)
    image, alpha = Image.fromarray(rgb), Image.fromarray(rgba)
    grey = image.convert("L")
    frames = [Image.fromarray(picture(seed=s)) for s in (1, 2, 3)]
    deep = (rgb.astype(np.uint16) << 8) | np.arange(61, dtype=np.uint16)[None, :, None]
    palette = image.quantize(32)
    clear = image.quantize(16)
    cmyk = image.convert("CMYK")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {f"exif{o}.jpg": encode(image, "JPEG", quality=95, exif=exif(o)) for o in range(1, 9)}
    files |= {
        "exif6.png": encode(image, "PNG", exif=exif(6)),
        "exif8.webp": encode(image, "WEBP", lossless=True, exif=exif(8)),
        "exif6.tif": encode(image, "TIFF", exif=exif(6)),
        "exif_bad.jpg": encode(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"),
        "plain.jpg": encode(image, "JPEG"),
        "progressive.jpg": encode(image, "JPEG", progressive=True),
        "grey.jpg": encode(grey, "JPEG"),
        "cmyk.jpg": encode(cmyk, "JPEG"),
        "ycck.jpg": ycck_jpeg(cmyk),
        "icc.jpg": encode(image, "JPEG", icc_profile=profile),
        "two.mpo": encode(image, "MPO", save_all=True, append_images=frames),
        "plain.png": encode(image, "PNG"),
        "interlaced.png": interlaced_png(rgb),
        "grey16.png": raw_png(deep[..., 0], 16, 0),
        "grey16_clear.png": raw_png(
            deep[..., 0], 16, 0, chunk(b"tRNS", struct.pack(">H", deep[3, 5, 0]))
        ),
        "rgb16.png": raw_png(deep, 16, 2),
        "rgb16_clear.png": raw_png(deep, 16, 2, chunk(b"tRNS", deep[3, 5].astype(">u2").tobytes())),
        "la16.png": raw_png(deep[..., :2], 16, 4),
        "grey_clear.png": encode(grey, "PNG", transparency=128),
        "rgb_clear.png": encode(image, "PNG", transparency=tuple(int(v) for v in rgb[3, 5])),
        "palette.png": encode(palette, "PNG"),
        "palette_clear.png": encode(clear, "PNG", transparency=3),
        "palette_alpha.png": encode(clear, "PNG", transparency=bytes(range(0, 256, 16))),
        "la.png": encode(alpha.convert("LA"), "PNG"),
        "rgba.png": encode(alpha, "PNG"),
        "bit.png": encode(image.convert("1"), "PNG"),
        "animated.png": encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "clear.gif": encode(clear, "GIF", transparency=3),
        "animated.webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "rgba.webp": encode(alpha, "WEBP", lossless=True),
        "plain.avif": encode(image, "AVIF"),
        "plain.bmp": encode(image, "BMP"),
        "grey16.tif": encode(Image.fromarray(deep[..., 0]), "TIFF"),
        "cmyk.tif": encode(cmyk, "TIFF"),
        "lab.tif": encode(Image.merge("LAB", image.split()), "TIFF"),
        "lzw.tif": encode(image, "TIFF", compression="tiff_lzw"),
        "one.png": encode(image.crop((5, 5, 6, 6)), "PNG"),
    }
    return files
