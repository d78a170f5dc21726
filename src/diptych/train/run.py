"""A run in its folder: everything a step needs, where it goes on, and what it leaves behind.

RUN/config.json  data.json     what was asked for; what it is trained on, with its hash
    metrics.jsonl  report.html summary.json
    checkpoints/               the state (`state`)
    model.safetensors          the model, at the end; best.safetensors: at its best evaluation
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config import ViTConfig, to_dict
from diptych.data.order import Position
from diptych.engine import load
from diptych.errors import ConfigError, DiptychError, TrainError
from diptych.eval import less_is_better
from diptych.model import CLIP, Features
from diptych.model.lora import interpolate, merged
from diptych.towers import outline
from diptych.train import state
from diptych.train.accumulate import Piece, whole_model
from diptych.train.config import Stage, TrainConfig
from diptych.train.evaluate import evaluate, evaluate_classes
from diptych.train.export import write_model
from diptych.train.fast import quicken
from diptych.train.feed import Feed, pieces_of
from diptych.train.flops import Work, peak_flops
from diptych.train.losses import build_loss
from diptych.train.optim import build_optimiser, load_state_tensors, state_tensors
from diptych.train.parts import (
    distribute,
    drop_patches,
    like,
    precision_of,
    prepare,
    set_modes,
    start_encoder,
)
from diptych.train.report import write_report
from diptych.train.resume import alone, same_data, same_settings, settled
from diptych.train.streamed import check_negatives
from diptych.train.watch import Watch
from diptych.train.world import World, world

__all__ = ["Run", "opened"]


class Run:
    """What a step needs; made by `opened`.

    Attributes:
        model: the `CLIP`, wrapped if there are several ranks. step: steps done, of `steps`.
        position: in the data, after those steps.
    """

    def __init__(self, config: TrainConfig, folder: Path, world: World):
        check_negatives(config.loss.negatives, world.size)
        self.config, self.folder, self.world = config, folder, world
        self.dtype = precision_of(config, world.device)
        encoder = start_encoder(config)
        self.encoder = encoder
        self._start = None
        if config.wise_ft is not None:
            self._start = state.full(encoder.model.state_dict())
        self.feed = Feed(config, encoder, world)
        self.steps = self.feed.steps
        self.loss_of = build_loss(config.loss, encoder.config)
        self.teacher = self._teacher()
        prepare(encoder.model, config)
        quicken(encoder.model)
        self._saved, passed = self._agreed()
        before = None
        if self._saved is not None:
            before = self._saved.facts["data"]
            same_settings(config, self._saved.facts["config"], folder)
            encoder.model.load_state_dict(self._saved.part("model"))
        feed = self.feed
        same_data(folder, world, manifest=feed.manifest, now=feed.manifest_hash, before=before)
        torch.manual_seed(config.seed + 1 + world.rank)
        self.model: nn.Module = distribute(encoder.model, config, world)
        set_modes(whole_model(self.model), config.model)
        self.optimiser = build_optimiser(self.model_inside, config.optim)
        self.mean = self._mean()
        self.step, self.position = 0, self.feed.start
        self.best: dict[str, Any] = {}
        self._told = 0  # samples that cannot be used
        at = 0 if self._saved is None else self._saved.step
        work, peak = self._work()
        how = {"steps": self.steps, "world": world, "at": at}
        self.watch = Watch(folder, config, work=work, peak=peak, **how)
        self._restore()
        for text in passed:
            self.event(f"passed over a checkpoint: {text}")
        if self._saved is None:
            self._tell_left_out()

    @property
    def model_inside(self) -> Any:
        return whole_model(self.model)

    # --- a step ---

    def batches(self, stage: Stage | None) -> Iterator[Any]:
        """From `position` on, until the caller stops."""
        return self.feed.batches(self.position, stage)

    def drop_patches(self, stage: Stage | None) -> None:
        """As many as the stage says; as the run does, where a stage says nothing."""
        if all(each.patch_dropout is None for each in self.config.stages):
            return
        visual = self.encoder.config.visual
        of_model = visual.patch_dropout if isinstance(visual, ViTConfig) else 0.0
        own = None if stage is None else stage.patch_dropout
        rates = (own, self.config.model.patch_dropout, of_model)
        drop_patches(self.model_inside, next(rate for rate in rates if rate is not None))

    def pieces(self, batch: Any) -> list[Piece]:
        return pieces_of(batch, self.config.micro_batch, self.world.device)

    def loss(self, batch: Any) -> Callable:
        """The loss of this batch."""
        teacher = None
        if self.teacher is not None:
            teacher = _features(self.teacher, self.pieces(batch), self.autocast)
        return self.loss_of(batch.groups.to(self.world.device), teacher)

    def autocast(self) -> contextlib.AbstractContextManager:
        """A context of its own for each pass: weights that one without gradient has cast would
        leave the next without."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)

    @torch.no_grad()
    def after_step(self) -> None:
        """Hold the scale in its range, and move the mean of the weights."""
        most = self.config.logit_scale_max
        if most is not None:
            largest = torch.tensor(most).log()
            self.model_inside.logit_scale.clamp_(0, float(largest))
        if self.mean is not None and self.config.ema is not None:
            now = dict(self.model_inside.named_parameters())
            means = list(self.mean.values())
            torch._foreach_lerp_(means, [now[k] for k in self.mean], 1 - self.config.ema)

    # --- what people see ---

    def tell(self, record: dict[str, Any], *, last: bool) -> None:
        """One step's record; written every `log_every` steps."""
        write = last or self.step % self.config.log_every == 0
        if write:
            record = {**record, "epoch": self.feed.epoch(self.position)}
            record["dropped"] = len(self._gathered())
        self.watch.step(record, write=write)

    def event(self, text: str, *, step: int | None = None) -> None:
        self.watch.event(text, step=self.step if step is None else step)

    def _tell_left_out(self) -> None:
        """What the data had that is no pair: how many by reason, and the first names."""
        pairs = self.feed.pairs
        report = pairs.report()
        counts = {**report["drops"], **report["flaws"]}
        told = [drop for part in pairs.indexes for index in part for drop in index.info["told"]]
        if counts:
            why = ", ".join(f"{reason}: {n:,}" for reason, n in counts.items())
            names = ", ".join(f"{name} ({reason})" for reason, name, _ in told[:5])
            self.event(f"not used of the data: {why}. The first: {names}")

    def _gathered(self) -> dict[str, list[str]]:
        """The samples that no rank can use; those that are new are told. Every rank calls it."""
        bad = self.feed.gathered()
        new = list(bad.values())[self._told :]
        self._told = len(bad)
        if new:
            names = ", ".join(f"{name} ({reason})" for reason, name in new[:5])
            more = f" and {len(new) - 5} more" if len(new) > 5 else ""
            self.event(f"not used, others take their places: {names}{more}")
        return bad

    def last_saved(self) -> str:
        """Where the run can go on."""
        found = sorted((self.folder / "checkpoints").glob("step-*"))
        return f"the last checkpoint is {found[-1]}." if found else "there is no checkpoint yet."

    def evaluate(self) -> None:
        """Measure on the held-out pairs, by the mean of the weights if there is one."""
        with self.watch.apart(), self._mean_in_place():
            self.model_inside.eval()
            found = self._measured(self.model_inside)
            set_modes(self.model_inside, self.config.model)
            if found:
                self._note_best(found)
                self.watch.evaluation({"step": self.step, **found})

    def _measured(self, model: CLIP) -> dict[str, Any]:
        cfg, feed = self.config.evaluate, self.feed
        how = {"world": self.world, "autocast": self.autocast}
        found: dict[str, Any] = {}
        if feed.held_out is not None:
            loss = lambda groups: self.loss_of(groups, None)  # noqa: E731
            found |= evaluate(model, self.encoder, feed.held_out, cfg, loss=loss, **how)
        if feed.classes is not None:
            found |= evaluate_classes(model, self.encoder, feed.classes, cfg, **how)
        return found

    def _note_best(self, found: dict[str, Any]) -> None:
        metric = self.config.evaluate.best
        before = self.best.get("value") if self.best.get("metric") == metric else None
        sign = -1 if less_is_better(metric) else 1
        if before is None or sign * found[metric] > sign * before:
            self.best = {"metric": metric, "value": found[metric], "step": self.step}
            self._export("best.safetensors", self._plain_weights(), evaluation=found)

    # --- the state ---

    def save(self, **more: Any) -> None:
        """Write a checkpoint; every rank calls it."""
        with self.watch.apart():
            self._save(more)

    def _save(self, more: dict[str, Any]) -> None:
        tensors = {
            "model": self._weights(),
            "optim": state.full(state_tensors(self.optimiser)),
            "mean": {} if self.mean is None else state.full(self.mean),
        }
        generators = self.world.gather(state.random_state())
        bad = self._gathered()
        if self.world.first:
            facts = {
                "position": self.position.to_dict(),
                "bad": bad,
                "generators": generators,
                "best": self.best,
                "config": to_dict(self.config),
                "data": self.feed.manifest_hash,
                "versions": {"diptych": version("diptych"), "torch": torch.__version__},
                **more,
            }
            folder = self.folder / "checkpoints"
            state.save(folder, step=self.step, tensors=tensors, facts=facts)
            keep = self.config.checkpoints.keep
            state.prune(folder, step=self.step, keep=keep, best=self.best.get("step"))
            self.watch.saved(self.step)
        self.world.barrier()

    def restored(self, name: str, default: Any) -> Any:
        """What `save(name=...)` gave in the run that this one goes on from."""
        return default if self._saved is None else self._saved.facts.get(name, default)

    def finish(self, **more: Any) -> dict[str, Any]:
        """Write the model, the report and the summary, with `more` in it; returns the summary."""
        with self._mean_in_place():
            weights = self._plain_weights()
        if self._start is not None and self.config.wise_ft is not None:
            weights = interpolate(self._start, weights, self.config.wise_ft)
            mixed = outline(self.encoder.config)
            mixed.load_state_dict(weights, assign=True)
            if found := self._measured(mixed.to(self.world.device).eval()):
                self.watch.evaluation({"step": self.step, "wise_ft": self.config.wise_ft, **found})
        path = self._export("model.safetensors", weights)
        self._gathered()
        if not self.world.first:
            return {}
        summary = {
            "model": str(path),
            "best": self.best,
            "data_manifest_sha256": self.feed.manifest_hash,
            "data": self.feed.pairs.report(),
            **more,
        }
        summary = self.watch.close(summary)
        write_report(self.folder)
        return summary

    def _weights(self) -> dict[str, Tensor]:
        return state.full(self.model_inside.state_dict())

    def _plain_weights(self) -> dict[str, Tensor]:
        return merged(self.encoder.model, self._weights())

    def _export(self, file: str, weights: dict[str, Tensor], **more: Any) -> Path:
        """A model file in the run's folder; the first rank writes it."""
        path = self.folder / file
        if self.world.first:
            trained = {"steps": self.step, "pairs": self.step * self.config.batch_size, **more}
            facts = {
                "training": trained,
                "data_manifest_sha256": self.feed.manifest_hash,
                "data_licences": self.feed.pairs.report()["licences"],
            }
            write_model(path, self.encoder, weights, name=self.config.name, facts=facts)
        return path

    def _work(self) -> tuple[Work, float | None]:
        """Arithmetic of a step, and the peak of all devices; a CPU's depends on its neighbours."""
        cfg, world = self.config, self.world
        mine = cfg.batch_size // world.size
        twice = cfg.model.checkpointing or (cfg.micro_batch or mine) < mine
        model, clip = self.model_inside, self.encoder.config
        work = Work(model, clip, batch_size=cfg.batch_size, twice=twice)
        if world.device.type != "cuda":
            return work, None
        precision = "fp32" if self.dtype == torch.float32 else "bf16"
        return work, peak_flops(world.device, precision=precision)[0] * world.size

    def _teacher(self) -> Any:
        name = self.config.loss.teacher
        if name is None:
            return None
        teacher = load(name, device=self.world.device, precision="fp32")
        for what in ("preprocess", "tokenizer_config"):
            ours, theirs = (
                e.preprocess.config if what == "preprocess" else e.tokenizer_config
                for e in (self.encoder, teacher)
            )
            if ours != theirs:
                raise ConfigError(
                    f"loss.teacher={name!r}: its {what} is {theirs}, the student's is {ours}. "
                    "Both must see the same pixels and tokens: give a teacher that shares them."
                )
        return teacher.model

    def _mean(self) -> dict[str, Tensor] | None:
        if self.config.ema is None:
            return None
        trained = {k: p for k, p in self.model_inside.named_parameters() if p.requires_grad}
        return {k: p.detach().clone() for k, p in trained.items()}

    @contextlib.contextmanager
    def _mean_in_place(self) -> Iterator[None]:
        """The mean of the weights stands in the model, if there is one."""
        if self.mean is None:
            yield
            return
        now = dict(self.model_inside.named_parameters())
        kept = {k: now[k].data for k in self.mean}
        for key, tensor in self.mean.items():
            now[key].data = tensor
        try:
            yield
        finally:
            for key, tensor in kept.items():
                now[key].data = tensor

    def _agreed(self) -> tuple[state.Saved | None, list[str]]:
        """The newest checkpoint that is whole, the same on every rank."""
        folder = self.folder / "checkpoints"
        if self.world.first:
            state.clean(self.folder)
            state.clean(folder)
        self.world.barrier()
        found, passed = state.newest(folder)
        steps = self.world.gather(None if found is None else found.step)
        if len(set(steps)) > 1:
            raise TrainError(
                f"the ranks see different checkpoints in {folder} (steps {steps}). "
                "Give all of them the same folder: --out on a shared file system."
            )
        if found is None and passed:
            raise TrainError(
                f"{folder}: none of its {len(passed)} checkpoints is whole ({passed[0]}). Bring "
                f"back a copy of one; or type rm -r {folder}, and the run begins anew."
            )
        return found, passed

    def _restore(self) -> None:
        saved = self._saved
        if saved is None:
            return
        load_state_tensors(self.optimiser, saved.part("optim"))
        if self.mean is not None:
            whole = saved.part("mean")
            for key, tensor in self.mean.items():
                tensor.copy_(like(whole[key], tensor))
        self.step, self.position = saved.step, Position.from_dict(saved.facts["position"])
        self.feed.restore(saved.facts["bad"])
        self._told = len(saved.facts["bad"])
        self.best = saved.facts["best"]
        generators = saved.facts["generators"]
        if len(generators) == self.world.size:
            state.set_random_state(generators[self.world.rank])
        else:
            torch.manual_seed(hash((self.config.seed, self.step, self.world.rank)))
            self.event(f"goes on with {self.world.size} ranks, not {len(generators)}")
        for name in ("micro_batch", "parallel"):
            then, now = saved.facts["config"][name], to_dict(self.config)[name]
            if then != now:
                self.event(f"goes on with {name}={now}, not {then}: sums are rounded differently")
        if self.step < self.steps:
            self.event(f"goes on from step {self.step}")


def _features(model: nn.Module, pieces: list[Piece], autocast: Callable) -> Features:
    with torch.no_grad(), autocast():
        made = [model(piece.images, piece.ids) for piece in pieces]
    image, text = (torch.cat([m[side].float() for m in made]) for side in (0, 1))
    return Features(image, text, *made[0][2:])


@contextlib.contextmanager
def opened(config: TrainConfig, folder: Path, *, device: str = "auto") -> Iterator[Run]:
    """The run in `folder`: a new one, or where an earlier call left off.

    Raises:
        ConfigError: the folder holds a run with other settings.
        TrainError: another process is training there.
    """
    with world(device, timeout=config.timeout) as here, alone(folder, here):
        settled(config, folder, here)
        run = Run(config, folder, here)
        try:
            yield run
        except BaseException:
            run.watch.stop()
            if run.world.first:  # a full disk must not hide why the run ended
                with contextlib.suppress(DiptychError, OSError):
                    write_report(run.folder)
            raise
        finally:
            run.feed.close()
            run.watch.stop()
