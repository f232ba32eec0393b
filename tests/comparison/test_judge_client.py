"""Whom a judge's client asks, and whom it does not."""

import pytest

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.comparison.judge_client import JudgeClient, JudgeOptions
from tests.support.running.judge_server import Reply, judging, says

KEY = "MAV_TEST_JUDGE_KEY"


def client(url: str, model: str = "tiny") -> JudgeClient:
    return JudgeClient(JudgeOptions(judge_url=url, judge_model=model, judge_key=KEY))


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:80/v1", "ftp://a/v1", "http://", "http://a b/v1", "http://a:x/v1"),
        *("http://a:99999/v1", "http://[::1/v1", "http://a/\t"),
        # What Python's own client fails at when it sends.
        *(f"http://{'a' * 64}.example/v1", "http://.../v1", "http://a/ü"),
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"judge_url: got .*, expected a base URL such as"):
        client(url)


@pytest.mark.parametrize("url", ["http://me:secret@a/v1", "http://a/v1?v=1", "http://a/v1#b"])
def test_a_url_is_no_more_than_a_place(url: str) -> None:
    with pytest.raises(UsageError, match="judge_url: got one with a user, a query") as error:
        client(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["http://ü.example/v1", "https://a.example", "http://[::1]:1/v1/"])
def test_other_urls_are_taken(url: str) -> None:
    assert client(url).url == f"{url.rstrip('/')}/chat/completions"


def test_a_key_that_no_header_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "a\nb")
    with pytest.raises(UsageError, match=f"{KEY}: the key in it"):
        client("http://127.0.0.1:1/v1")


def test_a_model_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match="judge_model: got an empty name"):
        client("http://127.0.0.1:1/v1", " ")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_question_and_no_key_go_where_a_redirect_leads(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret")
    with judging(lambda *_: says("Verdict: A")) as other:
        place = {"Location": f"{other.url}/chat/completions"}
        with (
            judging(lambda *_: Reply(status=status, headers=place)) as server,
            pytest.raises(DataError, match=f"answered {status}.*which leads to '{other.url}"),
        ):
            client(server.url).ask("Which?")
        assert (len(server.asked), len(other.asked)) == (1, 0)
