"""Parses one row of a data set: a prompt and two responses, in any of the usual forms.

A row is one of:

- transcripts `{chosen, rejected}`, as Anthropic/hh-rlhf has them;
- `{prompt, chosen, rejected}` texts, as Dahoas/full-hh-rlhf has them;
- `{prompt, completion, label}`, one response that is good or not (see `unpaired`);
- any of them with messages instead of texts (see `messages`), as TRL uses them; a text
  prompt beside whole conversations, as UltraFeedback has it, is understood too.

A `system` column is the conversation's first turn. Columns that would change what the base reads
and that MAV cannot give it, such as `tools`, leave their row out; all others are ignored.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.messages import Messages, UnusableMessageError, read_messages
from mav.pipeline.preferences.pairs import Response
from mav.pipeline.preferences.transcripts import (
    as_response,
    canonical,
    is_transcript,
    messages_of,
    split_transcript,
    transcript_of,
)

ANSWERS: Final = ("chosen", "rejected")
COMPLETION: Final = "completion"
LABEL: Final = "label"
_SYSTEM: Final = ("system", "system_prompt", "system_message")
_MORE_THAN_TEXT: Final = (
    "tools",
    "functions",
    "documents",
    "history",
    "chat_template_kwargs",
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
)
"""Columns that change what a response is a response to."""
COLUMNS: Final = ("prompt", *ANSWERS, COMPLETION, LABEL, *_SYSTEM, *_MORE_THAN_TEXT)
"""All columns that are read."""
_LIKE_A_PROMPT: Final = (
    "question",
    "instruction",
    "input",
    "query",
    "context",
    "messages",
    "conversation",
    "conversations",
)
_MARKUP: Final = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<|begin_of_text|>",
    "<start_of_turn>",
    "<bos><start_of_turn>",
    "<|start|>",
    "<|user|>",
    "<|system|>",
    "<|assistant|>",
    "[INST]",
    "<s>[INST]",
    "### Instruction:",
)
"""What begins a text that a chat template has rendered already."""
_EMPTY: Final = ("", "[]", "{}", "null", "none")


def read_responses(row: Any, place: str) -> tuple[list[Response], list[str]]:
    """Return the usable responses of a row, and the reasons the others are not.

    Args:
        row: The row.
        place: Where it stands, for errors.

    Raises:
        DataError: It has none of the known forms.
    """
    if not isinstance(row, Mapping):
        raise _not_a_pair(row, place, "it is not an object")
    responses: list[Response] = []
    causes = _more_than_text(row)
    for key in ANSWERS:
        response = _usable(row, key, place)
        if isinstance(response, str):
            causes.append(response)
        else:
            responses.append(response)
    return responses, causes


def read_response(row: Mapping[str, Any], key: str, place: str) -> Response | str:
    """Return the response in one column of a row, or the reason it is not usable.

    Args:
        row: The row.
        key: The column.
        place: Where the row stands, for errors.

    Raises:
        DataError: It has none of the known forms.
    """
    causes = _more_than_text(row)
    return causes[0] if causes else _usable(row, key, place)


def _more_than_text(row: Mapping[str, Any]) -> list[str]:
    return [name for name in _MORE_THAN_TEXT if _asks_for_something(row.get(name))]


def _usable(row: Mapping[str, Any], key: str, place: str) -> Response | str:
    try:
        response = _answer(row, key)
        return response if isinstance(response, str) else _under_system(response, row)
    except UnusableMessageError as error:
        return error.cause
    except DataError as error:
        raise _not_a_pair(row, place, str(error)) from error


def _not_a_pair(row: Any, place: str, reason: str) -> DataError:
    got = sorted(row) if isinstance(row, Mapping) else type(row).__name__
    return DataError(
        f"{place}: not a preference pair. Got {got}; expected texts or lists of "
        f"{{role, content}} messages under 'chosen' and 'rejected', with or without 'prompt' "
        f"({reason}). Columns of other names are told with `columns`."
    )


def _answer(row: Mapping[str, Any], key: str) -> Response | str:
    """Return a response, or the reason it is not usable."""
    if key not in row:
        raise DataError(f"there is no column {key!r}")
    response = _parsed(row[key], key)
    prompt = None if row.get("prompt") is None else _prompt(row["prompt"])
    if isinstance(response, str):
        return _of_text(row, key, response, prompt)
    return _of_messages(key, read_messages(response), prompt)


def _prompt(given: Any) -> str | Messages:
    prompt = _parsed(given, "prompt")
    return prompt if isinstance(prompt, str) else read_messages(prompt)


def _of_text(
    row: Mapping[str, Any], key: str, response: str, prompt: str | Messages | None
) -> Response | str:
    parts = split_transcript(response)
    if prompt is None:
        if parts is None:
            _require_no_prompt_elsewhere(row, key)
            return "no_assistant_turn"
        return Response(prompt=parts[0], given=None, response=parts[1])
    if parts is not None and is_transcript(response):
        # A whole conversation beside its own beginning; else it is a response that quotes one.
        begun = canonical(transcript_of(prompt)).removesuffix("Assistant:").rstrip()
        if not canonical(parts[0]).startswith(begun):
            return "prompts_differ"
        return Response(prompt=parts[0], given=None, response=parts[1])
    return _behind(prompt, response)


def _of_messages(key: str, turns: Messages, prompt: str | Messages | None) -> Response | str:
    if not turns or turns[-1]["role"] != "assistant":
        return "no_assistant_turn"
    earlier, last = turns[:-1], turns[-1]["content"]
    if prompt is None:
        if not earlier:
            raise DataError(f"there is no column 'prompt', and {key!r} holds an answer alone")
        return _behind(earlier, last)
    if not earlier:
        return _behind(prompt, last)
    begun = messages_of(prompt)
    # TRL's responses go on after the prompt; UltraFeedback's are whole conversations, which
    # begin as the prompt does, with the user or the system.
    if earlier[0]["role"] == "assistant":
        return _behind([*begun, *earlier], last)
    return _behind(earlier, last) if _begins_with(earlier, begun) else "prompts_differ"


def _behind(prompt: str | Messages, response: str) -> Response:
    transcript = transcript_of(prompt)
    given = None if prompt == transcript else prompt
    return Response(prompt=transcript, given=given, response=as_response(response))


def _under_system(response: Response, row: Mapping[str, Any]) -> Response | str:
    """Return a response whose conversation begins with the text of a row's system column."""
    name = next((name for name in _SYSTEM if row.get(name)), None)
    if name is None:
        return response
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"{name!r} is {type(text).__name__}, expected a text")
    if not text.strip():
        return response
    turns = messages_of(response.prompt if response.given is None else response.given)
    if turns and turns[0]["role"] == "system":
        return response if turns[0]["content"].strip() == text.strip() else "two_system_texts"
    return _behind([{"role": "system", "content": text}, *turns], response.response)


