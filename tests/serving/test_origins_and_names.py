"""Pages of other origins, names of bases, and the version."""

from collections.abc import Iterator

import httpx2
import openai
import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.versions import package_versions
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.options import ServeOptions
from tests.support.running.server import CHAT, TEXT, chat_body, client, error_of, http, running

ORIGIN = "https://my.example"
KEY = {"Authorization": "Bearer open sesame"}
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


@pytest.fixture(scope="module")
def named(head: str, bases: tuple[str, str]) -> Iterator[HttpServer]:
    with running(
        head=head,
        bases=bases,
        api_key="open sesame",
        served_model_name=("small", "large/one"),
        allow_origin=(ORIGIN, "http://localhost:3000"),
    ) as server:
        yield server


def allowed(response: httpx2.Response) -> str | None:
    header = response.headers.get("access-control-allow-origin")
    assert header is None or isinstance(header, str)
    return header


def test_by_default_no_origin_is_allowed(web: httpx2.Client) -> None:
    headers = {"Origin": ORIGIN}
    assert error_of(web.options(CHAT, headers={**headers, **PREFLIGHT}), 405)
    for response in (web.get("/v1/models", headers=headers), web.options(CHAT, headers=headers)):
        assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_an_origin_that_is_allowed(named: HttpServer, origin: str) -> None:
    with http(named, headers={"Origin": origin}) as web:
        for path in (CHAT, TEXT):
            # A preflight request has no key.
            preflight = web.options(path, headers=PREFLIGHT)
            assert (preflight.status_code, allowed(preflight)) == (200, origin)
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
            assert preflight.headers["x-content-type-options"] == "nosniff"
        body = chat_body(max_tokens=2)
        answer = web.post(CHAT, json=body, headers=KEY)
        assert (answer.status_code, allowed(answer)) == (200, origin)
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
        with web.stream("POST", CHAT, json={**body, "stream": True}, headers=KEY) as stream:
            assert allowed(stream) == origin
            assert b"[DONE]" in stream.read()
        # A page is told what was wrong.
        refused = web.post(CHAT, json=body)
        assert error_of(refused, 401)["code"] == "invalid_api_key"
        assert allowed(refused) == origin
        assert allowed(web.post(CHAT, json=chat_body(n=-1), headers=KEY)) == origin


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://my.example", f"{ORIGIN}:8443", "null"]
)
def test_another_origin_is_not(named: HttpServer, origin: str) -> None:
    with http(named, headers={"Origin": origin}) as web:
        preflight = web.options(CHAT, headers=PREFLIGHT)
        assert (preflight.status_code, allowed(preflight)) == (400, None)
        assert allowed(web.get("/v1/models", headers=KEY)) is None


def test_every_origin_if_asked(head: str, bases: tuple[str, str]) -> None:
    with (
        running(head=head, bases=bases[:1], allow_origin=("*",)) as server,
        http(server, headers={"Origin": "https://any.example"}) as web,
    ):
        assert web.options(CHAT, headers=PREFLIGHT).status_code == 200
        assert allowed(web.get("/v1/models")) == "*"
        # Under a name of its own a page is of no other origin, so that is refused as always.
        error_of(web.get("/v1/models", headers={"Host": "evil.example"}), 403)


def test_bases_have_the_names_that_were_given(named: HttpServer) -> None:
    with client(named, key="open sesame") as ai:
        assert [model.id for model in ai.models.list()] == ["small", "large/one"]
        assert ai.models.retrieve("large/one").id == "large/one"
        for name in ("small", "large/one", "small"):
            assert ai.completions.create(model=name, prompt="Hi", max_tokens=2).model == name
        with pytest.raises(openai.NotFoundError, match="expected one of small, large/one"):
            ai.completions.create(model="first", prompt="Hi")
    with http(named, headers={"Authorization": "Bearer open sesame"}) as web:
        assert web.get("/health").json()["base"] == "small"


def test_the_version_is_told(named: HttpServer) -> None:
    with http(named, headers={"Authorization": "Bearer open sesame"}) as web:
        assert web.get("/version").json() == {
            "version": package_versions(["mav-align"])["mav-align"]
        }


@pytest.mark.parametrize(
    "origin",
    ["my.example", "https://my.example/", "https://my.example/page", "https://*.example", "",
     "https://My.example", "https://my.example:port", "https://my.example\n"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UsageError, match=r"allow_origin: got .*, expected scheme and host"):
        ServeOptions(head="none", allow_origin=(origin,))


@pytest.mark.parametrize(
    ("bases", "names", "expected"),
    [
        (("a", "b"), ("one",), "got 1 for 2 bases, expected one for each"),
        ((), ("one", "two"), "got 2 for 1 bases, expected one for each"),
        (("a", "b"), ("one", "one"), "expected different names"),
        (("a",), (" ",), "expected different names"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    bases: tuple[str, ...], names: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(UsageError, match=f"served_model_name: .*{expected}"):
        ServeOptions(head="none", bases=bases, served_model_name=names)
