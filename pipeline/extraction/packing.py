"""Packing tokenized pairs into batches for the base model, in three ways.

- `packed`: pairs one after the other in one sequence, each prompt once, nothing padded.
- `shared_prompt`: each pair in its own sequence, its prompt once, padded to the longest.
- `separate`: each response in its own sequence after its prompt, padded: the plain way.

Shape legend: B sequences, S padded length, T tokens of a packed sequence, N response tokens.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mav.pipeline.base.packed_attention import PackedSegments, Segment
from mav.pipeline.preferences.tokenization import TokenizedPairs

Packing = Literal["packed", "shared_prompt", "separate"]
PACKINGS: Final[tuple[Packing, ...]] = ("packed", "shared_prompt", "separate")
"""The quickest first."""


@dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """Inputs of one forward pass, and the positions to read in its output.

    Attributes:
        inputs: Keyword arguments of the model: `input_ids` int64 [B, S], `attention_mask`, and
            `position_ids` int64 [B, S] where they do not simply count.
        predict: int64 [N], flat positions (in B * S) that predict the response tokens, pair by
            pair, chosen before rejected.
        labels: int32 [N], the tokens they predict.
        layout: Which tokens see which, where the model is not given a mask.
    """

    inputs: dict[str, Tensor]
    predict: Tensor
    labels: NDArray[np.int32]
    layout: PackedSegments | None = None

    def to(self, device: torch.device) -> "ForwardBatch":
        """Return the batch with its tensors on a device."""
        return dataclasses.replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            predict=self.predict.to(device),
        )


def pack(
    pairs: TokenizedPairs, chosen_pairs: Sequence[int], packing: Packing, dtype: torch.dtype
) -> ForwardBatch:
    """Pack pairs in one of the ways.

    Args:
        pairs: All pairs.
        chosen_pairs: Which of them to pack.
        packing: The way.
        dtype: Element type of the model, for masks.
    """
    if packing == "packed":
        return packed_batch(pairs, chosen_pairs)
    if packing == "shared_prompt":
        return shared_prompt_batch(pairs, chosen_pairs, dtype)
    return separate_batch(pairs, chosen_pairs)


def packed_batch(pairs: TokenizedPairs, chosen_pairs: Sequence[int]) -> ForwardBatch:
    """Pack pairs one after the other, each as prompt + chosen + rejected, [1, T].

    Rejected's positions restart after the prompt, and it sees the prompt and itself.
    """
    segments: list[Segment] = []
    ids, positions, predict, labels = [], [], [], []
    first = 0
    for prompt, chosen, rejected in map(pairs.parts, chosen_pairs):
        p, c, r = len(prompt), len(chosen) - 1, len(rejected) - 1
        segments.append(Segment(start=first, length=p + c))
        if r:
            segments.append(
                Segment(start=first + p + c, length=r, prefix_start=first, prefix_length=p)
            )
        ids += [prompt, chosen[:-1], rejected[:-1]]
        positions += [np.arange(p + c), np.arange(p, p + r)]
        predict += _predicting(first, p, c, r)
        labels += [chosen, rejected]
        first += p + c + r
    return ForwardBatch(
        inputs={
            "input_ids": _tensor(*ids)[None],
            "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        },
        predict=torch.cat(predict),
        labels=np.concatenate(labels),
        layout=PackedSegments(segments=segments),
    )


def shared_prompt_batch(
    pairs: TokenizedPairs, chosen_pairs: Sequence[int], dtype: torch.dtype
) -> ForwardBatch:
    """Pack each pair into one sequence, prompt + chosen + rejected, so that the prompt runs once.

    The additive mask hides chosen from rejected, and rejected's positions restart after the
    prompt, so both responses see exactly what they would see alone.

    Args:
        pairs: All pairs.
        chosen_pairs: Which of them to pack.
        dtype: Element type of the model, for the mask.
    """
    parts = [pairs.parts(pair) for pair in chosen_pairs]
    width = max(len(p) + len(c) + len(r) - 2 for p, c, r in parts)
    ids = torch.zeros(len(parts), width, dtype=torch.int64)
    positions = torch.zeros(len(parts), width, dtype=torch.int64)
    blocked = torch.zeros(len(parts), 1, width, width, dtype=torch.bool)
    predict, labels = [], []
    for row, (prompt, chosen, rejected) in enumerate(parts):
        p, c, r = len(prompt), len(chosen) - 1, len(rejected) - 1
        ids[row, : p + c + r] = _tensor(prompt, chosen[:-1], rejected[:-1])
        positions[row, : p + c + r] = torch.cat([torch.arange(p + c), torch.arange(p, p + r)])
        blocked[row, 0, p + c :, p : p + c] = True
        predict += _predicting(row * width, p, c, r)
        labels += [chosen, rejected]
    blocked |= torch.ones(width, width, dtype=torch.bool).triu(1)
    mask = torch.zeros(blocked.shape, dtype=dtype).masked_fill_(blocked, torch.finfo(dtype).min)
    return ForwardBatch(
        inputs={"input_ids": ids, "attention_mask": mask, "position_ids": positions},
        predict=torch.cat(predict),
        labels=np.concatenate(labels),
    )


def separate_batch(pairs: TokenizedPairs, chosen_pairs: Sequence[int]) -> ForwardBatch:
    """Put each response into its own sequence, padded on the right."""
    parts = [pairs.parts(pair) for pair in chosen_pairs]
    rows = [(prompt, answer) for prompt, *answers in parts for answer in answers]
    width = max(len(prompt) + len(answer) - 1 for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    predict = []
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer) - 1
        ids[row, :length] = _tensor(prompt, answer[:-1])
        mask[row, :length] = 1
        predict.append(torch.arange(row * width + len(prompt) - 1, row * width + length))
    return ForwardBatch(
        inputs={"input_ids": ids, "attention_mask": mask},
        predict=torch.cat(predict),
        labels=np.concatenate([answer for _, answer in rows]),
    )


def pack_alone(pairs: TokenizedPairs, pair: int) -> list[ForwardBatch]:
    """Give each response of a pair a batch of its own, the reference for every packing."""
    prompt, *answers = pairs.parts(pair)
    return [
        ForwardBatch(
            inputs={"input_ids": _tensor(prompt, answer[:-1])[None]},
            predict=torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1),
            labels=answer,
        )
        for answer in answers
    ]


def _predicting(first: int, prompt: int, chosen: int, rejected: int) -> list[Tensor]:
    """Return the positions that predict both responses of a pair beginning at `first`."""
    last = first + prompt - 1
    begun = first + prompt + chosen
    return [
        torch.arange(last, begun),
        torch.tensor([last]),
        torch.arange(begun, begun + rejected),
    ]


def _tensor(*parts: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def batches(
    pairs: range, lengths: NDArray[np.int64], batch_tokens: int, packing: Packing
) -> list[Sequence[int]]:
    """Group pairs so that a batch holds at most `batch_tokens` tokens, padding included.

    Args:
        pairs: The pairs.
        lengths: int64, tokens of every pair with its prompt once, by number of the pair.
        batch_tokens: The bound; a longer pair is a batch by itself.
        packing: How batches are packed.
    """
    if packing == "packed":
        return [*even_batches(pairs, lengths, batch_tokens)]
    # With a separate sequence for each response, the prompt is run twice.
    budget = batch_tokens if packing == "shared_prompt" else batch_tokens // 2
    return [*batches_by_length(pairs, lengths, budget)]


def even_batches(pairs: range, lengths: NDArray[np.int64], batch_tokens: int) -> list[range]:
    """Group pairs in order into the fewest batches, of sizes as even as possible.

    A last batch of a few tokens would use the machine badly.
    """
    fewest = len(_filled(pairs, lengths, batch_tokens))
    low, high = 0, batch_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_filled(pairs, lengths, middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    return _filled(pairs, lengths, low)


def _filled(pairs: range, lengths: NDArray[np.int64], most: int) -> list[range]:
    """Group pairs in order, each batch as full as possible."""
    starts: list[int] = []
    tokens = 0
    for pair in pairs:
        tokens += int(lengths[pair])
        if not starts or tokens > most:
            starts.append(pair)
            tokens = int(lengths[pair])
    return [range(start, stop) for start, stop in pairwise([*starts, pairs.stop])]


def batches_by_length(
    pairs: range, shared_length: NDArray[np.int64], batch_tokens: int
) -> Iterator[list[int]]:
    """Group pairs of similar length so that a padded batch holds at most `batch_tokens` tokens.

    A pair longer than that is a batch by itself.
    """
    batch: list[int] = []
    for pair in sorted(pairs, key=lambda pair: int(shared_length[pair]), reverse=True):
        if batch and (len(batch) + 1) * int(shared_length[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch
