"""One optimizer step, and one evaluation, on any number of processes."""

import contextlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from pipeline.averages import Averages
from pipeline.batch import Batch, CachedBase
from pipeline.head import AlignmentHead
from pipeline.objective import Objective, Scorer, last_layer
from pipeline.train_options import TrainOptions


class Trainer:
    """A head, its optimizer and its objective.

    Attributes:
        accelerator: Where and in what precision to compute.
        head: The head, not wrapped.
        optimizer: Its optimizer.
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator, head: AlignmentHead):
        self.accelerator = accelerator
        self.head = head
        self._options = options
        self._objective: Objective = options.as_objective()
        optimizer = torch.optim.AdamW(
            head.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            fused=True,
        )
        alone = accelerator.num_processes == 1
        if alone:
            for parameter in head.parameters():
                parameter.grad = torch.zeros_like(parameter)
        projection = last_layer(head, bf16=options.bf16, accumulates=alone)
        optimizer.register_step_post_hook(lambda *_: projection.weight_changed())
        scorer = Scorer(head, bf16=options.bf16, projection=projection)
        self._scorer, self.optimizer = accelerator.prepare(scorer, optimizer)

    def step(
        self, step: int, rate: float, batches: Sequence[Batch], base: CachedBase, seen: Averages
    ) -> float:
        """Take one step; return the norm of the gradient before clipping.

        Args:
            step: Its number, from 0.
            rate: Its learning rate.
            batches: This process's micro-batches.
            base: The base's logits.
            seen: Metrics are added to it.
        """
        options, accelerator = self._options, self.accelerator
        # Dropout is a function of seed, step and process, so a resumed run repeats it.
        entropy = np.random.SeedSequence([options.seed, step, accelerator.process_index])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._scorer.train()
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self._scorer):
                scores = self._scorer(batch, base.logits(batch))
                loss = scores.pair_sum_loss(self._objective, batch)
                # Gradients are averaged over processes, each of which saw some of the pairs.
                accelerator.backward(loss * accelerator.num_processes / batch.step_pairs)
            seen.add(scores, loss, self._objective)
        norm = accelerator.clip_grad_norm_(self._scorer.parameters(), options.max_grad_norm)
        self.optimizer.step()
        # Kept, for making gigabytes of gradients anew each step is slow.
        self.optimizer.zero_grad(set_to_none=False)
        return float(norm)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], base: CachedBase) -> dict[str, float]:
        """Return mean metrics over this process's and all others' batches."""
        self._scorer.eval()
        seen = Averages()
        for held in batches:
            batch = held.to(self.accelerator.device)
            scores = self._scorer(batch, base.logits(batch))
            seen.add(scores, scores.pair_sum_loss(self._objective, batch), self._objective)
        return seen.take(self.accelerator)
