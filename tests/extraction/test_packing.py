"""Tokens of pairs, and what the base model is given of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.extraction.packing import (
    ForwardBatch,
    batches_by_length,
    even_batches,
    pack_separate,
    pack_shared,
    pack_together,
)
from mav.pipeline.preferences import tokenization as tokenizing
from mav.pipeline.preferences.reader import PreferencePair
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from mav.pipeline.preferences.transcripts import ASSISTANT, split_transcript
from tests.support.tiny import rows, tiny_tokenizer

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


def codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def parts_of(
    tokenizer: Any, prompt: str, chosen: str, rejected: str, max_length: int = 100
) -> tuple[list[int], list[int], list[int]]:
    tokenized = tokenize_pairs([pair(prompt, chosen, rejected)], tokenizer, max_length)
    found = [part.tolist() for part in tokenized.parts(0)]
    return found[0], found[1], found[2]


def kinds_of_tokenizer() -> list[CharTokenizer]:
    return [CharTokenizer(begins=b, closes=c) for b in (False, True) for c in (False, True)]


@pytest.mark.parametrize("tokenizer", kinds_of_tokenizer(), ids=str)
def test_answers_end_in_one_end_of_sequence_and_prompts_in_none(tokenizer: CharTokenizer) -> None:
    prompt, chosen, rejected = parts_of(tokenizer, "ask", "yes", "n")
    assert prompt == [BOS] * tokenizer.begins + codes("ask")
    assert chosen == [*codes("yes"), EOS]
    assert rejected == [*codes("n"), EOS]


def test_a_tokenizer_without_end_of_sequence_is_refused() -> None:
    with pytest.raises(BaseModelError, match=r"chars: it has no end-of-sequence token"):
        tokenize_pairs([], CharTokenizer(eos_token_id=None), 8)


@pytest.mark.parametrize(
    ("begins", "max_length", "kept", "truncated"),
    [
        (False, 11, codes("abcdefgh"), 0),
        (False, 10, codes("bcdefgh"), 1),
        (False, 8, codes("defgh"), 1),
        (True, 12, [BOS, *codes("abcdefgh")], 0),
        (True, 11, [BOS, *codes("bcdefgh")], 1),
        (True, 8, [BOS, *codes("efgh")], 1),
    ],
)
def test_a_long_prompt_loses_its_beginning(
    begins: bool, max_length: int, kept: list[int], truncated: int
) -> None:
    tokenized = tokenize_pairs(
        [pair("abcdefgh", "x", "yz")], CharTokenizer(begins=begins), max_length
    )
    prompt, chosen, rejected = tokenized.parts(0)
    assert prompt.tolist() == kept
    assert chosen.tolist() == [*codes("x"), EOS]
    assert rejected.tolist() == [*codes("yz"), EOS]
    assert (tokenized.prompts_truncated, tokenized.responses_cut) == (truncated, 0)


@pytest.mark.parametrize("begins", [False, True])
def test_an_answer_that_fills_the_limit_loses_its_end(begins: bool) -> None:
    tokenized = tokenize_pairs([pair("ask", "x" * 8, "y")], CharTokenizer(begins=begins), 8)
    prompt, chosen, rejected = tokenized.parts(0)
    # One place is left for what predicts the first token: the prompt's last.
    assert prompt.tolist() == codes("k")
    assert chosen.tolist() == codes("x" * 7)
    assert rejected.tolist() == [*codes("y"), EOS]
    assert (tokenized.prompts_truncated, tokenized.responses_cut) == (1, 1)


@pytest.mark.parametrize(("letters", "cut"), [(6, 0), (7, 1)])
def test_the_end_of_sequence_counts_against_the_limit(letters: int, cut: int) -> None:
    tokenized = tokenize_pairs([pair("a", "x" * letters, "y")], CharTokenizer(), 8)
    assert tokenized.responses_cut == cut
    assert tokenized.response_length.tolist() == [[7, 2]]


def test_pairs_that_cutting_makes_identical_are_dropped() -> None:
    pairs = [pair("a", "x" * 9 + "1", "x" * 9 + "2"), pair("b", "good", "bad")]
    tokenized = tokenize_pairs(pairs, CharTokenizer(), 8)
    assert len(tokenized) == 1
    assert tokenized.parts(0)[1].tolist() == [*codes("good"), EOS]
    assert tokenized.dropped == {"identical_responses": 1}
    assert (tokenized.prompts_truncated, tokenized.responses_cut) == (0, 0)


def test_no_pairs_at_all() -> None:
    tokenized = tokenize_pairs([], CharTokenizer(), 8)
    assert len(tokenized) == 0
    assert tokenized.response_length.shape == (0, 2)
    assert tokenized.shared_length.shape == (0,)


WORDS = st.text("abc", min_size=1, max_size=20)


@given(WORDS, WORDS, WORDS, st.integers(8, 40), st.sampled_from(kinds_of_tokenizer()))
def test_truncation_keeps_the_answers_and_the_end_of_the_prompt(
    prompt: str, chosen: str, rejected: str, limit: int, tokenizer: CharTokenizer
) -> None:
    tokenized = tokenize_pairs([pair(prompt, chosen, rejected)], tokenizer, limit)
    if not len(tokenized):
        assert chosen[: limit - 1] == rejected[: limit - 1]
        return
    kept, *answers = (part.tolist() for part in tokenized.parts(0))
    for answer, text in zip(answers, (chosen, rejected), strict=True):
        assert answer == [*codes(text), EOS][: limit - 1]
    whole = [BOS] * tokenizer.begins + codes(prompt)
    room = limit - max(map(len, answers))
    assert len(kept) == min(room, len(whole)) >= 1
    bos = tokenizer.begins and room > 1
    assert kept == [BOS] * bos + whole[len(whole) - (len(kept) - bos) :]


def test_pairs_are_stored_by_id_whatever_order_they_come_in() -> None:
    pairs = tiny_pairs(30)
    one = tokenize_pairs(pairs, tiny_tokenizer(), 128)
    other = tokenize_pairs(pairs[::-1], tiny_tokenizer(), 128)
    by_id = sorted(pairs, key=lambda pair: pair.pair_id)
    assert one.pair_id.tolist() == [pair.pair_id for pair in by_id]
    assert one.prompt_id.tolist() == [pair.prompt_id for pair in by_id]
    assert one.source_row.tolist() == [pair.source_row for pair in by_id]
    for place, found in enumerate(by_id):
        prompt, chosen, _ = one.parts(place)
        assert tiny_tokenizer().decode(prompt) == found.prompt
        assert tiny_tokenizer().decode(chosen[:-1]) == found.chosen
        for part, again in zip(one.parts(place), other.parts(place), strict=True):
            assert part.tolist() == again.tolist()
    assert (one.digest(), one.fingerprint()) == (other.digest(), other.fingerprint())


def test_lengths_are_those_of_the_parts() -> None:
    tokenized = tokenize_pairs(tiny_pairs(10), tiny_tokenizer(), 128)
    for place in range(len(tokenized)):
        prompt, chosen, rejected = map(len, tokenized.parts(place))
        assert tokenized.response_length[place].tolist() == [chosen, rejected]
        assert tokenized.shared_length[place] == prompt + chosen + rejected - 2


def test_pairs_are_tokenized_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = tiny_pairs(10)
    whole = tokenize_pairs(pairs, tiny_tokenizer(), 128)
    monkeypatch.setattr(tokenizing, "_TOKENIZE_AT_ONCE", 3)
    seen: list[int] = []
    grouped = tokenize_pairs(iter(pairs), tiny_tokenizer(), 128, seen.append)
    assert seen == [3, 3, 3, 1]
    assert grouped.digest() == whole.digest()
    assert grouped.pair_id.tolist() == whole.pair_id.tolist()


def test_the_fingerprint_is_of_the_pairs_and_the_digest_of_the_tokens() -> None:
    pairs = tiny_pairs(10)
    whole = tokenize_pairs(pairs, tiny_tokenizer(), 128)
    fewer = tokenize_pairs(pairs[:-1], tiny_tokenizer(), 128)
    cut = tokenize_pairs(pairs, tiny_tokenizer(), 48)
    other_tokenizer = tokenize_pairs(pairs, CharTokenizer(), 400)
    swapped = [pair(p.prompt, p.rejected, p.chosen) for p in pairs]
    assert cut.prompts_truncated
    assert whole.fingerprint() == cut.fingerprint() == other_tokenizer.fingerprint()
    assert fewer.fingerprint() != whole.fingerprint()
    assert tokenize_pairs(swapped, tiny_tokenizer(), 128).fingerprint() != whole.fingerprint()
    assert len({found.digest() for found in (whole, fewer, cut, other_tokenizer)}) == 4


def test_the_digest_knows_where_the_prompt_ends() -> None:
    # The same tokens, `abc0d0`, cut in two ways.
    one = tokenize_pairs([pair("ab", "c", "d")], CharTokenizer(), 20)
    other = tokenize_pairs([pair("a", "bc", "d")], CharTokenizer(), 20)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.digest() != other.digest()


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("closes", [False, True])
def test_an_answer_that_merges_with_the_prompt_is_tokenized_alone(
    begins: bool, closes: bool
) -> None:
    tokenizer = CharTokenizer(begins=begins, closes=closes, merges=":)")
    prompt, chosen, rejected = parts_of(tokenizer, "q:", ")x:)", "ok:)")
    assert prompt == [BOS] * begins + codes("q:")
    assert chosen == [*codes(")x"), MERGED, EOS]
    assert rejected == [*codes("ok"), MERGED, EOS]


def test_only_the_answers_that_merge_are_tokenized_alone() -> None:
    tokenizer = CharTokenizer(merges=":)")
    pairs = [pair("q:", "no", ")"), pair("r:", ")!", "ye"), pair("s:", "a", "b")]
    tokenized = tokenize_pairs(pairs, tokenizer, 20)
    found = {
        "".join(map(chr, prompt)): (chosen.tolist(), rejected.tolist())
        for prompt, chosen, rejected in map(tokenized.parts, range(3))
    }
    assert found == {p.prompt: ([*codes(p.chosen), EOS], [*codes(p.rejected), EOS]) for p in pairs}


def test_an_answer_that_does_not_merge_is_tokenized_behind_its_prompt() -> None:
    # Alone it would be given the prefix, which never stands between a prompt and its answer.
    prompt, chosen, rejected = parts_of(CharTokenizer(prefix="_"), "q:", "yes", "no")
    assert prompt == codes("_q:")
    assert (chosen, rejected) == ([*codes("yes"), EOS], [*codes("no"), EOS])


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=15)


@given(st.sampled_from(tiny_pairs(20)), st.lists(TEXTS, max_size=2))
def test_the_prompt_is_tokenized_as_at_decoding(found: PreferencePair, texts: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    prompt = found.prompt if not texts else texts[0] + ASSISTANT
    chosen = found.chosen if len(texts) < 2 else texts[1]
    tokenized = tokenize_pairs([pair(prompt, chosen, chosen + "!")], tokenizer, 1000)
    kept, answer, _ = tokenized.parts(0)
    assert kept.tolist() == tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(kept) == prompt
    assert tokenizer.decode(answer[:-1]) == chosen
    assert answer[-1] == tokenizer.eos_token_id


def mixed_pairs() -> TokenizedPairs:
    """Pairs of many lengths; one has nothing but the end of sequence for an answer."""
    extra = [pair("p", "", "longer"), pair("prompt", "c", ""), pair("pq", "same", "same!")]
    return tokenize_pairs([*tiny_pairs(6), *extra], CharTokenizer(begins=True), 120)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_behind_one_prompt_a_token_sees_what_it_would_see_alone(dtype: torch.dtype) -> None:
    pairs = mixed_pairs()
    chosen_pairs = [2, 0, 5, 8, 1, 3, 4, 6, 7]
    batch = pack_shared(pairs, chosen_pairs, dtype)
    ids, positions = batch.inputs["input_ids"], batch.inputs["position_ids"]
    mask = batch.inputs["attention_mask"][:, 0]
    assert mask.dtype == dtype
    assert sorted(set(mask.flatten().tolist())) == [torch.finfo(dtype).min, 0.0]

    for row, number in enumerate(chosen_pairs):
        prompt, chosen, rejected = (part.tolist() for part in pairs.parts(number))
        shared = len(prompt) + len(chosen) - 1
        for place in range(shared + len(rejected) - 1):
            if place < shared:
                alone = [*prompt, *chosen][: place + 1]
            else:
                alone = [*prompt, *rejected[: place - shared + 1]]
            seen = (mask[row, place] == 0).nonzero()[:, 0]
            assert ids[row, seen].tolist() == alone
            assert positions[row, seen].tolist() == list(range(len(alone)))
            assert seen[-1] == place


def test_packed_behind_one_prompt_every_answer_token_is_predicted_by_those_before_it() -> None:
    pairs = mixed_pairs()
    batch = pack_shared(pairs, range(len(pairs)), torch.float32)
    mask = batch.inputs["attention_mask"][:, 0]
    row_ids = batch.inputs["input_ids"]
    predicted = []
    for flat, label in zip(batch.predict.tolist(), batch.labels.tolist(), strict=True):
        row, place = divmod(flat, row_ids.shape[1])
        predicted.append([*row_ids[row, mask[row, place] == 0].tolist(), label])
    assert predicted == expected_predictions(pairs, range(len(pairs)))


def expected_predictions(pairs: TokenizedPairs, numbers: Sequence[int]) -> list[list[int]]:
    """For every answer token, all tokens up to it, pair by pair, chosen before rejected."""
    found = []
    for number in numbers:
        prompt, *answers = (part.tolist() for part in pairs.parts(number))
        for answer in answers:
            found += [[*prompt, *answer[: end + 1]] for end in range(len(answer))]
    return found


def test_packed_apart_every_answer_token_is_predicted_by_those_before_it() -> None:
    pairs = mixed_pairs()
    numbers = [3, 1, 8, 0, 2]
    batch = pack_separate(pairs, numbers)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert len(ids) == 2 * len(numbers)
    predicted = []
    for flat, label in zip(batch.predict.tolist(), batch.labels.tolist(), strict=True):
        row, place = divmod(flat, ids.shape[1])
        assert mask[row, : place + 1].all()
        predicted.append([*ids[row, : place + 1].tolist(), label])
    assert predicted == expected_predictions(pairs, numbers)


def test_packed_apart_padding_is_masked() -> None:
    pairs = mixed_pairs()
    batch = pack_separate(pairs, range(len(pairs)))
    parts = [pairs.parts(number) for number in range(len(pairs))]
    lengths = [len(p) + len(answer) - 1 for p, *answers in parts for answer in answers]
    assert batch.inputs["attention_mask"].sum(1).tolist() == lengths
    assert batch.inputs["attention_mask"].shape[1] == max(lengths)
    assert batch.inputs["attention_mask"].diff(dim=1).max() <= 0


def test_a_batch_on_another_device_is_the_same_batch() -> None:
    batch = pack_shared(mixed_pairs(), [0, 1], torch.float32)
    moved = batch.to(torch.device("meta"))
    assert {name: t.device.type for name, t in moved.inputs.items()} == dict.fromkeys(
        batch.inputs, "meta"
    )
    assert moved.predict.device.type == "meta"
    assert moved.labels is batch.labels


def seen_by_segment(batch: ForwardBatch, window: int | None = None) -> list[list[list[int]]]:
    """For each segment and each token of it, the places it sees, by way of the mask."""
    layout = batch.layout
    assert layout is not None
    places = torch.split(layout.key_places, [one.keys for one in layout.segments])
    found = []
    for one, keys in zip(layout.segments, places, strict=True):
        mask = layout.mask(one, window, torch.device("cpu"))
        if mask is None:
            mask = torch.ones(one.length, one.keys, dtype=torch.bool).tril()
        found.append([keys[row].tolist() for row in mask])
    return found


@pytest.mark.parametrize("window", [None, 1, 3, 8, 1000])
def test_packed_together_a_token_sees_what_it_would_see_alone(window: int | None) -> None:
    pairs = mixed_pairs()
    numbers = [2, 0, 5, 8, 1, 3, 4, 6, 7]
    batch = pack_together(pairs, numbers)
    ids, positions = batch.inputs["input_ids"][0], batch.inputs["position_ids"][0]
    segments = iter(seen_by_segment(batch, window))
    last: list[int] = []
    for prompt, *answers in (map(np.ndarray.tolist, pairs.parts(number)) for number in numbers):
        for which, answer in enumerate(answers):
            text = [*prompt, *answer[:-1]]
            begins = 0 if which == 0 else len(prompt)
            if begins == len(text):
                continue  # an answer of one token, which the prompt predicts
            for place, seen in enumerate(next(segments), begins):
                first = 0 if window is None else max(0, place - window + 1)
                assert ids[seen].tolist() == text[first : place + 1]
                assert positions[seen].tolist() == list(range(first, place + 1))
                last.append(seen[-1])
    assert last == list(range(len(ids)))
    assert next(segments, None) is None


def test_packed_together_the_same_tokens_are_predicted() -> None:
    pairs = mixed_pairs()
    numbers = [3, 1, 8, 0, 2]
    together, plain = pack_together(pairs, numbers), pack_separate(pairs, numbers)
    assert together.labels.tolist() == plain.labels.tolist()
    ids = together.inputs["input_ids"][0]
    assert len(ids) == sum(pairs.shared_length[number] for number in numbers)
    seen = {tokens[-1]: ids[tokens].tolist() for one in seen_by_segment(together) for tokens in one}
    predicted = [
        [*seen[place], label]
        for place, label in zip(together.predict.tolist(), together.labels.tolist(), strict=True)
    ]
    assert predicted == expected_predictions(pairs, numbers)


def test_edges_are_where_segments_begin() -> None:
    layout = pack_together(mixed_pairs(), range(4)).layout
    assert layout is not None
    assert layout.query_edges.tolist() == [
        *(one.start for one in layout.segments),
        layout.segments[-1].start + layout.segments[-1].length,
    ]
    assert layout.key_edges.diff().tolist() == [one.keys for one in layout.segments]
    assert layout.key_edges[-1] == len(layout.key_places)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.data())
def test_even_batches(lengths: list[int], budget: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lengths)))
    pairs = range(start, len(lengths))

    def filled(most: int) -> list[list[int]]:
        """Each batch as full as can be, which makes the fewest."""
        batches: list[list[int]] = []
        for pair in pairs:
            if not batches or sum(lengths[p] for p in batches[-1]) + lengths[pair] > most:
                batches.append([])
            batches[-1].append(pair)
        return batches

    smallest = next(most for most in range(budget + 1) if len(filled(most)) == len(filled(budget)))
    found = even_batches(pairs, np.array(lengths, np.int64), budget)
    assert [list(batch) for batch in found] == filled(smallest)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.data())
def test_batches_by_length(lengths: list[int], budget: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lengths)))
    pairs = range(start, len(lengths))
    batches = list(batches_by_length(pairs, np.array(lengths, np.int64), budget))
    assert sorted(pair for batch in batches for pair in batch) == list(pairs)
    longest = [max(lengths[pair] for pair in batch) for batch in batches]
    for batch, most in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * most <= budget
    # Sorted by length, so that padding is little; and no batch could have taken one pair more.
    assert longest == sorted(longest, reverse=True)
    for batch, most, following in zip(batches, longest, batches[1:], strict=False):
        assert (len(batch) + 1) * most > budget
        assert min(lengths[p] for p in batch) >= max(lengths[p] for p in following)
