"""The frontier's parts against plain computations, with tiny random models."""

import copy
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.frontier import rewards as rewards_module
from benchmarks.frontier.expressed import Shifted, distil, shifts
from benchmarks.frontier.policies import (
    Policy,
    adding,
    padded,
    plain,
    set_adapter_scale,
    steered,
)
from benchmarks.frontier.prompts import prompts_of
from benchmarks.frontier.rewards import draw_pairs, vader
from benchmarks.frontier.sampling import answer_logprobs, sample, sequence_kl
from benchmarks.frontier.vectors import all_pairs, difference_of_means
from mav.cache_schema.errors import UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.generate import positions_of
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.preferences.prompt_format import PromptFormat
from tests.support.models.tiny import HIDDEN, VOCAB, make_cache, tiny_base

PROMPTS = ("How is it?", "Tell me about a kite and two chairs.", "Why?")
ANSWERS = ([17, 40, 200, 0], [33, 5], [8, 250, 99, 120, 61])


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A tiny base, and policies on it."""

    base: BaseModel
    form: PromptFormat

    @property
    def plain(self) -> Policy:
        return plain(self.base, self.form)

    @property
    def moved(self) -> Policy:
        vector = torch.linspace(-1, 1, HIDDEN)
        return steered(self.base, self.form, 1, vector)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    base = tiny_base()
    return Tiny(base=base, form=PromptFormat(name="hh", tokenizer=base.tokenizer))


@torch.inference_mode()
def plain_logprobs(policy: Policy, prompt: str, answer: list[int]) -> Tensor:
    """Log-probabilities [T, V] of one answer alone, without padding, from float64 logits."""
    begun = policy.tokens(prompt)
    with policy.active():
        found = policy.models[0][0](input_ids=torch.tensor([begun + answer]), use_cache=False)
    logits: Tensor = found.logits[0, len(begun) - 1 : -1].double()
    return logits.log_softmax(-1)


def test_prompts_of_different_parts_share_no_topic() -> None:
    parts = [prompts_of("training"), prompts_of("tuning"), prompts_of("held-out")]
    assert [len(part) for part in parts] == [540, 108, 216]
    assert len({prompt for part in parts for prompt in part}) == 540 + 108 + 216
    assert prompts_of("held-out", 7) == prompts_of("held-out")[:7]
    assert not any("kettle" in prompt for prompt in [*parts[1], *parts[2]])
    with pytest.raises(UsageError, match="got 109, expected 1 to 108"):
        prompts_of("tuning", 109)


def test_kl_is_that_of_each_answer_alone(tiny: Tiny) -> None:
    talked_to = Policy(
        models=tiny.moved.models, form=tiny.form, system="Be glad.", active=tiny.moved.active
    )
    for policy in (tiny.moved, talked_to):
        found = sequence_kl(policy, tiny.plain, PROMPTS, ANSWERS)
        expected = []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            own = plain_logprobs(policy, prompt, answer)
            base = plain_logprobs(tiny.plain, prompt, answer)
            expected.append((own.exp() * (own - base)).sum())
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
        assert (found > 0.01).all()
    assert sequence_kl(tiny.plain, tiny.plain, PROMPTS, ANSWERS).abs().max() < 1e-6


def test_the_probability_of_an_answer_is_that_of_its_tokens(tiny: Tiny) -> None:
    found = answer_logprobs(tiny.moved, PROMPTS, ANSWERS)
    expected = [
        plain_logprobs(tiny.moved, prompt, answer)[range(len(answer)), answer].sum()
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_text_read_in_pieces_has_the_logits_of_the_whole(tiny: Tiny) -> None:
    other = tiny_base("gpt2", seed=1)  # whose positions are counted, and not only compared
    policy = Policy(models=[(tiny.base.model, 1.0), (other.model, 0.5)], form=tiny.form)
    ids, mask = padded([[5, 9, 77], [40]], left=True)
    more = torch.tensor([[12], [90]])
    whole_ids, whole_mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    places = positions_of(whole_mask, whole_mask.shape[1])
    with torch.inference_mode():
        reader = policy.reader(keeps_cache=True)
        reader(ids, mask, places[:, :-1], torch.tensor([2]))
        last = reader(more, whole_mask, places[:, -1:], torch.tensor([0]))
        whole = policy.reader(keeps_cache=False)(whole_ids, whole_mask, places, torch.tensor([3]))
        one, two = (
            m(torch.tensor([[40, 90]])).logits[0, -1] for m in (tiny.base.model, other.model)
        )
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)
    expected = one.log_softmax(-1) + 0.5 * two.log_softmax(-1)
    torch.testing.assert_close(last[1, 0], expected, rtol=1e-4, atol=1e-4)


def test_samples_are_the_models_own_and_repeat(tiny: Tiny) -> None:
    prompts = [PROMPTS[0]] * 3000
    first = [answer[0] for answer in sample(tiny.moved, prompts, 1, seed=3)]
    shares = np.bincount(first, minlength=VOCAB) / len(first)
    expected = plain_logprobs(tiny.moved, PROMPTS[0], [1])[0].exp().numpy()
    # Five standard deviations of a share.
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected / len(first)) + 1e-3).all()
    again = sample(tiny.moved, PROMPTS, 9, seed=4)
    assert again == sample(tiny.moved, PROMPTS, 9, seed=4) != sample(tiny.moved, PROMPTS, 9, seed=5)
    assert all(0 not in answer[:-1] for answer in again)


def test_an_answer_ends_with_its_end_token(tiny: Tiny) -> None:
    form = PromptFormat(name="hh", tokenizer=tiny.base.tokenizer)
    answers = sample(plain(tiny.base, form), [PROMPTS[1]] * 60, 40, seed=0)
    ended = [answer for answer in answers if 0 in answer]
    assert ended and all(answer.index(0) == len(answer) - 1 for answer in ended)
    assert all(len(answer) == 40 for answer in answers if 0 not in answer)


def test_a_vector_is_added_to_what_a_layer_is_given_and_only_while_open(tiny: Tiny) -> None:
    vector, ids = torch.linspace(0, 2, HIDDEN), torch.tensor([[4, 8, 15]])
    seen = []
    for context in (adding(tiny.base, 1, vector), adding(tiny.base, 1, 0 * vector)):
        with torch.inference_mode(), context, tiny.base.hidden_state_hooks((1,)) as hooks:
            tiny.base.model(ids)
            seen.append(hooks.states[1])
    torch.testing.assert_close(seen[0], seen[1] + vector)
    with torch.inference_mode(), tiny.base.hidden_state_hooks((1,)) as hooks:
        tiny.base.model(ids)
        assert torch.equal(hooks.states[1], seen[1])


# PEFT asks transformers by a name that is on its way out.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_add_as_much_as_they_are_told(tiny: Tiny) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False
    )
    torch.manual_seed(0)
    tuned = peft.get_peft_model(copy.deepcopy(tiny.base.model), config, "default").eval()
    ids = torch.tensor([[4, 8, 15]])
    with torch.inference_mode():
        whole = tuned(ids).logits
        for strength, expected in ((1.0, whole), (0.0, tiny.base.model(ids).logits)):
            set_adapter_scale(tuned, strength)
            torch.testing.assert_close(tuned(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_pairs_are_drawn_as_bradley_and_terry_say() -> None:
    reward = {"good": 0.3, "bad": -0.1, "": 0.0}.__getitem__
    answers = [["good", "bad"]] * 4000
    prompts = ["p"] * len(answers)
    drawn = draw_pairs(prompts, answers, reward, scale=2.5, seed=0)
    assert len(drawn.rows) == 4000 and not drawn.dropped
    expected = 1 / (1 + np.exp(-2.5 * 0.4))
    assert abs(drawn.agreeing - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)
    swapped = draw_pairs(prompts, [a[::-1] for a in answers], reward, scale=2.5, seed=1)
    assert abs(swapped.agreeing - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)
    certain = draw_pairs(prompts, answers, reward, scale=1e3, seed=0)
    assert {row["chosen"] for row in certain.rows} == {"good"}
    again = draw_pairs(prompts, answers, reward, scale=2.5, seed=0)
    assert again.rows == drawn.rows
    odd = draw_pairs(["p"], [["good", "good", "", "bad", "bad", "good"]], reward, 1.0, seed=0)
    assert len(odd.rows) == 1
    assert odd.dropped == {"identical answers": 1, "empty answer": 1}


def test_without_the_reward_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(SystemExit, match="pip install vaderSentiment"):
        vader()


def test_the_gold_reward_knows_good_from_bad() -> None:
    pytest.importorskip("vaderSentiment")
    reward = vader()
    assert -1 <= reward("This is horrible.") < reward("The door.") == 0 < reward("I love it!") <= 1


def test_the_mean_difference_is_of_chosen_and_rejected_states(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, pairs=6)
    batch = all_pairs(cache)
    assert batch.pairs == len(CacheReader(cache).pair_id)
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    bounds = batch.offsets.tolist()
    for number, (start, stop) in enumerate(pairwise(bounds)):
        sides[number % 2].append(batch.states[start:stop, 1])
    chosen, rejected = (torch.cat(side) for side in sides)
    expected = chosen.mean(0) - rejected.mean(0)
    found = difference_of_means(batch, 1)
    torch.testing.assert_close(found / found.norm(), expected / expected.norm())
    length = batch.states[:, 1].norm(dim=-1).median()
    torch.testing.assert_close(found.norm(), length)


def _shifted(tokens: int, seed: int) -> Shifted:
    """Tokens whose shift is a function of their states, the same for every seed."""
    fixed = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 12, generator=fixed)
    change = torch.randn(12, 12, generator=fixed)
    states = torch.randn(tokens, 1, 12, generator=torch.Generator().manual_seed(seed))
    base = states[:, 0]
    return Shifted(
        states=states,
        base=base,
        tuned=base + 0.3 * base @ change,
        unembedding=Unembedding(weight=weight),
    )


def test_a_head_expresses_what_its_states_decide() -> None:
    config = HeadConfig(num_layers=1, pooled_size=12, expansion_size=64, vocab_size=50, dropout=0.0)
    training, held_out = _shifted(6000, 1), _shifted(400, 2)
    untrained = distil(_shifted(1, 1), config, 1, seed=0)
    torch.nn.init.zeros_(untrained.project.weight)
    torch.nn.init.zeros_(untrained.project.bias)
    plain_kl, left = shifts(held_out, untrained)
    assert plain_kl == pytest.approx(left)
    base = held_out.unembedding(held_out.base).double().log_softmax(-1)
    tuned = held_out.unembedding(held_out.tuned).double().log_softmax(-1)
    assert plain_kl == pytest.approx(float((tuned.exp() * (tuned - base)).sum(-1).mean()), rel=1e-4)
    learned = distil(training, config, 20, seed=0)
    assert shifts(held_out, learned)[1] < 0.5 * plain_kl


def test_rows_are_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "é", "rejected": "a\nb"}]
    rewards_module.write_rows(tmp_path / "rows.jsonl", rows)
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == rows
