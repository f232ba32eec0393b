"""What a head is measured to do, against a brute-force computation."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import DataError, MismatchError
from mav.pipeline.evaluation.evaluate import Evaluation, evaluate
from mav.pipeline.evaluation.length_breakdown import by_length, by_longer
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.evaluation.statistics import wilson
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.reporting import tables as report
from tests.support.models.tiny import HIDDEN, make_cache, tiny_base, write_rows
from tests.support.steering.heads import FRACTION, save_random_head

ALPHAS = (0.0, 0.5, 2.0, -1.0)


@pytest.fixture(scope="module", params=["mlp", "unembedding"])
def head(
    request: pytest.FixtureRequest, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("head") / "best"
    return save_random_head(tiny_cache, folder, kind=request.param)


def by_brute_force(
    head: str, cache: Path, alpha: float, wanted: Sequence[bool]
) -> dict[str, list[float]]:
    """Per pair, in float64, token by token: gains, log-probabilities, KL and norm."""
    reader = CacheReader(cache)
    network = AlignmentHead.from_pretrained(head).double()
    weight = torch.from_numpy(reader.read_unembedding()["weight"]).double()
    found: dict[str, list[float]] = {"margin": [], "logp": [], "kl": [], "norm": []}
    for number in range(reader.plan.blocks):
        block = reader.read_block(number)
        for index, pair in enumerate(block.pairs):
            if not wanted[pair]:
                continue
            sums, base_sums, kl, norm = [0.0, 0.0], [0.0, 0.0], [], []
            for side in range(2):
                start, stop = block.offsets[2 * index + side : 2 * index + side + 2]
                for token in range(start, stop):
                    states = torch.from_numpy(block.rows["hidden_states"][token]).double()
                    vector = alpha * network(states).detach()
                    if network.config.acts_on_state:
                        vector = weight @ vector
                    base = weight @ states[2]
                    base_log = base.log_softmax(0)
                    log = (base + vector).log_softmax(0)
                    label = int(block.rows["labels"][token])
                    sums[side] += float(log[label])
                    base_sums[side] += float(base_log[label])
                    kl.append(float((log.exp() * (log - base_log)).sum()))
                    norm.append(float(vector.square().sum().sqrt()))
            found["margin"].append((sums[0] - base_sums[0]) - (sums[1] - base_sums[1]))
            found["logp"].append(sums[0] - sums[1])
            found["kl"].append(sum(kl) / len(kl))
            found["norm"].append(sum(norm) / len(norm))
    return found


@pytest.fixture(scope="module")
def found(head: str, tiny_cache: Path) -> Evaluation:
    return evaluate(EvaluateOptions(head=head, cache=tiny_cache, alphas=ALPHAS, device="cpu"))


@pytest.mark.parametrize("number", range(len(ALPHAS)))
def test_results_equal_brute_force(
    found: Evaluation, head: str, tiny_cache: Path, number: int
) -> None:
    reader = CacheReader(tiny_cache)
    wanted = in_subset(reader.prompt_id, PairSubset(split="held-out", fraction=FRACTION))
    true = by_brute_force(head, tiny_cache, ALPHAS[number], wanted.tolist())
    result = found.results[number]
    assert result.alpha == ALPHAS[number]
    assert result.logp_accuracy == np.mean([value > 0 for value in true["logp"]])
    assert result.margin == pytest.approx(np.mean(true["margin"]), rel=1e-4, abs=1e-4)
    assert result.kl_per_token == pytest.approx(np.mean(true["kl"]), rel=1e-4)
    assert result.vector_norm == pytest.approx(np.mean(true["norm"]), rel=1e-4)
    for interval, name in ((result.margin_interval, "margin"), (result.kl_interval, "kl")):
        half = 1.959964 * np.std(true[name], ddof=1) / math.sqrt(len(true[name]))
        mean = np.mean(true[name])
        assert interval == pytest.approx((mean - half, mean + half), rel=1e-3, abs=1e-4)
    if ALPHAS[number] != 0:
        gained = float(np.mean([value > 0 for value in true["margin"]]))
        assert result.reward_accuracy == gained
        assert result.reward_accuracy_interval == wilson(8 * gained, 8)
    assert result.logp_accuracy_interval == wilson(8 * result.logp_accuracy, 8)


def test_no_strength_changes_nothing(found: Evaluation) -> None:
    result = found.results[0]
    assert (result.reward_accuracy, result.reward_accuracy_interval) == (None, None)
    assert (result.margin, result.margin_interval) == (0, (0, 0))
    assert (result.kl_per_token, result.kl_interval, result.vector_norm) == (0, (0, 0), 0)


def test_what_is_counted(found: Evaluation, head: str, tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    wanted = in_subset(reader.prompt_id, PairSubset(split="held-out", fraction=FRACTION))
    assert (found.head, found.cache, found.which) == (head, str(tiny_cache), "held-out")
    assert (found.pairs, found.tokens) == (8, reader.plan.response_length[wanted].sum())


def test_parts_of_a_cache(head: str, tiny_cache: Path) -> None:
    counted = {
        which: evaluate(
            EvaluateOptions(head=head, cache=tiny_cache, alphas=[1.0], pairs=which, device="cpu")
        )
        for which in ("held-out", "training", "all")
    }
    assert {which: result.pairs for which, result in counted.items()} == {
        "held-out": 8,
        "training": 32,
        "all": 40,
    }
    assert counted["training"].tokens + counted["held-out"].tokens == counted["all"].tokens
    margins = {which: result.results[0].margin for which, result in counted.items()}
    assert 8 * margins["held-out"] + 32 * margins["training"] == pytest.approx(40 * margins["all"])


def test_accuracy_by_length_equals_brute_force(
    found: Evaluation, head: str, tiny_cache: Path
) -> None:
    reader = CacheReader(tiny_cache)
    wanted = in_subset(reader.prompt_id, PairSubset(split="held-out", fraction=FRACTION))
    # Of 0.5 and 2.0 the former is nearer to 1.
    assert found.length_alpha == 0.5
    margins = by_brute_force(head, tiny_cache, 0.5, wanted.tolist())["margin"]
    lengths = [tuple(map(int, pair)) for pair in reader.plan.response_length[wanted]]
    pairs = [(*length, int(margin > 0)) for length, margin in zip(lengths, margins, strict=True)]
    assert len(found.by_length) == 5
    for each in found.by_length:
        inside = [right for a, b, right in pairs if each.fewest_tokens <= a + b <= each.most_tokens]
        assert (each.pairs, each.accuracy) == (len(inside), sum(inside) / len(inside))
        assert each.interval == wilson(sum(inside), len(inside))
    groups: dict[str, list[int]] = {
        "chosen": [right for a, b, right in pairs if a > b],
        "neither": [right for a, b, right in pairs if a == b],
        "rejected": [right for a, b, right in pairs if a < b],
    }
    told = {
        str(each.longer): (each.pairs, each.accuracy, each.interval) for each in found.by_longer
    }
    assert told == {
        name: (len(inside), sum(inside) / len(inside), wilson(sum(inside), len(inside)))
        for name, inside in groups.items()
        if inside
    }
    assert len(told) > 1


@pytest.mark.parametrize(
    ("alphas", "nearest"),
    [((0.0,), None), ((0.0, -3.0), -3.0), ((0.0, 2.0, 1.5), 1.5), ((1.5, 0.5), 0.5), ((0, 2), 2)],
)
def test_accuracy_by_length_is_at_the_alpha_nearest_one(
    head: str, tiny_cache: Path, alphas: Sequence[float], nearest: float | None
) -> None:
    found = evaluate(EvaluateOptions(head=head, cache=tiny_cache, alphas=alphas, device="cpu"))
    assert found.length_alpha == nearest
    if nearest is None:
        assert (found.by_length, found.by_longer) == ((), ())
    else:
        overall = found.results[list(alphas).index(nearest)].reward_accuracy
        for parts in (found.by_length, found.by_longer):
            assert sum(part.pairs for part in parts) == found.pairs
            right = sum(part.accuracy * part.pairs for part in parts)
            assert right / found.pairs == pytest.approx(overall)


@given(
    pairs=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=80),
    bins=st.integers(1, 7),
)
def test_bins_hold_every_pair_once(pairs: list[tuple[int, bool]], bins: int) -> None:
    tokens = np.array([length for length, _ in pairs], np.int64)
    right = np.array([good for _, good in pairs], np.bool_)
    found = by_length(tokens, right, bins)
    assert 1 <= len(found) <= bins
    ranges = [(each.fewest_tokens, each.most_tokens) for each in found]
    assert ranges == sorted(ranges)
    assert all(low <= high for low, high in ranges)
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(ranges))
    for each, (low, high) in zip(found, ranges, strict=True):
        inside = [good for length, good in pairs if low <= length <= high]
        assert (each.pairs, each.accuracy) == (len(inside), sum(inside) / len(inside))
    assert sum(each.pairs for each in found) == len(pairs)
    if len(set(tokens)) == len(pairs):
        counts = [each.pairs for each in found]
        assert max(counts) - min(counts) <= 1


@given(
    pairs=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.booleans()), min_size=1, max_size=30
    )
)
def test_groups_by_the_longer_answer_hold_every_pair_once(
    pairs: list[tuple[int, int, bool]],
) -> None:
    found = by_longer(np.array([pair[:2] for pair in pairs]), np.array([p[2] for p in pairs]))
    assert sum(each.pairs for each in found) == len(pairs)
    assert sum(each.accuracy * each.pairs for each in found) == pytest.approx(
        sum(good for *_, good in pairs)
    )
    assert all(each.pairs > 0 for each in found)


def test_results_do_not_depend_on_how_pairs_are_grouped(
    head: str, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(
        EvaluateOptions(head=head, cache=tiny_cache, alphas=[1.5], pairs="all", device="cpu")
    )
    monkeypatch.setattr("mav.pipeline.evaluation.pair_scores._PAIRS_AT_ONCE", 1)
    monkeypatch.setattr("mav.pipeline.evaluation.pair_scores.CHUNK_ELEMENTS", 300 * 7)
    pieces = evaluate(
        EvaluateOptions(head=head, cache=tiny_cache, alphas=[1.5], pairs="all", device="cpu")
    )
    for one, other in zip(whole.results, pieces.results, strict=True):
        for name, value in dataclasses.asdict(one).items():
            assert getattr(other, name) == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_a_head_that_held_nothing_out_is_measured_on_all(tiny_cache: Path, tmp_path: Path) -> None:
    head = save_random_head(tiny_cache, tmp_path / "head", fraction=0.0)
    found = evaluate(EvaluateOptions(head=head, cache=tiny_cache, alphas=[1.0], device="cpu"))
    assert (found.which, found.pairs) == ("all", 40)


def test_other_data_is_measured_on_whole(head: str, tmp_path: Path) -> None:
    cache = make_cache(tmp_path, pairs=6)
    # Data of the same name may be the same pairs, as these are.
    assert (
        evaluate(EvaluateOptions(head=head, cache=cache, alphas=[1.0], device="cpu")).which
        == "held-out"
    )
    data = write_rows(tmp_path / "others.jsonl", 6)
    options = {"pooled_size": HIDDEN, "max_length": 128, "dtype": "float32", "device": "cpu"}
    extract(
        ExtractOptions(
            base_model="tiny",
            data=DataSource(id=str(data)),
            output=tmp_path / "other",
            **options,  # type: ignore[arg-type]
        ),
        base=tiny_base(),
    )
    found = evaluate(
        EvaluateOptions(head=head, cache=tmp_path / "other", alphas=[1.0], device="cpu")
    )
    assert (found.which, found.pairs) == ("all", 6)


def test_an_empty_part_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    head = save_random_head(tiny_cache, tmp_path / "head", fraction=1e-6)
    with pytest.raises(DataError, match=r"none of its pairs is held-out.*`pairs`"):
        evaluate(EvaluateOptions(head=head, cache=tiny_cache, alphas=[1.0], device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 301}, r"vocabulary of 301 tokens.* has 300"),
        ({"tokenizer_digest": "other"}, r"both have 300 tokens, but other tokenizers"),
    ],
)
def test_a_cache_of_another_vocabulary_is_refused(
    tiny_cache: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    head = save_random_head(tiny_cache, tmp_path / "head", **changes)
    with pytest.raises(MismatchError, match=message):
        evaluate(EvaluateOptions(head=head, cache=tiny_cache, alphas=[1.0], device="cpu"))


def test_results_of_a_single_pair_are_json(tiny_cache: Path, tmp_path: Path) -> None:
    """An interval that cannot be told must not be infinite: JSON has no infinity."""
    head = save_random_head(tiny_cache, tmp_path / "head")
    found = evaluate(
        EvaluateOptions(
            head=head, cache=make_cache(tmp_path / "one", pairs=1), alphas=[1.0], device="cpu"
        )
    )
    assert found.pairs == 1
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["results"][0]["margin"] == found.results[0].margin
    assert report.table(found)
    report.plot(found, tmp_path / "one.png")


def test_results_are_json(found: Evaluation) -> None:
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [result["alpha"] for result in plain["results"]] == list(ALPHAS)
    assert plain["results"][0]["reward_accuracy"] is None
    assert plain["pairs"] == 8
    assert sum(each["pairs"] for each in plain["by_length"]) == 8
    assert set(plain["by_length"][0]) == {
        *("fewest_tokens", "most_tokens", "pairs", "accuracy", "interval")
    }
    assert set(plain["by_longer"][0]) == {"longer", "pairs", "accuracy", "interval"}
