"""A prompt that all systems answer, read from rows of AlpacaEval and MT-Bench."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.prompt_format import Messages, require_prompt
from mav.pipeline.preferences.transcripts import canonical, messages_of, transcript_of
from mav.pipeline.runtime.json_input import strict_json


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt that every system answers, with the follow-up messages.

    Attributes:
        prompt: A user's message, a transcript, or messages.
        follow_ups: The user's message after each answer.
        id: Its name in the source: number of the instruction or row, or a `question_id`.
        dataset: The data set it comes from, in AlpacaEval, or None.
    """

    prompt: str | Messages
    follow_ups: tuple[str, ...] = ()
    id: int | str = 0
    dataset: str | None = None

    @property
    def turns(self) -> int:
        """Number of answers it gets."""
        return 1 + len(self.follow_ups)

    @property
    def key(self) -> str:
        """A key that is equal for equal prompts, however they are written."""
        return key_of(self.prompt)

    def asked(self, answers: Sequence[str]) -> str | Messages:
        """Return the prompt of a turn.

        Args:
            answers: The system's own answers to earlier turns.
        """
        if not answers:
            return self.prompt
        conversation = [*messages_of(self.prompt)]
        for answer, follow_up in zip(answers, self.follow_ups, strict=False):
            conversation.append({"role": "assistant", "content": answer})
            conversation.append({"role": "user", "content": follow_up})
        return conversation


def key_of(prompt: str | Messages) -> str:
    """Return a key that is equal for equal prompts, whether text, transcript or messages."""
    return canonical(transcript_of(prompt))


def of_alpaca_eval(row: Any, place: str, number: int) -> Question | str:
    """Return a row of AlpacaEval's instructions, or why it is dropped.

    Source: tatsu-lab/alpaca_eval, `alpaca_eval.json`: `instruction` and `dataset`.
    """
    text = row.get("instruction") if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        raise DataError(f"{place}: got {shown(row)}, expected an object with 'instruction'")
    if not text.strip():
        return "empty_prompt"
    dataset = row.get("dataset")
    return Question(
        prompt=_as_message(text, place),
        id=number,
        dataset=dataset if isinstance(dataset, str) else None,
    )


def of_mt_bench(row: Any, place: str, number: int) -> Question | str:
    """Return a line of MT-Bench's questions.

    Source: lm-sys/FastChat, `fastchat/llm_judge/data/mt_bench/question.jsonl`: `question_id`,
    `category`, `turns`.
    """
    turns = row.get("turns") if isinstance(row, Mapping) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise DataError(f"{place}: got {shown(row)}, expected 'turns', a list of strings")
    if not all(turn.strip() for turn in turns):
        return "empty_prompt"
    for turn in turns:
        require_prompt(turn)
    number = row.get("question_id", number)
    return Question(
        prompt=_as_message(turns[0], place),
        follow_ups=tuple(turns[1:]),
        id=number if isinstance(number, int | str) else str(number),
    )


def _as_message(text: str, place: str) -> Messages:
    """Return a user's message, even if its text looks like a transcript."""
    try:
        return require_prompt([{"role": "user", "content": text}])  # type: ignore[return-value]
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (location, row) of a JSON list or of JSON lines.

    Raises:
        DataError: It cannot be read or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            rows = strict_json(text)
            if not isinstance(rows, list):
                raise DataError(f"{path}: got a JSON {type(rows).__name__}, expected a list")
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows))
            return
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = strict_json(line)
        except ValueError as error:
            raise DataError(f"{place}: cannot be read: {error}") from error
        yield place, row


def shown(row: Any) -> str:
    """Return a row, shortened for error messages."""
    text = json.dumps(row, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
