"""Generated damages, found with `mini` by words and by few sound pictures, against blind methods.

    scripts/bench anomaly [--model mini] [--seed 0] [--threads 1] [--folder MVTEC_FOLDER]

The pictures are those of `diptych.judge.defects` (six categories, four damages), or your copy of
MVTec AD. Blind methods see pixels and no model; they get the same sound pictures:

- difference: how far each pixel is from the mean of the sound pictures, in their deviations,
  blurred; a picture's score is the highest value. (With one picture the deviation is 0.02 for all.)
- colours: the same windows, memory and map as ours, but a window's vector is the mean and the
  deviation of its red, green and blue.

AUROC in percent with 95 % intervals, bootstrap over pictures. The verdict compares four sound
pictures with the better blind method of each kind, on the mean over categories.
"""

import argparse
import functools
import itertools
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import diptych
from diptych.eval.metrics import roc_auc
from diptych.eval.uncertainty import bootstrap
from diptych.judge.anomaly import SCALES, Detector, Found
from diptych.judge.defects import write_defects
from diptych.judge.inspection import categories, figures, mask_of, read_mvtec
from diptych.judge.windows import MAP_SIDE, cut, mean_map, opened

SHOTS = (1, 2, 4)
FLOOR = 0.02  # of a deviation, in brightness from 0 to 1: two pictures may agree by chance


@functools.cache
def pixels(path: Path) -> torch.Tensor:
    """[3 h w] from 0 to 1, a long side of 128."""
    image = opened(path)
    image.thumbnail((MAP_SIDE, MAP_SIDE))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(
        image.height, image.width, 3
    ).permute(2, 0, 1).float() / 255  # fmt: skip


def difference(train: list[Path], test: list[Path]) -> list[torch.Tensor]:
    sound = torch.stack([pixels(path) for path in train])
    mean, deviation = sound.mean(0), sound.std(0, correction=0).clamp_min(FLOOR)
    found = [((pixels(path) - mean).abs() / deviation).mean(0) for path in test]
    return [F.avg_pool2d(x[None], 5, 1, 2, count_include_pad=False)[0] for x in found]


@functools.cache
def colour_windows(path: Path) -> tuple[tuple[int, int], list[tuple[list, torch.Tensor]]]:
    """The size of a picture, and of each scale its windows with mean and deviation of colours."""
    image = opened(path)
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() / 255
    values = values.view(image.height, image.width, 3)
    scales = []
    for scale in SCALES:
        boxes = cut(image.width, image.height, scale)
        pieces = [
            values[top:bottom, left:right].reshape(-1, 3) for left, top, right, bottom in boxes
        ]
        scales.append((boxes, torch.stack([torch.cat([x.mean(0), x.std(0)]) for x in pieces])))
    return image.size, scales


def colours(train: list[Path], test: list[Path]) -> list[torch.Tensor]:
    known = [
        torch.cat([colour_windows(path)[1][i][1] for path in train]) for i in range(len(SCALES))
    ]
    maps = []
    for path in test:
        size, scales = colour_windows(path)
        each = [
            mean_map(torch.cdist(rows, memory).amin(1), boxes, *size)
            for (boxes, rows), memory in zip(scales, known, strict=True)
        ]
        maps.append(torch.stack(each).mean(0))
    return maps


def methods(encoder: diptych.Encoder, name: str, train: list[Path], test: list[Path]):
    """Name -> (scores, maps)."""
    detector = Detector(encoder, object=name)
    seen, known = ([detector.look(p) for p in some] for some in (test, train))

    def judged(how: Detector) -> tuple[list[float], list[torch.Tensor]]:
        found: list[Found] = [how.judge(each) for each in seen]
        return [each.score for each in found], [each.map for each in found]

    rows = {"words": judged(detector)}
    silent = Detector(encoder)
    for shots in SHOTS:
        rows[f"words + {shots} sound"] = judged(detector.fit(known[:shots]))
        rows[f"{shots} sound"] = judged(silent.fit(known[:shots]))
        for blind in (difference, colours):
            maps = blind(train[:shots], test)
            rows[f"blind {blind.__name__}, {shots} sound"] = [float(x.max()) for x in maps], maps
    return rows


def cell(value: float, interval) -> str:
    return f"{100 * value:5.1f} [{100 * interval.low:3.0f}, {100 * interval.high:3.0f}]"


def verdict(all_scores: dict, truths: list[torch.Tensor], ours: str, other: str) -> str:
    """The mean over categories of the difference of image AUROC, pictures drawn anew."""
    ends = torch.tensor([0, *(len(t) for t in truths)]).cumsum(0)
    a, b = (torch.cat([torch.tensor(x) for x in all_scores[n]]).double() for n in (ours, other))
    truth = torch.cat(truths)

    def mean_difference(rows: torch.Tensor) -> float:
        found = []
        for start, end in itertools.pairwise(ends):
            mine = rows[(rows >= start) & (rows < end)]
            if truth[mine].any() and not truth[mine].all():
                found.append(roc_auc(a[mine], truth[mine]) - roc_auc(b[mine], truth[mine]))
        return sum(found) / len(found)

    value = mean_difference(torch.arange(len(truth)))
    return cell(value, bootstrap(mean_difference, len(truth)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a copy of MVTec AD")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder = diptych.load(args.model, device="cpu", precision="fp32")
    print(f"{args.model} {encoder.fingerprint[:16]}, fp32; windows of {SCALES} of the short side")
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or write_defects(Path(made, "defects"), seed=args.seed)
        run(encoder, folder)


def run(encoder: diptych.Encoder, folder: Path) -> None:
    scores: dict[str, list] = {}
    pixel: dict[str, list[float]] = {}
    truths = []
    for place in categories(folder):
        category = read_mvtec(place)
        paths = [piece.path for piece in category.test]
        damaged = torch.tensor([piece.mask is not None for piece in category.test])
        truths.append(damaged)
        known = {piece.path: mask_of(piece) for piece in category.test}
        print(f"\n{category.name}: {int((~damaged).sum())} sound, {int(damaged.sum())} damaged")
        print(f"{'method':30} {'image AUROC':>18} {'pixel AUROC':>18}")
        for name, (values, maps) in methods(
            encoder, category.name.replace("_", " "), list(category.train), paths
        ).items():
            found = figures(
                values, maps, category.test, masks=lambda piece, known=known: known[piece.path]
            )
            print(f"{name:30} {cell(found.image, found.image_interval):>18} "
                  f"{cell(found.pixel, found.pixel_interval):>18}", flush=True)  # fmt: skip
            scores.setdefault(name, []).append(values)
            pixel.setdefault(name, []).append(found.pixel)
    print("\nmean over categories")
    mean = {
        name: sum(
            roc_auc(torch.tensor(v).double(), t) for v, t in zip(some, truths, strict=True)
        ) / len(truths)
        for name, some in scores.items()
    }  # fmt: skip
    for name, value in mean.items():
        print(f"{name:30} {100 * value:18.1f} {100 * sum(pixel[name]) / len(truths):18.1f}")
    blind = max((name for name in mean if "blind" in name and "4" in name), key=mean.__getitem__)
    print(f"\nimage AUROC less that of {blind!r}, points")
    for name in ("words", "4 sound", "words + 4 sound"):
        print(f"{name:30} {verdict(scores, truths, name, blind):>18}")


if __name__ == "__main__":
    main()
