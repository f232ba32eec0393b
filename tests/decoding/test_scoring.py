"""Log-probabilities of answers that are given: one pass says what step by step would."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.scoring import Score
from mav.pipeline.decoding.steering.strengths import Alpha, as_strength
from mav.pipeline.preferences.prompt_format import (
    PromptFormat,
)
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import tokenize_pairs
from mav.pipeline.runtime.choices import Form, HeadKind
from tests.support.models.chat_templates import TEMPLATE_TEXT
from tests.support.models.tiny import ARCHITECTURES, tiny_base, tiny_tokenizer, write_rows
from tests.support.steering.heads import KINDS
from tests.support.steering.steered import steered, varied_base, whole_text_logits
from tests.support.sweeps import sweep

ALPHA = 12.0
PROMPTS = ["Hi", "Who would lift the old red door in 4 days?", "How do I mend a kite?"]
ANSWERS = ["First look at a kite.", "No.", "Then mend it slowly. Then sell it, or draw it."]


def close(values: Any) -> Any:
    return pytest.approx(values, rel=1e-4, abs=2e-4)


@pytest.fixture(scope="module", params=KINDS)
def mav(request: pytest.FixtureRequest) -> Iterator[MAVInference]:
    made = steered(kind=request.param)
    yield made
    made.close()


@torch.no_grad()
def whole_text_logprobs(
    mav: MAVInference, untouched: BaseModel, score: Score, alpha: float
) -> list[float]:
    """Of each token, from a pass over prompt and answer by themselves."""
    prompt = mav.joined.form.tokens(score.prompt)
    text = torch.tensor([[*prompt, *score.tokens]])
    logits = whole_text_logits(mav, untouched, text, torch.tensor(alpha))
    labels = torch.tensor(score.tokens)
    found = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    values: list[float] = found.tolist()
    return values


# A head that acts on the state meets what an architecture does to its logits.
@sweep({"kind": ["unembedding", "mlp"], "architecture": ARCHITECTURES}, meet=1)
def test_of_every_architecture_together(architecture: str, kind: HeadKind) -> None:
    mav, untouched = steered(varied_base(architecture), kind), varied_base(architecture)
    alphas = [ALPHA, 0.0, -ALPHA]
    for score, alpha in zip(mav.score_batch(PROMPTS, ANSWERS, alphas), alphas, strict=True):
        aligned = whole_text_logprobs(mav, untouched, score, alpha)
        base = whole_text_logprobs(mav, untouched, score, 0.0)
        assert list(score.logprobs) == close(aligned)
        assert list(score.base_logprobs) == close(base)
        assert score.alpha == alpha
        assert (score.logprobs == score.base_logprobs) == (alpha == 0)


@pytest.mark.parametrize("alpha", [0.0, ALPHA, AlphaSchedule(((0, 18.0), (6, -9.0)))], ids=str)
def test_it_is_what_step_by_step_says(mav: MAVInference, alpha: Alpha) -> None:
    score = mav.score(PROMPTS[2], ANSWERS[2], alpha)
    text = mav.joined.form.tokens(score.prompt)
    assert score.alpha == (str(alpha) if isinstance(alpha, AlphaSchedule) else alpha)
    for at, (token, logprob) in enumerate(zip(score.tokens, score.logprobs, strict=True)):
        with mav.steering(as_strength(alpha).at(at)) as model, torch.no_grad():
            logits = model(torch.tensor([text])).logits[0, -1]
        assert logprob == close(float(logits.log_softmax(-1)[token]))
        text.append(token)


def test_the_sums_and_what_the_head_adds(mav: MAVInference) -> None:
    score = mav.score("Hi", ANSWERS[0], ALPHA)
    assert score.total == sum(score.logprobs) < 0
    assert score.base_total == sum(score.base_logprobs) < 0
    assert score.gained == score.total - score.base_total != 0
    assert mav.score("Hi", ANSWERS[0], 0.0).gained == 0


def test_it_takes_one_pass_and_leaves_the_base_as_it_was(mav: MAVInference) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before, calls = mav.base.model(ids).logits, []
    handle = mav.base.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert len(mav.score_batch(PROMPTS, ANSWERS, ALPHA)) == 3
    handle.remove()
    assert calls == [1]
    assert torch.equal(mav.base.model(ids).logits, before)
    assert mav.joined.aligned.base_logits is None
    assert not mav.joined.aligned.keep_base_logits
    assert mav.score_batch([], []) == []


def test_the_token_that_ends_an_answer_counts_if_wanted(mav: MAVInference) -> None:
    whole, open_ended = (mav.score("Hi", "Then sell it.", ended=ended) for ended in (True, False))
    assert whole.tokens == (*open_ended.tokens, mav.base.tokenizer.eos_token_id)
    assert whole.logprobs[:-1] == close(open_ended.logprobs)


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


class Closing:
    """A tokenizer that closes every text with the end of sequence."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: Any, *, add_special_tokens: bool = True, **more: Any) -> Any:
        found = self._tokenizer(texts, add_special_tokens=add_special_tokens, **more)["input_ids"]
        eos = [self._tokenizer.eos_token_id] if add_special_tokens else []
        several = not isinstance(texts, str)
        return {"input_ids": [[*ids, *eos] for ids in found] if several else [*found, *eos]}


