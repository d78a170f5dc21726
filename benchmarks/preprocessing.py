"""Photographs a second from JPEG bytes to prepared pixels by one core: Diptych, and its peers.

    scripts/bench preprocessing

Made from the photographs in the package, resized with grain, the same each time: 500x375 and 12
megapixels, quality 90, 4:2:0. All variants take turns on the same files in one thread; the least
processor time of each counts, and the ratio is to open_clip's transform in the same run. The
differences are levels of 255 to Pillow's resize and crop of Pillow's pixels. "no extra" is Diptych
without simplejpeg.
"""

import io
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from PIL import Image, features

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracle"))

from peers import torchvision_stub  # noqa: E402

from diptych.config import PreprocessConfig  # noqa: E402
from diptych.preprocess import Preprocess, jpeg  # noqa: E402

CONFIG = PreprocessConfig(size=(224, 224))
SIZES = {"500x375": (500, 375, 12, 15), "4000x3000": (4000, 3000, 3, 4)}  # photos, rounds
Read = Callable[[bytes], object]


def photographs(width: int, height: int, count: int) -> list[bytes]:
    """JPEG files of landscape photographs in the package, with the grain of a camera."""
    folder, made = files("diptych") / "assets" / "samples", []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".jpg") or len(made) == count:
            continue
        photo = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        if photo.width < 1.2 * photo.height:
            continue
        photo = photo.resize((width, height), Image.Resampling.BICUBIC)
        grain = np.random.default_rng(len(made)).normal(0, 2.5, (height, width, 3)).round()
        levels = (np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "JPEG", quality=90, subsampling="4:2:0")
        made.append(file.getvalue())
    return made


def pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.load()
    return np.asarray(image)


def without_extra(read: Read) -> Read:
    """`read` as if simplejpeg were not installed."""
    found = jpeg._decoder

    def call(data: bytes) -> object:
        jpeg._decoder = lambda: None
        try:
            return read(data)
        finally:
            jpeg._decoder = found

    return call


def peers() -> dict[str, Read]:
    """Name -> bytes of a file to normalised pixels."""
    torchvision_stub()
    from open_clip.transform import image_transform
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    transform = image_transform(224, is_train=False, mean=CONFIG.mean, std=CONFIG.std)
    slow = CLIPImageProcessorPil()
    return {
        "open_clip preprocess_val": lambda data: transform(Image.open(io.BytesIO(data))),
        "transformers CLIPImageProcessorPil": lambda data: torch.from_numpy(
            slow(Image.open(io.BytesIO(data)))["pixel_values"][0]
        ),
    }


def ours() -> dict[str, Read]:
    found: dict[str, Read] = {}
    for pixels in ("exact", "near", "fast"):
        prepare = Preprocess(CONFIG, pixels=pixels)
        found[f"Diptych {pixels}"] = prepare
        found[f"Diptych {pixels}, uint8"] = prepare.uint8
        if jpeg.has_jpeg_extra():
            found[f"Diptych {pixels}, uint8, no extra"] = without_extra(prepare.uint8)
    return found


def roofs() -> dict[str, Read]:
    found: dict[str, Read] = {"decode only: Pillow": pillow}
    decode = jpeg._decoder()
    if decode is not None:
        found["decode only: simplejpeg"] = decode
    return found


def seconds(reads: dict[str, Read], photos: list[bytes], rounds: int) -> dict[str, float]:
    """Processor time of a photo: the least of `rounds` for each photo, then the mean over them."""
    least = {name: [float("inf")] * len(photos) for name in reads}
    for _ in range(rounds):
        for i, photo in enumerate(photos):
            for name, read in reads.items():
                start = time.process_time()
                read(photo)
                least[name][i] = min(least[name][i], time.process_time() - start)
    return {name: sum(times) / len(times) for name, times in least.items()}


def difference(read: Read, photos: list[bytes]) -> str:
    """Mean and largest difference in levels to Pillow's; "" for what makes no pixels of a model."""
    offs = []
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CONFIG.mean, CONFIG.std))
    for data in photos:
        pixels = read(data)
        if not isinstance(pixels, torch.Tensor):
            return ""
        if pixels.dtype != torch.uint8:
            pixels = ((pixels * std + mean) * 255).round()
        image = Image.open(io.BytesIO(data))
        width = int(224 * image.width / image.height)
        left = round((width - 224) / 2)
        image = image.resize((width, 224), Image.Resampling.BICUBIC)
        want = torch.from_numpy(np.array(image.crop((left, 0, left + 224, 224)))).permute(2, 0, 1)
        offs.append((pixels.float() - want).abs())
    return f"{torch.cat(offs).mean():.4f} / {max(float(off.max()) for off in offs):.0f}"


def main() -> None:
    names = "pillow", "open_clip_torch", "transformers", "torch", "simplejpeg"
    have = [name for name in names if name != "simplejpeg" or jpeg.has_jpeg_extra()]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, one thread")
    print(", ".join(f"{name} {version(name)}" for name in have), end="")
    print(f", libjpeg-turbo {features.version('libjpeg_turbo')} in Pillow")
    print(f"load when it started: {os.getloadavg()[0]:.1f}" if sys.platform != "win32" else "")
    reads = peers() | ours() | roofs()
    for what, (width, height, count, rounds) in SIZES.items():
        photos = photographs(width, height, count)
        kilobytes = sum(map(len, photos)) / len(photos) / 1024
        print(f"\n{len(photos)} photographs of {what}, {kilobytes:.0f} KiB on average\n")
        print("| variant | photos/s | to open_clip | levels off, mean / most |\n|---|---|---|---|")
        took = seconds(reads, photos, rounds)
        peer = took["open_clip preprocess_val"]
        for name, time_ in took.items():
            off = difference(reads[name], photos)
            print(f"| {name} | {1 / time_:,.1f} | {peer / time_:.2f} x | {off} |", flush=True)


if __name__ == "__main__":
    main()
