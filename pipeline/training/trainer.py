"""One optimizer step, and one evaluation, on any number of processes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase
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


class Trainer:
    """A head, its optimizer and its objective.

    Attributes:
        accelerator: Where to compute.
        head: The head, whose weights may be sharded.
        dtype: Type of the products.
        optimizer: The optimizer of the head.
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator, head: AlignmentHead):
        self.accelerator = accelerator
        self.head = head
        self._options = options
        self._objective: Objective = options.as_objective()
        assert isinstance(options.bf16, bool), "options are settled"
        self.dtype = torch.bfloat16 if options.bf16 else torch.float32
        self._parallelism = parallelism_of(accelerator, shard=options.shard)
        self._module, self._projection = wrap(
            head, accelerator, self._parallelism, bf16=options.bf16
        )
        self.optimizer = make_optimizer(
            options.optimizer,
            self._module.parameters(),
            weight_decay=options.weight_decay,
        )

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
                loss = scores.pair_sum_loss(self._objective, batch)
                # Gradients are averaged over processes, each of which saw some of the pairs.
                accelerator.backward(loss * accelerator.num_processes / batch.step_pairs)
            metrics.add(scores, loss, self._objective)
        norm = unshard(torch.nn.utils.clip_grad_norm_(module.parameters(), options.max_grad_norm))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self._parallelism == "fsdp")
        self._weights_changed()
        return float(norm)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], base: CachedBase) -> dict[str, float]:
        """Return mean metrics over the batches of all processes.

        Args:
            batches: This process's batches.
            base: The base's logits.
        """
        self._module.eval()
        metrics = MetricAccumulator()
        for on_host in batches:
            batch = on_host.to(self.accelerator.device)
            scores = self._module(batch, base.logits(batch))
            metrics.add(scores, scores.pair_sum_loss(self._objective, batch), self._objective)
        return metrics.reduce(self.accelerator)

    def weights(self) -> dict[str, Tensor]:
        """Return the head's weights, unsharded and on the CPU. All processes must call."""
        reshard(self._module, self._parallelism)
        return model_state_dict(self._module)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's state, unsharded and on the CPU. All processes must call."""
        reshard(self._module, self._parallelism)
        return optimizer_state_dict(self.optimizer, self._module)

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Load what `weights` and `optimizer_state` returned. All processes must call.

        Args:
            weights: The head's weights.
            state: The optimizer's state.

        Raises:
            KeyError: A tensor is missing.
            RuntimeError: A tensor has another shape.
        """
        reshard(self._module, self._parallelism)
        load_model_state_dict(self._module, weights)
        load_optimizer_state_dict(self.optimizer, self._module, state)
        self._weights_changed()

    def _weights_changed(self) -> None:
        if self._projection is not None:
            self._projection.weight_changed()
