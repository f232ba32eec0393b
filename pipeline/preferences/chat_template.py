"""Renders prompts and responses with a base's chat template.

Templates are small programs, so nothing is assumed of them: a response is what the template adds to
its own prompt when the conversation continues with that answer, and it ends where the template ends
a turn. A template for which this is not defined is refused.
"""

import datetime
import string
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from mav.cache_schema.errors import BaseModelError, DataError, UsageError
from mav.pipeline.preferences.messages import Messages

_CLOCK: Final = "strftime_now"
"""The function that transformers gives templates to ask for the time with."""
_MACRO: Final = """\
{% macro strftime_now(format) %}\
{% set pieces = format.replace('%%', '\\0').split('%') %}\
{{ pieces[0].replace('\\0', '%') }}\
{% for piece in pieces[1:] %}\
{% set size = 2 if piece[:2] in _pinned_date else 1 %}\
{{ _pinned_date[piece[:size]] }}{{ piece[size:].replace('\\0', '%') }}\
{% endfor %}\
{% endmacro %}
"""
"""Stands before a template whose date is pinned, instead of the function. Its last line break is
the one that Jinja drops after a tag, so the template begins as it would alone."""
_QUESTION: Final = "What is the time?"
_ANSWER: Final = "Half past nine."


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """Renders conversations with a tokenizer's chat template.

    Attributes:
        tokenizer: The base's.
        date: Date given to a template that asks for today's; None for the present day.
    """

    tokenizer: Any
    date: datetime.date | None = None

    def prompt(self, messages: Messages) -> str:
        """Return the text of a conversation up to where the next response begins.

        Raises:
            DataError: The template refuses these messages.
        """
        return self._render(messages, add_generation_prompt=True)

    def response(self, messages: Messages, prompt: str, response: str) -> str:
        """Return the text of a response, rendered after its prompt.

        Args:
            messages: The conversation.
            prompt: Its text, as `prompt` returns it.
            response: The response's content.

        Returns:
            Its text through the token that ends the turn.

        Raises:
            DataError: The template refuses them, or does not put this response after the prompt.
        """
        whole = self._render(
            [*messages, {"role": "assistant", "content": response}], add_generation_prompt=False
        )
        ending = self.closing + self._behind_closing
        if not whole.startswith(prompt) or not whole.endswith(ending):
            raise DataError(
                "The base's chat template does not put this answer after the prompt it makes of "
                "the messages before"
            )
        return whole[len(prompt) :].removesuffix(self._behind_closing)

    @property
    def closing(self) -> str:
        """The text after a response, through the token that ends the turn."""
        return self._ending[0]

    @property
    def end_token(self) -> int:
        """Id of the token that ends a response."""
        return self._ending[2]

    @property
    def _behind_closing(self) -> str:
        return self._ending[1]

    def require_defined(self) -> None:
        """Refuse a template that does not render a response, or does not end it with a token.

        Raises:
            BaseModelError: With what is wrong with it.
        """
        _ = self._ending

    @cached_property
    def _ending(self) -> tuple[str, str, int]:
        """The closing, what the template writes after it, and the token that ends a response."""
        question = [{"role": "user", "content": _QUESTION}]
        try:
            prompt = self.prompt(question)
            whole = self._render(
                [*question, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False
            )
        except DataError as error:
            raise self._undefined(f"it refuses a question and its answer: {error}") from error
        if not whole.startswith(prompt):
            raise self._undefined("it does not write an answer after its own generation prompt")
        _, found, rest = whole[len(prompt) :].rpartition(_ANSWER)
        if not found:
            raise self._undefined("it does not write an answer's text")
        for token in self._ids(rest):
            text = self.tokenizer.convert_ids_to_tokens(token)
            if token in self._special and not text.isspace() and text in rest:
                at = rest.index(text) + len(text)
                return rest[:at], rest[at:], token
        raise self._undefined(
            "no special token ends a turn in it, so decoding could not know where a response ends"
        )

    @cached_property
    def _special(self) -> frozenset[int]:
        """Special tokens, which ordinary text never encodes to."""
        return frozenset([*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder])

    @cached_property
    def _pinned(self) -> dict[str, Any]:
        """Arguments that give the template its date."""
        if self.date is None or not uses_date(self.tokenizer):
            return {}
        return {
            "chat_template": _MACRO + self.tokenizer.get_chat_template(),
            "_pinned_date": _directives(self.date),
        }

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _undefined(self, reason: str) -> BaseModelError:
        return BaseModelError(
            f"prompt_form: got 'chat', but the chat template of {self.tokenizer.name_or_path} "
            f"cannot be used, as {reason}. Use hh, or a base with another template."
        )

    def _render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._pinned,
            )
        except Exception as error:
            # A template is a program of its own; it refuses orders of roles it does not know.
            raise DataError(f"The base's chat template refuses these messages: {error}") from error
        return text


def uses_date(tokenizer: Any) -> bool:
    """Return whether a tokenizer's chat template may ask for today's date."""
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return any(_CLOCK in text for text in texts)


def parse_date(text: str) -> datetime.date:
    """Read `YYYY-MM-DD`, or `today`.

    Raises:
        UsageError: It is neither.
    """
    if text == "today":
        return datetime.date.today()
    try:
        return datetime.date.fromisoformat(text)
    except (TypeError, ValueError):
        raise UsageError(
            f"template_date: got {text!r}, expected a date such as 2026-11-26, or today"
        ) from None


def _directives(date: datetime.date) -> dict[str, str]:
    """Return what each directive of `strftime` gives for a date at midnight."""
    midnight = datetime.datetime.combine(date, datetime.time())
    names = [*string.ascii_letters, *(f"-{letter}" for letter in string.ascii_letters)]
    return {name: midnight.strftime(f"%{name}") for name in names}
