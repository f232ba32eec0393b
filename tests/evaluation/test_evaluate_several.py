"""Several heads on a cache: each with a strength, all times alpha."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import UsageError
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.evaluation.mixture import Mixture
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.evaluation.pair_scores import score_pairs
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import make_cache, tiny_base
from tests.support.steering.heads import KINDS, save_random_head, seeded_head, sizes_of
from tests.support.steering.live import whole_cache

CPU = torch.device("cpu")
ALPHAS = (0.0, 1.0, -2.0)
WEIGHTS = (0.25, -0.5)


@pytest.fixture(scope="module", params=["llama", "gemma2-window"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache"), tiny_base(request.param), pairs=6)


@torch.no_grad()
@pytest.mark.parametrize("kinds", [*product(KINDS, KINDS)], ids="+".join)
def test_scores_are_those_of_the_plain_sum(cache: Path, kinds: Sequence[HeadKind]) -> None:
    heads = tuple(seeded_head(n, sizes_of(kind, inner=16)) for n, kind in enumerate(kinds))
    reader = CacheReader(cache)
    batch, _ = whole_cache(reader)
    base = CachedBase(reader, CPU).logits(batch)
    labels = batch.labels.long()[:, None]
    mixture = Mixture(heads=heads, weights=WEIGHTS)
    found = score_pairs(mixture, reader, [True] * 6, ALPHAS, CPU, torch.float32)
    for alpha, scores in zip(ALPHAS, found, strict=True):
        logp = _plain(heads, alpha, base, batch.states).double().log_softmax(-1)
        sums = torch.stack(batch.response_sums(logp.gather(-1, labels)[:, 0]), dim=-1)
        torch.testing.assert_close(scores.logps, sums, rtol=1e-4, atol=1e-3)
        assert bool(scores.kl.any()) == (alpha != 0)


def _plain(heads: Sequence[AlignmentHead], alpha: float, base: object, states: Tensor) -> Tensor:
    state, unembedding = base.final_state, base.unembedding  # type: ignore[attr-defined]
    added = torch.zeros(())
    for head, weight in zip(heads, WEIGHTS, strict=True):
        if head.config.acts_on_state:
            state = state + alpha * weight * head(states)
        else:
            added = added + alpha * weight * head(states)
    logits: Tensor = unembedding(state) + added
    return logits


def test_one_head_twice_at_a_half_is_measured_as_once(cache: Path, tmp_path: Path) -> None:
    head = save_random_head(cache, tmp_path / "head")
    once = evaluate(EvaluateOptions(head=head, cache=cache, alphas=[0.0, 1.0], device="cpu"))
    twice = evaluate(
        EvaluateOptions(
            head={"a": head, "b": head},
            alpha={"a": 0.5, "b": 0.5},
            cache=cache,
            alphas=[0.0, 1.0],
            device="cpu",
        )
    )
    for one, two in zip(once.results, twice.results, strict=True):
        assert two.margin == pytest.approx(one.margin, rel=1e-4, abs=1e-5)
        assert two.kl_per_token == pytest.approx(one.kl_per_token, rel=1e-4)
        assert two.vector_norm == pytest.approx(one.vector_norm, rel=1e-5)
    assert (once.alpha, twice.alpha) == (None, {"a": 0.5, "b": 0.5})
    assert twice.head == "a=head,b=head"
    assert (twice.pairs, twice.steps) == (once.pairs, 2 * once.steps)


@pytest.mark.parametrize(
    ("head", "alpha", "told"),
    [
        ("h", {"a": 1.0}, r"got a=1, .*there is one head, without a name"),
        ({"a": "h", "b": "g"}, None, r"got none, expected a number for each .*\(a, b\)"),
        ({"a": "h", "b": "g"}, {"a": 1.0}, r"got a=1, "),
        ({"a": "h"}, {"a": 1.0, "c": 2.0}, r"got a=1,c=2, "),
        ({"a": "h"}, {"a": float("inf")}, r"expected finite"),
    ],
    ids=str,
)
def test_strengths_are_of_the_heads_there_are(head: object, alpha: object, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        EvaluateOptions(head=head, cache="c", alpha=alpha)  # type: ignore[arg-type]
