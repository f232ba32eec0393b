"""A training step from the cache is the step that the live base would have given."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.runtime.choices import HeadKind, ObjectiveName
from mav.pipeline.training.loss import PreferenceModel
from mav.pipeline.training.objectives import Objective
from tests.support.models.tiny import HIDDEN, make_cache, tiny_base
from tests.support.steering.heads import random_head
from tests.support.steering.live import LiveAnswer, live_answers, relative, whole_cache

BETA, LAMBDA = 0.1, 0.01


def online_loss(
    head: AlignmentHead,
    answers: list[LiveAnswer],
    layers: list[int],
    name: ObjectiveName,
    unembedding: Unembedding,
) -> torch.Tensor:
    """The objective written out, from live states and logits, summed over pairs."""
    total = torch.zeros(())
    for chosen, rejected in zip(answers[0::2], answers[1::2], strict=True):
        sums, base_sums, norms = [], [], []
        for answer in (chosen, rejected):
            vector = head(answer.states[:, layers])
            if head.config.acts_on_state:
                logits = unembedding(answer.states[:, -1] + vector)
                vector = unembedding.scale * vector @ unembedding.weight.t()
            else:
                logits = answer.logits + vector
            labels = answer.labels[:, None]
            sums.append(logits.log_softmax(-1).gather(-1, labels).sum())
            base_sums.append(answer.logits.log_softmax(-1).gather(-1, labels).sum())
            norms.append(vector.square().sum(-1))
        margin = sums[0] - sums[1]
        if name == "dpo":
            margin = margin - (base_sums[0] - base_sums[1])
        total = total - F.logsigmoid(BETA * margin) + LAMBDA * torch.cat(norms).mean()
    return total


@pytest.mark.parametrize("name", ["dpo", "mav"])
@pytest.mark.parametrize(
    ("architecture", "kind", "pooled_size"),
    [
        *(("gemma2", "mlp", size) for size in (HIDDEN // 2, HIDDEN, 2 * HIDDEN)),
        *(("gemma2", "unembedding", size) for size in (HIDDEN // 2, HIDDEN)),
        ("cohere", "unembedding", HIDDEN),
        ("gemma2", "bottleneck", HIDDEN),
    ],
)
def test_loss_and_gradient(
    name: ObjectiveName, architecture: str, kind: HeadKind, pooled_size: int, tmp_path: Path
) -> None:
    base = tiny_base(architecture)
    reader = CacheReader(make_cache(tmp_path, base, pairs=10, pooled_size=pooled_size))
    layers = list(reader.manifest.states.layers)
    answers = live_answers(reader, base)

    online = random_head(pooled_size, kind=kind)
    want = online_loss(online, answers, layers, name, base.unembedding())
    torch.autograd.backward(want)

    cached = random_head(pooled_size, kind=kind)
    batch, _ = whole_cache(reader)
    scores = PreferenceModel(cached, bf16=False)(
        batch, CachedBase(reader, torch.device("cpu")).logits(batch)
    )
    got = scores.pair_sum_loss(Objective(name=name, beta=BETA, lambda_l2=LAMBDA), batch)
    torch.autograd.backward(got)

    assert relative(got.detach(), want.detach()) < 1e-5
    for (place, mine), theirs in zip(cached.named_parameters(), online.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert relative(mine.grad, theirs.grad) < 1e-4, place
