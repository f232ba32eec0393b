"""Heads that steer only where the base is uncertain, against plain passes and in every way."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.files.batch_file import generate_file
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.decoding.steering.uncertainty import entropy
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import ARCHITECTURES, tiny_base
from tests.support.steering.heads import KINDS
from tests.support.steering.listeners import Listener, alone, decoder_of
from tests.support.steering.live import relative
from tests.support.steering.several import steered_by
from tests.support.steering.steered import products_with_the_vocabulary, varied_base
from tests.support.steering.uncertain import (
    calls_of_heads,
    entropies,
    limit_between,
    limited_logits,
)

IDS = torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(3))
MIXES: list[tuple[HeadKind, ...]] = [
    *((kind,) for kind in KINDS),
    ("unembedding", "unembedding"),
    ("mlp", "unembedding"),
    ("bottleneck", "mlp"),
]
PROMPTS = ["How do I mend a kite?", "Hi", "What is bread?", "Name a tree."]
ALPHAS: list[Any] = [{"a": 9.0, "b": -6.0}, 0, {"a": "0:12,5:-4", "b": 3.0}, {"a": 0.0, "b": 8.0}]
BASE = "llama"


@pytest.fixture(scope="module")
def mav() -> MAVInference:
    return steered_by(varied_base(BASE), "mlp", "unembedding")


@pytest.fixture(scope="module")
def limit(mav: MAVInference) -> float:
    """One that some tokens of the answers below exceed and others do not."""
    return limit_between(entropies(varied_base(BASE), IDS))


def test_entropy_is_that_of_the_distribution() -> None:
    logits = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(1)) * 4
    logits[0, 0, :49] = -torch.inf
    logits[0, 1, 10:] = -torch.inf
    logprobs = logits[1:].double().log_softmax(-1)
    want = -(logprobs.exp() * logprobs).sum(-1)
    assert torch.allclose(entropy(logits)[1:].double(), want, atol=1e-5)
    assert float(entropy(logits)[0, 0]) == 0.0
    assert torch.isclose(entropy(logits)[0, 1], entropy(logits[0, 1, :10]))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_is_steered_where_its_entropy_is_above_the_limit(
    architecture: str, kind: HeadKind
) -> None:
    base, untouched = tiny_base(architecture), tiny_base(architecture)
    mav = steered_by(base, kind)
    limit = limit_between(entropies(untouched, IDS))
    want, steered = limited_logits(mav, untouched, IDS, [[2.0]] * 3, [limit] * 3)
    assert 0.2 < steered.float().mean() < 0.8
    with mav.exclusive() as aligned, aligned.steering([[2.0]], limit):
        got = base.model(IDS).logits
        assert aligned.steered_last(3) == steered[:, -1].tolist()
        aligned.keep_base_logits = True
        kept, plain = base.model(IDS).logits, aligned.base_logits
        assert plain is not None
    assert relative(got, want) < 1e-5
    assert relative(got[steered], untouched.model(IDS).logits[steered]) > 0.01
    # To the last bit, so that a KL between them is nothing.
    assert torch.equal(got, kept)
    assert torch.equal(kept[~steered], plain[~steered].float())


@torch.no_grad()
@pytest.mark.parametrize("kinds", MIXES, ids="+".join)
def test_rows_have_alphas_and_limits_of_their_own(kinds: tuple[HeadKind, ...]) -> None:
    base, untouched = varied_base("gemma2-window"), varied_base("gemma2-window")
    mav = steered_by(base, *kinds)
    middle = limit_between(entropies(untouched, IDS))
    alphas = [[2.0, 0.0][: len(kinds)], [0.0, 0.0][: len(kinds)], [-1.0, 3.0][: len(kinds)]]
    limits = [middle, None, None]
    want, steered = limited_logits(mav, untouched, IDS, alphas, [middle, -1.0, -1.0])
    with mav.exclusive() as aligned, aligned.steering(alphas, limits):
        got = base.model(IDS).logits
        few = base.model(IDS, logits_to_keep=torch.tensor([2, 6])).logits
    assert relative(got, want) < 1e-5
    assert relative(few, want[:, [2, 6]]) < 1e-5
    assert not steered[1].any()
    assert steered[2].all()


@pytest.mark.parametrize("kinds", MIXES, ids="+".join)
def test_where_nothing_is_uncertain_enough_no_head_runs(kinds: tuple[HeadKind, ...]) -> None:
    mav = steered_by(varied_base(BASE), *kinds)
    alpha = dict.fromkeys(mav.head_names, 9.0)

    def answer(above: float) -> None:
        found = mav.generate("Hi", alpha, mav.decoding(max_new_tokens=4, steer_above=above))
        base = mav.generate("Hi", 0, mav.decoding(max_new_tokens=4))
        assert (found.tokens == base.tokens) is (above > 1)
        assert found.steered_tokens == (0 if above > 1 else len(found.tokens))

    assert calls_of_heads(mav, lambda: answer(100.0)) == []
    assert len(calls_of_heads(mav, lambda: answer(0.0))) == 4 * len(kinds)
    assert products_with_the_vocabulary(mav, lambda: answer(100.0)) == [1] * 8
    with mav.exclusive() as aligned, aligned.steering(3.0, limit_between(entropies(mav.base, IDS))):
        calls = calls_of_heads(mav, lambda: mav.base.model(IDS))
        assert calls == [sum(aligned._weighted._steered.flatten().tolist())] * len(kinds)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2-window", "cohere", "phi"])
def test_in_bfloat16_the_same_positions_get_the_same_sum(architecture: str, kind: HeadKind) -> None:
    mav = steered_by(tiny_base(architecture, dtype=torch.bfloat16), kind)
    plain = mav.base.model(IDS).logits.float()
    limit = limit_between(entropy(plain))
    with mav.exclusive() as aligned:
        with aligned.steering([[1.0]]):
            whole = mav.base.model(IDS).logits
        with aligned.steering([[1.0]], limit):
            got = mav.base.model(IDS).logits
    steered = entropy(plain) > limit
    assert relative(got[~steered], plain[~steered]) < 0.01
    assert relative(got[steered] - plain[steered], whole[steered] - plain[steered]) < 0.05


def expected_answer(
    mav: MAVInference, prompt: str, alpha: Any, limit: float, count: int
) -> tuple[tuple[int, ...], int]:
    """The greedy answer by plain passes over the whole text, and how many tokens are steered."""
    untouched, form = varied_base(BASE), mav.joined.form
    text, new, steered = form.tokens(form.render(prompt)), list[int](), 0
    strength = as_strength(alpha, mav.head_names)
    while len(new) < count and not (new and new[-1] in mav.joined.end_tokens):
        row: Any = [strength.at(len(new))]
        logits, where = limited_logits(mav, untouched, torch.tensor([[*text, *new]]), row, [limit])
        new.append(int(logits[0, -1].argmax()))
        steered += bool(where[0, -1])
    return tuple(new), steered


def test_batches_and_streams_and_caches_say_what_plain_passes_say(
    mav: MAVInference, limit: float
) -> None:
    how = GenerationOptions(max_new_tokens=8, steer_above=limit)
    batch = mav.generate_batch(PROMPTS, ALPHAS, how)
    for prompt, alpha, answer in zip(PROMPTS, ALPHAS, batch, strict=True):
        want = expected_answer(mav, prompt, alpha, limit, 8)
        assert (answer.tokens, answer.steered_tokens) == want
        assert "".join(mav.stream(prompt, alpha, how)).rstrip() == answer.response
        other = dataclasses.replace(how, cache_implementation="none")
        assert mav.generate(prompt, alpha, other).tokens == answer.tokens
    shares = [answer.steered_tokens or 0 for answer in batch]
    assert 0 < sum(shares) < sum(len(answer.tokens) for answer in batch)
    assert shares[1] == 0
    # What is said of an answer is said of it in JSON, and only where there is a limit.
    assert batch[0].to_json()["steered_tokens"] == shares[0]
    assert "steered_tokens" not in mav.generate("Hi", 0, mav.decoding(max_new_tokens=2)).to_json()


def test_each_of_several_beams_is_steered_where_it_is_uncertain(
    mav: MAVInference, limit: float
) -> None:
    how = GenerationOptions(max_new_tokens=6, num_beams=3, steer_above=limit)
    batch = mav.generate_batch(PROMPTS[:2], [ALPHAS[0], ALPHAS[2]], how)
    untouched, form = varied_base(BASE), mav.joined.form
    for prompt, alpha, answer in zip(PROMPTS, [ALPHAS[0], ALPHAS[2]], batch, strict=False):
        assert answer.tokens == mav.generate(prompt, alpha, how).tokens
        begun = form.tokens(form.render(prompt))
        text = torch.tensor([[*begun, *answer.tokens[:-1]]])
        above = entropies(untouched, text)[0, len(begun) - 1 :] > limit
        assert answer.steered_tokens == int(above.sum())


@pytest.mark.parametrize(
    "more",
    [
        {"assistant_early_exit": 2},
        {"assistant_model": varied_base(BASE).model},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 4},
        {"logits_to_keep": 5},
    ],
    ids=lambda more: next(iter(more)),
)
def test_drafts_are_checked_where_the_base_is_uncertain(
    mav: MAVInference, limit: float, more: dict[str, Any]
) -> None:
    def tokens(**settings: Any) -> list[int]:
        with mav.steering({"a": 9.0, "b": -6.0}, steer_above=limit) as model:
            given = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 0, **settings}
            found: list[int] = model.generate(IDS[:1], pad_token_id=0, **given)[0].tolist()
        return found

    assert tokens(**more) == tokens()
    with mav.steering({"a": 9.0, "b": -6.0}) as model:
        everywhere = model.generate(IDS[:1], max_new_tokens=12, eos_token_id=0, pad_token_id=0)
    assert everywhere[0].tolist() != tokens()


def test_requests_with_limits_of_their_own_are_as_if_alone(mav: MAVInference, limit: float) -> None:
    form = mav.joined.form
    limits = [limit, None, 100.0, 0.0, limit, limit]
    requests = [
        Request(
            prompt=tuple(form.tokens(form.render(PROMPTS[number % 4]))),
            alpha=as_strength(ALPHAS[number % 4], mav.head_names),
            decoding=GenerationOptions(max_new_tokens=7, steer_above=above),
            top_logprobs=1 if number % 2 else 0,
            kl=True,
        )
        for number, above in enumerate(limits)
    ]
    listener = Listener(decoder_of(mav))
    listener.add(*requests[:3])
    listener.step()
    listener.add(*requests[3:])
    listener.until_done()
    for number, (request, above) in enumerate(zip(requests, limits, strict=True)):
        heard, single = listener.of(request), alone(mav, request)
        assert (heard.tokens, heard.steered) == (single.tokens, single.steered)
        tokens, steered = expected_answer(
            mav, PROMPTS[number % 4], ALPHAS[number % 4], -1.0 if above is None else above, 7
        )
        assert (tuple(heard.tokens), sum(heard.steered)) == (tokens, steered)
        # A token that is left to the base is as far from it as the base is from itself.
        assert [kl > 0 for kl in heard.kl] == heard.steered
        gained = [a - b for a, b in zip(heard.aligned, heard.base, strict=True)]
        assert [one != 0 for one in gained] == heard.steered
    assert 0 < sum(listener.of(requests[0]).steered) < len(listener.of(requests[0]).tokens)
    assert not any(listener.of(requests[2]).steered)


@torch.no_grad()
def test_scores_are_those_of_answers_that_are_steered_there(
    mav: MAVInference, limit: float
) -> None:
    untouched, form, alpha = varied_base(BASE), mav.joined.form, {"a": 2.0, "b": -1.0}
    responses = ["Yes.", "Not at all, my friend."]
    scores = mav.score_batch(PROMPTS[:2], responses, alpha, steer_above=limit)
    for prompt, score in zip(PROMPTS, scores, strict=False):
        begun = form.tokens(form.render(prompt))
        text = torch.tensor([[*begun, *score.tokens]])
        logits, steered = limited_logits(mav, untouched, text, [[2.0, -1.0]], [limit])
        rows = logits[0, len(begun) - 1 : -1].log_softmax(-1)
        want = rows.gather(-1, torch.tensor(score.tokens)[:, None])[:, 0]
        assert score.logprobs == pytest.approx(want.tolist(), abs=1e-3)
        left = ~steered[0, len(begun) - 1 : -1]
        gained = torch.tensor(score.logprobs) - torch.tensor(score.base_logprobs)
        assert (gained[left] == 0).all()
    assert mav.score(PROMPTS[0], responses[0], alpha, steer_above=100.0).gained == 0


def test_a_file_of_prompts_counts_what_was_steered(
    mav: MAVInference, limit: float, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    how = mav.decoding(max_new_tokens=6, steer_above=limit)
    alpha = as_strength("a=9,b=-6", mav.head_names)
    report = generate_file(
        mav, tmp_path / "in.txt", tmp_path / "out.jsonl", alpha, how, batch_size=2
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert report.steered_tokens == sum(line["steered_tokens"] for line in lines)
    assert report.new_tokens == sum(line["new_tokens"] for line in lines)
    for prompt, line in zip(PROMPTS, lines, strict=True):
        assert line["steered_tokens"] == expected_answer(mav, prompt, "a=9,b=-6", limit, 6)[1]


def test_what_cannot_be_is_refused(mav: MAVInference) -> None:
    with pytest.raises(UsageError, match="steer_above: got -1, expected at least 0"):
        GenerationOptions(steer_above=-1)
    with pytest.raises(UsageError, match="compile: got True with `steer_above`, expected one of"):
        GenerationOptions(compile=True, cache_implementation="static", steer_above=1.0)
    with (
        pytest.raises(UsageError, match=r"steer_above: got -2\.0, expected nats"),
        mav.steering(0, steer_above=-2.0),
    ):
        pass
    with (
        pytest.raises(UsageError, match="steer_above: got 2 limits, but 3 rows are decoded"),
        mav.steering({"a": 1, "b": 1}, steer_above=[1.0, 2.0]) as model,
    ):
        model(IDS)
    with mav.steering({"a": 1, "b": 1}) as model:
        assert model(IDS).logits.shape[0] == 3
