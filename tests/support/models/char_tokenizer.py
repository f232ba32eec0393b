"""A tokenizer of one token a character, and pairs to tokenize."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mav.pipeline.preferences.reader import PreferencePair
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.preferences.transcripts import split_transcript
from tests.support.models.tiny import rows, tiny_tokenizer

EOS, BOS, MERGED = 0, 1, 5000


@dataclass(frozen=True, kw_only=True)
class CharTokenizer:
    """One token a character, its code point, but the text `merges` is one token, 5000."""

    begins: bool = False
    """Whether every text begins with BOS."""
    closes: bool = False
    """Whether every text ends with EOS."""
    prefix: str = ""
    """What is put before every text, as SentencePiece does."""
    merges: str = "no text has this"
    eos_token_id: int | None = EOS
    name_or_path: str = "chars"

    @property
    def bos_token_id(self) -> int | None:
        return BOS if self.begins else None

    def __call__(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, **_: Any
    ) -> dict[str, list[list[int]]]:
        found = []
        for text in texts:
            ids = [ord(letter) for letter in (self.prefix + text).replace(self.merges, "\u1388")]
            if add_special_tokens:
                ids = [BOS] * self.begins + ids + [EOS] * self.closes
            found.append(ids)
        return {"input_ids": found}


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, source_row=7)


def tiny_pairs(count: int) -> list[PreferencePair]:
    found = []
    for number, row in enumerate(rows(count)):
        (prompt, chosen), (_, rejected) = (
            split_transcript(row[key]) or ("", "") for key in ("chosen", "rejected")
        )
        found.append(
            PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, source_row=number)
        )
    return found


@cache
def some_pairs() -> TokenizedPairs:
    """Six pairs as the tiny tokenizer gives them."""
    return tokenize_pairs(tiny_pairs(6), tiny_tokenizer(), 128)
