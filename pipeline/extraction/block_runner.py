"""Runs the base over the pairs of one block and arranges the rows that the cache stores.

Shape legend: N response tokens of a batch, K layers, W stored width, H hidden, V vocabulary.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mav.cache_schema.arrays import layouts
from mav.cache_schema.errors import BaseModelError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.pipeline.base.hidden_states import HiddenStateHooks
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.batch_size import BatchBudget
from mav.pipeline.extraction.encode import quantized_rows, vocabulary_rows
from mav.pipeline.extraction.forward import run_decoder, run_whole
from mav.pipeline.extraction.packing import ForwardBatch, Packing, batches, pack
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.ops.tensor_storage import HostCopies, pool_states, too_large
from mav.pipeline.preferences.tokenization import TokenizedPairs
from mav.pipeline.runtime.compute_dtype import TORCH_DTYPES, plain_name
from mav.pipeline.runtime.memory import free_memory, is_out_of_memory, too_long_for_memory

_FINITE: Final = "whether all states are finite"
"""Copied along with a batch's arrays, so that reading it does not synchronise the device."""
_STORABLE: Final = "whether they still are in the type they are stored in"


class BlockForward:
    """Computes the arrays of a block.

    Attributes:
        packing: How pairs are packed.
        budget: Most tokens in one forward pass, padding included.
    """

    def __init__(
        self,
        base: BaseModel,
        pairs: TokenizedPairs,
        plan: BlockPlan,
        manifest: Manifest,
        unembedding: Unembedding | None,
        *,
        packing: Packing,
        budget: BatchBudget,
    ) -> None:
        """Prepare; see `run`.

        Args:
            base: The base model.
            pairs: All pairs, in stored order.
            plan: Their places.
            manifest: What to store.
            unembedding: The base's output embedding, or None for a base whose logits do not follow
                from it; then the whole model is run.
            packing: How to pack pairs.
            budget: Most tokens in one forward pass, padding included.
        """
        self.packing = packing
        self.budget = budget
        self._base = base
        self._pairs = pairs
        self._plan = plan
        self._manifest = manifest
        self._unembedding = unembedding
        computed = dataclasses.replace(manifest.storage, states="computed")
        self._computed = dataclasses.replace(manifest, storage=computed)
        self._dtype = TORCH_DTYPES[manifest.states.dtype]
        self._last = manifest.base.num_hidden_layers

    @torch.inference_mode()
    def run(self, pairs: range, progress: Callable[[int], None]) -> dict[str, NDArray[Any]]:
        """Return the rows of consecutive pairs of one block, for every per-token array, as stored.

        While the device computes a batch, the rows of the previous one are stored.

        Args:
            pairs: The pairs, all of a block or a part of them.
            progress: Called with the number of pairs after each batch.

        Raises:
            BaseModelError: Out of memory for a single pair, or a state is not finite.
        """
        start = int(self._plan.response_start[pairs.start, 0])
        used = int(self._plan.response_length[pairs.start : pairs.stop].sum(dtype=np.int64))
        rows = {
            path: np.empty((used, *layout.shape[1:]), layout.dtype)
            for path, layout in layouts(self._computed).items()
            if layout.spec.kind == "block"
        }
        layers = tuple(sorted({*self._manifest.states.layers, self._last}))
        left = deque(batches(pairs, self._pairs.shared_length, self.budget.tokens, self.packing))
        before: _BatchRows | None = None
        with self._base.hidden_state_hooks(layers) as hooks:
            while left:
                batch_pairs = left.popleft()
                fits = len(batch_pairs) == 1 or self._tokens(batch_pairs) <= self.budget.tokens
                batch_rows = self._attempt(batch_pairs, hooks) if fits else None
                if batch_rows is None:
                    half = len(batch_pairs) // 2
                    left.extendleft((batch_pairs[half:], batch_pairs[:half]))
                    continue
                if before is not None:
                    self._place(rows, start, before, progress)
                before = batch_rows
        if before is not None:
            self._place(rows, start, before, progress)
        if self._manifest.storage.states == "computed":
            return rows
        return quantized_rows(rows, self._manifest, self._base.logits_device)

    def _attempt(self, batch_pairs: Sequence[int], hooks: HiddenStateHooks) -> "_BatchRows | None":
        """Run a batch; return None when out of memory, so that smaller ones are tried."""
        try:
            return self._run(batch_pairs, hooks)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch_pairs) == 1:
                raise too_long_for_memory(
                    self._manifest.base.id, int(self._pairs.shared_length[batch_pairs[0]])
                ) from error
        # Not where the error is caught: its frames hold what is to be freed.
        hooks.states.clear()
        free_memory()
        self.budget.shrink()
        return None

    def _run(self, batch_pairs: Sequence[int], hooks: HiddenStateHooks) -> "_BatchRows":
        batch = pack(self._pairs, batch_pairs, self.packing, self._base.dtype).to(self._base.device)
        own_NV = self._forward(batch)
        device = self._base.logits_device

        def predicting(layer: int) -> Tensor:
            states_TH = hooks.states[layer].flatten(0, 1)
            return states_TH.index_select(0, batch.predict.to(states_TH.device)).to(device)

        final_NH = predicting(self._last)
        width = self._manifest.states.stored_width
        states = {
            "hidden_states": torch.stack(
                [pool_states(predicting(layer), width) for layer in self._manifest.states.layers],
                dim=1,
            )
        }
        if "final_hidden_state" in layouts(self._computed):
            states["final_hidden_state"] = final_NH
        copied = {path: computed.to(self._dtype) for path, computed in states.items()}
        copied[_FINITE] = _all_finite(states)
        copied[_STORABLE] = _all_finite({path: copied[path] for path in states})
        return _BatchRows(
            pairs=batch_pairs,
            known={
                "labels": batch.labels,
                **vocabulary_rows(
                    self._manifest, final_NH, batch.labels, self._unembedding, own_NV
                ),
            },
            copied=HostCopies(copied),
        )

    def _forward(self, batch: ForwardBatch) -> Tensor | None:
        """Run the base; return its logits where only the whole model can compute them."""
        if self._unembedding is not None:
            run_decoder(self._base, batch)
            return None
        logits_TV = run_whole(self._base, batch).flatten(0, 1)
        return logits_TV.index_select(0, batch.predict.to(logits_TV.device)).float()

    def _place(
        self,
        rows: dict[str, NDArray[Any]],
        start: int,
        batch: "_BatchRows",
        progress: Callable[[int], None],
    ) -> None:
        """Copy the rows of a batch to their places in the block, which begins at pair `start`."""
        arrays = {**batch.known, **batch.copied.arrays()}
        finite, storable = arrays.pop(_FINITE), arrays.pop(_STORABLE)
        if not finite:
            raise BaseModelError(
                f"{self._manifest.base.id}: its hidden states are not finite in "
                f"{plain_name(self._base.dtype)}. Use `dtype` bfloat16 or float32."
            )
        if not storable:
            what = f"{self._manifest.base.id}: its hidden states"
            raise BaseModelError(too_large(self._manifest.states.dtype, what))
        at = self._rows_of(batch.pairs, start)
        for path, values in arrays.items():
            rows[path][at] = values
        progress(len(batch.pairs))

    def _tokens(self, batch_pairs: Sequence[int]) -> int:
        lengths = self._pairs.shared_length[batch_pairs]
        if self.packing == "packed":
            return int(lengths.sum())
        return int(lengths.max()) * len(batch_pairs) * (1 if self.packing == "shared_prompt" else 2)

    def _rows_of(self, batch_pairs: Sequence[int], start: int) -> slice | NDArray[np.int64]:
        # A pair's rows are consecutive: rejected follows chosen.
        begins, length = self._plan.response_start, self._plan.response_length
        if isinstance(batch_pairs, range):
            last = batch_pairs[-1]
            end = int(begins[last, 1] + length[last, 1])
            return slice(int(begins[batch_pairs[0], 0]) - start, end - start)
        return (
            np.concatenate(
                [begins[pair, 0] + np.arange(int(length[pair].sum())) for pair in batch_pairs]
            )
            - start
        )


def _all_finite(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all()


@dataclass(frozen=True, kw_only=True)
class _BatchRows:
    """The rows of a batch in the order of its pairs, some still being copied to the host."""

    pairs: Sequence[int]
    known: Mapping[str, NDArray[Any]]
    copied: HostCopies
