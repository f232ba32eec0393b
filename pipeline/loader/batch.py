"""Batches of cached pairs: tokens packed one after the other, with offsets, no padding."""

import dataclasses
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mav.cache_schema.manifest import Manifest
from mav.cache_schema.reader import Block, CacheReader
from mav.pipeline.ops.base_logits import (
    BaseLogits,
    DenseLogits,
    FactoredLogits,
    TopKLogits,
    Unembedding,
)
from mav.pipeline.ops.tensor_storage import from_stored

_FLOATING: Final = ("hidden_states", "final_hidden_state", "base_logits")
_MOST_BUFFERS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Whole pairs, packed.

    Attributes:
        rows: Per-token arrays by path, each [N, ...], of their true types.
        offsets: int64 [2P + 1], first token of chosen and rejected of each pair, then N.
        step_pairs: Pairs of the whole optimizer step, over all processes and micro-batches.
    """

    rows: dict[str, Tensor]
    offsets: Tensor
    step_pairs: int

    @property
    def states(self) -> Tensor:
        """Hidden states [N, K, W]."""
        return self.rows["hidden_states"]

    @property
    def labels(self) -> Tensor:
        """Response tokens, int32 [N]."""
        return self.rows["labels"]

    @property
    def base_logprobs(self) -> Tensor | None:
        """Log-probabilities of the labels under the base, float32 [N], where they are stored."""
        return self.rows.get("base_logprobs")

    @property
    def pairs(self) -> int:
        """Number of pairs, P."""
        return (len(self.offsets) - 1) // 2

    @property
    def response_lengths(self) -> tuple[Tensor, Tensor]:
        """Tokens of each chosen and each rejected response, int64 [P] both."""
        lengths = self.offsets.diff()
        return lengths[0::2], lengths[1::2]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        moved = {path: t.to(device, non_blocking=True) for path, t in self.rows.items()}
        return dataclasses.replace(
            self, rows=moved, offsets=self.offsets.to(device, non_blocking=True)
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that accelerators copy from without waiting."""
        pinned = {path: tensor.pin_memory() for path, tensor in self.rows.items()}
        return dataclasses.replace(self, rows=pinned, offsets=self.offsets.pin_memory())

    def response_sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sum per-token values [N] over each response; return chosen [P] and rejected [P]."""
        response = torch.repeat_interleave(
            torch.arange(2 * self.pairs, device=values.device),
            self.offsets.diff(),
            output_size=len(values),  # or the device would have to be waited for
        )
        sums = values.new_zeros(2 * self.pairs).index_add(0, response, values)
        return sums[0::2], sums[1::2]


class BatchMemory:
    """A pool of buffers that batches leave to the next ones.

    Batches are so large that freed memory goes back to the system at once, and faulting in new
    memory takes longer than filling it.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[Any]]]] = []

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an uninitialised array; its buffer is reused once the array is garbage-collected.

        Tensors made of the array keep the buffer in use, and so do their views; NumPy views of the
        array do not.

        Args:
            shape: Its shape.
            dtype: Its type.
        """
        size = math.prod(shape) * dtype.itemsize
        for number, (buffer, user) in enumerate(self._buffers):
            if size <= len(buffer) <= 2 * size and user() is None:
                del self._buffers[number]
                break
        else:
            # Somewhat larger, since the next batch may have a few tokens more.
            buffer = np.empty(size * 5 // 4, np.uint8)
        array = buffer[:size].view(dtype).reshape(shape)
        self._buffers = [*self._buffers[-_MOST_BUFFERS:], (buffer, weakref.ref(array))]
        return array


def collate(
    pairs: Sequence[tuple[Block, int]],
    manifest: Manifest,
    step_pairs: int,
    memory: BatchMemory | None = None,
) -> Batch:
    """Pack pairs, each given as its block and its index in the block.

    Args:
        pairs: The pairs, at least one.
        manifest: The cache's manifest, for the types of its arrays.
        step_pairs: See `Batch`.
        memory: Pool to take memory from; new memory if None.
    """
    spans = [
        (block, int(block.offsets[2 * index]), int(block.offsets[2 * index + 2]))
        for block, index in pairs
    ]
    memory = memory or BatchMemory()
    tokens = sum(stop - start for _, start, stop in spans)
    rows = {}
    for path, first in spans[0][0].rows.items():
        packed = memory.array((tokens, *first.shape[1:]), first.dtype)
        np.concatenate([block.rows[path][start:stop] for block, start, stop in spans], out=packed)
        rows[path] = (
            from_stored(packed, manifest.states.dtype)
            if path in _FLOATING
            else torch.from_numpy(packed)
        )
    lengths = [np.diff(block.offsets[2 * index : 2 * index + 3]) for block, index in pairs]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    return Batch(rows=rows, offsets=torch.from_numpy(offsets), step_pairs=step_pairs)


def empty_like(batch: Batch) -> Batch:
    """Return a batch of no pairs, for a process that has none left in a step."""
    return dataclasses.replace(
        batch,
        rows={path: tensor[:0] for path, tensor in batch.rows.items()},
        offsets=batch.offsets[:1],
    )


def _promoted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(torch.promote_types(tensor.dtype, dtype))


class CachedBase:
    """The base model as the cache stores it: logits for any batch, without the model.

    Attributes:
        manifest: The cache's manifest.
    """

    def __init__(
        self, reader: CacheReader, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        """Read the unembedding, if the cache is factored, onto a device.

        Args:
            reader: The cache.
            device: Where to compute.
            dtype: Type to compute logits in, never narrower than they are stored; as they are
                stored if None.
        """
        self.manifest = reader.manifest
        logits = self.manifest.logits
        self._unembedding: Unembedding | None = None
        if logits.encoding == "factored":
            stored = {
                name: _promoted(from_stored(values, self.manifest.states.dtype), dtype)
                for name, values in reader.read_unembedding().items()
            }
            self._unembedding = Unembedding(
                weight=stored["weight"],
                bias=stored.get("bias"),
                scale=logits.scale,
                softcap=logits.softcap,
            ).to(device)

    def logits(self, batch: Batch) -> BaseLogits:
        """Return the base's logits for a batch, which are computed in chunks."""
        if self._unembedding is not None:
            layer = self.manifest.final_state_layer
            final = batch.rows["final_hidden_state"] if layer is None else batch.states[:, layer]
            return FactoredLogits(final_state=final, unembedding=self._unembedding)
        if self.manifest.logits.encoding == "dense":
            return DenseLogits(logits=batch.rows["base_logits"])
        return TopKLogits(
            logits=batch.rows["topk_logits"],
            ids=batch.rows["topk_ids"].long(),
            rest=batch.rows["rest_logsumexp"],
            vocab_size=self.manifest.base.vocab_size,
            labels=batch.labels.long(),
            label_logprobs=batch.base_logprobs,
        )
