"""One optimizer step, and one evaluation, on any number of processes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.training.loss import Objective
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.optimizer import (
    load_model_state_dict,
    load_optimizer_state_dict,
    make_optimizer,
    model_state_dict,
    optimizer_state_dict,
    set_learning_rate,
)
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.parallel import ParallelHead


class Trainer:
    """A head, its optimizer and its objective.

    Attributes:
        accelerator: Where to compute.
        dtype: Type of the products.
        optimizer: The optimizer of the head.
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator, head: AlignmentHead):
        self.accelerator = accelerator
        self._options = options
        self._objective: Objective = options.as_objective()
        assert isinstance(options.bf16, bool), "options are settled"
        self.dtype = torch.bfloat16 if options.bf16 else torch.float32
        self._scorer = ParallelHead(head, accelerator, bf16=options.bf16, shard=options.shard)
        self.optimizer = make_optimizer(
            options.optimizer,
            self._scorer.module.parameters(),
            weight_decay=options.weight_decay,
        )

    def step(
        self,
        step: int,
        rate: float,
        batches: Sequence[Batch],
        base: CachedBase,
        seen: MetricAccumulator,
    ) -> float:
        """Take one step; return the norm of the gradient before clipping.

        Args:
            step: Its number, from 0.
            rate: Its learning rate.
            batches: This process's micro-batches.
            base: The base's logits.
            seen: Metrics are added to it.
        """
        options, accelerator, scorer = self._options, self.accelerator, self._scorer
        # Dropout is a function of seed, step and process, so a resumed run repeats it.
        entropy = np.random.SeedSequence([options.seed, step, accelerator.process_index])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        scorer.module.train()
        for number, batch in enumerate(batches):
            with scorer.synchronised(accelerator, last=number == len(batches) - 1):
                scores = scorer.module(batch, base.logits(batch))
                loss = scores.pair_sum_loss(self._objective, batch)
                # Gradients are averaged over processes, each of which saw some of the pairs.
                accelerator.backward(loss * accelerator.num_processes / batch.step_pairs)
            seen.add(scores, loss, self._objective)
        norm = scorer.clip(options.max_grad_norm)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=scorer.wrapping == "sharded")
        scorer.weights_changed()
        return float(norm)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], base: CachedBase) -> dict[str, float]:
        """Return mean metrics over this process's and all others' batches."""
        self._scorer.module.eval()
        seen = MetricAccumulator()
        for held in batches:
            batch = held.to(self.accelerator.device)
            scores = self._scorer.module(batch, base.logits(batch))
            seen.add(scores, scores.pair_sum_loss(self._objective, batch), self._objective)
        return seen.take(self.accelerator)

    def weights(self) -> dict[str, Tensor]:
        """Return the head's weights, whole and on the CPU. All processes must call."""
        self._scorer.settle()
        return model_state_dict(self._scorer.module)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's state, whole and on the CPU. All processes must call."""
        self._scorer.settle()
        return optimizer_state_dict(self.optimizer, self._scorer.module)

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Put back what `weights` and `optimizer_state` returned. All processes must call.

        Raises:
            KeyError: A tensor is missing.
            RuntimeError: One has another shape.
        """
        self._scorer.settle()
        load_model_state_dict(self._scorer.module, weights)
        load_optimizer_state_dict(self.optimizer, self._scorer.module, state)
        self._scorer.weights_changed()
