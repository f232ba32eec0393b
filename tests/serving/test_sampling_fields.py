"""How tokens are chosen, by request: alone and together as `mav generate` chooses them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.strengths import as_strength
from tests.support.running.server import CHAT, TEXT, chat_body
from tests.support.steering.listeners import alone

PROMPT = "Hi there"
GREEDY: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.8},
    {"frequency_penalty": 2, "presence_penalty": 0.5},
    {"frequency_penalty": -1.5},
    {"presence_penalty": 2.0},
    {"logit_bias": {"40": 6.5, "41": 6, "90": -100}},
    {"repetition_penalty": 1.5, "presence_penalty": 1.0, "logit_bias": {"70": 4}},
]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.3, "seed": 3},
    {"temperature": 1.3, "seed": 3, "top_k": 4},
    {"temperature": 1.3, "seed": 3, "min_p": 0.3},
    {"temperature": 1.3, "seed": 3, "top_k": 30, "repetition_penalty": 1.6},
    {"temperature": 1.3, "seed": 3, "frequency_penalty": 1.5, "min_p": 0.01},
    {"temperature": 1.3, "seed": 3, "logit_bias": {"40": 5, "41": 5}},
]


@pytest.fixture(scope="module")
def mav(head: str, bases: tuple[str, str]) -> MAVInference:
    return MAVInference(head, bases[0], dtype="float32", device="cpu")


def options_of(fields: dict[str, Any]) -> GenerationOptions:
    biases = {int(token): bias for token, bias in fields.get("logit_bias", {}).items()}
    return GenerationOptions(**{**fields, "max_new_tokens": 12, "logit_bias": biases})


def text_of(web: httpx2.Client, path: str, fields: dict[str, Any]) -> str:
    body = chat_body(max_tokens=12, alpha=4.0, **fields)
    if path == TEXT:
        del body["messages"]
        body["prompt"] = "\n\nHuman: Hi there\n\nAssistant:"
    response = web.post(path, json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert isinstance(text, str)
    return text.strip()


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_greedy_answers_are_those_of_generate(
    web: httpx2.Client, mav: MAVInference, path: str
) -> None:
    want = [mav.generate(PROMPT, 4.0, options_of(fields)).response.strip() for fields in GREEDY]
    assert [text_of(web, path, fields) for fields in GREEDY] == want
    assert want[0] not in want[1:]
    assert len({*want}) > 4
    with ThreadPoolExecutor(len(GREEDY)) as pool:
        together = [*pool.map(lambda fields: text_of(web, path, fields), GREEDY)]
    assert together == want


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_sampled_answers_are_those_of_the_sampler_alone(
    web: httpx2.Client, mav: MAVInference, path: str
) -> None:
    prompt = tuple(mav.joined.form.tokens(mav.joined.form.render(PROMPT)))
    want = [
        alone(
            mav,
            Request(
                prompt=prompt,
                alpha=as_strength(4.0),
                decoding=options_of(fields),
                is_turn=path == CHAT,
            ),
        ).text.strip()
        for fields in SAMPLED
    ]
    assert len({*want}) > 3
    with ThreadPoolExecutor(len(SAMPLED)) as pool:
        together = [*pool.map(lambda fields: text_of(web, path, fields), SAMPLED)]
    assert together == want
    assert [text_of(web, path, fields) for fields in SAMPLED] == want


def test_neutral_values_are_no_values(web: httpx2.Client) -> None:
    plain = text_of(web, CHAT, {})
    neutral = {
        "top_k": 0, "min_p": 0.0, "repetition_penalty": 1, "frequency_penalty": 0,
        "presence_penalty": 0.0, "logit_bias": {"40": 0},
    }  # fmt: skip
    assert text_of(web, CHAT, neutral) == plain


def test_log_probabilities_are_those_before_a_bias(web: httpx2.Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 0}
    free = web.post(TEXT, json={**body, "logprobs": 20}).json()["choices"][0]["logprobs"]
    forced = web.post(TEXT, json={**body, "logit_bias": {"40": 100}}).json()["choices"][0]
    (token,), (found,) = forced["logprobs"]["tokens"], forced["logprobs"]["token_logprobs"]
    assert free["tokens"] != [token]
    assert found < free["token_logprobs"][0]
