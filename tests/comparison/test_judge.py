"""Verdicts of a judge behind a real HTTP server that answers well, badly, slowly, or not at all."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import DataError, MAVError, UsageError
from mav.pipeline.comparison import judge_client
from mav.pipeline.comparison.judge import Duel, Judged, open_judge
from mav.pipeline.comparison.judge_client import TRIES, JudgeOptions
from mav.pipeline.comparison.judge_prompt import read_verdict
from mav.pipeline.runtime.interruption import Interrupted
from tests.support.running.judge_server import JudgeServer, Reply, fails, judging, says
from tests.support.running.limits import EVENT, NEVER, PROCESS

ROOT = Path(__file__).parents[2]
KEY = "MAV_TEST_JUDGE_KEY"
DUELS = [
    Duel(prompt=f"Question {n}?", answer=f"worth {worth}", reference="worth 5")
    for n, worth in enumerate((7, 3, 9, 5, 1))
]
RIGHT = (1.0, 0.0, 1.0, 0.5, 0.0)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited between tries, without the waiting."""
    waited: list[float] = []
    monkeypatch.setattr(judge_client, "pause", lambda _, seconds: waited.append(seconds))
    for name in (KEY, "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return waited


def worths(asked: str) -> tuple[int, int]:
    """What the two answers are worth, A's first."""
    first, second = map(int, re.findall(r"worth (\d)", asked))
    return first, second


def rightly(asked: str, _: int = 0) -> Reply:
    first, second = worths(asked)
    named = "A" if first > second else "B" if first < second else "tie"
    return says(f"One of them is worth more.\nVerdict: {named}")


def options(server: JudgeServer, **changes: Any) -> JudgeOptions:
    given = {"judge_url": server.url, "judge_model": "tiny", "judge_key": KEY}
    return JudgeOptions(**{**given, **changes})


def decided(server: JudgeServer, path: Path, duels: list[Duel] = DUELS, **changes: Any) -> Judged:
    with open_judge(options(server, **changes), path) as judge:
        return judge.decide(duels)


def lines(path: Path) -> list[dict[str, Any]]:
    """The replies that are kept."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.jsonl"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_both_orders_of_every_pair_are_asked_about(path: Path, concurrency: int) -> None:
    with judging(rightly) as server:
        found = decided(server, path, judge_concurrency=concurrency, judge_temperature=0)
    nothing = {"by_place": 0, "failed": 0, "unreadable": 0, "not_asked": 0}
    assert found == Judged(results=RIGHT, identical=1, **nothing)
    assert sorted(map(worths, server.asked)) == sorted(
        order for worth in (7, 3, 9, 1) for order in ((worth, 5), (5, worth))
    )
    assert all((body["model"], body["temperature"]) == ("tiny", 0) for body in server.bodies)
    kept = lines(path)
    assert len(kept) == 8
    for line in kept:
        assert line["reply"].endswith(f"Verdict: {line['verdict']}")
        assert line["asked"] in server.asked


def test_a_bias_to_the_first_place_cancels(path: Path) -> None:
    with judging(lambda asked, _: says("Verdict: A")) as server:
        found = decided(server, path)
    assert found.results == (0.5,) * 5
    assert (found.by_place, found.identical) == (4, 1)


def test_one_order_tied_makes_three_quarters(path: Path) -> None:
    def answer(asked: str, _: int) -> Reply:
        return says("Verdict: tie") if worths(asked)[1] == 5 else rightly(asked)

    with judging(answer) as server:
        found = decided(server, path)
    assert found.results == (0.75, 0.25, 0.75, 0.5, 0.25)
    assert found.by_place == 0


def test_what_is_no_verdict_is_counted_and_not_guessed(path: Path) -> None:
    def answer(asked: str, _: int) -> Reply:
        odd = {
            (7, 5): says("I like both answers, A a little more."),
            (5, 3): Reply(body=b"<html>busy</html>"),
            (9, 5): says(None),
            (1, 5): fails(400, "too long"),
        }
        return odd.get(worths(asked), rightly(asked))

    with judging(answer) as server:
        found = decided(server, path)
    assert found.results == (None, None, None, 0.5, None)
    assert (found.unreadable, found.failed, found.not_asked) == (1, 3, 0)
    errors = sorted(line["error"] for line in lines(path) if "error" in line)
    assert errors[0] == "got '<html>busy</html>', expected a chat completion"
    assert errors[1].startswith("got a chat completion without text: ")
    assert errors[2] == f"{server.url}/chat/completions answered 400: too long"
    # Failed calls are made again, replies without a verdict are not.
    with judging(rightly) as server:
        again = decided(server, path)
    assert again.results == (None, 0.0, 1.0, 0.5, 0.0)
    assert len(server.asked) == 3
    assert (again.unreadable, again.failed) == (1, 0)


def test_an_answer_that_is_missing_has_no_result(path: Path) -> None:
    duels = [Duel(prompt="?", answer=None, reference="worth 5"), DUELS[0]]
    with judging(rightly) as server:
        assert decided(server, path, duels).results == (None, 1.0)
    assert len(server.asked) == 2


def test_busy_and_broken_servers_are_asked_again(path: Path, waits: list[float]) -> None:
    first = [
        fails(429, "slow down", Retry_After="7"),
        fails(500),
        fails(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        fails(429, Retry_After="soon"),
        fails(502, Retry_After="nan"),
    ]

    def answer(asked: str, number: int) -> Reply:
        return first[number] if number < len(first) else rightly(asked)

    with judging(answer) as server:
        found = decided(server, path, judge_concurrency=1)
    assert found.results == RIGHT
    assert waits == [7.0, 2.0, 4.0, 8.0, 16.0]


def test_a_slow_server_is_asked_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()

    def patient(_: object, __: float) -> None:
        monkeypatch.setattr(judge_client, "ANSWER_SECONDS", NEVER)

    def answer(asked: str, number: int) -> Reply:
        found = rightly(asked)
        return Reply(body=found.body, hold=hold) if number == 0 else found

    monkeypatch.setattr(judge_client, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(judge_client, "pause", patient)
    with judging(answer) as server:
        found = decided(server, path, DUELS[:1], judge_concurrency=1)
        hold.set()
    assert found.results == (1.0,)
    assert len(server.asked) == 3


def test_a_call_that_fails_every_time_is_counted(path: Path, waits: list[float]) -> None:
    def answer(asked: str, _: int) -> Reply:
        return fails(500, "ouch") if worths(asked) == (5, 3) else rightly(asked)

    with judging(answer) as server:
        found = decided(server, path)
    assert found.results == (1.0, None, 1.0, 0.5, 0.0)
    assert found.failed == 1
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    (error,) = [line["error"] for line in lines(path) if "error" in line]
    assert error.endswith(f"answered 500: ouch, {TRIES} times")


def test_a_limit_on_calls_counts_every_try(path: Path) -> None:
    def answer(asked: str, number: int) -> Reply:
        return fails(503) if number == 1 else rightly(asked)

    with (
        judging(answer) as server,
        open_judge(options(server, judge_max_calls=5, judge_concurrency=1), path) as judge,
    ):
        found = judge.decide(DUELS)
        assert judge.calls == 5
        assert judge.decide(DUELS) == found
    assert len(server.asked) == 5
    assert found.results == (1.0, 0.0, None, 0.5, None)
    assert (found.not_asked, found.failed) == (4, 0)


def test_a_run_that_was_stopped_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with judging(rightly) as server:
        stopping = Stopping(read_verdict, 6)
        monkeypatch.setattr("mav.pipeline.comparison.judge.read_verdict", stopping)
        with pytest.raises(Interrupted, match=r"\d replies of the judge are kept"):
            decided(server, path, judge_concurrency=1)
        monkeypatch.undo()
        kept = len(lines(path))
        assert 0 < kept < 8
        # The machine stopped in the middle of a line, too.
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 20])
        before = len(server.asked)
        assert decided(server, path).results == RIGHT
        assert len(server.asked) - before == 8 - (kept - 1)
        assert decided(server, path).results == RIGHT
        assert len(server.asked) - before == 8 - (kept - 1)


def test_a_run_that_was_killed_goes_on(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from mav.pipeline.comparison.judge import Duel, open_judge; "
        "from mav.pipeline.comparison.judge_client import JudgeOptions; "
        "duels = [Duel(prompt='?', answer=f'worth {n}', reference='worth 1') for n in range(2, 8)]"
        "\nasked = JudgeOptions(judge_url=sys.argv[1], judge_model='tiny', judge_concurrency=2)"
        "\nwith open_judge(asked, Path(sys.argv[2])) as judge: judge.decide(duels)"
    )
    started: list[subprocess.Popen[bytes]] = []
    begun = threading.Event()

    def answer(asked: str, number: int) -> Reply:
        if number == 6:
            begun.wait(EVENT)
            started[0].kill()
        return rightly(asked)

    with judging(answer) as server:
        command = [sys.executable, "-c", code, server.url, str(path)]
        started.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))
        begun.set()
        assert started[0].wait(PROCESS) == -signal.SIGKILL
        kept = path.read_bytes().count(b"\n") - 1
        assert 4 <= kept <= 6  # all but those that were on their way
        before = len(server.asked)
        duels = [Duel(prompt="?", answer=f"worth {n}", reference="worth 1") for n in range(2, 8)]
        assert decided(server, path, duels).results == (1.0,) * 6
        assert len(server.asked) - before == 12 - kept


class Stopping:
    """A function that is interrupted at one of its calls."""

    def __init__(self, function: Callable[[str], Any], at: int) -> None:
        self._function = function
        self._left = at

    def __call__(self, text: str) -> Any:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return self._function(text)


@pytest.mark.parametrize(
    "change",
    [
        {"judge_model": "other"},
        {"judge_temperature": 1.0},
        {"judge_prompt": "{conversation} {answer_a} {answer_b} Which one?"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_judge_is_asked_anew(path: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    if "judge_prompt" in change:
        (tmp_path / "mine.txt").write_text(change["judge_prompt"], encoding="utf-8")
        change = {"judge_prompt": tmp_path / "mine.txt"}
    with judging(rightly) as server:
        decided(server, path)
        assert decided(server, path, **change).results == RIGHT
        assert len(server.asked) == 16


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says("Once upon a time"), "the last gave 'Once upon a time', expected a reply that ends"),
        (says(None), "the last: got a chat completion without text"),
        (Reply(body=b"hello"), "the last: got 'hello', expected a chat completion. Check"),
        (Reply(body=b'{"choices": []}'), """the last: got '{"choices": []}', expected a chat"""),
        (fails(400, "no such field"), "answered 400: no such field. Check `judge_url` and"),
    ],
)
def test_what_gives_no_verdict_is_no_judge(path: Path, answer: Reply, said: str) -> None:
    many = [Duel(prompt="?", answer=f"worth {n}", reference=f"worth {n + 1}") for n in range(9)]
    with judging(lambda *_: answer) as server:
        with pytest.raises(
            DataError, match=r"tiny at http\S+: 8 calls|is not a judge: 8 "
        ) as error:
            decided(server, path, many)
        assert said in str(error.value)
    assert len(server.asked) <= 8 + 3  # those that were on their way
    assert len(lines(path)) == 8


def test_a_server_that_goes_ends_the_run(path: Path) -> None:
    many = [Duel(prompt="?", answer="worth 1", reference=f"worth {n}") for n in range(2, 10)]
    many += [Duel(prompt="!", answer="worth 1", reference=f"worth {n}") for n in range(2, 10)]

    def answer(asked: str, number: int) -> Reply:
        return rightly(asked) if number < 3 else fails(502, "gone")

    with judging(answer) as server, pytest.raises(DataError, match="8 calls in a row failed"):
        decided(server, path, many, judge_concurrency=1)
    with judging(rightly) as server:
        assert decided(server, path, many).results == (0.0,) * 16
        assert len(server.asked) == 32 - 3


def test_failures_between_replies_do_not_end_it(path: Path) -> None:
    many = [Duel(prompt=f"{n}?", answer="worth 1", reference="worth 2") for n in range(10)]

    def answer(asked: str, number: int) -> Reply:
        return fails(400, "odd") if number % 2 else rightly(asked)

    with judging(answer) as server:
        found = decided(server, path, many, judge_concurrency=1)
    assert found.failed == 10
    assert found.results == (None,) * 10


def test_no_server_at_all(path: Path) -> None:
    with judging(rightly) as server:
        pass
    with pytest.raises(DataError, match=r"2 calls .*cannot be reached: .*refused"):
        decided(server, path, DUELS[:1])


@pytest.mark.parametrize("key", ["", "secret"])
def test_a_key_that_is_wanted(path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY, key)
    remedy = (
        f"the key in {KEY} was rejected" if key else f"no key was sent because {KEY} is not set"
    )
    with (
        judging(lambda *_: fails(401, "who are you")) as server,
        pytest.raises(UsageError, match=f"answered 401: who are you: {remedy}") as error,
    ):
        decided(server, path, judge_concurrency=1)
    assert len(server.asked) == 1
    assert "secret" not in str(error.value)
    assert server.authorizations == [f"Bearer {key}" if key else None]
    assert b"secret" not in path.read_bytes()


def test_an_endpoint_that_is_not_there(path: Path) -> None:
    with (
        judging(rightly) as server,
        pytest.raises(DataError, match=r"answered 404: no: check `judge_url`"),
    ):
        decided(server, path, judge_url=server.url + "/nowhere")


def test_lines_that_are_not_a_judges_are_refused(path: Path) -> None:
    header = json.dumps({"made_by": "mav compare", "lines": "replies of a judge"})
    path.write_text(header + '\n{"key": "a", "reply": 3}\n', encoding="utf-8")
    with pytest.raises(MAVError, match="reply: got int, expected text"):
        decided(JudgeServer(url="http://127.0.0.1:1/v1"), path)
