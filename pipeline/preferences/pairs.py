"""A prompt with two responses, and the numbers that say which pair it is."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mav.pipeline.preferences.messages import Messages
from mav.pipeline.preferences.transcripts import (
    canonical,
)


@dataclass
class ReadCounts:
    """What became of the rows, filled while they are read.

    Attributes:
        rows: Rows read.
        dropped: Those that hold no usable pair, by cause.
        held_out_prompts: Ids of all prompts of a data set for evaluation alone, those of dropped
            rows too.
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    held_out_prompts: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """A prompt with a chosen and a rejected response.

    Attributes:
        prompt: The prompt as a transcript that ends in `Assistant:`.
        chosen: The preferred response.
        rejected: The other one.
        source_row: Number of the row.
        given: The prompt as the row has it where that is not a transcript: a user's message, or
            messages.
    """

    prompt: str
    chosen: str
    rejected: str
    source_row: int
    given: str | Messages | None = field(default=None, compare=False)

    @property
    def asked(self) -> str | Messages:
        """The prompt as the row has it, for `PromptFormat`."""
        return self.prompt if self.given is None else self.given

    @property
    def pair_id(self) -> int:
        """64-bit hash of the three texts; the same pair has the same id in every data set."""
        return _hash64(self.prompt, self.chosen, self.rejected)

    @property
    def prompt_id(self) -> int:
        """64-bit hash of the prompt, by which pairs are held out."""
        return prompt_id(self.prompt)


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response of a row.

    Attributes:
        prompt: Its prompt, as a transcript.
        given: Its prompt, as `PreferencePair` has it.
        response: The response.
    """

    prompt: str
    given: str | Messages | None
    response: str


def to_pair(
    responses: Sequence[Response], causes: Sequence[str], number: int
) -> PreferencePair | str:
    """Return the pair of a row, or the reason it is dropped.

    Args:
        responses: As `read_responses` returns them.
        causes: Likewise.
        number: Number of the row.
    """
    if causes:
        return causes[0]
    chosen, rejected = responses
    if chosen.prompt != rejected.prompt or (
        chosen.given and rejected.given and chosen.given != rejected.given
    ):
        return "prompts_differ"
    if not chosen.response.strip() or not rejected.response.strip():
        return "empty_response"
    if chosen.response == rejected.response:
        return "identical_responses"
    try:
        (chosen.prompt + chosen.response + rejected.response).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can write but no tokenizer can read.
        return "invalid_unicode"
    return PreferencePair(
        prompt=chosen.prompt,
        given=chosen.given,
        chosen=chosen.response,
        rejected=rejected.response,
        source_row=number,
    )


def prompt_id(prompt: str) -> int:
    """Return a 64-bit hash of a prompt, independent of white space at the ends of its turns.

    Args:
        prompt: A transcript that ends in `Assistant:`.
    """
    return _hash64(canonical(prompt))


def _hash64(*texts: str) -> int:
    digest = hashlib.sha256("\x1f".join(texts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little")
