"""One optimizer step, and one evaluation, on any number of processes."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.training.averaging import AVERAGE, AveragedWeights
from mav.pipeline.training.credit import TokenCredit
from mav.pipeline.training.criteria import of_margins
from mav.pipeline.training.loss import PairLoss, Scores
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.objectives import Objective
from mav.pipeline.training.optimizer import (
    load_model_state_dict,
    load_optimizer_state_dict,
    make_optimizer,
    model_state_dict,
    optimizer_state_dict,
    set_learning_rate,
)
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.parallel import (
    gradient_sync,
    parallelism_of,
    reshard,
    unshard,
    wrap,
)

HEAD: Final = "head"
OPTIMIZER: Final = "optimizer"


class Trainer:
    """A head, its optimizer and its objective.

    Attributes:
        accelerator: Where to compute.
        head: The head, whose weights may be sharded.
        dtype: Type of the products.
        optimizer: The optimizer of the head.
        credit: What gives tokens their credit; the objective `credit` needs it before a step.
    """

    def __init__(
        self,
        options: TrainOptions,
        accelerator: Accelerator,
        head: AlignmentHead,
        loss: PairLoss | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.head = head
        self._options = options
        self.credit: TokenCredit | None = None
        self._objective: Objective = options.as_objective()
        self._loss = loss
        assert isinstance(options.bf16, bool), "options are settled"
        self.dtype = torch.bfloat16 if options.bf16 else torch.float32
        self._parallelism = parallelism_of(accelerator, shard=options.shard)
        self._module, self._projection = wrap(
            head,
            accelerator,
            self._parallelism,
            bf16=options.bf16,
            wants_kl=self._objective.lambda_kl > 0,
        )
        self.optimizer = make_optimizer(
            options.optimizer,
            self._module.parameters(),
            weight_decay=options.weight_decay,
        )
        self._average = None if options.ema is None else AveragedWeights(self._module, options.ema)

    def step(
        self,
        step: int,
        rate: float,
        batches: Sequence[Batch],
        base: CachedBase,
        metrics: MetricAccumulator,
    ) -> float:
        """Take one step; return the norm of the gradient before clipping.

        Args:
            step: Its number, from 0.
            rate: Its learning rate.
            batches: This process's micro-batches.
            base: The base's logits.
            metrics: Metrics are added to it.
        """
        options, accelerator, module = self._options, self.accelerator, self._module
        # Dropout is a function of seed, step and process, so a resumed run repeats it.
        entropy = np.random.SeedSequence([options.seed, step, accelerator.process_index])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        module.train()
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with gradient_sync(module, accelerator, self._parallelism, last=last):
                scores = module(batch, base.logits(batch))
                loss = self._loss_of(scores, batch)
                # Gradients are averaged over processes, each of which saw some of the pairs.
                accelerator.backward(loss * accelerator.num_processes / batch.step_pairs)
            metrics.add(scores, loss, self._objective)
        norm = unshard(torch.nn.utils.clip_grad_norm_(module.parameters(), options.max_grad_norm))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self._parallelism == "fsdp")
        self._weights_changed()
        if self._average is not None:
            self._average.update(step + 1)
        return float(norm)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], base: CachedBase) -> dict[str, float]:
        """Return mean metrics over the batches of all processes, and `criteria.of_margins`.

        Where weights are averaged it is the average that is evaluated.

        Args:
            batches: This process's batches.
            base: The base's logits.
        """
        self._module.eval()
        metrics = MetricAccumulator()
        with self._averaged():
            for on_host in batches:
                batch = on_host.to(self.accelerator.device)
                scores = self._module(batch, base.logits(batch))
                loss = self._loss_of(scores, batch)
                metrics.add(scores, loss, self._objective, keep_margins=True)
        margins = metrics.margins(self.accelerator)
        means = metrics.reduce(self.accelerator)
        return means | of_margins(margins, means["kl"])

    def _loss_of(self, scores: Scores, batch: Batch) -> Tensor:
        credit = None if self.credit is None else self.credit.of(batch)
        return scores.pair_sum_loss(self._objective, batch, credit=credit, own=self._loss)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return all that `restore` needs, by the names in `parts`. All processes must call."""
        reshard(self._module, self._parallelism)
        found = {HEAD: model_state_dict(self._module)}
        found[OPTIMIZER] = optimizer_state_dict(self.optimizer, self._module)
        if self._average is not None:
            found |= self._average.tensors()
        return found

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what `state` returns."""
        return (HEAD, OPTIMIZER, *(() if self._average is None else self._average.parts))

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what `state` returned. All processes must call.

        Args:
            state: Named tensors by the names in `parts`.

        Raises:
            KeyError: A tensor is missing.
            RuntimeError: A tensor has another shape.
        """
        if self._average is not None:
            for part in self._average.parts:
                with self._averaged(part):
                    load_model_state_dict(self._module, state[part])
        reshard(self._module, self._parallelism)
        load_model_state_dict(self._module, state[HEAD])
        load_optimizer_state_dict(self.optimizer, self._module, state[OPTIMIZER])
        self._weights_changed()

    @contextlib.contextmanager
    def _averaged(self, part: str = AVERAGE) -> Iterator[None]:
        """Have the module compute with the averages, where there are any, in a block."""
        if self._average is None:
            yield
            return
        reshard(self._module, self._parallelism)
        self._average.swap(part)
        self._weights_changed()
        try:
            yield
        finally:
            reshard(self._module, self._parallelism)
            self._average.swap(part)
            self._weights_changed()

    def _weights_changed(self) -> None:
        if self._projection is not None:
            self._projection.weight_changed()
