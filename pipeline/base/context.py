"""What a base can read at once, and what is more than that."""

from collections.abc import Sequence

from mav.cache_schema.errors import DataError
from mav.pipeline.base.model import BaseModel


def tokens_beyond(base: BaseModel, prompt_tokens: int, new_tokens: int) -> str | None:
    """Return what is wrong with a prompt that is too long for a base, or None."""
    most = base.context_length
    if most is None or prompt_tokens + new_tokens <= most:
        return None
    return (
        f"got {prompt_tokens} tokens and {new_tokens} new ones, expected at most {most} together, "
        f"which the base can read"
    )


def require_within(base: BaseModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Refuse a prompt whose answer would go beyond what a base can read.

    Raises:
        DataError: The first such prompt.
    """
    for prompt in prompts:
        wrong = tokens_beyond(base, len(prompt), new_tokens)
        if wrong is not None:
            raise DataError(f"The prompt: {wrong}; shorten it, or lower --max-new-tokens")