MERGING = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %} The{{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} The{% endif %}"
)


@pytest.mark.parametrize(
    ("form", "tokenizer"),
    [
        ("hh", tiny_tokenizer()),
        ("hh", Closing(tiny_tokenizer())),
        ("chat", with_template(TEMPLATE_TEXT)),
        ("chat", with_template(MERGING)),
    ],
    ids=["hh", "closing", "chat", "merging"],
)
def test_the_tokens_are_those_of_training(tmp_path: Path, form: Form, tokenizer: Any) -> None:
    source = DataSource(id=str(write_rows(tmp_path / "pairs.jsonl", 20)))
    read = read_pairs(source, ReadCounts())
    spaced = [dataclasses.replace(pair, chosen=f" n {pair.chosen.strip()} ") for pair in read]
    pairs = {pair.pair_id: pair for pair in spaced}
    tokenized = tokenize_pairs(pairs.values(), tokenizer, 500, form=form)
    own = PromptFormat(name=form, tokenizer=tokenizer)
    merged = 0
    for at, pair_id in enumerate(tokenized.pair_id.tolist()):
        pair, (prompt, *answers) = pairs[pair_id], tokenized.parts(at)
        text = own.render(pair.asked)
        assert own.tokens(text) == prompt.tolist()
        for answer, tokens in zip((pair.chosen, pair.rejected), answers, strict=True):
            assert own.response_tokens(pair.asked, answer, ended=True) == tokens.tolist()
            whole = own.tokens(text + own.response(pair.asked, text, answer))
            merged += whole[: len(prompt)] != prompt.tolist()
    assert (merged > 0) == (getattr(tokenizer, "chat_template", None) == MERGING)


def test_an_answer_in_a_transcript_follows_white_space(mav: MAVInference) -> None:
    assert mav.score("Hi", "No.").tokens == mav.score("Hi", " No.").tokens


@pytest.mark.parametrize("answer", ["", "  \n", "\ud800"])
def test_what_is_no_answer(mav: MAVInference, answer: str) -> None:
    with pytest.raises(DataError, match="response: got"):
        mav.score("Hi", answer)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda mav: mav.score("Hi", 3), "response: got int, expected a text"),
        (lambda mav: mav.score({"role": "user", "content": "x"}, "a"), "prompt: got dict"),
        (lambda mav: mav.score_batch("Hi", ["a", "b"]), "prompts: got str.*`score` takes"),
        (lambda mav: mav.score_batch(["Hi"], "a"), "answers: got str.*`score` takes"),
        (lambda mav: mav.score_batch(["Hi"], ["a", "b"]), "answers: got 2, expected one for each"),
        (lambda mav: mav.score_batch(["Hi"], ["a"], [1, 2]), "alpha: got 2, expected one for each"),
        (lambda mav: mav.score("Hi", "a", float("nan")), "alpha: got nan"),
    ],
)
def test_what_cannot_be_scored(mav: MAVInference, ask: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        ask(mav)


def test_what_the_base_cannot_read_is_refused() -> None:
    mav = steered(tiny_base("gpt2"))
    prompt = len(mav.joined.form.tokens(mav.joined.form.render("Hi")))
    with pytest.raises(DataError, match=f"answer: got {prompt} tokens and .* at most 256 together"):
        mav.score("Hi", "bread " * 200)


def test_it_is_refused_while_base_and_head_are_lent_out(mav: MAVInference) -> None:
    with mav.steering(ALPHA), pytest.raises(UsageError, match="in use by"):
        mav.score("Hi", "No.")
