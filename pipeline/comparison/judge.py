"""Win rates by a judge, a model that is asked which of two answers is better.

Every pair is judged in both orders, because judges favour a position: its result is the mean of
both verdicts, so a judge that always names the first answer makes every pair a tie. Replies without
a verdict and failed calls are counted, never guessed; a pair with one of them has no result. Every
reply is one JSON line in a file and flushed at once. It is not asked for again unless the call
failed.

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
"""After this many calls without a verdict, the model is not a judge."""
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
        answer: The answer that wins or loses; None if there is none.
        reference: The answer it is compared with, likewise.
    """

    prompt: str | Messages
    answer: str | None
    reference: str | None

    @property
    def is_same(self) -> bool:
        """Whether both answers are equal."""
        answer, reference = self.answer, self.reference
        return answer is not None and reference is not None and answer.strip() == reference.strip()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Results of judged duels.

    Attributes:
        results: Per duel, the mean of both orders: 1 for a win, 0.5 for a tie, 0 for a loss;
            None if an answer or a verdict is missing.
        identical: Duels of equal answers, which are ties without asking.
        by_place: Duels in which the judge named the same position both times.
        failed: Questions without a reply.
        unreadable: Questions whose reply has no verdict.
        not_asked: Questions beyond the limit on calls.
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
        """Prepare; use `open_judge`."""
        self._options = options
        self._template = template
        self._client = client
        self._kept = kept
        self._has_judged = any(map(_verdict, kept.lines.values()))

    @property
    def calls(self) -> int:
        """Requests sent so far, including retries."""
        return self._client.calls

    def decide(self, duels: Sequence[Duel]) -> Judged:
        """Judge duels, asking only what has not been asked before.

        Raises:
            DataError: The model gives no verdicts, or the server does not reply; replies are kept.
            UsageError: The server rejects the key, or requires one.
            Interrupted: The user stopped it; replies are kept.
        """
        asked = [self._questions(duel) for duel in duels]
        questions = {one["key"]: one for both in asked for one in both}
        missing = [one for key, one in questions.items() if "reply" not in self._line(key)]
        try:
            self._ask(missing)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"{len(self._kept.lines):,} replies of the judge are kept.",
                "The same command continues with the rest.",
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
        line: dict[str, Any] = self._kept.lines.get(key, {})
        return line

    def _questions(self, duel: Duel) -> list[dict[str, Any]]:
        """Return the questions of a duel, one per order, as the beginnings of their lines."""
        if duel.answer is None or duel.reference is None or duel.is_same:
            return []
        orders = ((duel.answer, duel.reference), (duel.reference, duel.answer))
        questions = []
        for answer_a, answer_b in orders:
            asked = fill(self._template, duel.prompt, answer_a, answer_b)
            identity = [self._options.judge_model, self._options.judge_temperature, asked]
            key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
            questions.append({"key": key, "model": self._options.judge_model, "asked": asked})
        return questions

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
            f"{name} is not a judge: {tried} calls gave no verdict; the last gave "
            f"{_short(line['reply'])!r}, expected a reply that ends with a line such as "
            f"'Verdict: A'. Name a model that follows the judging prompt, or another prompt."
        )

    def _replies(
        self, questions: Sequence[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], str | Exception]]:
        """Yield questions with their replies or errors, as they arrive.

        A question is sent when a reply is consumed, so few are lost if the program is killed.
        """
        waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[dict[str, Any], str | Exception]] = queue.SimpleQueue()

        def work() -> None:
            while (question := waiting.get()) is not None:
                try:
                    done.put((question, self._client.ask(question["asked"])))
                except Exception as error:  # raised where replies are read
                    done.put((question, error))

        at_once = min(self._options.judge_concurrency, len(questions))
        # Daemon threads: a call in progress must not keep a stopped program alive.
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
    """Open a judge and its file of replies, locked until the context is left.

    Args:
        options: The judge and its limits.
        path: The file, created if missing.

    Raises:
        DataError: The file or the judging prompt cannot be used.
        UsageError: The URL is invalid.
    """
    template = load_judge_prompt(options.judge_prompt)
    client = JudgeClient(options)
    with resumable_lines(path, _HEADER, _key) as kept:
        try:
            yield Judge(options, template, client, kept)
        finally:
            client.stop()


def _key(line: dict[str, Any]) -> str:
    """Return the key of the question that a kept line replies to.

    Raises:
        KeyError: It has none.
        TypeError: Its reply is not text.
    """
    if not isinstance(line.get("reply", ""), str):
        raise TypeError(f"reply: got {type(line['reply']).__name__}, expected text")
    return str(line["key"])


def _verdict(line: dict[str, Any]) -> Verdict | None:
    """Return the verdict in the reply of a kept line."""
    return read_verdict(line["reply"]) if "reply" in line else None


def _result(duel: Duel, verdicts: Sequence[Verdict | None]) -> float | None:
    """Return the mean of the verdicts of both orders, the second one reversed."""
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
