"""Win rates by a judge: a model that is asked which of two answers is better.

Every pair is asked about in both orders, as judges favour a place: its result is the mean of both
verdicts, so a judge that always names the first makes every pair a tie. What cannot be read as a
verdict, and calls that fail, are counted and never guessed; a pair with one of them has no result.
Every reply is one JSON line in a file, forced to the disk as it comes. What is there is not asked
again, except where the call failed.

Source: Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", for pairs in
both orders. The judging prompt, `judge_prompt.txt`, is our own.
"""

import hashlib
import json
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import DataError
from mav.pipeline.comparison.judge_client import (
    CallFailedError,
    JudgeClient,
    JudgeOptions,
    OutOfCallsError,
)
from mav.pipeline.comparison.judge_prompt import Verdict, fill, load_judge_prompt, read_verdict
from mav.pipeline.preferences.messages import Messages
from mav.pipeline.runtime.interruption import Interrupted
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.runtime.resumable_lines import ResumableLines, resumable_lines

_TRIAL: Final = 8
"""After this many calls without a verdict, what is asked is no judge."""
_LOST: Final = 8
"""After this many failed calls in a row, the server is gone."""
_SHOWN: Final = 160
_HEADER: Final = {"made_by": "mav compare", "lines": "replies of a judge"}
_POINTS: Final[dict[Verdict, float]] = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two answers to one prompt.

    Attributes:
        prompt: Messages, a transcript, or a user's words.
        answer: The answer whose result it is; None where there is none.
        reference: The answer it is held against, likewise.
    """

    prompt: str | Messages
    answer: str | None
    reference: str | None

    @property
    def is_same(self) -> bool:
        """Whether both answers say the same."""
        answer, reference = self.answer, self.reference
        return answer is not None and reference is not None and answer.strip() == reference.strip()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a judge said of duels.

    Attributes:
        results: Of each duel, the mean of both orders: 1 for a win, 0.5 for a tie, 0 for a loss;
            None where an answer or a verdict is missing.
        identical: Duels of twice the same answer, which are ties and not asked about.
        by_place: Duels in which the judge named the same place both times.
        failed: Questions whose call gave no reply.
        unreadable: Questions whose reply has no verdict.
        not_asked: Questions that the limit on calls left open.
    """

    results: tuple[float | None, ...]
    identical: int
    by_place: int
    failed: int
    unreadable: int
    not_asked: int


