"""`Encoder`: a loaded model with everything that belongs to it, from files and words to vectors.

- Rows are unit vectors, float32, in the order of the input; the vector of an input does not depend
  on the batch it came in (up to rounding, measured in docs/reference/exactness.md).
- `enc.model` is the fp32 reference; the encoder runs it through `engine.lower`.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych import zoo
from diptych.config import BertConfig, CLIPConfig, TextConfig, TokenizerConfig
from diptych.engine.cuda import Graphs, Uploader
from diptych.engine.prompts import fill, templates_of
from diptych.engine.results import Classification
from diptych.engine.runners import Engine, Runner, pick, runners
from diptych.engine.stream import Batch, decode, num_processes, num_threads, one_ahead, sources
from diptych.engine.versions import Versions
from diptych.engine.video import frames
from diptych.errors import ConfigError, ImageError, TextError
from diptych.model import CLIP
from diptych.preprocess import Preprocess, collate
from diptych.preprocess.pipeline import Mode
from diptych.tokenizer import Tokenizer
from diptych.tokenizer import build as build_tokenizer

__all__ = ["Encoder"]

log = logging.getLogger("diptych")

_TEXTS_AT_ONCE = 8192  # tokenised together, so that a list of any length takes bounded memory


class Encoder:
    """Images and texts to unit vectors of one space.

    Made by `diptych.load` and `diptych.build`. Safe to share between threads, picklable.

    Attributes:
        model: the `CLIP` module in fp32. Train or change it: the encoder notices.
        config, preprocess, tokenizer: what belongs to the weights.
        device, precision: where and how the towers run ("fp32", "bf16", "fp16" or "int8").
        card: a dict of what is known: name, source, licence, notes.
        batch_size: images (and texts) that run at once.
    """

    def __init__(
        self,
        model: CLIP,
        *,
        config: CLIPConfig,
        preprocess: Preprocess,
        tokenizer: TokenizerConfig,
        folder: Path | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        engine: Engine = "torch",
        card: dict[str, Any] | None = None,
        fingerprint: str | None = None,
    ):
        _check_tokenizer(config, tokenizer)
        self.device, self.precision = pick(engine, device, precision, config)
        self.model = model.to(self.device).eval()
        self.config = config
        self.preprocess = preprocess
        self.tokenizer_config = tokenizer
        self.folder = folder
        self.card = card or {}
        self.batch_size = 32 if self.device.type == "cpu" else 256
        self._tokenizer: Tokenizer | None = None
        self._fingerprint: tuple[Versions, str] | None = None
        if fingerprint is not None:
            self._fingerprint = (Versions(self.model), fingerprint)
        self._visual, self._text = runners(
            self.model,
            engine,
            self.precision,
            config=config,
            preprocess=preprocess,
            tokenizer=tokenizer,
            folder=folder,
            fingerprint=fingerprint,
        )
        self._upload = Uploader(self.device)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; opened when first used.

        Raises:
            CheckpointError: its vocabulary file is not beside the weights.
        """
        if self._tokenizer is None:
            built = build_tokenizer(self.tokenizer_config, self.folder)
            _check_vocabulary(self.config, built.vocab_size)
            self._tokenizer = built
        return self._tokenizer

    @property
    def mode(self) -> Mode:
        """How files beyond plain 8-bit RGB and grey are read; see `Preprocess`."""
        return self.preprocess.mode

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights, preprocessing, tokenizer and mode: what a vector depends on.

        Two copies of a model in two formats have the same one. Precision stands beside it.
        """
        if self._fingerprint is None or not self._fingerprint[0].same_tensors():
            now = Versions(self.model)
            found = zoo.fingerprint(
                self.model.state_dict(),
                self.preprocess.config,
                self.tokenizer_config,
                self.mode,
                config=self.config,
                folder=self.folder,
            )
            self._fingerprint = (now, found)
        return self._fingerprint[1]

    def __repr__(self) -> str:
        name = self.card.get("name", "a model")
        exact = self.preprocess.pixels == "exact"
        pixels = "" if exact else f", pixels={self.preprocess.pixels!r}"
        return (
            f"Encoder({name}, embed_dim={self.config.embed_dim}, "
            f"{self.precision} on {self.device}, mode={self.mode!r}{pixels})"
        )

    def encode_image(
        self,
        images: Any,
        *,
        on_error: Literal["raise", "nan"] = "raise",
        out: Literal["numpy", "torch"] = "numpy",
    ) -> Any:
        """Unit vectors of images.

        Args:
            images: a path, a Pillow image, a uint8 array [H W C], or an iterable of them.
            on_error: "nan" keeps rows aligned, with NaN for what cannot be read, and warns with
                the count.
            out: "torch" leaves the result on the model's device.

        Returns:
            float32 [n, e]; n = 1 for a single image.

        Raises:
            ImageError: an image that cannot be read; names it.
        """
        if on_error not in ("raise", "nan"):
            raise ConfigError(f"on_error must be 'raise' or 'nan', got {on_error!r}")
        if isinstance(images, Tensor):
            raise ImageError(
                "encode_image takes images, not tensors. For pixels that are prepared already, "
                "type enc.model.encode_image(pixels)."
            )
        if isinstance(images, str | Path) and Path(images).is_dir():
            raise ImageError(
                f"{images}: is a folder. Type: for batch in enc.stream({str(images)!r})"
            )
        items = enumerate(image for _, image in sources(images))
        keys, rows, errors = [], [], {}
        for batch in self.stream_pairs(items):
            if batch.errors and on_error == "raise":
                raise batch.errors[min(batch.errors)]
            errors |= batch.errors
            keys += batch.keys
            rows.append(batch.vectors)
        if errors:
            first = errors[min(errors)]
            log.warning(
                "%d of %d images failed; the first: %s", len(errors), len(errors) + len(keys), first
            )
        shape = (len(keys) + len(errors), self.config.embed_dim)
        vectors = torch.full(shape, torch.nan, device=self.device)
        if keys:
            vectors[keys] = torch.cat(rows)
        return _output(vectors, out)

    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        truncate: Literal["report", "error"] = "report",
        out: Literal["numpy", "torch"] = "numpy",
    ) -> Any:
        """Unit vectors of texts: float32 [n, e].

        Args:
            texts: one text or a list of them.
            truncate: "report" cuts what is longer than the context (EOT stays) and logs how many;
                "error" raises.
            out: "torch" leaves the result on the model's device.

        Raises:
            TextTooLongError: under `truncate="error"`; gives the counts.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Sequence):
            raise TextError(f"texts must be a text or a list of texts, not {type(texts).__name__}")
        vectors = torch.empty(len(texts), self.config.embed_dim, device=self.device)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = self.tokenizer.tokenize(
                texts[start : start + _TEXTS_AT_ONCE], truncate=truncate
            )
            # texts of like length run together, so that none is padded to the longest of all
            order = torch.argsort(tokens.lengths, stable=True)
            for rows in order.split(2 * self.batch_size):
                vectors[start + rows] = self.run_text(tokens.ids[rows])
        return _output(vectors, out)

    def stream(self, images: Any, *, out: Literal["numpy", "torch"] = "numpy") -> Iterator[Batch]:
        """Batches of vectors for a folder or an iterable of any length, in bounded memory.

        A folder is walked in sorted order. Files are decoded in threads beside the model
        (`DIPTYCH_THREADS`). Each failure is named in the batch it came with.
        """
        for batch in self.stream_pairs(sources(images)):
            yield batch._replace(vectors=_output(batch.vectors, out))

    def encode_video(
        self,
        path: str | Path,
        *,
        every: float | None = 1.0,
        out: Literal["numpy", "torch"] = "numpy",
    ) -> tuple[Any, np.ndarray]:
        """Unit vectors of a video's pictures, and the second of each. Extra `photos`.

        Args:
            path: a video file.
            every: one picture in so many seconds; None: about one a shot. See `video.frames`.
            out: "torch" leaves the vectors on the model's device.

        Returns:
            (vectors float32 [n, e], seconds float64 [n]), in order of time.

        Raises:
            ImageError: the file is no video that can be read; names it.
            MissingExtraError: PyAV is not installed.
        """
        seconds, pixels, rows = [], [], []
        limits = self.preprocess.limits
        for second, picture in frames(path, every=every, limits=limits):
            seconds.append(second)
            # here, not in threads: a window of decoded pictures would take gigabytes
            pixels.append(self.preprocess.uint8(picture, name=f"{path} at second {second:.2f}"))
            if len(pixels) == self.batch_size:
                rows.append(self.run_image(collate(pixels)))
                pixels = []
        if pixels:
            rows.append(self.run_image(collate(pixels)))
        return _output(torch.cat(rows), out), np.array(seconds)

    def stream_pairs(self, items: Iterable[tuple[Any, Any]]) -> Iterator[Batch]:
        """`stream` of (key, image) pairs, under the caller's keys; vectors are tensors."""
        batches = self._batches(items)
        # a GPU is given the next batch before anybody waits for this one
        return one_ahead(batches) if self.device.type == "cuda" else batches

    def _batches(self, items: Iterable[tuple[Any, Any]]) -> Iterator[Batch]:
        keys, pixels, errors = [], [], {}

        def batch() -> Batch:
            vectors = torch.empty(0, self.config.embed_dim, device=self.device)
            if pixels:
                rows = collate(pixels)
                vectors = self.run_image(self._upload(rows) if isinstance(rows, Tensor) else rows)
            return Batch(keys, vectors, errors)

        window = 2 * self.batch_size
        how = {"threads": num_threads(), "processes": num_processes(), "window": window}
        for done in decode(items, self.preprocess.uint8, **how):
            if done.pixels is None:
                errors[done.key] = done.error
            else:
                keys.append(done.key)
                pixels.append(done.pixels)
            if self.batch_size in (len(keys), len(errors)):
                yield batch()
                keys, pixels, errors = [], [], {}
        if keys or errors:
            yield batch()

    def run_image(self, batch: Any) -> Tensor:
        """Unit rows [n, e] of an image batch that is prepared already, by the fast path: what
        `collate` makes of `Preprocess.uint8` or of `Preprocess`, that is uint8 or normalised.
        """
        return self._unit(self._visual, batch)

    def run_text(self, ids: Tensor) -> Tensor:
        """Unit rows [n, e] of token ids [n, s], by the fast path."""
        return self._unit(self._text, ids)

    def _unit(self, tower: Runner, batch: Any) -> Tensor:
        if not isinstance(tower, Graphs):  # those cut texts before they copy them up
            batch = _to(batch, self.device)
        with torch.no_grad():
            return F.normalize(tower(batch).float(), dim=-1)

    def classify(
        self,
        images: Any,
        labels: Sequence[str],
        templates: str | Sequence[str] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """For each image, [(label, probability)], best first.

        Softmax models: softmax over the labels of exp(logit_scale) * cosine. Sigmoid models: each
        label alone, sigmoid(exp(logit_scale) * cosine + bias).

        Args:
            images: as for `encode_image`.
            labels: plain words or sentences.
            templates: None takes the labels as given; "photo" is "a photo of a {}."; or the name
                of a prompt set, or a list. Several templates are averaged as unit vectors.
        """
        if not isinstance(images, str | Path | Sequence | np.ndarray) and isinstance(
            images, Iterable
        ):
            images = list(images)
        weights = self.classifier(labels, templates, out="torch")
        vectors = self.encode_image(images, out="torch")
        probabilities = self.probabilities(vectors, weights)
        rows = []
        for row in probabilities.tolist():
            pairs = zip(labels, row, strict=True)
            rows.append(sorted(pairs, key=lambda pair: -pair[1]))
        return Classification(rows, [image for _, image in sources(images)])

    def classifier(
        self,
        labels: Sequence[str],
        templates: str | Sequence[str] | None = None,
        *,
        out: Literal["numpy", "torch"] = "numpy",
    ) -> Any:
        """One unit vector a label, [l, e]: the mean over its prompts' unit vectors, normalised.

        Source: openai/CLIP, notebook Prompt_Engineering_for_ImageNet.

        Raises:
            ConfigError: no labels, or a template that cannot be filled.
        """
        if isinstance(labels, str) or not labels:
            raise ConfigError(f"labels must be a list of at least one text, got {labels!r:.60}")
        filled = [fill(template, x) for x in labels for template in templates_of(templates)]
        vectors = self.encode_text(filled, out="torch").view(len(labels), -1, self.config.embed_dim)
        return _output(F.normalize(vectors.mean(1), dim=-1), out)

    def probabilities(self, image_vectors: Tensor, classifier: Tensor) -> Tensor:
        """[n, l]: softmax over the labels, or a sigmoid of each, as the model was trained."""
        with torch.no_grad():
            logits = self.model.logits(image_vectors, classifier)
            return logits.softmax(-1) if self.config.loss == "softmax" else logits.sigmoid()

    def similarity(self, images: Any, texts: str | Sequence[str]) -> np.ndarray:
        """Cosines, float32 [n, m]."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fingerprint": None}


def _to(batch: Any, device: torch.device) -> Any:
    """A tensor, or a `Patches` of tensors, on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return type(batch)(*(part.to(device) for part in batch))


def _output(vectors: Tensor, out: str) -> Any:
    match out:
        case "numpy":
            return vectors.cpu().numpy()
        case "torch":
            return vectors
    raise ConfigError(f"out must be 'numpy' or 'torch', got {out!r}")


def _check_tokenizer(config: CLIPConfig, tokenizer: TokenizerConfig) -> None:
    if not isinstance(config.text, TextConfig | BertConfig):
        return
    longest = config.text.context_length
    if tokenizer.context_length > longest:
        raise ConfigError(
            f"the tokenizer makes {tokenizer.context_length} ids, the text tower has {longest} "
            "positions: the two do not belong together"
        )
    if config.text.pad_id not in (None, tokenizer.pad_id):
        raise ConfigError(
            f"the tokenizer pads with {tokenizer.pad_id}, the text tower leaves out "
            f"{config.text.pad_id}: the two do not belong together"
        )


def _check_vocabulary(config: CLIPConfig, vocab_size: int) -> None:
    known = isinstance(config.text, TextConfig | BertConfig)
    if known and vocab_size > config.text.vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} ids, the text tower {config.text.vocab_size} rows: "
            "the two do not belong together"
        )
