"""What of a request asks for nothing: it is taken, and gone before the fields are read.

Clients send back what they were given, every field of it, and frameworks name what they leave at
its default. Nothing of that is a reason to refuse; asking for what is not done here is one.
"""

from typing import Any, Final

from mav.pipeline.serving.errors import ApiError

Neutral = dict[str, tuple[Any, ...]]

_OF_REQUESTS: Final[Neutral] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "extra_body": ({},),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""What OpenAI's API and vLLM's know and this server does not do, with what asks for nothing."""

_IGNORED: Final = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)

MOST: Final = 2048
"""Most messages of a request, and parts of a message; longer lists are refused unread."""

_OF_MESSAGES: Final[Neutral] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "prefix": (False,),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "refusal": ("",),
    "tool_calls": ([],),
}
"""What messages may hold beside role, content and name, likewise."""


def without_neutral(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request without the fields that ask for nothing.

    An assistant's message without content gets an empty one, for that is what was said.

    Raises:
        ApiError: A field, of the request or of a message, asks for what is not done here.
    """
    kept = _not_null(body)
    if isinstance(kept.get("response_format"), dict):
        kept["response_format"] = _not_null(kept["response_format"])
    if kept.get("best_of") == kept.get("n", 1):
        kept.pop("best_of", None)
    kept = {name: value for name, value in kept.items() if name not in _IGNORED}
    kept = _without(kept, _OF_REQUESTS, "")
    if isinstance(kept.get("stream_options"), dict):
        kept["stream_options"] = _not_null(kept["stream_options"])
    if _is_list(kept.get("messages")):
        kept["messages"] = [
            _message(message, f"messages.{number}.") if isinstance(message, dict) else message
            for number, message in enumerate(kept["messages"])
        ]
    return kept


def _message(message: dict[str, Any], place: str) -> dict[str, Any]:
    kept = _without(_not_null(message), _OF_MESSAGES, place)
    if kept.get("role") == "assistant":
        kept.setdefault("content", "")
    if _is_list(kept.get("content")):
        kept["content"] = [
            _not_null(part) if isinstance(part, dict) else part for part in kept["content"]
        ]
    return kept


def _is_list(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MOST


def _not_null(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _without(fields: dict[str, Any], neutral: Neutral, place: str) -> dict[str, Any]:
    for name, value in fields.items():
        if name in neutral and not any(_same(value, one) for one in neutral[name]):
            raise ApiError(
                400,
                f"{place}{name}: is not supported; leave it out",
                param=f"{place}{name}",
                code="unsupported",
            )
    return {name: value for name, value in fields.items() if name not in neutral}


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)
