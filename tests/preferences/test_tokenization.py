"""Tokens of pairs: what is cut, what is dropped, and the order they are stored in."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.preferences import tokenization as tokenizing
from mav.pipeline.preferences.reader import PreferencePair
from mav.pipeline.preferences.tokenization import tokenize_pairs
from mav.pipeline.preferences.transcripts import ASSISTANT
from tests.support.models.char_tokenizer import BOS, EOS, MERGED, CharTokenizer, pair, tiny_pairs
from tests.support.models.tiny import tiny_tokenizer


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
