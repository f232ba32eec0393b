"""Prompt formats: HH-RLHF's transcript, or the base's own chat template.

A head is used in the format it was trained in, which its manifest names, unless the user chooses
another. Extraction, decoding, scoring and the server all get their tokens here.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Any, Final

from mav.cache_schema.errors import BaseModelError, DataError, UsageError
from mav.pipeline.preferences.chat_template import ChatTemplate
from mav.pipeline.preferences.messages import Messages as Messages
from mav.pipeline.preferences.messages import read_messages, require_answerable, require_text
from mav.pipeline.preferences.transcripts import (
    CHAT_TEMPLATE,
    HUMAN,
    TEMPLATE,
    as_response,
    messages_of,
    transcript_of,
)
from mav.pipeline.runtime.choices import Form, PromptFormatName

TEMPLATES: Final[dict[Form, str]] = {"hh": TEMPLATE, "chat": CHAT_TEMPLATE}
"""What a manifest says of prompts in each form."""

_PROBE: Final = "a"


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How messages become the text and the tokens a base reads.

    Attributes:
        name: `hh` or `chat`.
        tokenizer: The base's.
        date: Date given to a chat template that asks for today's; None for the present day.
    """

    name: Form
    tokenizer: Any
    date: datetime.date | None = None

    @cached_property
    def template(self) -> ChatTemplate:
        """The base's chat template."""
        return ChatTemplate(tokenizer=self.tokenizer, date=self.date)

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end a response, beside the tokens that do."""
        return (HUMAN,) if self.name == "hh" else ()

    @property
    def end_token(self) -> int:
        """Id of the token that ends every response that is not cut."""
        return self.template.end_token if self.name == "chat" else int(self.tokenizer.eos_token_id)

    def render(self, prompt: str | Messages) -> str:
        """Return the text of a prompt, up to where the response begins.

        Args:
            prompt: A user's message, messages, or a transcript.

        Raises:
            DataError: The messages are not as they should be.
            UsageError: It is neither text nor messages.
        """
        asked = require_prompt(prompt)
        return transcript_of(asked) if self.name == "hh" else self.template.prompt(_turns(asked))

    def response(self, prompt: str | Messages, text: str, response: str) -> str:
        """Return a response's text as it follows its prompt; in chat format, with the turn's end.

        Args:
            prompt: As `render` takes it.
            text: As `render` returns it.
            response: The response; in a transcript, with the white space before it.

        Raises:
            DataError: The chat template has no place for it.
        """
        if self.name == "hh":
            return response
        return self.template.response(_turns(prompt), text, response.strip())

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a rendered prompt; a chat template writes its own special tokens."""
        return self.tokens_of_each([text])[0]

    def tokens_of_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several rendered prompts; see `tokens`."""
        return (text_tokens if self.name == "hh" else _plain_tokens)(self.tokenizer, texts)

    def tokens_behind_each(
        self, prompts: Sequence[str], begun: Sequence[list[int]], responses: Sequence[str]
    ) -> list[list[int]]:
        """Return the ids of responses: those that follow the prompt's in the ids of both together.

        Where the tokenizer merges across the border, the response is tokenized alone: the prompt
        must come out as it does at decoding, where nothing follows it.

        Args:
            prompts: Rendered prompts.
            begun: Their ids.
            responses: Texts as `response` returns them.

        Returns:
            Ids of each, the token that ends a response at their end.
        """
        whole = self.tokens_of_each([a + b for a, b in zip(prompts, responses, strict=True)])
        merges = [ids[: len(own)] != own for ids, own in zip(whole, begun, strict=True)]
        alone = iter(_plain_tokens(self.tokenizer, [*compress(responses, merges)]))
        return [
            self._ended(next(alone) if merged else ids[len(own) :])
            for ids, own, merged in zip(whole, begun, merges, strict=True)
        ]

    def response_tokens(self, prompt: str | Messages, response: str, *, ended: bool) -> list[int]:
        """Return the ids of a response, as heads are trained on them.

        Args:
            prompt: As `render` takes it.
            response: The response.
            ended: Whether the token that ends a response follows.

        Raises:
            DataError: The response has no text, or none that can be read.
            UsageError: It is not a text.
        """
        if not isinstance(response, str):
            raise UsageError(f"response: got {type(response).__name__}, expected a text")
        if not response.strip():
            raise DataError(
                f"response: got {response!r}, expected text that is not only white space"
            )
        require_text(response, "response")
        prompt = require_prompt(prompt)
        text = self.render(prompt)
        rendered = self.response(prompt, text, as_response(response))
        (ids,) = self.tokens_behind_each([text], [self.tokens(text)], [rendered])
        return ids if ended else ids[:-1]

    def _ended(self, ids: list[int]) -> list[int]:
        """Return a response's ids with exactly one end token."""
        end, length = self.end_token, len(ids)
        while length and ids[length - 1] == end:
            length -= 1
        return [*ids[:length], end]


