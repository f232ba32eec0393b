"""Reads chat messages in any of the usual forms into `role` and `content`.

Rows of data sets, prompts of a command and requests to the server all come through here, so that
the same conversation means the same wherever it comes from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mav.cache_schema.errors import DataError

Message = Mapping[str, str]
"""One turn, with `role` (system, user or assistant) and `content`."""
Messages = Sequence[Message]

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Roles as OpenAI, TRL and ShareGPT name them."""
_NAMED_AS: Final = (("role", "content"), ("from", "value"))
_TOOL_ROLES: Final = ("tool", "function", "ipython")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_CALLS: Final = ("tool_calls", "function_call")


class UnusableMessageError(DataError):
    """Messages of a known form whose content cannot be represented as text.

    Attributes:
        cause: A word for counts of what was left out.
    """

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


def read_messages(given: Any) -> tuple[Message, ...]:
    """Return messages as `role` and `content`, the content one text.

    Taken are messages as OpenAI and TRL write them (`role`, `content`) and as ShareGPT does
    (`from`, `value`); content that is a list of text parts; a missing content beside nothing else
    as empty text; any further fields that ask for nothing.

    Args:
        given: A list of messages, or a single one.

    Raises:
        UnusableMessageError: There is an image, a call of a tool, its result, or text that is not
            Unicode.
        DataError: They are not messages.
    """
    if isinstance(given, Mapping):
        given = [given]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DataError(f"messages: got {type(given).__name__}, expected a list of messages")
    return tuple(_read(turn, f"messages[{number}]") for number, turn in enumerate(given))


def require_answerable(messages: Messages) -> None:
    """Refuse a conversation whose last message is not for the assistant to answer.

    Raises:
        DataError: It is empty, or its last message is not the user's.
    """
    if not messages:
        raise DataError("messages: got none, expected at least one")
    if messages[-1]["role"] != "user":
        raise DataError(f"messages: the last is the {messages[-1]['role']}'s, expected the user's")


def require_text(text: str, name: str) -> None:
    """Refuse text with lone surrogates, which no tokenizer can encode.

    Raises:
        DataError: It holds half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: got bytes that are not Unicode text: {error}") from error


def _read(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{place}: got {turn!r}, expected an object with 'role' and 'content'")
    role_key, content_key = next(
        (names for names in _NAMED_AS if names[0] in turn), ("role", "content")
    )
    named = turn.get(role_key)
    if named in _TOOL_ROLES:
        raise UnusableMessageError(
            f"{place}: got role {named!r}, expected system, user or assistant", "tool_calls"
        )
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise DataError(f"{place}: got role {named!r}, expected system, user or assistant")
    for name in _CALLS:
        if turn.get(name):
            raise UnusableMessageError(
                f"{place}: got {name}, expected text alone; leave such conversations out",
                "tool_calls",
            )
    content = _text(turn, content_key, place)
    try:
        require_text(content, place)
    except DataError as error:
        raise UnusableMessageError(str(error), "invalid_unicode") from error
    return {"role": role, "content": content}


def _text(turn: Mapping[str, Any], key: str, place: str) -> str:
    content = turn.get(key)
    if isinstance(content, str):
        return content
    if content is None and key in turn:
        return ""
    if isinstance(content, Sequence):
        return "".join(_part(part, place) for part in content)
    raise DataError(f"{place}: got {content!r} as its {key}, expected a text")


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind in (*_TEXT_PARTS, None) and isinstance(text, str):
        return text
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise UnusableMessageError(
            f"{place}: got content of type {kind!r}, expected text alone", f"{kind}_content"
        )
    raise DataError(f"{place}: got {part!r} as a part of its content, expected a text")
