"""What is kept of each answer: one JSON line."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class AnswerKey(NamedTuple):
    """Which answer one is.

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
        key: Which it is.
        response: Its text; empty where there is an error.
        new_tokens: How many tokens it has, the one that ended it included; None where not known.
        finish: `stop` where the base ended it or a stop text came, `length` where it was cut at
            the most new tokens; None where not known.
        kl: KL(pi_alpha || pi_base) in nats, summed over its tokens; None where not known. See
            `generation`.
        base_logprob: Log-probability of its tokens under the base alone; None where not known.
        seconds: Its share of the time its batch took; None where not known.
        error: What is wrong, or None.
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
        """Return the object of its line.

        Args:
            prompt: The prompt of its first turn.
        """
        told = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name != "key" and value is not None
        }
        if self.error is not None:
            del told["response"]
        return {"prompt": prompt, **self.key._asdict(), **told}


MEASURED = {
    "new_tokens": int,
    "finish": str,
    "kl": float,
    "base_logprob": float,
    "seconds": float,
}
"""What a line may say of an answer beside its text, and of which type it is."""


def answer_of(line: Mapping[str, Any]) -> Answer:
    """Return the answer of a line that `to_json` made.

    Raises:
        KeyError: A field is not there.
        TypeError: One has another type.
        ValueError: One has a value that cannot be.
    """
    key = AnswerKey(*(int(line[name]) for name in AnswerKey._fields))
    error = line.get("error")
    response = "" if error is not None else line["response"]
    if not isinstance(response, str):
        raise TypeError(f"response: got {type(response).__name__}, expected a text")
    return Answer(key=key, response=response, error=error, **measured(line))


def measured(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line says of its answer beside the text, each of its type."""
    return {name: kind(line[name]) for name, kind in MEASURED.items() if line.get(name) is not None}
