"""Running the base model over the pairs of one block, and arranging what the cache stores.

Shape legend: N response tokens of a batch, K layers, W stored width, H hidden, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_schema.arrays import layouts
from cache_schema.manifest import Manifest
from cache_schema.plan import BlockPlan
from pipeline.base_logits import Unembedding
from pipeline.base_model import BaseModel
from pipeline.block_rows import quantized_rows, vocabulary_rows
from pipeline.forward import run_decoder, run_whole
from pipeline.packing import ForwardBatch, Packing, batches, pack
from pipeline.pooling import pool_states
from pipeline.stored import TORCH_DTYPES, to_stored
from pipeline.tokenizing import TokenizedPairs


class BlockForward:
    """Computes the arrays of one block after another.

    Attributes:
        packing: How pairs are packed.
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
        batch_tokens: int,
    ) -> None:
        """Prepare; see `run`.

        Args:
            base: The base model.
            pairs: All pairs, in stored order.
            plan: Their places.
            manifest: What to store.
            unembedding: The base's output embedding, or None for a base whose logits are no
                function of it; the whole model is run then.
            packing: How to pack pairs.
            batch_tokens: Most tokens in one forward pass, padding included.
        """
        self.packing = packing
        self._base = base
        self._pairs = pairs
        self._plan = plan
        self._manifest = manifest
        self._unembedding = unembedding
        self._batch_tokens = batch_tokens
        computed = dataclasses.replace(manifest.storage, states="computed")
        self._computed = dataclasses.replace(manifest, storage=computed)
        self._dtype = TORCH_DTYPES[manifest.states.dtype]
        self._last = manifest.base.num_hidden_layers

    @torch.inference_mode()
    def run(self, pairs: range, progress: Callable[[int], None]) -> dict[str, NDArray[Any]]:
        """Return the rows of consecutive pairs of one block, for every per-token array, as stored.

        Args:
            pairs: The pairs, all of a block or a part of them.
            progress: Called with the number of pairs after each batch.
        """
        start = int(self._plan.response_start[pairs.start, 0])
        used = int(self._plan.response_length[pairs.start : pairs.stop].sum(dtype=np.int64))
        rows = {
            path: np.empty((used, *layout.shape[1:]), layout.dtype)
            for path, layout in layouts(self._computed).items()
            if layout.spec.kind == "block"
        }
        tapped = tuple(sorted({*self._manifest.states.layers, self._last}))
        lengths = self._pairs.shared_length
        with self._base.taps(tapped) as taps:
            for batch_pairs in batches(pairs, lengths, self._batch_tokens, self.packing):
                batch = pack(self._pairs, batch_pairs, self.packing, self._base.dtype).to(
                    self._base.device
                )
                own_NV = self._forward(batch)
                at = self._rows_of(batch_pairs) - start
                for path, values in self._arrays(taps.states, batch, own_NV).items():
                    rows[path][at] = values
                progress(len(batch_pairs))
        if self._manifest.storage.states == "computed":
            return rows
        return quantized_rows(rows, self._manifest, self._unembedding, self._base.device)

    def _forward(self, batch: ForwardBatch) -> Tensor | None:
        """Run the base; return its logits where only the whole model can tell them."""
        if self._unembedding is not None:
            run_decoder(self._base, batch)
            return None
        return run_whole(self._base, batch).flatten(0, 1).index_select(0, batch.predict).float()

    def _rows_of(self, batch_pairs: Sequence[int]) -> NDArray[np.int64]:
        # A pair's rows are consecutive: rejected follows chosen.
        start, length = self._plan.response_start, self._plan.response_length
        return np.concatenate(
            [start[pair, 0] + np.arange(int(length[pair].sum())) for pair in batch_pairs]
        )

    def _arrays(
        self, states: dict[int, Tensor], batch: ForwardBatch, own_NV: Tensor | None
    ) -> dict[str, NDArray[Any]]:
        def predicting(layer: int) -> Tensor:
            return states[layer].flatten(0, 1).index_select(0, batch.predict)

        final_NH = predicting(self._last)
        width = self._manifest.states.stored_width
        states_NKW = torch.stack(
            [pool_states(predicting(layer), width) for layer in self._manifest.states.layers],
            dim=1,
        )
        arrays = {
            "hidden_states": to_stored(states_NKW.to(self._dtype)),
            "labels": batch.labels,
            **vocabulary_rows(self._manifest, final_NH, batch.labels, self._unembedding, own_NV),
        }
        if (
            self._manifest.logits.encoding == "factored"
            and self._manifest.final_state_layer is None
        ):
            arrays["final_hidden_state"] = to_stored(final_NH.to(self._dtype))
        return arrays
