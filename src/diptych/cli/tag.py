"""`diptych tag`: which labels of a vocabulary hold for each picture, and where that is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.common import (
    finish,
    inputs,
    json_option,
    load_model,
    model_options,
    progress,
    text_list,
)
from diptych.cli.main import on_a_line
from diptych.cli.tagged import Output

if TYPE_CHECKING:
    import numpy as np

    from diptych.engine import Batch, Encoder
    from diptych.judge.sidecars import Naming
    from diptych.judge.vocabulary import Vocabulary

_SAMPLE = 4096  # pictures that say what is usual
_FEW = 200  # of fewer pictures the packaged photographs help to say it


@click.command()
@click.argument("photos", nargs=-1)
@click.option(
    "--vocabulary",
    "file",
    type=click.Path(path_type=Path),
    help="Labels: a text file with one a line, or .json, .csv, .tsv.",
)
@click.option("--labels", help='Labels instead of a file: "a,b", or @file with one a line.')
@click.option("--label", multiple=True, help="One label, which may hold commas. Repeatable.")
@click.option("--templates", help='Put each label into a sentence: "photo", another prompt set, '
              'or "a drawing of a {}".')  # fmt: skip
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="A cosine for all labels that have none of their own.",
)
@click.option(
    "--spreads",
    type=click.FloatRange(0),
    help="Else: how far above what is usual for a label a picture must stand.  [default: 3.3]",
)
@click.option(
    "--examples",
    type=click.Path(path_type=Path),
    help="Pictures you tagged: a list with path and labels. Thresholds are fitted to it.",
)
@click.option(
    "--target-precision",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="With --examples: be right this often, proved at 95 %; else the best F1.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="With --examples: write the vocabulary with its thresholds, as .json.",
)
@click.option(
    "--level",
    default="all",
    show_default=True,
    help="all: with what a label implies; lowest: without; 1, 2, ...: that level only.",
)
@click.option("--top", type=click.IntRange(1), help="At most so many tags a picture.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write a CSV file as well.")
@click.option(
    "--sidecars",
    type=click.Choice(["full", "stem"]),
    help="Write XMP beside each photo: photo.jpg.xmp (full) or photo.xmp (stem).",
)
@click.option(
    "--alt-text",
    is_flag=True,
    help="Add a phrase made of the tags. It is no caption: the model writes none.",
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    help="Where vectors are kept, so that "
    "no picture is encoded twice.  [default: a file in the cache]",
)
@click.option("--collection", help="Take the vectors of this search collection; PHOTOS narrow it.")
@json_option
@model_options
def tag(
    photos: tuple[str, ...],
    file: Path | None,
    labels: str | None,
    label: tuple[str, ...],
    templates: str | None,
    threshold: float | None,
    spreads: float | None,
    examples: Path | None,
    target_precision: float | None,
    save: Path | None,
    level: str,
    top: int | None,
    table: Path | None,
    sidecars: Naming | None,
    alt_text: bool,
    vectors: Path | None,
    collection: str | None,
    as_json: bool,
    **model: Any,
) -> None:
    """Say which labels of a vocabulary hold for each picture; the photos are only read.

    PHOTOS are files, folders (all images below them), or - for stdin: one image, or paths, one a
    line.

    In a vocabulary file an indented label is a kind of the one above it, commas bring synonyms,
    and "=" sets a threshold:

    \b
      animal
          dog, puppy = 0.21
      outdoors

    A label without a threshold holds where a picture stands far above what is usual for that label
    among your pictures. Vectors are kept: another label, another run, and no picture is encoded
    again.

    \b
      diptych tag ~/Pictures --vocabulary words.txt --json
      diptych tag ~/Pictures --vocabulary words.txt --sidecars full
      diptych tag photo.jpg --labels "a dog,grass,snow" --alt-text
    """
    if (save or target_precision) and examples is None:
        raise click.UsageError("--save and --target-precision go with --examples LIST")
    if not photos and collection is None and examples is None:
        raise click.UsageError("no pictures. Give PHOTOS, or --collection NAME.")
    if collection is not None and (vectors is not None or "-" in photos):
        raise click.UsageError("--collection brings its own vectors: leave out --vectors and -")
    words = _vocabulary(file, labels, label, threshold)
    output = Output(as_json, alt_text, table, sidecars, _level(level), top)
    encoder = load_model(**model)
    job = Job(encoder, words, templates, spreads)
    with job.kept(vectors):
        if examples is not None:
            job.fit(examples, target_precision, save, quiet=as_json)
        if photos or collection is not None:
            batches = _collected(encoder, collection, photos) if collection else job.encode(photos)
            job.run(batches, output)
            output.finish()
            if job.store is not None and not as_json:
                click.echo(f"{job.store.num_encoded:,} pictures encoded", err=True)
            finish(output.done, output.errors)


def _level(text: str) -> Any:
    if text in ("all", "lowest"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise click.UsageError(f"--level must be all, lowest, or a number from 1, got {text!r}")
    return int(text)


def _vocabulary(
    file: Path | None, labels: str | None, label: tuple[str, ...], threshold: float | None
) -> Vocabulary:
    from diptych.judge.vocabulary import Vocabulary, from_names, read_vocabulary

    if (file is not None) == (labels is not None or bool(label)):
        raise click.UsageError("give --vocabulary FILE, or --labels / --label: one of the two")
    if file is not None:
        found = read_vocabulary(file)
    else:
        found = from_names(text_list(labels, label, what="label"))
    if threshold is None:
        return found
    return Vocabulary(
        labels=tuple(
            replace(x, threshold=threshold) if x.threshold is None else x for x in found.labels
        )
    )


class Job:
    """Pictures to cosines to tags; what is kept, and what is usual."""

    def __init__(
        self, encoder: Encoder, words: Vocabulary, templates: str | None, spreads: float | None
    ):
        from diptych.judge.tag import SPREADS, label_vectors

        self.encoder, self.words = encoder, words
        self.spreads = SPREADS if spreads is None else spreads
        self.store: Any = None
        template = [templates] if templates and "{}" in templates else templates
        self.columns = label_vectors(encoder, words, template)

    @contextlib.contextmanager
    def kept(self, path: Path | None) -> Iterator[None]:
        from diptych.judge.kept import Kept, kept_path

        with Kept(path or kept_path(self.encoder), encoder=self.encoder) as self.store:
            yield

    def encode(self, photos: tuple[str, ...]) -> Iterator[Batch]:
        from diptych.judge.kept import stream

        total = sum(1 for _ in inputs(photos)) if "-" not in photos else None
        with progress("encoding", total, printing=False) as advance:
            for batch in stream(self.encoder, inputs(photos), self.store):
                advance(len(batch.keys) + len(batch.errors))
                yield batch

    def fit(
        self, examples: Path, precision: float | None, save: Path | None, *, quiet: bool
    ) -> None:
        """Fit thresholds to examples; every one of them must be readable."""
        import numpy as np

        from diptych.judge.kept import stream
        from diptych.judge.labelled import read_examples
        from diptych.judge.tag import fit_thresholds, with_thresholds
        from diptych.judge.vocabulary import write_vocabulary

        paths, truth = read_examples(examples, self.words)
        rows = []
        for batch in stream(self.encoder, paths, self.store):
            for error in batch.errors.values():
                raise error
            rows.append(batch.vectors)
        cosines = np.concatenate(rows) @ self.columns.T
        found = fit_thresholds(cosines, truth, precision=precision)
        self.words = with_thresholds(self.words, found.thresholds)
        if save is not None:
            write_vocabulary(save, self.words)
        if quiet:
            return
        for i, label in enumerate(self.words.labels):
            told = found.left.get(i)
            if told is None:
                told = f"{found.thresholds[i]:.3f}, precision {found.precision[i]:.2f} and recall "
                told += f"{found.recall[i]:.2f} on {int(truth[:, i].sum())} examples that have it"
            click.echo(f"{on_a_line(str(label))}: {told}", err=True)

    def run(self, batches: Iterator[Batch], output: Output) -> None:
        """Tags as pictures come, or, where what is usual decides, when all have come."""
        import numpy as np

        from diptych.judge.tag import thresholds

        if all(label.threshold is not None for label in self.words.labels):
            cuts = thresholds(self.words, None, None)
            for batch in batches:
                output.failures(batch)
                output.show(batch.keys, batch.vectors @ self.columns.T, cuts, self.words)
            return
        keys: list[Any] = []
        rows: list[np.ndarray] = []
        for batch in batches:
            output.failures(batch)
            keys += batch.keys
            rows.append(batch.vectors.astype(np.float16))  # 0.8 kB a picture: a million fit
        if not keys:
            return
        sample = self._sample(np.concatenate(rows))
        cuts = thresholds(
            self.words, sample @ self.columns.T, self._usual(sample), spreads=self.spreads
        )
        start = 0
        for some in rows:
            cosines = some.astype(np.float32) @ self.columns.T
            output.show(keys[start : start + len(some)], cosines, cuts, self.words)
            start += len(some)

    def _sample(self, vectors: np.ndarray) -> np.ndarray:
        """At most 4096 of the pictures; with few of them, the packaged photographs as well."""
        import numpy as np

        from diptych.judge.kept import stream

        places = np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLE)).round().astype(int)
        some = vectors[places].astype(np.float32)
        if len(some) >= _FEW:
            return some
        from importlib import resources

        folder = Path(str(resources.files("diptych").joinpath("assets", "samples")))
        company = list(stream(self.encoder, sorted(folder.glob("*.jpg")), self.store))
        return np.concatenate([some, *(batch.vectors for batch in company)])

    def _usual(self, sample: np.ndarray) -> Any:
        from diptych.engine.relevance import Relevance, background_texts

        return Relevance.fit(sample, self.encoder.encode_text(background_texts()))


def _collected(encoder: Encoder, collection: str, photos: tuple[str, ...]) -> Iterator[Batch]:
    """Paths and vectors of the pictures of a collection, some at a time."""
    import numpy as np

    from diptych.engine import Batch
    from diptych.search.filters import Filters
    from diptych.search.store import Store

    with Store(collection) as store:
        model = store.model(encoder.fingerprint)
        if model is None:
            raise click.UsageError(
                f"{collection}: has no vectors of this model. Type: diptych index --model NAME"
            )
        for folder in photos or (None,):
            condition, values = Filters(folder=folder).sql()
            found = store.rows(
                "SELECT f.path, v.vector FROM files f JOIN contents c ON c.id=f.content "
                "JOIN vectors v ON v.content=c.id "
                f"WHERE c.kind='image' AND v.model=:model AND {condition} ORDER BY f.path",
                values | {"model": model.id},
            )
            while rows := list(islice(found, 1024)):
                blobs = np.frombuffer(b"".join(blob for _, blob in rows), "<f2")
                vectors = blobs.reshape(len(rows), -1).astype(np.float32)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                yield Batch([path for path, _ in rows], vectors, {})
