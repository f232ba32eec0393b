"""Every way of decoding takes several heads, and says the same as the plain one."""

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.chat import Chat
from mav.pipeline.decoding.files.batch_file import generate_file
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.runtime.choices import HeadKind
from tests.support.steering.heads import KINDS
from tests.support.steering.listeners import Listener, alone, decoder_of
from tests.support.steering.live import relative
from tests.support.steering.several import steered_by, summed_logits
from tests.support.steering.steered import varied_base

MIXES = [*product(KINDS, KINDS)]
STRENGTHS: list[Any] = [
    0,
    {"a": 9.0, "b": -6.0},
    {"a": "0:12,5:-4", "b": 3.0},
    {"a": 0.0, "b": "0:-8,3:8"},
]
PROMPT = "How do I mend a kite?"
BASE = "llama"


@pytest.fixture(scope="module")
def mav() -> MAVInference:
    return steered_by(varied_base(BASE), "mlp", "unembedding")


def requests_for(chance: random.Random, mav: MAVInference, count: int) -> list[Request]:
    return [
        Request(
            prompt=tuple(chance.randrange(2, 300) for _ in range(chance.randint(1, 20))),
            alpha=as_strength(STRENGTHS[number % len(STRENGTHS)], mav.head_names),
            decoding=GenerationOptions(max_new_tokens=chance.randint(3, 9)),
            top_logprobs=chance.choice([None, 2]),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("kinds", MIXES, ids="+".join)
def test_rows_with_strengths_of_their_own_are_as_if_alone(
    kinds: tuple[HeadKind, HeadKind],
) -> None:
    mav, untouched = steered_by(varied_base(BASE), *kinds), varied_base(BASE)
    chance = random.Random(7)
    requests = requests_for(chance, mav, 6)
    listener = Listener(decoder_of(mav))
    listener.add(*requests[:3])
    listener.step()
    listener.add(*requests[3:])
    listener.until_done()
    for request in requests:
        heard, single = listener.of(request), alone(mav, request)
        assert (heard.tokens, heard.finish) == (single.tokens, single.finish)
        text = torch.tensor([[*request.prompt, *heard.tokens[:-1]]])
        steps = range(len(heard.tokens))
        rows = [
            summed_logits(mav, untouched, text, [request.alpha.at(t)])  # type: ignore[list-item]
            for t in steps
        ]
        first = len(request.prompt) - 1
        assert heard.tokens == [int(rows[t][0, first + t].argmax()) for t in steps]
        if request.top_logprobs is not None:
            plain = untouched.model(text).logits[0].log_softmax(-1)
            for t, token in enumerate(heard.tokens):
                own = float(rows[t][0, first + t].log_softmax(-1)[token].detach())
                assert heard.aligned[t] == pytest.approx(own, abs=1e-3)
                assert heard.base[t] == pytest.approx(float(plain[first + t, token]), abs=1e-3)


def test_batches_streams_scores_and_beams(mav: MAVInference) -> None:
    how = GenerationOptions(max_new_tokens=8)
    prompts = [PROMPT, "Hi", "What is bread?", "Name a tree."]
    batch = mav.generate_batch(prompts, STRENGTHS, how)
    for prompt, alpha, answer in zip(prompts, STRENGTHS, batch, strict=True):
        single = mav.generate(prompt, alpha, how)
        assert single.tokens == answer.tokens
        assert "".join(mav.stream(prompt, alpha, how)).rstrip() == single.response
    assert batch[2].alpha == {"a": "0:12,5:-4", "b": 3.0}
    assert json.loads(json.dumps(batch[0].to_json()))["alpha"] == {"a": 0.0, "b": 0.0}
    responses = ["Yes.", "Not at all, my friend.", "It is food.", "Oak."]
    scores = mav.score_batch(prompts, responses, STRENGTHS)
    for prompt, response, alpha, score in zip(prompts, responses, STRENGTHS, scores, strict=True):
        assert mav.score(prompt, response, alpha).logprobs == pytest.approx(
            score.logprobs, abs=1e-4
        )
    assert scores[0].gained == pytest.approx(0.0, abs=1e-5)
    assert abs(scores[1].gained) > 0.1
    beams = mav.decoding(max_new_tokens=6, num_beams=3)
    together = mav.generate_batch(prompts[:2], STRENGTHS[1:3], beams)
    assert [one.tokens for one in together] == [
        mav.generate(prompt, alpha, beams).tokens
        for prompt, alpha in zip(prompts[:2], STRENGTHS[1:3], strict=True)
    ]


@torch.no_grad()
def test_schedules_of_an_answer_and_of_a_score_follow_its_tokens(mav: MAVInference) -> None:
    """Against plain passes over the whole text, one for each token."""
    alpha: Any = {"a": "0:12,5:-4", "b": "0:-3,4:6"}
    strength, form = as_strength(alpha, mav.head_names), mav.joined.form
    begun = form.tokens(form.render(PROMPT))
    untouched = varied_base(BASE)

    def logits(tokens: tuple[int, ...], at: int) -> torch.Tensor:
        text = torch.tensor([[*begun, *tokens[:at]]])
        row: Any = [strength.at(at)]
        return summed_logits(mav, untouched, text, row)[0, -1]

    answer = mav.generate(PROMPT, alpha, mav.decoding(max_new_tokens=7))
    assert answer.tokens == tuple(
        int(logits(answer.tokens, at).argmax()) for at in range(len(answer.tokens))
    )
    score = mav.score(PROMPT, "Not at all, my friend.", alpha)
    assert score.logprobs == pytest.approx(
        [
            float(logits(score.tokens, at).log_softmax(-1)[token])
            for at, token in enumerate(score.tokens)
        ],
        abs=1e-3,
    )


@pytest.mark.parametrize("cache", ["static", "none"])
def test_other_caches_say_the_same(mav: MAVInference, cache: Any) -> None:
    alpha: Any = {"a": "0:9,4:-9", "b": -6.0}
    want = mav.generate(PROMPT, alpha, mav.decoding(max_new_tokens=6))
    got = mav.generate(PROMPT, alpha, mav.decoding(max_new_tokens=6, cache_implementation=cache))
    assert got.tokens == want.tokens


@torch.no_grad()
@pytest.mark.parametrize("kinds", [("unembedding", "unembedding"), ("mlp", "unembedding")])
def test_in_bfloat16_the_sum_keeps_its_digits(kinds: tuple[HeadKind, HeadKind]) -> None:
    base = varied_base(BASE)
    base.model.to(torch.bfloat16)
    mav = steered_by(base, *kinds)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = base.model(ids).logits.float()

    def gained(a: float, b: float) -> torch.Tensor:
        with mav.steering({"a": a, "b": b}) as model:
            logits: torch.Tensor = model(ids).logits - plain
        return logits

    assert relative(gained(1.0, 0.5), gained(1.0, 0.0) + gained(0.0, 0.5)) < 0.03


def test_a_file_of_prompts_names_strengths_by_line(mav: MAVInference, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "Hi", "alpha": {"a": 3, "b": "0:1,4:0"}},
        {"prompt": "Hi"},
        {"prompt": "Hi", "alpha": {"a": 3}},
        {"prompt": "Hi", "alpha": 2},
        {"prompt": "Hi", "alpha": {"a": True, "b": 1}},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = mav.decoding(max_new_tokens=4)
    report = generate_file(
        mav,
        tmp_path / "in.jsonl",
        tmp_path / "out.jsonl",
        as_strength("a=1,b=2", mav.head_names),
        how,
        batch_size=2,
    )
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert report.failed == 3
    assert [line.get("alpha") for line in found] == [
        {"a": 3.0, "b": "0:1,4:0"},
        {"a": 1.0, "b": 2.0},
        None,
        None,
        None,
    ]
    assert "b is missing" in found[2]["error"]
    assert "expected a strength for each head" in found[3]["error"]
    assert found[0]["response"] == mav.generate("Hi", lines[0]["alpha"], how).response


def test_a_chat_changes_one_strength_and_keeps_the_others(mav: MAVInference) -> None:
    said: list[str] = []
    chat = Chat(
        mav=mav,
        alpha=as_strength("a=1,b=2", mav.head_names),
        decoding=mav.decoding(max_new_tokens=4),
        write=said.append,
    )
    for line in ("/alpha b=0:3,4:0", "/alpha c=1", "/alpha 2", "/alpha 0"):
        assert [*chat.take(line)] == []
    assert said[0] == "alpha a=1,b=0:3,4:0"
    assert "no head is called c" in said[1]
    assert "expected a strength for each head" in said[2]
    assert said[3] == "alpha a=0,b=0"
    assert "".join(chat.take("Hi")).rstrip() == mav.generate("Hi", 0, chat.decoding).response


def test_a_default_of_1_is_no_strength_of_several(mav: MAVInference) -> None:
    with pytest.raises(UsageError, match="got 1, expected a strength for each head"):
        mav.generate_response("Hi")
