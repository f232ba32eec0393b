"""A server of two heads: strengths by name in requests, and what it says of them."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.options import ServeOptions
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.server import CHAT, TEXT, chat_body, error_of, http, running
from tests.support.steering.heads import save_random_head


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("several")
    cache = make_cache(folder, tiny_base(), pairs=6)
    return {
        "base": str(save_base(tiny_base(), folder / "base")),
        "head": {
            "kind": save_random_head(cache, folder / "a"),
            "careful": save_random_head(cache, folder / "b", kind="unembedding"),
        },
    }


@pytest.fixture(scope="module")
def served(places: dict[str, Any]) -> Iterator[HttpServer]:
    alpha = {"kind": 1.0, "careful": 0.5}
    with running(head=places["head"], bases=(places["base"],), max_rows=8, alpha=alpha) as server:
        yield server


@pytest.fixture(scope="module")
def web2(served: HttpServer) -> Iterator[httpx2.Client]:
    with http(served) as client:
        yield client


@pytest.fixture(scope="module")
def mav(places: dict[str, Any]) -> MAVInference:
    return MAVInference(places["head"], places["base"], dtype="float32", device="cpu")


def test_a_request_is_answered_as_python_answers(web2: httpx2.Client, mav: MAVInference) -> None:
    for alpha in (
        {"kind": 3, "careful": -2.5},
        {"kind": "0:4,3:0", "careful": 1},
        "kind=0:4,3:0,careful=1",
        {"kind": 0, "careful": 2},
        0,
    ):
        found = web2.post(CHAT, json=chat_body(alpha=alpha)).json()
        want = mav.generate("Hi there", alpha, mav.decoding(max_new_tokens=8))  # type: ignore[arg-type]
        assert found["choices"][0]["message"]["content"].rstrip() == want.response


def test_a_request_without_alpha_gets_the_servers_own(
    web2: httpx2.Client, mav: MAVInference
) -> None:
    found = web2.post(CHAT, json=chat_body()).json()
    want = mav.generate("Hi there", "kind=1,careful=0.5", mav.decoding(max_new_tokens=8))
    assert found["choices"][0]["message"]["content"].rstrip() == want.response
    assert web2.get("/v1/models").json()["alpha"] == {"kind": 1.0, "careful": 0.5}
    assert web2.get("/health").json()["head"] == {"kind": "a", "careful": "b"}


def test_log_probabilities_of_the_base_are_the_bases(web2: httpx2.Client) -> None:
    body = {"prompt": "The sea", "max_tokens": 0, "echo": True, "logprobs": 0}
    own, plain = (
        web2.post(TEXT, json={**body, "alpha": alpha}).json()["choices"][0]["logprobs"]
        for alpha in ({"kind": 3, "careful": 2}, 0)
    )
    assert own["base_logprobs"][1:] == pytest.approx(plain["token_logprobs"][1:], abs=1e-3)
    assert own["token_logprobs"][1:] != pytest.approx(plain["token_logprobs"][1:], abs=1e-2)


@pytest.mark.parametrize(
    ("alpha", "told"),
    [
        (1.5, "expected a strength for each head, as in kind=1,careful=1"),
        ({"kind": 1}, "careful is missing"),
        ({"kind": 1, "careful": 1, "sharp": 1}, "no head is called sharp"),
        ({"kind": 1, "careful": 1e9}, "expected alphas from -100 to 100"),
        ({"kind": 1, "careful": "strong"}, "got 'strong', expected a finite number"),
        ({"kind": 1, "careful": [1]}, "got [1]"),
        ({"kind": 1, "careful": True}, "got true"),
        ({f"h{n}": 1 for n in range(100)}, "alpha: "),
    ],
    ids=str,
)
def test_a_wrong_alpha_is_refused_by_name(web2: httpx2.Client, alpha: Any, told: str) -> None:
    error = error_of(web2.post(CHAT, json=chat_body(alpha=alpha)), 400)
    assert told in error["message"]
    assert error["param"].startswith("alpha")


def test_one_head_takes_no_names(web: httpx2.Client) -> None:
    error = error_of(web.post(CHAT, json=chat_body(alpha={"kind": 1})), 400)
    assert "the one head has no name" in error["message"]


@pytest.mark.parametrize(
    ("head", "alpha", "told"),
    [
        ({"a": "x", "b": "y"}, 1.0, "alpha: got 1, expected a strength for each head"),
        ({"a": "x", "b": "y"}, {"a": 1}, "b is missing"),
        ({"a": "x", "b": "y"}, {"a": 1, "b": "0:1,4:0"}, "expected numbers from -100 to 100"),
        ({"a": "x", "b": "y"}, {"a": 1, "b": 101}, "expected numbers from -100 to 100"),
        ("x", 101, "expected numbers from -100 to 100"),
        ("x", {"a": 1}, "the one head has no name"),
    ],
    ids=str,
)
def test_a_servers_own_alpha_is_checked(head: Any, alpha: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        ServeOptions(head=head, alpha=alpha)
