"""ONNX Runtime as an engine: the encoder's towers as graphs, exported once and then kept.

    enc = diptych.load("mini", engine="onnxruntime")

- A graph lies in the cache under the hash of the weights and of the versions that wrote it; it is
  written whole, by one process at a time, and the first row of a process is held against the tower.
- Graphs hold the weights that were loaded. Once those are trained or changed, or the tower has
  hooks or adapters or gets pixels of another size, the tower itself runs: nothing stale comes out.
- Vectors are fp32 and within 2e-6 of the tower's; the CPU alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from diptych import zoo
from diptych.config import CLIPConfig, PreprocessConfig, TokenizerConfig
from diptych.engine.exported import compare
from diptych.engine.graph import (
    OPSET,
    SUFFIXES,
    Side,
    check_packages,
    open_onnx,
    sides,
    write_graph,
)
from diptych.engine.lengths import cut
from diptych.engine.lower import Lowered
from diptych.engine.versions import Versions
from diptych.errors import ConfigError
from diptych.model import CLIP
from diptych.preprocess.pipeline import normalise_batch
from diptych.zoo.atomic import atomic_folder

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["OnnxTower", "onnx_towers"]

log = logging.getLogger("diptych")


def onnx_towers(
    model: CLIP,
    *,
    config: CLIPConfig,
    preprocess: PreprocessConfig,
    tokenizer: TokenizerConfig,
    fingerprint: str | None = None,
) -> tuple[OnnxTower, OnnxTower]:
    """The image and the text tower of a model, run by ONNX Runtime.

    Args:
        model: on the CPU, in fp32.
        fingerprint: of the model as it is now; None: the towers hash their weights themselves.

    Raises:
        ConfigError: the model is on another device.
        MissingExtraError: a package of the extra `export` is not installed.
    """
    check_packages("onnx")
    if (device := model.logit_scale.device).type != "cpu":
        raise ConfigError(
            f"engine 'onnxruntime' runs on the CPU, not on {device}. Pass device='cpu'"
        )
    both = sides(model, config, preprocess, tokenizer)
    made_of = (config, preprocess, tokenizer)
    return (
        OnnxTower(both["image"], made_of=made_of, fingerprint=fingerprint),
        OnnxTower(both["text"], made_of=made_of, fingerprint=fingerprint),
    )


class OnnxTower:
    """Calls a tower by ONNX Runtime. Safe to share between threads, picklable.

    Args:
        side: the tower and what it takes.
        made_of: config, pixels and tokens of the model, which its hash depends on.
        fingerprint: of the model as it is now; None: the tower's weights are hashed when needed.
    """

    def __init__(
        self,
        side: Side,
        *,
        made_of: tuple[CLIPConfig, PreprocessConfig, TokenizerConfig],
        fingerprint: str | None = None,
    ):
        self.side, self.made_of, self.fingerprint = side, made_of, fingerprint
        self._versions = Versions(side.tower)
        self._otherwise = Lowered(side.tower, dtype=torch.float32, pixels=made_of[1])
        self._lock = threading.Lock()
        self._threads = 0
        self._run: Callable[[Tensor], Tensor] | None = None
        self._wrong = False

    def __call__(self, batch: Any) -> Float[Tensor, "n e"]:
        """Unit rows of pixels (float32 or uint8 [n 3 H W]) or ids [n s]."""
        if self._wrong or not self._versions.hold() or not self._fits(batch):
            return self._otherwise(batch)
        if batch.dtype == torch.uint8:
            batch = normalise_batch(batch, self.made_of[1])
        if self.side.shorter:
            batch = cut(self.side.tower, batch)
        batch = batch.contiguous()
        run = self._opened(batch[:1])
        return self._otherwise(batch) if run is None else run(batch)

    def _fits(self, batch: Any) -> bool:
        """Whether the graph takes it: other sizes of picture, and `Patches`, are the tower's."""
        if not isinstance(batch, Tensor) or len(batch) == 0:
            return False
        shape, most = tuple(batch.shape[1:]), self.side.shape
        return shape == most or (self.side.shorter and shape < most)

    def _opened(self, row: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The graph, with as many threads as torch has now; None if it gives other vectors."""
        with self._lock:
            if self._run is None or self._threads != torch.get_num_threads():
                file = self._file()
                run = open_onnx(file)
                with torch.no_grad():
                    expected = F.normalize(self.side.tower(row), dim=-1)
                parity = compare(run(row), expected, self.side.side, "1 row")
                self._run, self._threads = run, torch.get_num_threads()
                if parity.differs("fp32"):
                    self._wrong = True
                    why = (
                        "%s: not used, its vectors differ from the tower's (%s). Remove its folder."
                    )
                    log.warning(why, file, parity)
            return None if self._wrong else self._run

    def _file(self) -> Path:
        """The graph's file in the cache, written if it is not there."""
        folder = zoo.cache_folder() / "onnx" / self._key()
        file = folder / f"{self.side.side}{SUFFIXES['onnx']}"
        if not file.is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not file.is_file():
                    log.warning("exporting the %s tower for ONNX Runtime, once", self.side.side)
                    with atomic_folder(folder) as temporary:
                        write_graph(self.side, temporary / file.name, format="onnx")
        return file

    def _key(self) -> str:
        """Of the weights, the shape of the graph, and whoever writes it."""
        found = self.fingerprint
        if found is None:
            config, preprocess, tokenizer = self.made_of
            weights = self.side.tower.state_dict()
            found = zoo.fingerprint(weights, preprocess, tokenizer, "right", config=config)
        packages = ("diptych", "torch", "onnx", "onnxscript")
        writers = [version(package) for package in packages]
        data = [found, self.side.side, self.side.shape, OPSET, *writers]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]

    def __getstate__(self) -> dict[str, Any]:
        fingerprint = self.fingerprint if self._versions.same_tensors() else None
        return {"side": self.side, "made_of": self.made_of, "fingerprint": fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        side = state.pop("side")
        self.__init__(side, **state)
