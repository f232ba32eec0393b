"""Packing tokenized pairs into batches for the base model.

Shape legend: B sequences, S padded length, N response tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.tokenizing import TokenizedPairs


@dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """What one forward pass of the base model takes, and where to look in its output.

    Attributes:
        inputs: Keyword arguments of the model: `input_ids` int64 [B, S], `attention_mask`, and
            `position_ids` int64 [B, S] where they do not simply count.
        predict: int64 [N], flat positions (in B * S) that predict the response tokens, pair by
            pair, chosen before rejected.
        labels: int32 [N], the tokens they predict.
    """

    inputs: dict[str, Tensor]
    predict: Tensor
    labels: NDArray[np.int32]

    def to(self, device: torch.device) -> "ForwardBatch":
        """Return the batch with its tensors on a device."""
        return ForwardBatch(
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            predict=self.predict.to(device),
            labels=self.labels,
        )


def pack_shared(
    pairs: TokenizedPairs, chosen_pairs: Sequence[int], dtype: torch.dtype
) -> ForwardBatch:
    """Pack each pair into one sequence, prompt + chosen + rejected, so that the prompt runs once.

    The additive mask hides chosen from rejected, and rejected's positions restart after the
    prompt, so both answers see exactly what they would see alone.

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
        first = row * width
        predict += [
            torch.arange(first + p - 1, first + p + c),
            torch.tensor([first + p - 1]),
            torch.arange(first + p + c, first + p + c + r),
        ]
        labels += [chosen, rejected]
    blocked |= torch.ones(width, width, dtype=torch.bool).triu(1)
    mask = torch.zeros(blocked.shape, dtype=dtype).masked_fill_(blocked, torch.finfo(dtype).min)
    return ForwardBatch(
        inputs={"input_ids": ids, "attention_mask": mask, "position_ids": positions},
        predict=torch.cat(predict),
        labels=np.concatenate(labels),
    )


def pack_separate(pairs: TokenizedPairs, chosen_pairs: Sequence[int]) -> ForwardBatch:
    """Put each answer into a sequence of its own, padded on the right: the plain way."""
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


def _tensor(*parts: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def batches_by_length(
    pairs: range, shared_length: NDArray[np.int64], batch_tokens: int
) -> Iterator[list[int]]:
    """Group pairs of similar length so that a padded batch holds at most `batch_tokens` tokens.

    A pair longer than that is a batch of its own.
    """
    batch: list[int] = []
    for pair in sorted(pairs, key=lambda pair: int(shared_length[pair]), reverse=True):
        if batch and (len(batch) + 1) * int(shared_length[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch
