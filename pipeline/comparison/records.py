"""The record of an answer: one JSON line."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


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
        seconds: Its share of the time its batch took; None if unknown.
        error: Why there is no answer, or None.
    """

    key: AnswerKey
    response: str = ""
    new_tokens: int | None = None
    finish: str | None = None
    kl: float | None = None
    base_logprob: float | None = None
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


MEASURED = {
    "new_tokens": int,
    "finish": str,
    "kl": float,
    "base_logprob": float,
    "seconds": float,
}
"""Optional fields of a line, and their types."""


def answer_of(line: Mapping[str, Any]) -> Answer:
    """Return the answer of a line that `to_json` made.

    Raises:
        KeyError: A field is missing.
        TypeError: A field has the wrong type.
        ValueError: A field has an impossible value.
    """
    key = AnswerKey(*(int(line[name]) for name in AnswerKey._fields))
    error = line.get("error")
    response = "" if error is not None else line["response"]
    if not isinstance(response, str):
        raise TypeError(f"response: got {type(response).__name__}, expected text")
    return Answer(key=key, response=response, error=error, **measured(line))


def measured(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional fields of a line, converted to their types."""
    return {name: kind(line[name]) for name, kind in MEASURED.items() if line.get(name) is not None}