class Judge:
    """A judge whose replies are kept; `open_judge` makes one."""

    def __init__(
        self,
        options: JudgeOptions,
        template: str,
        client: JudgeClient,
        kept: ResumableLines[str],
    ) -> None:
        """Take what `open_judge` made."""
        self._options = options
        self._template = template
        self._client = client
        self._kept = kept
        self._has_judged = any(map(_verdict, kept.found.values()))

    @property
    def calls(self) -> int:
        """Requests that were sent so far, further tries among them."""
        return self._client.calls

    def decide(self, duels: Sequence[Duel]) -> Judged:
        """Ask about duels what is not known of them yet.

        Raises:
            DataError: The model gives no verdicts, or the server is gone; replies are kept.
            UsageError: The server wants a key, or another one.
            Interrupted: The user stopped it; replies are kept.
        """
        asked = [self._questions(duel) for duel in duels]
        questions = {one["key"]: one for both in asked for one in both}
        missing = [one for key, one in questions.items() if "reply" not in self._line(key)]
        try:
            self._ask(missing)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"{len(self._kept.found):,} replies of the judge are kept.",
                "The same command goes on with the rest.",
            ) from stop
        verdicts = [[_verdict(self._line(one["key"])) for one in both] for both in asked]
        lines = [self._line(key) for key in questions]
        return Judged(
            results=tuple(map(_result, duels, verdicts)),
            identical=sum(duel.is_same for duel in duels),
            by_place=sum(both in (["A", "A"], ["B", "B"]) for both in verdicts),
            failed=sum("error" in line for line in lines),
            unreadable=sum("reply" in line and _verdict(line) is None for line in lines),
            not_asked=sum(not line for line in lines),
        )

    def _line(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._kept.found.get(key, {})
        return found

    def _questions(self, duel: Duel) -> list[dict[str, Any]]:
        """Return what is to be asked: both orders of a duel, as their lines begin."""
        if duel.answer is None or duel.reference is None or duel.is_same:
            return []
        orders = ((duel.answer, duel.reference), (duel.reference, duel.answer))
        found = []
        for answer_a, answer_b in orders:
            asked = fill(self._template, duel.prompt, answer_a, answer_b)
            told = [self._options.judge_model, self._options.judge_temperature, asked]
            key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
            found.append({"key": key, "model": self._options.judge_model, "asked": asked})
        return found

    def _ask(self, questions: Sequence[dict[str, Any]]) -> None:
        if not questions:
            return
        tried = failed_in_a_row = 0
        with (
            progress_bar(len(questions), "Judging", "verdict") as bar,
            closing(self._replies(questions)) as replies,
        ):
            for question, found in replies:
                if isinstance(found, OutOfCallsError):
                    continue
                bar.update()
                if isinstance(found, str):
                    failed_in_a_row = 0
                    line = {**question, "reply": found, "verdict": read_verdict(found)}
                elif isinstance(found, CallFailedError):
                    failed_in_a_row += 1
                    line = {**question, "error": str(found)}
                else:
                    raise found
                self._kept.append([line])
                tried += 1
                self._has_judged |= _verdict(line) is not None
                if tried >= min(_TRIAL, len(questions)) and not self._has_judged:
                    raise self._no_judge(line, tried)
                if failed_in_a_row >= _LOST:
                    raise DataError(
                        f"The judge at {self._client.url}: {failed_in_a_row} calls in a row failed "
                        f"({line['error']}). The replies before are kept; the same command asks "
                        f"for the rest."
                    )

    def _no_judge(self, line: dict[str, Any], tried: int) -> DataError:
        name = f"{self._options.judge_model} at {self._client.url}"
        if "error" in line:
            return DataError(
                f"{name}: {tried} calls gave no verdict; the last: {line['error']}. Check "
                f"`judge_url` and `judge_model`."
            )
        return DataError(
            f"{name} is no judge: {tried} calls gave no verdict; the last gave "
            f"{_short(line['reply'])!r}, expected a reply that ends with a line such as "
            f"'Verdict: A'. Name a model that follows the judging prompt, or another prompt."
        )

    def _replies(
        self, questions: Sequence[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], str | Exception]]:
        """Yield questions with their replies, or what came in place of one, as they come.

        The next is asked when a reply is taken in, so few are lost where a program is killed.
        """
        waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[dict[str, Any], str | Exception]] = queue.SimpleQueue()

        def work() -> None:
            while (question := waiting.get()) is not None:
                try:
                    done.put((question, self._client.ask(question["asked"])))
                except Exception as error:  # raised where replies are read, if it is no reply
                    done.put((question, error))

        at_once = min(self._options.judge_concurrency, len(questions))
        # Of the daemon kind: a call in progress must not keep a program that was stopped.
        for _ in range(at_once):
            threading.Thread(target=work, name="mav-judge", daemon=True).start()
        try:
            for number, question in enumerate(questions):
                waiting.put(question)
                if number + 1 >= at_once:
                    yield done.get()
            for _ in range(at_once - 1):
                yield done.get()
        finally:
            for _ in range(at_once):
                waiting.put(None)


@contextmanager
def open_judge(options: JudgeOptions, path: Path) -> Iterator[Judge]:
    """Open a judge and the file of its replies, which no other run may write meanwhile.

    Args:
        options: Whom to ask, and how much, until the context is left.
        path: The file, made if it is not there.

    Raises:
        DataError: The file or the judging prompt cannot be used.
        UsageError: The URL is none.
    """
    template = load_judge_prompt(options.judge_prompt)
    client = JudgeClient(options)
    with resumable_lines(path, _HEADER, _key) as kept:
        try:
            yield Judge(options, template, client, kept)
        finally:
            client.stop()


def _key(line: dict[str, Any]) -> str:
    """Return what a kept line is the reply to.

    Raises:
        KeyError: It does not say.
        TypeError: Its reply is no text.
    """
    if not isinstance(line.get("reply", ""), str):
        raise TypeError(f"reply: got {type(line['reply']).__name__}, expected a text")
    return str(line["key"])


def _verdict(line: dict[str, Any]) -> Verdict | None:
    """Return the verdict of a kept line; the reply counts, not what the line calls it."""
    return read_verdict(line["reply"]) if "reply" in line else None


def _result(duel: Duel, verdicts: Sequence[Verdict | None]) -> float | None:
    """Return the mean of the verdicts of both orders, of which the second is turned round."""
    if duel.is_same:
        return 0.5
    known_ones = [verdict for verdict in verdicts if verdict is not None]
    if len(known_ones) < 2:
        return None
    first, second = known_ones
    return (_POINTS[first] + 1 - _POINTS[second]) / 2


def _short(reply: str) -> str:
    text = " ".join(reply.split())
    return text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"
