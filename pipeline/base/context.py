"""The base's context length, and prompts that exceed it."""

from collections.abc import Sequence

from mav.cache_schema.errors import DataError
from mav.pipeline.base.model import BaseModel


def tokens_beyond(base: BaseModel, prompt_tokens: int, new_tokens: int) -> str | None:
    """Return an error message for a prompt that is too long for a base, or None."""
    most = base.context_length
    if most is None or prompt_tokens + new_tokens <= most:
        return None
    return (
        f"got {prompt_tokens} tokens and {new_tokens} new ones, expected at most {most} together, "
        f"which the base can read"
    )


def require_within(base: BaseModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Refuse a prompt whose response would exceed the base's context length.

    Raises:
        DataError: The first such prompt.
    """
    for prompt in prompts:
        wrong = tokens_beyond(base, len(prompt), new_tokens)
        if wrong is not None:
            raise DataError(f"The prompt: {wrong}; shorten it, or lower `max_new_tokens`")
