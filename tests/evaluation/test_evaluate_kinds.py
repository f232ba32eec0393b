"""Heads of every kind on caches of bases that scale and cap their logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import MismatchError
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.evaluation.pair_scores import score_pairs
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import make_cache, tiny_base
from tests.support.steering.heads import KINDS, save_random_head
from tests.support.steering.live import whole_cache

ALPHAS = (0.0, 1.0, -2.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["gemma2-window", "cohere", "granite"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    return make_cache(folder, tiny_base(request.param), pairs=6)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_models_own_formula(
    cache: Path, tmp_path: Path, kind: HeadKind
) -> None:
    head = AlignmentHead.from_pretrained(save_random_head(cache, tmp_path / "head", kind=kind))
    reader = CacheReader(cache)
    batch, _ = whole_cache(reader)
    base: Any = CachedBase(reader, CPU).logits(batch)
    labels = batch.labels.long()[:, None]
    plain = base.chunk(0, len(labels)).double().log_softmax(-1)
    found = score_pairs(head, reader, [True] * 6, ALPHAS, CPU, torch.float32)
    for alpha, scores in zip(ALPHAS, found, strict=True):
        added = alpha * head(batch.states)
        logits = (
            base.unembedding(base.final_state + added)
            if kind == "unembedding"
            else base.chunk(0, len(labels)) + added
        )
        logp = logits.double().log_softmax(-1)
        sums = torch.stack(batch.response_sums(logp.gather(-1, labels)[:, 0]), dim=-1)
        torch.testing.assert_close(scores.logps, sums, rtol=1e-4, atol=1e-3)
        kl = (logp.exp() * (logp - plain)).sum(-1)
        lengths = (batch.offsets[2::2] - batch.offsets[:-1:2]).double()
        expected = torch.add(*batch.response_sums(kl)) / lengths
        torch.testing.assert_close(scores.kl, expected, rtol=1e-3, atol=1e-5)
        assert bool(scores.kl.any()) == (alpha != 0)


def test_a_cache_without_last_states_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    head = save_random_head(tiny_cache, tmp_path / "head", kind="unembedding")
    dense = make_cache(tmp_path, tiny_base(), pairs=6, logits="dense")
    with pytest.raises(MismatchError, match=r"encoding dense.*`logits` factored"):
        evaluate(EvaluateOptions(head=head, cache=dense, alphas=[1.0], device="cpu"))
