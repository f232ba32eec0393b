"""The text of an answer while its tokens come, against decoding all of them at once."""

from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from mav.pipeline.decoding.response_text import ResponseText
from tests.support.profiles import examples

SPECIAL = ["<eos>", "<bos>"]


def wrapped(tokenizer: tokenizers.Tokenizer) -> Any:
    tokenizer.add_special_tokens(SPECIAL)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>"
    )


def byte_level() -> Any:
    """As GPT-2 and Llama 3 have it; some tokens end inside a character, as theirs do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("a", "b"), ("ab", "a"), ("Ċ", "Ċ"), ("H", "u"), ("ĊĊ", "Hu"), ("Ġ", "a"),
        ("Ġ", "ð"), ("Ġð", "Ł"), ("!", "Ã"), ("b", "ð"),
    ]  # fmt: skip
    pieces = [*SPECIAL, *alphabet, *(left + right for left, right in merges)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, merges)
    )
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer)


def sentence_piece() -> Any:
    """As Llama 2 has it: a space before a word, none before the first, bytes for the rest."""
    words = ["▁a", "▁ab", "▁", "a", "b", "ab", "!", "é", "Hu"]
    pieces = [*SPECIAL, *words, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(tokenizer)


TOKENIZERS = {"byte_level": byte_level(), "sentence_piece": sentence_piece()}
STOPS = ["\n\nHu", "ab", "aba", "ba", "b", "! ", "é", "😀", " a", "ab!", "b "]


def interesting(name: str) -> list[list[int]]:
    """Tokens that random answers are made of, so that stop strings do come; alone or in groups."""
    vocabulary = TOKENIZERS[name].get_vocab()
    longer = [[at] for token, at in vocabulary.items() if len(token) > 1 and token[:3] != "<0x"]
    if name == "byte_level":
        return longer + [[vocabulary[token]] for token in "abHu!ĊĠðŁĺĢÃ©"]
    # Of a run of bytes that is no text, byte fallback makes something else than of its parts, so
    # here characters are whole.
    characters = [b"\n", b" ", "é".encode(), "😀".encode()]
    return longer + [[vocabulary[f"<0x{byte:02X}>"] for byte in one] for one in characters]


def whole_text(tokenizer: Any, tokens: list[int], stops: list[str]) -> str:
    """Decode more and more of the answer, until whole characters of it hold a stop string."""
    for count in range(1, len(tokens) + 1):
        text: str = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        if count < len(tokens) and text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        found = [text.find(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)]
    return tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""


@st.composite
def answers(draw: st.DrawFn, name: str) -> tuple[list[int], list[str]]:
    groups = draw(st.lists(st.sampled_from(interesting(name)), max_size=14))
    stops = draw(st.lists(st.sampled_from(STOPS), max_size=3, unique=True))
    return [token for group in groups for token in group], stops


def check(name: str, tokens: list[int], stops: list[str], *, strip: bool) -> None:
    tokenizer = TOKENIZERS[name]
    want = whole_text(tokenizer, tokens, stops)
    want = want.lstrip() if strip else want
    text, given_out = ResponseText(tokenizer, stops, strip=strip), ""
    for token in tokens:
        given_out += text.push(token)
        assert want.startswith(given_out), "something was given out that has to be taken back"
    assert given_out + text.finish() == want


@settings(max_examples=examples(10))
@given(answers("byte_level"), st.booleans())
def test_pieces_of_a_byte_level_answer(answer: tuple[list[int], list[str]], strip: bool) -> None:
    check("byte_level", *answer, strip=strip)


@settings(max_examples=examples(10))
@given(answers("sentence_piece"), st.booleans())
def test_pieces_of_a_sentence_piece_answer(
    answer: tuple[list[int], list[str]], strip: bool
) -> None:
    check("sentence_piece", *answer, strip=strip)


@given(answers("byte_level"))
def test_no_more_is_held_back_than_could_be_a_stop_string(
    answer: tuple[list[int], list[str]],
) -> None:
    tokenizer, (tokens, stops) = TOKENIZERS["byte_level"], answer
    text, given_out = ResponseText(tokenizer, stops), ""
    for count, token in enumerate(tokens, 1):
        given_out += text.push(token)
        so_far = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        if text.stopped or so_far.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        held = so_far.removeprefix(given_out)
        assert any(stop.startswith(held) and stop != held for stop in stops) or not held


def ids(tokenizer: Any, *pieces: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]


def test_a_character_of_four_tokens_comes_whole() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = ResponseText(tokenizer, [])
    assert [text.push(token) for token in ids(tokenizer, "ð", "Ł", "ĺ", "Ģ", "a")] == [
        "", "", "", "😀", "a",
    ]  # fmt: skip
    assert text.finish() == ""


def test_half_a_character_at_the_end_is_given_out_as_such() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = ResponseText(tokenizer, [])
    assert [text.push(token) for token in ids(tokenizer, "a", "ð", "Ł")] == ["a", "", ""]
    assert text.finish() == "\N{REPLACEMENT CHARACTER}"


def test_what_was_held_back_for_a_stop_string_comes_when_it_does_not() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = ResponseText(tokenizer, ["\n\nHuman:"])
    assert [text.push(token) for token in ids(tokenizer, "a", "ĊĊ", "Hu", "b")] == [
        "a", "", "", "\n\nHub",
    ]  # fmt: skip
    assert not text.stopped


def test_nothing_follows_a_stop_string() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = ResponseText(tokenizer, ["\n\nHu"])
    assert [text.push(token) for token in ids(tokenizer, "a", "ĊĊ", "Hu", "b")] == ["a", "", "", ""]
    assert text.stopped
    assert text.finish() == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_are_no_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    text = ResponseText(tokenizer, ["ab"])
    pieces = [text.push(token) for token in ids(tokenizer, "<bos>", "a", "<bos>", "b", "<eos>")]
    assert "".join(pieces) == ""
    assert text.stopped


def test_a_stop_string_in_a_token_that_ends_inside_a_character() -> None:
    """The token of a space and an emoji's first bytes: the stop string ends with the space."""
    tokenizer = TOKENIZERS["byte_level"]
    text = ResponseText(tokenizer, ["! "])
    given_out = "".join(text.push(token) for token in ids(tokenizer, "a", "!", "ĠðŁ"))
    assert given_out + text.finish() == "a"


def test_a_space_after_a_special_token_is_kept() -> None:
    tokenizer = TOKENIZERS["sentence_piece"]
    tokens = ids(tokenizer, "▁a", "<bos>", "▁a")
    text = ResponseText(tokenizer, [])
    assert "".join(text.push(token) for token in tokens) + text.finish() == "a a"


def test_tokens_begin_where_their_text_does() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = ResponseText(tokenizer, ["\n\nHub"])
    tokens = ids(
        tokenizer, "a", "ð", "Ł", "ĺ", "Ģ", "b", "ĊĊ", "Hu", "a", "ð", "R", "ĊĊ", "Hu", "b"
    )
    offsets = []
    for token in tokens:
        text.push(token)
        offsets.append(text.offset)
    #                   a 😀          b \n\n Hu a  �  R  \n\n Hu b
    assert offsets == [0, 1, 1, 1, 2, 2, 3, 5, 7, 8, 9, 10, 12, 14]
    assert text.stopped
