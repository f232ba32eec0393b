"""The form a prompt takes: HH-RLHF's transcript, or the base's own chat template.

A head is used in the form it was trained in, which its manifest names, unless the user says
otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final, Literal

from cache_schema.errors import DataError, UsageError
from pipeline.transcripts import (
    CHAT_TEMPLATE,
    HUMAN,
    TEMPLATE,
    as_prompt,
    as_response,
    parse_transcript,
    render_messages,
)

Form = Literal["hh", "chat"]
FormName = Literal["auto", "hh", "chat"]
TEMPLATES: Final[dict[Form, str]] = {"hh": TEMPLATE, "chat": CHAT_TEMPLATE}
"""What a manifest says of prompts in each form."""

Messages = Sequence[Mapping[str, str]]
"""Turns of a conversation, each with `role` (system, user, assistant) and `content`."""


@dataclass(frozen=True, kw_only=True)
class PromptForm:
    """How messages become the text a base reads.

    Attributes:
        name: `hh` or `chat`.
        tokenizer: The base's.
    """

    name: Form
    tokenizer: Any

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer, beside the tokens that do."""
        return (HUMAN,) if self.name == "hh" else ()

    def render(self, prompt: str | Messages) -> str:
        """Return the text of a prompt, up to where the answer begins.

        Args:
            prompt: A user's message, messages, or a transcript.

        Raises:
            DataError: The messages are not as they should be.
            UsageError: It is neither text nor messages.
        """
        require_prompt(prompt)
        if self.name == "hh":
            return as_prompt(prompt if isinstance(prompt, str) else render_messages(prompt))
        if isinstance(prompt, str):
            messages: Messages = parse_transcript(as_prompt(prompt))
            _require_messages(messages)
        else:
            messages = prompt
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            # A template is a program of its own; it refuses orders of roles it does not know.
            raise DataError(f"The base's chat template refuses these messages: {error}") from error
        return text

    def response(self, text: str) -> str:
        """Return an answer as it follows a prompt's text."""
        return text if self.name == "hh" else text.strip()

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a rendered prompt; a chat template writes its own special tokens."""
        return self.tokens_of_each([text])[0]

    def tokens_of_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several rendered prompts; see `tokens`."""
        return self._ids(texts, special=self.name == "hh")

    def tokens_behind_each(
        self, prompts: Sequence[str], begun: Sequence[list[int]], answers: Sequence[str]
    ) -> list[list[int]]:
        """Return the ids of answers: those that follow the prompt's in the ids of both together.

        Where the tokenizer merges across the border, the answer is tokenized alone: the prompt must
        come out as it does at decoding, where nothing follows it.

        Args:
            prompts: Rendered prompts.
            begun: Their ids.
            answers: Texts as `response` returns them.
        """
        whole = self.tokens_of_each([a + b for a, b in zip(prompts, answers, strict=True)])
        merges = [ids[: len(own)] != own for ids, own in zip(whole, begun, strict=True)]
        alone = iter(self._ids([*compress(answers, merges)], special=False))
        return [
            next(alone) if merged else ids[len(own) :]
            for ids, own, merged in zip(whole, begun, merges, strict=True)
        ]

    def answer_tokens(self, prompt: str, answer: str, *, ended: bool) -> list[int]:
        """Return the ids of an answer to a rendered prompt, as heads are trained on them.

        Args:
            prompt: Text of the prompt.
            answer: The answer.
            ended: Whether the token that ends a sequence follows.

        Raises:
            DataError: The answer has no text, or none that can be read.
            UsageError: It is no text.
        """
        if not isinstance(answer, str):
            raise UsageError(f"answer: got {type(answer).__name__}, expected a text")
        if not answer.strip():
            raise DataError(f"answer: got {answer!r}, expected text that is not only white space")
        _require_text(answer, "answer")
        text = self.response(as_response(answer))
        (ids,) = self.tokens_behind_each([prompt], [self.tokens(prompt)], [text])
        return [*ids, self.tokenizer.eos_token_id] if ended else ids

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(
            [*texts], add_special_tokens=special, return_attention_mask=False, verbose=False
        )["input_ids"]
        # Some tokenizers close every text with the end of sequence; what follows would be another.
        eos = self.tokenizer.eos_token_id
        return [ids[:-1] if ids and ids[-1] == eos else ids for ids in found]


def form_of(template: str) -> Form:
    """Return the form that a manifest's prompt template stands for."""
    return "chat" if template == CHAT_TEMPLATE else "hh"


def choose_form(asked: FormName, template: str, tokenizer: Any) -> PromptForm:
    """Return the form to use.

    Args:
        asked: What the user wants; `auto` is what the head was trained in.
        template: The manifest's prompt template.
        tokenizer: The base's.

    Raises:
        UsageError: The chat template is wanted and the base has none.
    """
    name = form_of(template) if asked == "auto" else asked
    if name == "chat" and not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "--prompt-form chat: the base has no chat template; use --prompt-form hh, or a base "
            "that was tuned to chat"
        )
    return PromptForm(name=name, tokenizer=tokenizer)


def require_prompt(prompt: str | Messages) -> None:
    """Refuse what no base could answer, whatever the form of its prompts.

    Raises:
        DataError: Its text cannot be read, or its messages are not as they should be.
        UsageError: It is neither text nor messages.
    """
    given: object = prompt
    if not isinstance(given, Sequence):
        raise UsageError(
            f"prompt: got {type(given).__name__}, expected a text, or a list of messages, each "
            f"with 'role' and 'content'"
        )
    if isinstance(prompt, str):
        _require_text(prompt, "prompt")
    else:
        _require_messages(prompt)


def _require_text(text: str, name: str) -> None:
    """Refuse what Python holds as text but no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: got bytes that are no Unicode text: {error}") from error


def _require_messages(messages: Messages) -> None:
    if not messages:
        raise DataError("messages: got none, expected at least one")
    for number, turn in enumerate(messages):
        if not isinstance(turn, Mapping):
            raise DataError(
                f"messages[{number}]: got {turn!r}, expected an object with 'role' and 'content'"
            )
        if turn.get("role") not in ("system", "user", "assistant"):
            raise DataError(
                f"messages[{number}]: got role {turn.get('role')!r}, expected system, user or "
                f"assistant"
            )
        if not isinstance(turn.get("content"), str):
            raise DataError(
                f"messages[{number}]: got {turn.get('content')!r} as its content, expected a text"
            )
        _require_text(turn["content"], f"messages[{number}]")
    if messages[-1]["role"] != "user":
        raise DataError(f"messages: the last is the {messages[-1]['role']}'s, expected the user's")
