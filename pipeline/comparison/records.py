"""The record of an answer: one JSON line."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mav.pipeline.comparison.questions import shown

_TOO_MANY: Final = 1 << 53
"""Whole numbers from here on are no counts, and JSON of others does not keep them."""


class AnswerKey(NamedTuple):
    """Identifies an answer.

    Attributes:
        question: Number of the prompt, from 0.
        sample: Which of several answers to it, from 0.
        turn: Which turn of the conversation, from 0.
    """

    question: int
    sample: int = 0
    turn: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer to a prompt, or the reason there is none.

    Attributes:
        key: Identifies it.
        response: Its text; empty if there is an error.
        new_tokens: Number of tokens, including the one that ended it; None if unknown.
        finish: `stop` if the base or a stop text ended it, `length` if it reached the most new
            tokens; None if unknown.
        kl: KL(pi_alpha || pi_base) in nats, summed over its tokens; None if unknown. See
            `generation`.
        base_logprob: Log-probability of its tokens under the base alone; None if unknown.
        steered_tokens: How many of its tokens heads were added at; None if unknown, or
            if there was no limit.
        seconds: Its share of the time its batch took; None if unknown.
        error: Why there is no answer, or None.
    """

    key: AnswerKey
    response: str = ""
    new_tokens: int | None = None
    finish: str | None = None
    kl: float | None = None
    base_logprob: float | None = None
    steered_tokens: int | None = None
    seconds: float | None = None
    error: str | None = None

    def to_json(self, prompt: Any) -> dict[str, Any]:
        """Return its line as a JSON object.

        Args:
            prompt: The prompt of its first turn.
        """
        fields = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name != "key" and value is not None
        }
        if self.error is not None:
            del fields["response"]
        return {"prompt": prompt, **self.key._asdict(), **fields}


def answer_of(line: Mapping[str, Any]) -> Answer:
    """Return the answer of a line that `to_json` made.

    Raises:
        KeyError: A field is missing.
        TypeError: The response is not text.
        ValueError: A field has an impossible value.
    """
    key = AnswerKey(*(whole_number(line, name) for name in AnswerKey._fields))
    error = line.get("error")
    response = "" if error is not None else line["response"]
    if not isinstance(response, str):
        raise TypeError(f"response: got {type(response).__name__}, expected text")
    return Answer(key=key, response=response, error=error, **measured(line))


def measured(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional fields of a line, converted to their types.

    Raises:
        ValueError: A field has an impossible value.
    """
    fields: dict[str, Any] = {}
    for name in ("new_tokens", "steered_tokens"):
        if line.get(name) is not None:
            fields[name] = whole_number(line, name)
    for name in ("kl", "base_logprob", "seconds"):
        value = line.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}: got {shown(value)}, expected a number")
        if abs(value) >= _TOO_MANY and isinstance(value, int):
            raise ValueError(f"{name}: got {shown(value)}, which is too large")
        fields[name] = float(value)
    finish = line.get("finish")
    if finish is not None and not isinstance(finish, str):
        raise ValueError(f"finish: got {shown(finish)}, expected a text")
    return fields if finish is None else {**fields, "finish": finish}


def whole_number(line: Mapping[str, Any], name: str) -> int:
    """Return a count or a place of a line.

    Raises:
        KeyError: It is missing.
        ValueError: It is not a whole number from 0 on.
    """
    value = line[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _TOO_MANY:
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number, at least 0")
    return value
