"""The plain way: one answer at a time through the whole model, all hidden states kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mav.cache_schema.reader import Block, CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.ops.tensor_storage import pool_states
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.runtime.known_places import recall


@dataclass(frozen=True, kw_only=True)
class LiveAnswer:
    """What the model says of one answer's tokens, N of them.

    Attributes:
        states: Hidden states of all layers at the predicting positions, [N, L + 1, hidden].
        logits: [N, vocab].
        labels: int64 [N].
        start: First row of the answer in the cache.
    """

    states: Tensor
    logits: Tensor
    labels: Tensor
    start: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.labels))


def cached_pairs(reader: CacheReader, base: BaseModel) -> TokenizedPairs:
    """Tokenize a cache's pairs again."""
    (data,) = reader.manifest.data.sources
    source = DataSource(id=str(recall(data.fingerprint)), limit=data.limit)
    return tokenize_pairs(
        read_pairs(source, ReadCounts()), base.tokenizer, reader.manifest.text.max_length
    )


@torch.no_grad()
def cached_logprobs(reader: CacheReader, batch: Batch) -> Tensor:
    """Log-probabilities of a batch's labels under the base as the cache has it, [N]."""
    if batch.base_logprobs is not None:
        return batch.base_logprobs
    logits = CachedBase(reader, torch.device("cpu")).logits(batch).chunk(0, len(batch.labels))
    return logits.double().log_softmax(-1).gather(-1, batch.labels.long()[:, None])[:, 0]


@torch.no_grad()
def live_answers(reader: CacheReader, base: BaseModel) -> list[LiveAnswer]:
    """Run every answer of a cache by itself, chosen and rejected of each pair in turn."""
    pairs = cached_pairs(reader, base)
    found = []
    for pair in range(len(pairs)):
        prompt, *answers = pairs.parts(pair)
        for number, answer in enumerate(answers):
            ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
            output = base.model(input_ids=ids, output_hidden_states=True)
            at = slice(len(prompt) - 1, ids.shape[1] - 1)
            found.append(
                LiveAnswer(
                    states=torch.stack([state[0, at] for state in output.hidden_states], dim=1),
                    logits=output.logits[0, at],
                    labels=ids[0, len(prompt) :],
                    start=int(reader.plan.response_start[pair, number]),
                )
            )
    return found


def relative(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected||."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def whole_cache(reader: CacheReader) -> tuple[Batch, torch.Tensor]:
    """All pairs as one batch, and the row of the cache each token came from."""
    inside: list[tuple[Block, int]] = []
    rows = []
    for number in range(reader.plan.blocks):
        block = reader.read_block(number)
        inside += [(block, index) for index in range(len(block.pairs))]
        rows.append(torch.arange(int(block.offsets[-1])) + reader.plan.first_row(number))
    return collate(inside, reader.manifest, len(inside)), torch.cat(rows)


def assert_equals_live(root: Path, base: BaseModel, tolerance: float = 1e-5) -> None:
    """Compare states, logits and log-probabilities of a cache with those of the model."""
    reader = CacheReader(root)
    batch, rows = whole_cache(reader)
    place = {int(row): at for at, row in enumerate(rows)}
    logits = CachedBase(reader, torch.device("cpu")).logits(batch).chunk(0, len(rows))
    logprobs = cached_logprobs(reader, batch)
    answers = live_answers(reader, base)
    assert sum(len(answer.labels) for answer in answers) == len(rows)
    layers = list(reader.manifest.states.layers)
    width = reader.manifest.states.pooled_size
    for answer in answers:
        at = slice(place[answer.start], place[answer.start] + len(answer.labels))
        assert batch.labels[at].tolist() == answer.labels.tolist()
        want = pool_states(answer.states[:, layers], width)
        got = pool_states(batch.states[at], width)
        for number in range(len(layers)):
            assert relative(got[:, number], want[:, number]) < tolerance
        assert relative(logits[at], answer.logits) < tolerance
        logp = answer.logits.double().log_softmax(-1).gather(-1, answer.labels[:, None])[:, 0]
        torch.testing.assert_close(logprobs[at].double(), logp, rtol=tolerance, atol=tolerance)
