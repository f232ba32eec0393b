"""Stage two: train the head from a cache alone. The base model is absent."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from cache_schema.errors import DataError
from cache_schema.reader import CacheReader
from pipeline.averages import Averages
from pipeline.batch import Batch, CachedBase
from pipeline.belonging import require_same_features
from pipeline.checkpoint import TrainState, load_checkpoint, save_checkpoint
from pipeline.head import AlignmentHead, HeadConfig
from pipeline.head_files import HeadOrigin, save_head
from pipeline.held_out import PairSubset, in_subset
from pipeline.processes import leave_at_exit, require_joined
from pipeline.progress import between_bars, progress_bar
from pipeline.resume import require_same_run, state_to_go_on_from
from pipeline.stream import PreferenceStream, StepShape, read_ahead
from pipeline.train_log import MetricsLog
from pipeline.train_options import TrainOptions, learning_rate_at
from pipeline.train_step import Trainer

_LOG_STEPS: Final = 10
_MOST_WARMUP: Final = 100

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training run came to.

    Attributes:
        output_dir: Its folder; `best` and `last` in it are heads.
        steps: Optimizer steps of the whole run.
        best_step: Step of the best head, or None where nothing was held out.
        evaluation: Metrics of the last evaluation; empty where there was none in this call.
        alignment_parameters: Parameters of the alignment network.
        total_parameters: Parameters with the fusion layer.
    """

    output_dir: Path
    steps: int
    best_step: int | None
    evaluation: dict[str, float]
    alignment_parameters: int
    total_parameters: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures people script with."""
        return {**dataclasses.asdict(self), "output_dir": str(self.output_dir)}


def train(options: TrainOptions, *, say: Say = lambda _: None, workers: int = 1) -> TrainReport:
    """Train a head, or go on with a run that was interrupted.

    Args:
        options: What to train.
        say: Called with each line worth telling the user, on the first process.
        workers: Processes that read ahead, 1 or 0.

    Raises:
        MAVError: Any input is at fault; see its subclasses.
    """
    state = state_to_go_on_from(options)
    reader = CacheReader(options.cache)
    held_out = _held_out(options, reader)
    accelerator = Accelerator(
        mixed_precision="no",  # the scorer sees to it
        log_with="tensorboard",
        project_dir=str(options.output_dir),
    )
    require_joined(accelerator.num_processes)
    leave_at_exit()
    run = _Run(
        options=options,
        reader=reader,
        held_out=held_out,
        accelerator=accelerator,
        say=say if accelerator.is_main_process else lambda _: None,
        workers=workers,
    )
    return run.run(state)


@dataclass(frozen=True, kw_only=True)
class _HeldOut:
    """What is evaluated on: part of the training cache, or all of another."""

    reader: CacheReader
    subset: PairSubset


def _held_out(options: TrainOptions, reader: CacheReader) -> _HeldOut | None:
    if options.eval_cache is not None:
        other = CacheReader(options.eval_cache)
        require_same_features(
            reader.manifest, other.manifest, str(options.cache), str(options.eval_cache)
        )
        return _HeldOut(reader=other, subset=PairSubset(which="all"))
    subset = PairSubset(which="held-out", fraction=options.eval_fraction)
    if not in_subset(reader.prompt_id, subset).any():
        return None
    return _HeldOut(reader=reader, subset=subset)


class _Run:
    """One training run."""

    def __init__(
        self,
        *,
        options: TrainOptions,
        reader: CacheReader,
        held_out: _HeldOut | None,
        accelerator: Accelerator,
        say: Say,
        workers: int,
    ) -> None:
        self._options = options
        self._manifest = reader.manifest
        self._held_out = held_out
        self._accelerator = accelerator
        self._say = say
        self._workers = workers
        self._subset = PairSubset(which="training", fraction=options.held_out_fraction)
        wanted = in_subset(reader.prompt_id, self._subset)
        self._pairs = int(wanted.sum())
        self._tokens = int(reader.plan.response_length[wanted].sum())
        if not self._pairs:
            raise DataError(
                f"{options.cache}: --eval-fraction {options.eval_fraction} holds out all of its "
                f"{len(wanted)} pairs; use a smaller one"
            )
        self._shape = StepShape(
            batch_size=options.batch_size,
            grad_accum=options.grad_accum,
            world_size=accelerator.num_processes,
            rank=accelerator.process_index,
        )
        self._steps_per_epoch = -(-self._pairs // self._shape.pairs)
        self._steps = self._steps_per_epoch * options.num_epochs
        torch.manual_seed(options.seed)
        head = AlignmentHead(
            HeadConfig(
                num_layers=len(self._manifest.states.layers),
                pooled_size=self._manifest.states.pooled_size,
                expansion_size=options.expansion_size,
                vocab_size=self._manifest.base.vocab_size,
                dropout=options.dropout,
            )
        )
        self._trainer = Trainer(options, accelerator, head)
        self._base = CachedBase(reader, accelerator.device)
        self._held_out_base = self._base
        if held_out is not None and held_out.reader is not reader:
            self._held_out_base = CachedBase(held_out.reader, accelerator.device)

    def run(self, state: TrainState | None) -> TrainReport:
        head, options = self._trainer.head, self._options
        self._say(
            f"Head: {head.alignment_parameters():,} parameters in the alignment network, "
            f"{head.total_parameters():,} with the fusion layer"
        )
        self._say(
            f"{self._pairs:,} pairs with {self._tokens:,} response tokens; {self._steps:,} steps "
            f"of {self._shape.pairs} pairs"
        )
        if state is None:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            state = self._first_state()
        else:
            require_same_run(options.output_dir, state, self._first_state())
            if state.complete:
                self._say(f"{options.output_dir}: trained already, left as it is")
                return self._report(state, {})
            load_checkpoint(options.output_dir, head, self._trainer.optimizer)
            self._say(f"Going on after step {state.step} of {self._steps}")
        return self._train(state)

    def _train(self, state: TrainState) -> TrainReport:
        options, accelerator = self._options, self._accelerator
        log = MetricsLog(options.output_dir, state.step) if accelerator.is_main_process else None
        accelerator.init_trackers(
            "tensorboard", init_kwargs={"tensorboard": {"purge_step": state.step + 1}}
        )
        every = options.eval_steps or max(1, self._steps_per_epoch // 4)
        warmup = options.warmup_steps
        if warmup is None:
            warmup = min(_MOST_WARMUP, self._steps // 10)
        seen, evaluation = Averages(), {}
        total = self._tokens * options.num_epochs
        bar = progress_bar(total, "Training", "tok", done=total * state.step // self._steps)
        bar.disable |= not accelerator.is_main_process
        with bar:
            for batches in self._micro_batches(state.step):
                rate = learning_rate_at(state.step, self._steps, warmup, options.learning_rate)
                norm = self._trainer.step(state.step, rate, batches, self._base, seen)
                state = dataclasses.replace(state, step=state.step + 1)
                bar.update(sum(len(batch.labels) for batch in batches) * self._shape.world_size)
                at_end = state.step == self._steps
                # A checkpoint closes the averages too, or a resumed run would log others.
                at_checkpoint = state.step % every == 0 or at_end
                if state.step % _LOG_STEPS == 0 or at_checkpoint:
                    values = seen.take(accelerator)
                    values |= {"learning_rate": rate, "grad_norm": norm}
                    self._write(log, state.step, values)
                    bar.set_postfix(
                        loss=f"{values['loss']:.4f}", acc=f"{values['rewards/accuracies']:.2f}"
                    )
                if at_checkpoint:
                    evaluation = self._evaluate(log, state.step)
                    state = self._save(state, evaluation)
                    seen = Averages()  # its clock begins after the evaluation
        accelerator.end_training()
        return self._report(state, evaluation)

    def _micro_batches(self, first_step: int) -> Iterator[list[Batch]]:
        """Yield this process's micro-batches of each step that is left."""
        first_epoch, skipped = divmod(first_step, self._steps_per_epoch)
        for epoch in range(first_epoch, self._options.num_epochs):
            stream = PreferenceStream(
                self._options.cache,
                self._subset,
                self._shape,
                seed=self._options.seed,
                epoch=epoch,
                first_step=skipped,
            )
            skipped = 0
            micro: list[Batch] = []
            for batch in read_ahead(stream, self._workers):
                micro.append(batch.to(self._accelerator.device))
                if len(micro) == self._shape.grad_accum:
                    yield micro
                    micro = []

    def _evaluate(self, log: MetricsLog | None, step: int) -> dict[str, float]:
        if self._held_out is None:
            return {}
        shape = dataclasses.replace(self._shape, grad_accum=1)
        held = self._held_out
        stream = PreferenceStream(held.reader.location, held.subset, shape, seed=0, epoch=0)
        found = self._trainer.evaluate(read_ahead(stream, 0), self._held_out_base)
        evaluation = {f"eval_{name}": value for name, value in found.items()}
        self._write(log, step, evaluation)
        with between_bars():
            self._say(
                f"step {step}: held-out loss {found['loss']:.4f}, reward accuracy "
                f"{found['rewards/accuracies']:.3f}, margin {found['rewards/margins']:.4f}"
            )
        return evaluation

    def _write(self, log: MetricsLog | None, step: int, values: dict[str, float]) -> None:
        values = {**values, "epoch": step / self._steps_per_epoch}
        self._accelerator.log(values, step=step)
        if log is not None:
            log.write(step, values)

    def _save(self, state: TrainState, evaluation: dict[str, float]) -> TrainState:
        """Write heads and checkpoint; return the state with the best step and completion in it."""
        loss = evaluation.get("eval_loss")
        if loss is not None and not math.isfinite(loss):
            raise DataError(
                f"{self._options.output_dir}: the held-out loss is {loss} at step {state.step}, so "
                f"the run has diverged. Use a smaller --learning-rate or --no-bf16; what was saved "
                f"before is kept."
            )
        best = loss is None or state.best_loss is None or loss < state.best_loss
        if best and loss is not None:
            state = dataclasses.replace(state, best_step=state.step, best_loss=loss)
        state = dataclasses.replace(state, complete=state.step == self._steps)
        if self._accelerator.is_main_process:
            folder, head = self._options.output_dir, self._trainer.head
            origin = HeadOrigin(
                manifest=self._manifest,
                objective=self._options.objective,
                beta=self._options.beta,
                held_out_fraction=self._options.held_out_fraction,
                steps=state.step,
            )
            if best:
                save_head(head, origin, folder / "best")
            if state.complete:
                save_head(head, origin, folder / "last")
            save_checkpoint(folder, head, self._trainer.optimizer, state)
        self._accelerator.wait_for_everyone()
        return state

    def _first_state(self) -> TrainState:
        return TrainState(
            step=0,
            best_step=None,
            best_loss=None,
            trajectory=self._options.trajectory(),
            world_size=self._shape.world_size,
            cache_identity=self._manifest.identity(),
            complete=False,
        )

    def _report(self, state: TrainState, evaluation: dict[str, float]) -> TrainReport:
        head = self._trainer.head
        return TrainReport(
            output_dir=self._options.output_dir,
            steps=state.step,
            best_step=state.best_step,
            evaluation=evaluation,
            alignment_parameters=head.alignment_parameters(),
            total_parameters=head.total_parameters(),
        )