def _begins_with(conversation: Messages, begun: Messages) -> bool:
    """Return whether a conversation begins like a prompt, which may lack the system turn."""
    has_own = bool(begun) and begun[0]["role"] == "system"
    skipped = int(conversation[0]["role"] == "system" and not has_own)
    return _plain(conversation[skipped : skipped + len(begun)]) == _plain(begun)


def _plain(messages: Messages) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"].strip()) for turn in messages]


def _parsed(value: Any, key: str) -> Any:
    """Return a column's text or messages; messages may stand in it as JSON.

    Raises:
        DataError: It is neither, or a text that a chat template has rendered already.
    """
    if isinstance(value, Mapping | list | tuple):
        return value
    if not isinstance(value, str):
        raise DataError(f"{key!r} is {'null' if value is None else type(value).__name__}")
    begun = value.lstrip()
    markup = next((known for known in _MARKUP if begun.startswith(known)), None)
    if markup is not None:
        raise DataError(
            f"{key!r} begins with {markup!r}, the markup of a chat template; give messages, or the "
            f"text without markup"
        )
    if begun.startswith(("[{'role'", "[{'from'", '[{"role"', '[{"from"')):
        try:
            return json.loads(begun)
        except ValueError as error:
            raise DataError(
                f"{key!r} begins with {begun[:10]!r} but is not JSON ({error}); give messages as a "
                f"list, or as JSON"
            ) from error
    return value


def _require_no_prompt_elsewhere(row: Mapping[str, Any], key: str) -> None:
    """Refuse a row whose prompt has another name, or whose responses are in two forms."""
    named = next((name for name in _LIKE_A_PROMPT if row.get(name)), None)
    if named is not None:
        raise DataError(f"there is no column 'prompt'; rename {named!r} if it holds the prompt")
    if not all(isinstance(row.get(other), str) for other in ANSWERS):
        raise DataError(f"there is no column 'prompt', and {key!r} holds no 'Assistant:' turn")


def _asks_for_something(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in _EMPTY
    # Media may be decoded objects that cannot be asked whether they are empty.
    return value is not None and not (isinstance(value, Mapping | Sequence) and not value)
