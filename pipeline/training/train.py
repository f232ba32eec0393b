"""Stage two: train the head from a cache alone. The base model is absent."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from mav.cache_schema.errors import HeadError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.statistics import has_hardly_moved
from mav.pipeline.head.compatibility import check_kind
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import save_head
from mav.pipeline.head.storage import HeadOrigin
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.runtime.argument_names import tells_of_wrong_arguments
from mav.pipeline.runtime.compute_dtype import plain_name
from mav.pipeline.runtime.distributed import (
    leave_at_exit,
    let_first_process_log,
    require_joined,
)
from mav.pipeline.runtime.known_places import remember
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.training.averaging import AVERAGE
from mav.pipeline.training.best import BEST, LAST, judge, kl_of_best
from mav.pipeline.training.checkpoint import Checkpoint, TrainState, save_checkpoint
from mav.pipeline.training.credit import credit_of_run
from mav.pipeline.training.criteria import CRITERIA
from mav.pipeline.training.data import TrainingSet, evaluation_set
from mav.pipeline.training.defaults import config_of, settled, told
from mav.pipeline.training.log import MetricsLog, require_tracker, start_tracker
from mav.pipeline.training.loss import PairLoss, name_of_loss
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.own.callbacks import TrainCallback, call, require_callbacks
from mav.pipeline.training.own.target_kl import recommend
from mav.pipeline.training.report import TrainReport
from mav.pipeline.training.resume import checkpoint_to_go_on_from, interrupted, require_same_run
from mav.pipeline.training.trainer import HEAD, Trainer

_log = logging.getLogger(__name__)

_LOG_STEPS: Final = 10


@tells_of_wrong_arguments
def train(
    options: TrainOptions,
    *,
    loss: PairLoss | None = None,
    callbacks: Sequence[TrainCallback] = (),
) -> TrainReport:
    """Train a head, or go on with a run that was interrupted.

    Args:
        options: What to train.
        loss: Your own loss of each pair, [P], from its scores and the batch, instead of the
            objective's; the terms that options add, such as `lambda_kl`, stay.
        callbacks: Called at logs, evaluations and saves; see `TrainCallback`.

    Raises:
        MAVError: An input is invalid; see its subclasses.
    """
    require_tracker(options.report_to)
    called = require_callbacks(callbacks)
    accelerator = Accelerator(
        mixed_precision="no",  # the model sees to it
        log_with=None if options.report_to == "none" else options.report_to,
        project_dir=str(options.folder),
    )
    require_joined(accelerator.num_processes)
    leave_at_exit()
    let_first_process_log(accelerator.process_index)
    checkpoint = checkpoint_to_go_on_from(options)
    reader = CacheReader(options.cache)
    if Path(reader.manifest.base.id).is_absolute():
        # Caches of earlier programs held the place itself, which the head will not.
        remember(reader.manifest.base.weights_digest, reader.manifest.base.id)
    begun = checkpoint.state if checkpoint else None
    options = settled(options, reader.manifest, accelerator.device, begun=begun)
    return _Run(options, reader, accelerator, loss, called).run(checkpoint)


class _Run:
    """One training run."""

    def __init__(
        self,
        options: TrainOptions,
        reader: CacheReader,
        accelerator: Accelerator,
        loss: PairLoss | None,
        callbacks: Sequence[TrainCallback],
    ) -> None:
        layout = options.step_shape(accelerator.num_processes, accelerator.process_index)
        self._options = options
        self._loss = loss
        self._callbacks = callbacks if accelerator.is_main_process else ()
        self._manifest = reader.manifest
        self._accelerator = accelerator
        self._held_out = evaluation_set(options, reader, layout)
        self._data = TrainingSet(options, reader, layout)
        self._schedule = self._data.schedule
        torch.manual_seed(options.seed)
        self._config = config_of(options, self._manifest)
        check_kind(self._config, self._manifest, str(options.cache))
        if self._held_out is not None:
            check_kind(self._config, self._held_out.reader.manifest, str(options.eval_cache))
        self._trainer = Trainer(options, accelerator, AlignmentHead(self._config), loss)
        dtype = self._trainer.dtype
        self._base = CachedBase(reader, accelerator.device, dtype)
        self._held_out_base = self._base
        if self._held_out is not None and self._held_out.reader is not reader:
            self._held_out_base = CachedBase(self._held_out.reader, accelerator.device, dtype)

    def run(self, checkpoint: Checkpoint | None) -> TrainReport:
        options, total = self._options, self._schedule.total
        _log.info(told(self._config))
        _log.info(self._data.summary())
        if checkpoint is None:
            options.folder.mkdir(parents=True, exist_ok=True)
            return self._train(self._first_state())
        require_same_run(options.folder, checkpoint.state, self._first_state())
        if checkpoint.state.complete:
            _log.info(f"{options.folder}: trained already, left as it is")
            self._recommend()
            return self._report(checkpoint.state, {}, None)
        self._restore(checkpoint)
        _log.info(f"Going on after step {checkpoint.state.step} of {total}")
        return self._train(checkpoint.state)

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self._trainer.restore({part: checkpoint.tensors(part) for part in self._trainer.parts})
        except (KeyError, RuntimeError) as error:
            raise HeadError(
                f"{checkpoint.folder}: not a checkpoint of this head ({error}). Remove "
                f"{checkpoint.folder.parent} to start over."
            ) from error

    def _train(self, state: TrainState) -> TrainReport:
        options, schedule, accelerator = self._options, self._schedule, self._accelerator
        if self._loss is None:
            self._trainer.credit = credit_of_run(self._data, self._manifest, options, accelerator)
        log = self._start_logs(state)
        every = options.eval_steps or max(1, schedule.epoch_steps[0] // 4)
        metrics, evaluation = MetricAccumulator(), {}
        saved = state.step
        tokens = self._data.tokens * options.num_epochs
        bar = progress_bar(tokens, "Training", "tok", done=tokens * state.step // schedule.total)
        bar.disable |= not accelerator.is_main_process
        try:
            with bar:
                for batches in self._data.steps_from(state.step, accelerator.device):
                    rate = schedule.learning_rate(state.step)
                    norm = self._trainer.step(state.step, rate, batches, self._base, metrics)
                    state = dataclasses.replace(state, step=state.step + 1)
                    tokens_of_step = sum(len(batch.labels) for batch in batches)
                    bar.update(tokens_of_step * accelerator.num_processes)
                    # A checkpoint closes the averages too, or a resumed run would log others.
                    at_checkpoint = state.step % every == 0 or state.step == schedule.total
                    if state.step % _LOG_STEPS == 0 or at_checkpoint:
                        values = metrics.reduce(accelerator)
                        values |= {"learning_rate": rate, "grad_norm": norm}
                        self._write(log, state.step, values)
                        call(self._callbacks, "on_log", state.step, values)
                        bar.set_postfix(
                            loss=f"{values['loss']:.4f}", acc=f"{values['rewards/accuracies']:.2f}"
                        )
                    if at_checkpoint:
                        evaluation = self._evaluate(log, state.step)
                        state = self._save(state, evaluation, every)
                        saved = state.step
                        if state.complete:
                            break
                        metrics = MetricAccumulator()  # its clock starts after the evaluation
        except KeyboardInterrupt as stop:
            raise interrupted(saved, state.step, schedule.total, every) from stop
        kl = self._kl_of_best()
        self._recommend()
        accelerator.end_training()
        if state.step < schedule.total:
            _log.info(
                f"Stopped after step {state.step} of {schedule.total}: {options.early_stopping} "
                f"evaluations without a better {CRITERIA[options.keep_by].words}"
            )
        return self._report(state, evaluation, kl)

    def _kl_of_best(self) -> float | None:
        kl = None
        if self._held_out is not None and self._accelerator.is_main_process:
            kl = kl_of_best(
                self._options.folder,
                self._held_out,
                self._accelerator.device,
                self._trainer.dtype,
            )
        self._accelerator.wait_for_everyone()
        return kl

    def _recommend(self) -> None:
        if self._options.target_kl is not None and self._accelerator.is_main_process:
            recommend(self._options, str(self._accelerator.device))
        self._accelerator.wait_for_everyone()

    def _start_logs(self, state: TrainState) -> MetricsLog | None:
        start_tracker(self._accelerator, self._options, state.step, self._trajectory())
        if not self._accelerator.is_main_process:
            return None
        return MetricsLog(self._options.folder, state.step)

    def _evaluate(self, log: MetricsLog | None, step: int) -> dict[str, float]:
        if self._held_out is None:
            return {}
        metrics = self._trainer.evaluate(self._held_out.batches(), self._held_out_base)
        self._write(log, step, _as_evaluation(metrics))
        call(self._callbacks, "on_evaluate", step, metrics)
        _log.info(
            f"step {step}: held-out loss {metrics['loss']:.4f}, reward accuracy "
            f"{metrics['rewards/accuracies']:.3f}, margin {metrics['rewards/margins']:.4f}"
        )
        return metrics

    def _write(self, log: MetricsLog | None, step: int, values: dict[str, float]) -> None:
        values = {**values, "epoch": self._schedule.epochs(step)}
        self._accelerator.log(values, step=step)
        if log is not None:
            log.write(step, values)

    def _save(self, state: TrainState, evaluation: dict[str, float], every: int) -> TrainState:
        """Write heads and checkpoint; return the state with the best step and completion in it."""
        options = self._options
        state, best = judge(state, evaluation, options, every=every, total=self._schedule.total)
        # Gathered by all processes together, written by one.
        tensors = self._trainer.state()
        weights = tensors.get(AVERAGE, tensors[HEAD])
        if self._accelerator.is_main_process:
            origin = HeadOrigin(
                manifest=self._manifest,
                objective=options.objective if self._loss is None else name_of_loss(self._loss),
                beta=options.as_objective().beta,
                held_out_fraction=options.held_out_fraction,
                steps=state.step,
            )
            if best:
                save_head(self._trainer.head, origin, options.folder / BEST, weights)
            if state.complete:
                save_head(self._trainer.head, origin, options.folder / LAST, weights)
            save_checkpoint(options.folder, tensors, state)
            _log.debug(f"Step {state.step}: checkpoint written to {options.folder}")
            call(self._callbacks, "on_save", state.step, options.folder, best=best)
        self._accelerator.wait_for_everyone()
        return state

    def _trajectory(self) -> dict[str, Any]:
        own = {} if self._loss is None else {"loss": name_of_loss(self._loss)}
        return self._options.trajectory(self._data.layout.world_size) | own

    def _first_state(self) -> TrainState:
        return TrainState(
            step=0,
            best_step=None,
            best_value=None,
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
            keep_by=self._options.keep_by,
            stopped_early=state.step < self._schedule.total,
            evaluation=_as_evaluation(evaluation),
            head_type=self._config.kind,
            alignment_parameters=self._config.alignment_parameters,
            total_parameters=self._config.total_parameters,
            training_flops=self._config.training_flops,
            decoding_flops=self._config.decoding_flops,
            computed_in=plain_name(self._trainer.dtype),
            kl_per_token=kl,
            hardly_moved=None if kl is None else has_hardly_moved(kl),
        )


def _as_evaluation(metrics: dict[str, float]) -> dict[str, float]:
    """Return metrics of held-out pairs under the names that they are logged by."""
    return {f"eval_{name}": value for name, value in metrics.items()}
