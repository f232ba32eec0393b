"""The measures of systems, against computations by hand."""

import math
from pathlib import Path

import pytest

from mav.pipeline.comparison.intervals import win_rate
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.comparison.summary import JUDGE, SystemSummary, summarize_systems
from mav.pipeline.comparison.systems import System, by_prompt, keys_of, results
from tests.support.steering.comparisons import prompts_of, system_of

PROMPTS = prompts_of("a", "b", "c", "d")
PHRASES = ("i can't",)


def summaries(*systems: System, reference: str = "base") -> list[SystemSummary]:
    expected = keys_of(PROMPTS, systems)
    return [*summarize_systems(PROMPTS, systems, reference, expected, PHRASES)]


def keyed(*values: float | None) -> dict[AnswerKey, float | None]:
    return {AnswerKey(number): value for number, value in enumerate(values)}


def test_rewards_are_paired_with_the_references() -> None:
    base = system_of("base", "w x", "x", "y", "z", rewards={"rm": keyed(1, 2, 3, 4)})
    other = system_of("other", "w", "x", "y", None, rewards={"rm": keyed(2, 2, 0, None)})
    plain, found = summaries(base, other)
    assert plain.rewards["rm"].value == 2.5
    assert plain.wins == {}
    assert found.rewards["rm"].value == pytest.approx(4 / 3)
    assert (found.reward_gains["rm"].value, found.reward_gains["rm"].n) == (-2 / 3, 3)
    wins = found.wins["rm"].rate
    assert (wins.value, wins.n) == (0.5, 3)  # one won, one tied, one lost
    assert wins == win_rate([2, 2, 0, None], [1, 2, 3, 4])
    assert (found.answers, found.missing, found.errors) == (3, 1, 1)


def test_figures_of_texts_are_means_over_prompts() -> None:
    texts = ("I can't do that", "", "one two one two one", "yes")
    (found,) = summaries(system_of("base", *texts))
    assert found.words.value == (4 + 0 + 5 + 1) / 4
    assert found.refusing.value == found.empty.value == 0.25
    assert found.repetition[2].value == 0.25  # 0 of the first, 2 of 4 bigrams of the third
    assert (found.repetition[2].n, found.repetition[2].missing) == (2, 2)
    assert found.distinct[1] == 7 / 10
    assert found.cut.value is found.tokens.value is found.kl.value is None


def test_figures_of_decoding_are_means_over_prompts() -> None:
    answers = {
        AnswerKey(number): Answer(
            key=AnswerKey(number),
            response="x",
            new_tokens=number + 1,
            finish=finish,
            kl=kl,
            seconds=0.5,
        )
        for number, (finish, kl) in enumerate([("stop", 1.0), ("length", 2.0), ("stop", 6.0)])
    }
    nll = keyed(1.0, None, 3.0)
    (found,) = summaries(System(name="base", answers=answers, alpha=1.0, base_nll=nll))
    assert (found.kl.value, found.tokens.value, found.cut.value) == (3.0, 2.0, 1 / 3)
    assert found.tokens_per_second == 4.0
    assert found.perplexity.value == pytest.approx(math.exp(2.0))
    assert found.missing == 1


def test_a_judge_stands_beside_reward_models() -> None:
    base = system_of("base", "a", "b", "c", "d", rewards={"rm": keyed(0, 0, 0, 0)})
    other = system_of(
        "other",
        *("a", "b", "c", "d"),
        rewards={"rm": keyed(1, 1, 1, 1)},
        verdicts=keyed(1, 0.5, 0, None),
    )
    _, found = summaries(base, other)
    assert [*found.wins] == ["rm", JUDGE]
    assert (found.wins[JUDGE].rate.value, found.wins[JUDGE].rate.n) == (0.5, 3)
    # Answers are as long as the reference's, so there is nothing to control for.
    assert found.wins[JUDGE].length_controlled.value == pytest.approx(0.5)
    assert found.wins["rm"].rate.value == 1.0


def test_samples_and_turns_of_a_prompt_are_one_value() -> None:
    values = {
        AnswerKey(0, 0, 0): 1.0,
        AnswerKey(0, 1, 0): 2.0,
        AnswerKey(0, 1, 1): 6.0,
        AnswerKey(2, 0, 0): None,
    }
    assert by_prompt(values, 3) == [3.0, None, None]


def test_a_sample_is_compared_with_the_sample_of_its_number() -> None:
    ours = {AnswerKey(0, 0): 1.0, AnswerKey(0, 1): 5.0, AnswerKey(1): math.nan, AnswerKey(2): 0.0}
    theirs = {AnswerKey(0, 0): 2.0, AnswerKey(0, 1): 3.0, AnswerKey(1): 1.0, AnswerKey(3): 0.0}
    assert [*results(ours, theirs).values()] == [0.0, 1.0, None, None]


def test_expected_are_all_turns_and_as_many_samples_as_one_has() -> None:
    more = system_of("a", "x")
    more.answers = {**more.answers, AnswerKey(1, 1): Answer(key=AnswerKey(1, 1), response="y")}
    found = keys_of(prompts_of("a", "b"), [more, system_of("b", "x")])
    assert found == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]


def test_an_unlikely_text_has_a_perplexity(tmp_path: Path) -> None:
    (found,) = summaries(system_of("base", "x", base_nll=keyed(1e6)))
    assert found.perplexity.value is not None
    assert math.isfinite(found.perplexity.value)
