"""A chat in the terminal, with commands that change alpha or the base."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mav.cache_schema.errors import MAVError, UsageError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.steering.strengths import (
    HeadAlphas,
    Strength,
    as_strength,
    strength_of_text,
)

HELP: Final = """\
/alpha 1.5        strength from now on; 0 is the base itself, 0:2,64:0.5 a schedule
/alpha helpful=2  that of one of several heads; the others stay as they are
/base ID          another base under the same head: hub id, folder or .gguf file
/temperature 0.7  0 takes the most probable token
/tokens 256       most tokens of an answer
/again            answer the last message once more
/reset            begin a new conversation
/quit             leave; so does Ctrl-D. Ctrl-C ends an answer
//text            a message that begins with a slash"""


@dataclass(kw_only=True)
class Chat:
    """A conversation so far.

    Attributes:
        mav: Head and base.
        alpha: Strength of the next response.
        decoding: How its tokens are chosen.
        write: Called with each line that is not part of a response.
        given: Fields of `decoding` that stay as they are when the base is changed, however the
            next one's generation_config sets them.
        over: Whether the user has left.
    """

    mav: MAVInference
    alpha: Strength
    decoding: GenerationOptions
    write: Callable[[str], None]
    given: dict[str, Any] = field(default_factory=dict)
    over: bool = False
    _turns: list[dict[str, str]] = field(default_factory=list)

    def take(self, line: str) -> Iterator[str]:
        """Handle a line of input: yield the response to a message, or run a command."""
        line = line.strip()
        if not line:
            return
        try:
            if line.startswith("//"):
                yield from self._answer(line[1:])
            elif line.startswith("/"):
                yield from self._command(*line[1:].split(maxsplit=1))
            else:
                yield from self._answer(line)
        except MAVError as error:
            self.write(str(error))

    def _command(self, name: str = "", argument: str = "") -> Iterator[str]:
        if name == "alpha" and argument:
            self.alpha = self._strength(argument)
            self.write(f"alpha {self.alpha}")
        elif name == "base" and argument:
            before = self.mav.joined.settings
            self.mav.switch_base_model(argument)
            if before or self.mav.joined.settings:
                self.decoding = self.mav.decoding(**self.given)
            self.write(f"base {self.mav.base.id}")
        elif name == "temperature" and argument:
            self._change(temperature=_number(argument))
            self.write(f"temperature {self.decoding.temperature:g}")
        elif name == "tokens" and argument:
            self._change(max_new_tokens=_count(argument))
            self.write(f"at most {self.decoding.max_new_tokens} tokens")
        elif name == "again" and self._turns:
            yield from self._answer(self._turns[-2]["content"], begun=self._turns[:-2])
        elif name == "reset":
            self._turns = []
            self.write("a new conversation")
        elif name in ("quit", "exit"):
            self.over = True
        else:
            if name not in ("help", "again"):
                self.write(f"/{name}: no such command, or it lacks what follows; nothing was sent")
            self.write(HELP)

    def _strength(self, text: str) -> Strength:
        """Read a strength; of several heads those that it does not name keep theirs."""
        given = strength_of_text(text)
        if isinstance(given, HeadAlphas) and isinstance(self.alpha, HeadAlphas):
            given = HeadAlphas(tuple((dict(self.alpha.schedules) | dict(given.schedules)).items()))
        return as_strength(given, self.mav.head_names)

    def _change(self, **given: Any) -> None:
        self.decoding = replace(self.decoding, **given)
        self.given |= given

    def _answer(self, message: str, begun: list[dict[str, str]] | None = None) -> Iterator[str]:
        turns = [
            *(self._turns if begun is None else begun),
            {"role": "user", "content": message},
        ]
        turns = self._within_context(turns)
        response = ""
        try:
            for piece in self.mav.stream(turns, self.alpha, self.decoding):
                response += piece
                yield piece
        finally:
            # A response that was broken off is still what was said.
            self._turns = [*turns, {"role": "assistant", "content": response}]

    def _within_context(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """Leave out the oldest turns where the base cannot read them all."""
        most, form = self.mav.base.context_length, self.mav.joined.form
        kept = turns
        while most is not None:
            needed = len(form.tokens(form.render(kept))) + self.decoding.max_new_tokens
            if needed <= most:
                break
            if len(kept) < 3:
                raise UsageError(
                    f"The message and {self.decoding.max_new_tokens} new tokens are {needed} "
                    f"tokens, and the base can read {most}; shorten it, or lower /tokens"
                )
            kept = kept[2:]
        if len(kept) < len(turns):
            self.write(f"({(len(turns) - len(kept)) // 2} earlier turns no longer fit)")
        return kept


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"got {text!r}, expected a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"got {text!r}, expected a number") from None