def prompt_format_of(template: str) -> Form:
    """Return the prompt format that a manifest's `prompt_template` stands for."""
    return "chat" if template == CHAT_TEMPLATE else "hh"


def choose_prompt_format(
    asked: PromptFormatName, template: str, tokenizer: Any, date: datetime.date | None = None
) -> PromptFormat:
    """Return the prompt format to use.

    Args:
        asked: What the user wants; `auto` is what the head was trained in.
        template: The manifest's prompt template.
        tokenizer: The base's.
        date: Date given to a chat template that asks for today's.

    Raises:
        UsageError: The chat template is wanted and the base has none.
        BaseModelError: It has one that does not say where a response begins or ends.
    """
    name = prompt_format_of(template) if asked == "auto" else asked
    form = PromptFormat(name=name, tokenizer=tokenizer, date=date)
    if name == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                "prompt_form: got 'chat', but the base has no chat template; use hh, or a base "
                "that was tuned to chat"
            )
        form.template.require_defined()
    return form


def text_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of plain text prompts, as `prompt_form` hh encodes them.

    What the tokenizer puts before every text stays; an end of sequence that it appends is left
    out, since what follows would be another text. One that the text itself spells is kept.

    Args:
        tokenizer: The base's.
        texts: The texts.

    Raises:
        BaseModelError: The tokenizer puts special tokens inside texts.
    """
    before = _put_before(tokenizer) if texts else []
    return [[*before, *ids] for ids in _plain_tokens(tokenizer, texts)]


def _put_before(tokenizer: Any) -> list[int]:
    """Return the ids that a tokenizer puts before every text."""
    (alone,) = _plain_tokens(tokenizer, [_PROBE])
    (whole,) = _ids(tokenizer, [_PROBE], special=True)
    for at in range(len(whole) - len(alone) + 1):
        if whole[at : at + len(alone)] == alone:
            return whole[:at]
    raise BaseModelError(
        f"tokenizer of {tokenizer.name_or_path}: it tokenizes {_PROBE!r} as {whole} with special "
        f"tokens and as {alone} without, expected the one inside the other. Please report this "
        f"tokenizer."
    )


def _plain_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return _ids(tokenizer, texts, special=False)


def _ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        [*texts], add_special_tokens=special, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def require_prompt(prompt: Any) -> str | Messages:
    """Return a prompt, its messages in the one form they are kept in.

    Args:
        prompt: A user's message, a transcript, or messages as `read_messages` takes them.

    Raises:
        DataError: Its text cannot be read, or its messages are not as they should be.
        UsageError: It is neither text nor messages.
    """
    if not isinstance(prompt, Sequence):
        raise UsageError(
            f"prompt: got {type(prompt).__name__}, expected a text, or a list of messages, each "
            f"with 'role' and 'content'"
        )
    if isinstance(prompt, str):
        require_text(prompt, "prompt")
        return prompt
    messages = read_messages(prompt)
    require_answerable(messages)
    return messages


def _turns(prompt: str | Messages) -> Messages:
    """Return the messages of a prompt for a chat template."""
    messages = messages_of(prompt)
    require_answerable(messages)
    return messages
