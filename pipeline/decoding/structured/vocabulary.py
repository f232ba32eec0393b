"""The tokens of a base as bytes, among which a grammar chooses."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.structured.constraint import Constraint, allowed_tokens

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT: Final = 16
"""Grammars that are kept compiled, as clients send the same schema again."""
_PROBE: Final = '{"a b": [1, "c"]}'
_NOT_BYTES: Final = "needs a tokenizer whose tokens stand for bytes, and the base has another"
_REASON: Final = 300
"""Most characters of the library's reason in an error."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A grammar compiled for a vocabulary; any number of responses may follow it.

    Attributes:
        matcher: Matches from the beginning; it is copied and never moved.
        reserved: Tokens that never are text, such as those that end responses.
    """

    matcher: "LLMatcher"
    reserved: frozenset[int]

    def begin(self, ends: Collection[int]) -> Constraint:
        """Return what keeps a new response to the grammar.

        Args:
            ends: Tokens that end the response, which may come wherever its text is whole.
        """
        return Constraint(self.matcher.deep_copy(), self.reserved, ends)


class GrammarVocabulary:
    """A base's vocabulary; making one takes about a second for 100,000 tokens."""

    def __init__(self, tokenizer: Any, size: int, ends: Collection[int]) -> None:
        """Read a tokenizer.

        Args:
            tokenizer: The base's.
            size: Number of the base's logits, which may be more than its tokens.
            ends: Tokens that end responses, in any form of prompts.

        Raises:
            UsageError: The tokenizer does not say which bytes its tokens stand for.
        """
        if not tokenizer.is_fast:
            raise UsageError("needs a fast tokenizer, and the base has a slow one")
        from llguidance.hf import from_tokenizer

        self._reserved = frozenset(ends)
        size = max(size, len(tokenizer))
        try:
            self._tokens: LLTokenizer = from_tokenizer(tokenizer, size, sorted(ends) or None)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"{_NOT_BYTES}: {error}") from error
        written = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        if self._tokens.decode_str(written).strip() != _PROBE:
            raise UsageError(f"{_NOT_BYTES} (it is none of byte-level BPE or with byte fallback)")
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, text: str) -> Grammar:
        """Return a grammar that tokens of this vocabulary can follow.

        Args:
            text: The grammar, as `json_grammar` writes it.

        Raises:
            UsageError: It is not valid, not supported or too complex, or no text follows it.
        """
        found = self._compiled.pop(text, None)
        if found is None:
            found = Grammar(matcher=self._checked(text), reserved=self._reserved)
        self._compiled[text] = found
        while len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return found

    def _checked(self, text: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        # About the half and a tenth of the library's own, which allow seconds of work.
        limits = LLParserLimits(
            initial_lexer_fuel=500_000, max_grammar_size=50_000, verbose_errors=False
        )
        matcher = LLMatcher(self._tokens, text, log_level=0, limits=limits)
        if not matcher.is_error():
            probe = matcher.deep_copy()
            begins = allowed_tokens(probe).nonzero()[:, 0].tolist()
            if not any(self._tokens.decode_bytes([token]).strip() for token in begins):
                raise UsageError("allows no text that the base's tokens could begin")
        if matcher.is_error():
            raise UsageError(_reason(matcher.get_error()))
        return matcher


def _reason(error: str) -> str:
    """Return the library's reason in one line, without the grammar it was found in."""
    line = " ".join(error.partition("\n   1 | ")[0].split())
    return line.rpartition("failed to compile JSON schema: ")[2][:_REASON]
