"""An evaluation in its folder: set after set, each whole or not at all, and gone on with later.

    OUT/report.json, report.html        everything (no times in them: the same run, the same bytes)
    OUT/sets/NAME/result.json           one set; items.npz what each sample came to; worst-*.jpg
    OUT/clip_benchmark/NAME.json        the same figures as CLIP_benchmark's tools read them

- A set is done if its folder holds a result of the same model, precision, mode, protocol and
  samples; otherwise it is measured again. So a run that was broken off goes on with the same
  command, and its report is the one that an unbroken run would have written.
- One folder belongs to one model.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.engine.page import thumbnail
from diptych.errors import ConfigError, DataError, ImageError, MissingExtraError, ShardError
from diptych.eval.published import verdicts
from diptych.eval.sets import DataSet, Samples, read
from diptych.eval.tasks import Job, Outcome, measure, num_pictures
from diptych.eval.tasks.protocol import digest, protocol
from diptych.zoo.atomic import atomic_folder, atomic_write

if TYPE_CHECKING:
    from diptych.engine import Encoder

__all__ = ["REPORT", "evaluate", "identity_of", "read_report", "read_result"]

REPORT = "report.json"
_FORMAT = 2  # of result.json; a change of what is measured is a new number
_SIDE = 200  # pixels of a kept picture
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Result = dict[str, Any]


@contextlib.contextmanager
def _silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda n: None


def evaluate(
    encoder: Encoder,
    rows: Sequence[DataSet],
    out: Path,
    *,
    data: Path | None = None,
    partial: bool = False,
    progress: Progress = _silent,
) -> Iterator[Result]:
    """Measure the sets that `out` does not hold yet, and write the report of all that it holds.

    Args:
        rows: `eval.sets.find(["packaged"])`.
        data: the folder that holds a folder for each set, by its name.
        partial: whether classes may be without a single picture. They stay among the candidates.
        progress: what to show while a set is measured: its title and its number of pictures.

    Yields:
        For each set its result as it stands in the report, "kept" if it was there already; or
        {"set", "reason"} of one that cannot be measured.

    Raises:
        ConfigError: the folder holds an evaluation of another model.
    """
    _check_owner(out, encoder)
    measured, missing = [], []
    for row in rows:
        try:
            result, kept = _one(encoder, row, out, data, partial, progress)
        except (DataError, MissingExtraError, ShardError) as error:
            missing.append({"set": row.name, "reason": str(error)})
            yield missing[-1]
            continue
        measured.append(result)
        _write_json(out / "clip_benchmark" / f"{row.name}.json", _clip_benchmark(result))
        yield result | {"kept": kept}
    named = {result["set"] for result in (*measured, *missing)}
    for folder in sorted(path.parent for path in out.glob("sets/*/result.json")):
        if folder.name not in named:  # of an earlier run
            try:
                measured.append(read_result(folder))
            except DataError as error:
                missing.append({"set": folder.name, "reason": str(error)})
    report = {"model": _model(encoder), "sets": measured, "not_measured": missing}
    _write_json(out / REPORT, report)


def identity_of(encoder: Encoder, row: DataSet, found: Samples) -> str:
    """What a result depends on, as one SHA-256."""
    return digest([_FORMAT, _model(encoder), row.name, protocol(row, found)])


def read_result(folder: Path) -> Result:
    """The result in a set's folder.

    Raises:
        DataError: it is not there, or damaged.
    """
    return _read_json(folder / "result.json")


def read_report(out: Path) -> dict[str, Any]:
    """What `evaluate` wrote. Raises DataError: it is not there, or damaged."""
    return _read_json(out / REPORT)


def _one(
    encoder: Encoder,
    row: DataSet,
    out: Path,
    data: Path | None,
    partial: bool,
    progress: Progress,
) -> tuple[Result, bool]:
    found = read(row, None if data is None else data / row.name, partial=partial)
    identity, folder = identity_of(encoder, row, found), out / "sets" / row.name
    with contextlib.suppress(DataError):
        result = read_result(folder)
        if result["identity"] == identity:
            return result, True
    with progress(row.title, num_pictures(found)) as advance:
        outcome, job, unused = measure(encoder, row, found, advance=advance)
    if row.metric not in outcome.figures:
        raise DataError(
            f"{row.name}: is quoted by {row.metric}, which these samples do not give. There is: "
            f"{', '.join(outcome.figures)}."
        )
    result = {
        "identity": identity,
        "set": row.name,
        "title": row.title,
        "source": row.source,
        "licence": row.licence,
        "note": row.note,
        "model": _model(encoder),
        "protocol": protocol(row, found),
        "num_measured": len(job.samples),
        "unused": [{"key": lost.key, "reason": lost.reason} for lost in unused],
        "notes": list(found.notes),
        "headline": row.metric,
        "chance": outcome.chance,
        "figures": {key: figure._asdict() for key, figure in outcome.figures.items()},
        "published": verdicts(_model(encoder)["name"], row, outcome.figures, len(job.samples)),
        "tables": outcome.tables,
    }
    if folder.exists():  # of another protocol or other samples
        shutil.rmtree(folder)
    with atomic_folder(folder) as part:
        result["worst"] = _keep_worst(part, outcome, job)
        keys = np.array([sample.key for sample in job.samples])
        np.savez(part / "items.npz", key=keys, **outcome.items)  # pyrefly: ignore
        (part / "result.json").write_text(_json(result), encoding="utf-8")
    return read_result(folder), False


def _keep_worst(folder: Path, outcome: Outcome, job: Job) -> list[dict[str, Any]]:
    kept = []
    for i, worst in enumerate(outcome.worst, 1):
        sample = job.samples[worst.row]
        first = sample.image[0] if isinstance(sample.image, list) else sample.image
        name = f"worst-{i:02}.jpg"
        try:
            picture = thumbnail(first() if callable(first) else first, side=_SIDE)
        except ImageError:  # a frame of a video that could not be read: the others stood for it
            continue
        picture.save(folder / name, "JPEG", quality=80)
        kept.append({"key": sample.key, "told": worst.told, "picture": name})
    return kept


def _model(encoder: Encoder) -> dict[str, Any]:
    return {
        "name": encoder.card.get("name", "a model"),
        "fingerprint": encoder.fingerprint,
        "precision": encoder.precision,
        "mode": encoder.mode,
        "pixels": encoder.preprocess.pixels,
    }


def _check_owner(out: Path, encoder: Encoder) -> None:
    for path in sorted(out.glob("sets/*/result.json")):
        with contextlib.suppress(DataError):
            other = {"pixels": "exact"} | _read_json(path)["model"]  # older ones do not tell
            if other != _model(encoder):
                raise ConfigError(
                    f"{out}: holds an evaluation of {other['name']} ({other['precision']}, mode "
                    f"{other['mode']}, {other['fingerprint'][:12]}), which is another model or "
                    "another way to run it. Give another folder: --out FOLDER"
                )


def _clip_benchmark(result: Result) -> dict[str, Any]:
    """A result as `clip_benchmark build` reads it; its names of the figures."""
    model, _, tag = str(result["model"]["name"]).partition("/")
    names = {
        "top1": "acc1",
        "top5": "acc5",
        "mean_per_class": "mean_per_class_recall",
        "map": "mean_average_precision",
        "image_to_text_r1": "text_retrieval_recall@1",
        "image_to_text_r5": "text_retrieval_recall@5",
        "image_to_text_r10": "text_retrieval_recall@10",
        "text_to_image_r1": "image_retrieval_recall@1",
        "text_to_image_r5": "image_retrieval_recall@5",
        "text_to_image_r10": "image_retrieval_recall@10",
    }
    tasks = {
        "classification": "zeroshot_classification",
        "multilabel": "zeroshot_classification",
        "retrieval": "zeroshot_retrieval",
        "choice": "image_caption_selection",
    }
    figures = result["figures"]
    return {
        "dataset": result["set"],
        "model": model,
        "pretrained": tag,
        "task": tasks[result["protocol"]["task"]],
        "metrics": {names.get(key, key): figure["value"] for key, figure in figures.items()},
        "language": "en",
    }


def _json(thing: Any) -> str:
    return json.dumps(thing, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _write_json(path: Path, thing: Any) -> None:
    atomic_write(path, lambda part: part.write_text(_json(thing), encoding="utf-8"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: is no result of `diptych eval run` ({error}). Give the folder that was its "
            "--out."
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no result of `diptych eval run`.")
    return found
