"""What is around vLLM's server, around a server made up."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from mav.pipeline.engine.front import Front
from mav.pipeline.engine.front_settings import FrontSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


async def _echo(request: Request) -> Response:
    body = await request.body()
    length = int(request.headers["content-length"])
    assert length == len(body)
    try:
        return JSONResponse({"got": json.loads(body)})
    except ValueError:
        return JSONResponse({"error": {"message": "vLLM's own words"}}, 400)


async def _models(_: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "base"}, {"id": "adapter"}]})


def client_of(**settings: Any) -> TestClient:
    given: dict[str, Any] = {
        "names": (),
        "alpha": 1.0,
        "max_tokens": 77,
        "transcript": False,
        "local_only": True,
        **settings,
    }
    posts = [Route(path, _echo, methods=["POST"]) for path in (CHAT, TEXT, "/v1/embeddings")]
    app = Starlette(routes=[*posts, Route("/v1/models", _models)])
    written = FrontSettings.of_text(FrontSettings(**given).to_text())
    assert written == FrontSettings(**given)
    return TestClient(Front(app, written), base_url="http://127.0.0.1")


def got(answer: Any) -> Mapping[str, Any]:
    assert answer.status_code == 200, answer.text
    found: Mapping[str, Any] = answer.json()["got"]
    return found


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_alpha_goes_where_vllm_looks_for_it(path: str) -> None:
    body = {"model": "base", "alpha": "0:2,64:0.5", "vllm_xargs": {"session_id": "s"}, "n": 2}
    assert got(client_of().post(path, json=body)) == {
        "model": "base",
        "n": 2,
        "vllm_xargs": {"session_id": "s", "alpha": "0:2,64:0.5"},
    }


def test_strengths_by_name_become_text_with_every_digit() -> None:
    client = client_of(names=("kind", "careful"), alpha={"kind": 1, "careful": 0})
    body = {"alpha": {"careful": "0:0.1,3:1", "kind": 0.1 + 0.2}}
    sent = got(client.post(TEXT, json=body))["vllm_xargs"]["alpha"]
    assert sent == "kind=0.30000000000000004,careful=0:0.1,3:1"


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": "a", "alpha": None}])
def test_without_alpha_nothing_is_asked_for(body: dict[str, Any]) -> None:
    assert got(client_of().post(TEXT, json=body)) == {"prompt": "a"}


@pytest.mark.parametrize("alpha", [True, "x:y", [1, 2], 1e39, "nan", {"kind": 1}, 101])
@pytest.mark.parametrize("place", ["plain", "vllm_xargs"])
def test_what_is_not_a_strength_is_answered_with_400(alpha: Any, place: str) -> None:
    body = {"alpha": alpha} if place == "plain" else {"vllm_xargs": {"alpha": alpha}}
    answer = client_of().post(TEXT, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith("alpha: got ")
    assert error["param"] == "alpha"


def test_alpha_in_two_places_is_refused() -> None:
    answer = client_of().post(TEXT, json={"alpha": 1, "vllm_xargs": {"alpha": 2}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "alpha")


@pytest.mark.parametrize("field", [{"use_beam_search": True}, {"steer_above": 0.5}])
def test_what_cannot_be_done_is_refused(field: dict[str, Any]) -> None:
    answer = client_of().post(TEXT, json={"prompt": "a", **field})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")


def test_chats_as_transcripts_begin_and_end_as_those() -> None:
    client = client_of(transcript=True)
    for given, stops in ((None, []), ("x", ["x"]), (["x", "y"], ["x", "y"])):
        sent = got(client.post(CHAT, json={"messages": [], "stop": given}))
        assert sent["stop"] == [*stops, "\n\nHuman:"]
        assert sent["add_special_tokens"] is True
    assert "stop" not in got(client.post(TEXT, json={"prompt": "a"}))
    assert "stop" not in got(client_of().post(CHAT, json={"messages": []}))


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"a"'])
def test_what_is_not_a_request_is_vllms_to_refuse(body: bytes) -> None:
    answer = client_of().post(TEXT, content=body)
    assert answer.status_code == 400 or answer.json() == {"got": json.loads(body)}


def test_other_routes_are_passed_on() -> None:
    assert got(client_of().post("/v1/embeddings", json={"alpha": True})) == {"alpha": True}


def test_the_list_of_models_has_what_the_page_needs() -> None:
    listed = client_of(alpha="0:1,2:0").get("/v1/models").json()
    assert (listed["alpha"], listed["max_tokens"]) == ("0:1,2:0", 77)
    assert [model["in_use"] for model in listed["data"]] == [True, False]


def test_the_page_is_served_beside_it() -> None:
    client = client_of()
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/icon.svg", "image")):
        answer = client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_only_this_machine_is_served_without_a_key() -> None:
    foreign = {"host": "evil.example"}
    assert client_of().get("/", headers=foreign).status_code == 403
    assert client_of(local_only=False).get("/", headers=foreign).status_code == 200


def test_a_body_that_is_too_large_is_refused() -> None:
    answer = client_of().post(TEXT, content=b" " * (1 << 21))
    assert answer.status_code == 413
