"""Stage two: train the head from a cache alone. The base model is absent."""

import dataclasses
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from mav.cache_schema.errors import DataError, HeadError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.pair_scores import tally_pairs
from mav.pipeline.evaluation.statistics import advice, has_hardly_moved
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head, save_head
from mav.pipeline.head.storage import HeadOrigin
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.loader.dataset import CachedPreferenceDataset, StreamMemory, prefetch
from mav.pipeline.loader.sampler import order_epoch
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.runtime.compute_dtype import plain_name
from mav.pipeline.runtime.distributed import (
    leave_at_exit,
    let_first_process_log,
    require_joined,
)
from mav.pipeline.runtime.interruption import Interrupted
from mav.pipeline.runtime.known_places import remember
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.training.checkpoint import Checkpoint, TrainState, save_checkpoint
from mav.pipeline.training.defaults import settled
from mav.pipeline.training.evaluation_set import EvaluationSet, evaluation_set
from mav.pipeline.training.log import MetricsLog
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.resume import checkpoint_to_go_on_from, require_same_run
from mav.pipeline.training.schedule import Schedule
from mav.pipeline.training.trackers import require_tracker, start_tracker
from mav.pipeline.training.trainer import Trainer

_log = logging.getLogger(__name__)

_LOG_STEPS: Final = 10
_PAIRS_FOR_KL: Final = 64


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training run came to.

    Attributes:
        output_dir: Its folder; `best` and `last` in it are heads.
        steps: Optimizer steps of the whole run.
        best_step: Step of the best head, or None where nothing was held out.
        stopped_early: Whether it ended before its last step, for want of improvement.
        evaluation: Metrics of the last evaluation; empty where there was none in this call.
        alignment_parameters: Parameters of the alignment network.
        total_parameters: Parameters with the fusion layer.
        computed_in: Type of the products.
        kl_per_token: Mean KL(aligned || base) of the best head at alpha 1 over at most 64 held-out
            pairs, in nats per token; None where nothing is held out, or nothing was trained.
        hardly_moved: Whether that is so small that the head leaves the base about as it is.
    """

    output_dir: Path
    steps: int
    best_step: int | None
    stopped_early: bool
    evaluation: dict[str, float]
    alignment_parameters: int
    total_parameters: int
    computed_in: str
    kl_per_token: float | None
    hardly_moved: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        return {**dataclasses.asdict(self), "output_dir": str(self.output_dir)}


def train(options: TrainOptions) -> TrainReport:
    """Train a head, or go on with a run that was interrupted.

    Args:
        options: What to train.

    Raises:
        MAVError: An input is invalid; see its subclasses.
    """
    require_tracker(options.report_to)
    accelerator = Accelerator(
        mixed_precision="no",  # the scorer sees to it
        log_with=None if options.report_to == "none" else options.report_to,
        project_dir=str(options.folder),
    )
    require_joined(accelerator.num_processes)
    leave_at_exit()
    let_first_process_log(accelerator.process_index)
    found = checkpoint_to_go_on_from(options)
    reader = CacheReader(options.cache)
    if Path(reader.manifest.base.id).is_absolute():
        # Caches of earlier programs held the place itself, which the head will not.
        remember(reader.manifest.base.weights_digest, reader.manifest.base.id)
    options = settled(
        options,
        reader.manifest,
        accelerator.device,
        begun=found.state if found else None,
    )
    run = _Run(
        options=options,
        reader=reader,
        held_out=evaluation_set(options, reader),
        accelerator=accelerator,
    )
    return run.run(found)


class _Run:
    """One training run."""

    def __init__(
        self,
        *,
        options: TrainOptions,
        reader: CacheReader,
        held_out: EvaluationSet | None,
        accelerator: Accelerator,
    ) -> None:
        self._options = options
        self._manifest = reader.manifest
        self._held_out = held_out
        self._accelerator = accelerator
        self._memory = StreamMemory()
        self._subset = PairSubset(which="training", fraction=options.held_out_fraction)
        self._shape = options.step_shape(accelerator.num_processes, accelerator.process_index)
        self._schedule = self._plan(reader)
        torch.manual_seed(options.seed)
        assert options.expansion_size is not None, "options are settled"
        self._head = AlignmentHead(
            HeadConfig(
                num_layers=len(self._manifest.states.layers),
                pooled_size=self._manifest.states.pooled_size,
                expansion_size=options.expansion_size,
                vocab_size=self._manifest.base.vocab_size,
                dropout=options.dropout,
            )
        )
        self._trainer = Trainer(options, accelerator, self._head)
        dtype = self._trainer.dtype
        self._base = CachedBase(reader, accelerator.device, dtype)
        self._held_out_base = self._base
        if held_out is not None and held_out.reader is not reader:
            self._held_out_base = CachedBase(held_out.reader, accelerator.device, dtype)

    def _plan(self, reader: CacheReader) -> Schedule:
        """Count pairs, tokens and steps; refuse to train on nothing."""
        options = self._options
        wanted = in_subset(reader.prompt_id, self._subset, reader.set_apart)
        self._pairs = int(wanted.sum())
        self._tokens = int(reader.plan.response_length[wanted].sum())
        if not self._pairs:
            if reader.set_apart.all():
                raise DataError(
                    f"{options.cache}: all of its {len(wanted)} pairs are of data sets for "
                    f"evaluation alone; name it with --eval-cache, and with --cache one that has "
                    f"pairs to train on"
                )
            raise DataError(
                f"{options.cache}: --eval-fraction {options.eval_fraction} holds out all of its "
                f"{len(wanted)} pairs; use a smaller one"
            )
        steps = [
            order_epoch(reader.plan, wanted, self._shape, seed=options.seed, epoch=epoch).steps
            for epoch in range(options.num_epochs)
        ]
        return Schedule(
            epoch_steps=tuple(steps), peak=options.learning_rate, warmup=options.warmup_steps
        )

    def run(self, found: Checkpoint | None) -> TrainReport:
        head, options, total = self._head, self._options, self._schedule.total
        _log.info(
            f"Head: pooled {head.config.pooled_size}, expansion {head.config.expansion_size}: "
            f"{head.config.alignment_parameters:,} parameters in the alignment network, "
            f"{head.config.total_parameters:,} with the fusion layer"
        )
        each = (
            f"{self._shape.batch_size * self._shape.slots} pairs"
            if self._shape.batch_tokens is None
            else f"{self._shape.batch_tokens * self._shape.slots:,} tokens at most"
        )
        _log.info(
            f"{self._pairs:,} pairs with {self._tokens:,} response tokens; "
            f"{total:,} steps of {each}"
        )
        if found is None:
            options.folder.mkdir(parents=True, exist_ok=True)
            return self._train(self._first_state())
        require_same_run(options.folder, found.state, self._first_state())
        if found.state.complete:
            _log.info(f"{options.folder}: trained already, left as it is")
            return self._report(found.state, {}, None)
        self._restore(found)
        _log.info(f"Going on after step {found.state.step} of {total}")
        return self._train(found.state)

    def _restore(self, found: Checkpoint) -> None:
        try:
            self._trainer.restore(found.tensors("head"), found.tensors("optimizer"))
        except (KeyError, RuntimeError) as error:
            raise HeadError(
                f"{found.folder}: not a checkpoint of this head ({error}). Remove "
                f"{found.folder.parent} to start over."
            ) from error

    def _train(self, state: TrainState) -> TrainReport:
        options, schedule = self._options, self._schedule
        log = self._start_logs(state)
        every = options.eval_steps or max(1, schedule.epoch_steps[0] // 4)
        seen, evaluation = MetricAccumulator(), {}
        saved = state.step
        total = self._tokens * options.num_epochs
        bar = progress_bar(total, "Training", "tok", done=total * state.step // schedule.total)
        bar.disable |= not self._accelerator.is_main_process
        try:
            with bar:
                for batches in self._micro_batches(state.step):
                    rate = schedule.learning_rate(state.step)
                    norm = self._trainer.step(state.step, rate, batches, self._base, seen)
                    state = dataclasses.replace(state, step=state.step + 1)
                    bar.update(sum(len(batch.labels) for batch in batches) * self._shape.world_size)
                    # A checkpoint closes the averages too, or a resumed run would log others.
                    at_checkpoint = state.step % every == 0 or state.step == schedule.total
                    if state.step % _LOG_STEPS == 0 or at_checkpoint:
                        values = seen.take(self._accelerator)
                        values |= {"learning_rate": rate, "grad_norm": norm}
                        self._write(log, state.step, values)
                        bar.set_postfix(
                            loss=f"{values['loss']:.4f}", acc=f"{values['rewards/accuracies']:.2f}"
                        )
                    if at_checkpoint:
                        evaluation = self._evaluate(log, state.step)
                        state = self._save(state, evaluation, every)
                        saved = state.step
                        if state.complete:
                            break
                        seen = MetricAccumulator()  # its clock begins after the evaluation
        except KeyboardInterrupt as stop:
            raise _interrupted(saved, state.step, schedule.total, every) from stop
        kl = self._kl_of_best()
        self._accelerator.end_training()
        if state.step < schedule.total:
            _log.info(
                f"Stopped after step {state.step} of {schedule.total}: {options.early_stopping} "
                f"evaluations without a better held-out loss"
            )
        return self._report(state, evaluation, kl)

    def _kl_of_best(self) -> float | None:
        """Measure how far the best head moves the base, and warn if it hardly does."""
        held = self._held_out
        kl = None
        if held is not None and self._accelerator.is_main_process:
            best = load_head(str(self._options.folder / "best"))
            wanted = in_subset(held.reader.prompt_id, held.subset, held.reader.set_apart)
            wanted &= wanted.cumsum() <= _PAIRS_FOR_KL
            device = self._accelerator.device
            tallies = tally_pairs(
                best.head.to(device),
                held.reader,
                wanted.tolist(),
                [1.0],
                device,
                self._trainer.dtype,
            )
            kl = float(tallies[0][2].mean())
            if has_hardly_moved(kl):
                _log.warning(advice(kl, f"{wanted.sum()} held-out pairs", best.origin.steps))
        self._accelerator.wait_for_everyone()
        return kl

    def _start_logs(self, state: TrainState) -> MetricsLog | None:
        report_to = self._options.report_to
        start_tracker(self._accelerator, report_to, state.step, self._trajectory())
        if not self._accelerator.is_main_process:
            return None
        return MetricsLog(self._options.folder, state.step)

    def _micro_batches(self, first_step: int) -> Iterator[list[Batch]]:
        """Yield this process's micro-batches of each step that is left."""
        first_epoch, skipped = self._schedule.position(first_step)
        device = self._accelerator.device
        for epoch in range(first_epoch, self._options.num_epochs):
            stream = CachedPreferenceDataset(
                self._options.cache,
                self._subset,
                self._shape,
                seed=self._options.seed,
                epoch=epoch,
                first_step=skipped,
                workers=self._options.workers,
                memory=self._memory,
            )
            skipped = 0
            micro: list[Batch] = []
            for batch in prefetch(stream, pinned=device.type == "cuda"):
                micro.append(batch.to(device))
                if len(micro) == self._shape.grad_accum:
                    yield micro
                    micro = []

    def _evaluate(self, log: MetricsLog | None, step: int) -> dict[str, float]:
        if self._held_out is None:
            return {}
        shape = dataclasses.replace(self._shape, grad_accum=1)
        held = self._held_out
        stream = CachedPreferenceDataset(held.reader.location, held.subset, shape, seed=0, epoch=0)
        found = self._trainer.evaluate(prefetch(stream), self._held_out_base)
        evaluation = {f"eval_{name}": value for name, value in found.items()}
        self._write(log, step, evaluation)
        _log.info(
            f"step {step}: held-out loss {found['loss']:.4f}, reward accuracy "
            f"{found['rewards/accuracies']:.3f}, margin {found['rewards/margins']:.4f}"
        )
        return evaluation

    def _write(self, log: MetricsLog | None, step: int, values: dict[str, float]) -> None:
        values = {**values, "epoch": self._schedule.epochs(step)}
        self._accelerator.log(values, step=step)
        if log is not None:
            log.write(step, values)

    def _save(self, state: TrainState, evaluation: dict[str, float], every: int) -> TrainState:
        """Write heads and checkpoint; return the state with the best step and completion in it."""
        options = self._options
        loss = evaluation.get("eval_loss")
        if loss is not None and not math.isfinite(loss):
            raise DataError(
                f"{options.folder}: the held-out loss is {loss} at step {state.step}, so "
                f"the run has diverged. Use a smaller --learning-rate or --no-bf16; what was saved "
                f"before is kept."
            )
        best = loss is None or state.best_loss is None or loss < state.best_loss
        if best and loss is not None:
            state = dataclasses.replace(state, best_step=state.step, best_loss=loss)
        waited = (state.step - state.best_step) // every if state.best_step is not None else 0
        stop = options.early_stopping is not None and waited >= options.early_stopping
        state = dataclasses.replace(state, complete=stop or state.step == self._schedule.total)
        # Gathered by all processes together, written by one.
        weights, moments = self._trainer.weights(), self._trainer.optimizer_state()
        if self._accelerator.is_main_process:
            origin = HeadOrigin(
                manifest=self._manifest,
                objective=options.objective,
                beta=options.beta,
                held_out_fraction=options.held_out_fraction,
                steps=state.step,
            )
            if best:
                save_head(self._head, origin, options.folder / "best", weights)
            if state.complete:
                save_head(self._head, origin, options.folder / "last", weights)
            tensors = {"head": weights, "optimizer": moments}
            save_checkpoint(options.folder, tensors, state)
            _log.debug(f"Step {state.step}: checkpoint written to {options.folder}")
        self._accelerator.wait_for_everyone()
        return state

    def _trajectory(self) -> dict[str, Any]:
        return self._options.trajectory(self._shape.world_size)

    def _first_state(self) -> TrainState:
        return TrainState(
            step=0,
            best_step=None,
            best_loss=None,
            trajectory=self._trajectory(),
            cache_identity=self._manifest.identity(),
            complete=False,
        )

    def _report(
        self, state: TrainState, evaluation: dict[str, float], kl: float | None
    ) -> TrainReport:
        return TrainReport(
            output_dir=self._options.folder,
            steps=state.step,
            best_step=state.best_step,
            stopped_early=state.step < self._schedule.total,
            evaluation=evaluation,
            alignment_parameters=self._head.config.alignment_parameters,
            total_parameters=self._head.config.total_parameters,
            computed_in=plain_name(self._trainer.dtype),
            kl_per_token=kl,
            hardly_moved=None if kl is None else has_hardly_moved(kl),
        )


def _interrupted(saved: int, step: int, total: int, every: int) -> Interrupted:
    if not saved:
        return Interrupted(
            f"No checkpoint was written yet; the first comes at step {min(every, total)}, and "
            f"{step} steps were taken.",
            "The same command starts over.",
        )
    return Interrupted(
        f"The last checkpoint is of step {saved} of {total}; {step - saved} steps after it are "
        f"not kept.",
        "The same command with --resume goes on from there.",
    )
