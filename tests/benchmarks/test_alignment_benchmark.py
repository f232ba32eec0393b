import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.baselines.genarm import GENARM, combined, cosine_rate, reward_losses
from benchmarks.baselines.results import accuracy_interval, difference, read_result, summarise
from benchmarks.baselines.results import write_result as write
from benchmarks.baselines.scoring import final_states, pad_width, score_pairs, tuned_alone
from benchmarks.baselines.split import DataSettings, Split, load_split
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.statistics import wilson
from mav.pipeline.extraction.packing import shared_prompt_batch
from mav.pipeline.loader.batch import collate
from mav.pipeline.loader.split import PairSubset, in_subset
from tests.support.models.tiny import make_cache, tiny_base
from tests.support.steering.live import cached_logprobs

FRACTION = 0.3


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("alignment"))


@pytest.fixture(scope="module")
def split(cache: Path) -> Split:
    settings = DataSettings(
        base_model="tiny",
        dataset=str(cache.parent / "pairs.jsonl"),
        max_length=128,
        eval_fraction=FRACTION,
    )
    return load_split(settings, tiny_base().tokenizer)


def _cached_logprobs(cache: Path) -> torch.Tensor:
    """Sums of the cached base log-probabilities [pairs, 2]."""
    reader = CacheReader(cache)
    found = []
    for number in range(reader.plan.blocks):
        block = reader.read_block(number)
        members = [(block, index) for index in range(len(block.pairs))]
        batch = collate(members, reader.manifest, len(members))
        sums = batch.response_sums(cached_logprobs(reader, batch).double())
        found.append(torch.stack(sums, dim=-1))
    return torch.cat(found)


def test_the_split_is_the_one_that_training_makes(cache: Path, split: Split) -> None:
    subset = PairSubset(split="held-out", fraction=FRACTION)
    held_out = in_subset(CacheReader(cache).prompt_id, subset)
    assert split.held_out == held_out.nonzero()[0].tolist()
    assert sorted(split.training + split.held_out) == list(range(len(held_out)))
    assert split.held_out and split.training


def test_an_untrained_policy_is_the_base_as_the_cache_has_it(cache: Path, split: Split) -> None:
    base = tiny_base()
    states = final_states(base, split.pairs, split.held_out, multiple=32)
    scores = score_pairs(
        base.unembedding(), split.pairs, split.held_out, states, states, tuned_alone
    )
    expected = _cached_logprobs(cache)[split.held_out]
    found = torch.stack([scores.chosen, scores.rejected], dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(scores.base_chosen, scores.chosen)
    assert torch.equal(scores.base_rejected, scores.rejected)
    torch.testing.assert_close(scores.kl, torch.zeros_like(scores.kl), rtol=0, atol=1e-9)


def test_padding_to_a_multiple_changes_no_state(split: Split) -> None:
    base, members = tiny_base(), split.training[:3]
    batch = shared_prompt_batch(split.pairs, members, base.dtype)
    wide = pad_width(batch, 64)
    assert wide.inputs["input_ids"].shape[1] % 64 == 0
    with torch.inference_mode():
        plain, padded = (
            base.decoder(**b.inputs).last_hidden_state.flatten(0, 1)[b.predict]
            for b in (batch, wide)
        )
    torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5)


def test_a_reward_model_without_weight_leaves_the_base() -> None:
    base_NV, reward_NV = torch.randn(2, 5, 11, dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(combined(1e12)(base_NV, reward_NV), base_NV)
    torch.testing.assert_close(
        combined(0.5)(base_NV, reward_NV), (base_NV + 2 * reward_NV).log_softmax(-1)
    )


def test_the_reward_loss_and_its_rate() -> None:
    chosen, rejected = torch.tensor([3.0]), torch.tensor([-1.0])
    expected = -torch.log(torch.sigmoid(torch.tensor([0.2])))
    torch.testing.assert_close(reward_losses(chosen, rejected, 0.05), expected)
    rates = [cosine_rate(step, 80, GENARM) for step in range(80)]
    assert max(rates) == GENARM.learning_rate == rates[7] == rates[8]
    assert 0 < rates[0] < rates[1] and 0 < rates[-1] < rates[-2]


def test_one_seed_has_wilsons_own_interval() -> None:
    correct = torch.tensor([[1, 1, 1, 0, 0, 1, 0, 1, 1, 1]])
    assert accuracy_interval(correct) == (0.7, wilson(7, 10))
    assert accuracy_interval(torch.ones(1, 10)) == (1.0, wilson(10, 10))


def test_seeds_that_agree_add_nothing_and_others_at_most_their_number() -> None:
    one = torch.tensor([[1, 1, 1, 0, 0, 1, 0, 1, 1, 1]])
    share, interval = accuracy_interval(one.repeat(3, 1))
    assert share == pytest.approx(0.7)
    assert interval == pytest.approx(wilson(7, 10))
    opposite = torch.tensor([[1, 0] * 5, [0, 1] * 5])
    assert accuracy_interval(opposite) == (0.5, wilson(10, 20))


def _result(row: str, seed: int, gains: list[float]) -> dict[str, Any]:
    zeros = [0.0] * len(gains)
    pairs = dict.fromkeys(("rejected", "tuned_rejected", "base_chosen", "base_rejected"), zeros)
    return {
        "row": row,
        "method": row,
        "seed": seed,
        "settings": {},
        "training_seconds": 10.0 + seed,
        "training_cpu_seconds": 15.0 + seed,
        "preparation_seconds": 5.0,
        "trainable_parameters": 7,
        "pairs": {**pairs, "chosen": gains, "tuned_chosen": gains, "kl": [0.5] * len(gains)},
    }


def test_rows_are_made_of_all_seeds(tmp_path: Path) -> None:
    results = [_result("genarm", 0, [1.0, -1.0, 2.0]), _result("genarm", 1, [1.0, 1.0, -2.0])]
    for number, result in enumerate(results):
        path = tmp_path / "results" / f"{number}.json"
        assert read_result(path) is None
        write(path, result)
        assert read_result(path) == json.loads(json.dumps(result))
    row = summarise(results)
    assert row["seeds"] == [0, 1]
    assert row["reward_accuracy"] == pytest.approx(2 / 3)
    assert row["reward_accuracy_by_seed"] == pytest.approx([2 / 3, 2 / 3])
    assert row["own_reward_accuracy"] == row["reward_over_base_accuracy"] == pytest.approx(2 / 3)
    assert row["margin"] == pytest.approx(1 / 3)
    assert row["kl_per_token"] == 0.5
    assert (row["training_seconds"], row["training_cpu_seconds"]) == (10.5, 15.5)
    assert (row["seconds_of_one_run"], row["seconds_of_all_runs"]) == (15.5, 26.0)


def test_rows_are_compared_pair_by_pair() -> None:
    better, worse = _result("mav", 0, [1.0, 1.0, 1.0]), _result("dpo-lora", 0, [1.0, -1.0, 1.0])
    found = difference([better], [worse])
    assert found["accuracy_difference"] == pytest.approx(1 / 3)
    assert found["interval"][0] < 1 / 3 < found["interval"][1]
