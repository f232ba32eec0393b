"""Tokenizes preference pairs and truncates them, in stored order."""

import datetime
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import BaseModelError, DataError
from mav.pipeline.preferences.prompt_format import (
    TEMPLATES,
    PromptFormat,
    choose_prompt_format,
)
from mav.pipeline.preferences.reader import PreferencePair
from mav.pipeline.runtime.choices import Form

_TOKENIZE_AT_ONCE: Final = 1024
TRUNCATION: Final = "keep_response_and_prompt_end"


@dataclass(frozen=True, kw_only=True)
class TokenizedPairs:
    """All pairs as tokens, in the order they are stored in: by pair id.

    Ids are uniform hashes, so this order is a fixed random permutation of the data set: reading
    blocks one after the other already visits its parts evenly.

    Attributes:
        tokens: int32, the tokens of all prompts and responses, without padding.
        bounds: int64 [pairs, 4], where prompt, chosen and rejected begin, and where it ends.
        pair_id: uint64 [pairs].
        prompt_id: uint64 [pairs].
        source_row: int64 [pairs].
        prompt_is_truncated: bool [pairs], whose prompt lost its beginning to the length limit.
        response_is_cut: bool [pairs], with a response that lost its end to the length limit.
        dropped: Pairs left out, by cause.
    """

    tokens: NDArray[np.int32]
    bounds: NDArray[np.int64]
    pair_id: NDArray[np.uint64]
    prompt_id: NDArray[np.uint64]
    source_row: NDArray[np.int64]
    prompt_is_truncated: NDArray[np.bool_]
    response_is_cut: NDArray[np.bool_]
    dropped: Counter[str]

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def prompts_truncated(self) -> int:
        """Number of pairs whose prompt was truncated on the left."""
        return int(self.prompt_is_truncated.sum())

    @property
    def responses_cut(self) -> int:
        """Number of pairs with a response that was truncated."""
        return int(self.response_is_cut.sum())

    @property
    def response_length(self) -> NDArray[np.int32]:
        """int32 [pairs, 2], tokens of chosen and rejected."""
        return np.diff(self.bounds[:, 1:], axis=1).astype(np.int32)

    @property
    def shared_length(self) -> NDArray[np.int64]:
        """int64 [pairs], tokens the base model sees of a pair with a shared prompt."""
        return self.bounds[:, 3] - self.bounds[:, 0] - 2

    def parts(self, pair: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return prompt, chosen and rejected tokens of a pair."""
        a, b, c, d = self.bounds[pair]
        return self.tokens[a:b], self.tokens[b:c], self.tokens[c:d]

    def fingerprint(self) -> str:
        """Return a SHA-256 that identifies the pairs, independent of the tokenizer."""
        return fingerprint(self.pair_id)

    def digest(self) -> str:
        """Return a SHA-256 of all tokens and lengths in stored order."""
        digest = hashlib.sha256(np.diff(self.bounds, axis=1).astype("<i8").tobytes())
        for a, _, _, d in self.bounds:
            digest.update(self.tokens[a:d].astype("<i4").tobytes())
        return digest.hexdigest()


def fingerprint(pair_id: NDArray[np.uint64]) -> str:
    """Return a SHA-256 of which pairs these are.

    Args:
        pair_id: uint64 [pairs], in stored order.
    """
    return hashlib.sha256(pair_id.astype("<u8").tobytes()).hexdigest()


def tokenize_pairs(
    pairs: Iterable[PreferencePair],
    tokenizer: Any,
    max_length: int,
    progress: Callable[[int], object] = lambda _: None,
    *,
    form: Form = "hh",
    date: datetime.date | None = None,
) -> TokenizedPairs:
    """Tokenize pairs, truncate them, and sort them by id.

    A response ends with the token that ends a response: the end of sequence, or what ends a turn in
    the chat template. Where prompt and longer response exceed the limit, the prompt loses its
    beginning (a begin-of-sequence token stays); a response that fills the limit alone loses its
    end.

    Args:
        pairs: The pairs.
        tokenizer: A transformers tokenizer.
        max_length: Most tokens of a prompt with one response.
        progress: Called with the number of pairs after each group.
        form: What prompts look like to the base. A pair whose roles its chat template does not
            take is left out.
        date: Date given to a chat template that asks for today's.

    Raises:
        UsageError: The chat template is wanted and the tokenizer has none.
        BaseModelError: The tokenizer has no end-of-sequence token.
    """
    return tokenize_in(
        choose_prompt_format(form, TEMPLATES[form], tokenizer, date), pairs, max_length, progress
    )


def tokenize_in(
    form: PromptFormat,
    pairs: Iterable[PreferencePair],
    max_length: int,
    progress: Callable[[int], object] = lambda _: None,
) -> TokenizedPairs:
    """Tokenize pairs in a prompt format that was chosen; see `tokenize_pairs`.

    Args:
        form: The prompt format, with its tokenizer.
        pairs: As `tokenize_pairs` takes them, and all that follows.
        max_length: Likewise.
        progress: Likewise.

    Raises:
        BaseModelError: The tokenizer has no end-of-sequence token.
    """
    tokenizer = form.tokenizer
    if tokenizer.eos_token_id is None:
        raise BaseModelError(
            f"tokenizer of {tokenizer.name_or_path}: it has no end-of-sequence token, without "
            f"which a response has no end. Set eos_token in its tokenizer_config.json."
        )
    parts: list[NDArray[np.int32]] = []
    lengths: list[tuple[int, int, int]] = []
    ids: list[tuple[int, int, int]] = []
    limited: list[tuple[bool, bool]] = []
    dropped: Counter[str] = Counter()
    for group in _grouped(pairs, _TOKENIZE_AT_ONCE):
        rendered = _rendered(group, form, dropped)
        encoded = _encode([text for _, text in rendered], form)
        for (pair, _), (prompt, *responses) in zip(rendered, encoded, strict=True):
            cut = [response[: max_length - 1] for response in responses]
            if cut[0] == cut[1]:
                dropped["identical_responses"] += 1
                continue
            room = max_length - max(map(len, cut))
            limited.append((len(prompt) > room, cut != responses))
            kept = _truncate_prompt(prompt, room, tokenizer.bos_token_id)
            lengths.append((len(kept), len(cut[0]), len(cut[1])))
            parts.append(np.array(kept + cut[0] + cut[1], dtype=np.int32))
            ids.append((pair.pair_id, pair.prompt_id, pair.source_row))
        progress(len(group))

    length = np.array(lengths, dtype=np.int64).reshape(-1, 3)
    ends = np.cumsum(length.reshape(-1)).reshape(-1, 3)
    bounds = np.concatenate([ends[:, :1] - length[:, :1], ends], axis=1)
    pair_id = np.array([entry[0] for entry in ids], dtype=np.uint64)
    order = np.argsort(pair_id, kind="stable")
    truncated, is_cut = np.array(limited, dtype=np.bool_).reshape(-1, 2)[order].T
    return TokenizedPairs(
        tokens=np.concatenate(parts) if parts else np.empty(0, np.int32),
        bounds=bounds[order],
        pair_id=pair_id[order],
        prompt_id=np.array([entry[1] for entry in ids], dtype=np.uint64)[order],
        source_row=np.array([entry[2] for entry in ids], dtype=np.int64)[order],
        prompt_is_truncated=truncated,
        response_is_cut=is_cut,
        dropped=dropped,
    )


def _grouped(pairs: Iterable[PreferencePair], size: int) -> Iterator[list[PreferencePair]]:
    iterator = iter(pairs)
    while group := list(islice(iterator, size)):
        yield group


def _rendered(
    pairs: Sequence[PreferencePair], form: PromptFormat, dropped: Counter[str]
) -> list[tuple[PreferencePair, tuple[str, str, str]]]:
    """Return each pair with its rendered texts, and count those dropped."""
    rendered = []
    for pair in pairs:
        asked = pair.asked
        try:
            # Transcripts are in the form `hh` already.
            prompt = pair.prompt if form.name == "hh" else form.render(asked)
            chosen = form.response(asked, prompt, pair.chosen)
            rejected = form.response(asked, prompt, pair.rejected)
        except DataError:
            dropped["refused_by_chat_template"] += 1
            continue
        rendered.append((pair, (prompt, chosen, rejected)))
    return rendered


def _encode(
    pairs: Sequence[tuple[str, str, str]], form: PromptFormat
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield prompt, chosen and rejected tokens of such texts."""
    texts = [prompt for prompt, _, _ in pairs]
    prompts = form.tokens_of_each(texts)
    chosen = form.tokens_behind_each(texts, prompts, [response for _, response, _ in pairs])
    rejected = form.tokens_behind_each(texts, prompts, [response for _, _, response in pairs])
    yield from zip(prompts, chosen, rejected, strict=True)


def _truncate_prompt(prompt: list[int], room: int, bos: int | None) -> list[int]:
    if len(prompt) <= room:
        return prompt
    if bos is not None and prompt[0] == bos and room > 1:
        return [bos, *prompt[-(room - 1) :]]
    return prompt[-room:]
