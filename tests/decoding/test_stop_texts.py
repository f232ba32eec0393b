"""Stop texts that are or hold special tokens end answers alike in every way to decode."""

from collections.abc import Iterator
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.alpha import as_schedule
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.response_text import ResponseText
from tests.support.models.tiny import tiny_base, tiny_tokenizer
from tests.support.steering.listeners import Listener, decoder_of
from tests.support.steering.steered import steered

SPECIAL = "<|im_end|>"


def words() -> Any:
    pieces = ["<eos>", SPECIAL, "<pad>", "a", "b", "é", *pre_tokenizers.ByteLevel.alphabet()]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(dict.fromkeys(pieces))}, [])
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", SPECIAL, "<pad>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


WORDS = words()


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        (["a", SPECIAL], [SPECIAL], "a", True),
        ([SPECIAL], [SPECIAL], "", True),
        (["a", "b", SPECIAL], ["b" + SPECIAL], "a", True),
        (["a", "b", SPECIAL], ["a" + SPECIAL], "ab", False),
        (["a", SPECIAL, "b"], [SPECIAL + "b"], "a", True),
        (["a", SPECIAL, "a"], [SPECIAL + "b"], "aa", False),
        (["a", "<pad>", SPECIAL, "b"], ["<pad>" + SPECIAL], "a", True),
        (["a", SPECIAL, "<pad>"], ["<pad>" + SPECIAL], "a", False),
        # Other special tokens are between, as for ordinary stop texts.
        (["a", "<pad>", "b"], ["ab"], "", True),
        (["a", "<pad>", "b"], ["a<pad>b"], "", True),
        (["a", "b"], ["a<pad>b"], "ab", False),
        # Part of a special token's name is no text of the answer.
        (["a", SPECIAL, "b"], ["im_end"], "ab", False),
        (["a", SPECIAL, "b"], ["|>b"], "ab", False),
        # The name, spelled by other tokens.
        (["a", *SPECIAL, "b"], [SPECIAL], "a", True),
        # Half a character, broken off.
        (["a", "Ã", SPECIAL], [SPECIAL], "a\N{REPLACEMENT CHARACTER}", True),
        (["a", "Ã", SPECIAL], ["a" + SPECIAL], "a\N{REPLACEMENT CHARACTER}", False),
    ],
    ids=str,
)
def test_what_ends_an_answer(pieces: list[str], stops: list[str], text: str, stopped: bool) -> None:
    answer, told = ResponseText(WORDS, stops), ""
    for piece in pieces:
        told += answer.push(WORDS.convert_tokens_to_ids(piece))
        assert text.startswith(told)
    assert (told + answer.finish(), answer.stopped) == (text, stopped)


def test_a_copy_goes_on_by_itself() -> None:
    answer = ResponseText(WORDS, ["ab" + SPECIAL])
    a, b, end = (WORDS.convert_tokens_to_ids(piece) for piece in ("a", "b", SPECIAL))
    answer.push(a)
    other = answer.copy()
    other.push(b)
    other.push(end)
    answer.push(end)
    assert (other.stopped, answer.stopped) == (True, False)
    assert answer.finish() == "a"


FOURTH = 3


@pytest.fixture(scope="module")
def mav() -> Iterator[MAVInference]:
    """A base whose fourth token, in answer to Hi, is a special one."""
    plain = tiny_base(tie_word_embeddings=False)
    tokens = steered(plain).generate("Hi", 0.0, GenerationOptions(max_new_tokens=8)).tokens
    assert tokens.index(tokens[FOURTH]) == FOURTH
    tokenizer = tiny_tokenizer()
    special = tokenizer.convert_tokens_to_ids("<bos>")
    assert special not in tokens[:FOURTH]
    base = BaseModel(model=tiny_base(tie_word_embeddings=False).model, tokenizer=tokenizer)
    weight = base.model.lm_head.weight.data
    weight[[tokens[FOURTH], special]] = weight[[special, tokens[FOURTH]]].clone()
    made = steered(base)
    yield made
    made.close()


def last_piece(mav: MAVInference) -> str:
    """The text of the token before the special one."""
    token = mav.generate("Hi", 0.0, GenerationOptions(max_new_tokens=FOURTH)).tokens[-1]
    text: str = mav.base.tokenizer.decode([token])
    return text


@pytest.mark.parametrize("most", [FOURTH + 1, 8])
@pytest.mark.parametrize("mixed", [False, True])
def test_all_ways_of_decoding_end_alike(mav: MAVInference, mixed: bool, most: int) -> None:
    stop = (last_piece(mav) if mixed else "") + "<bos>"
    decoding = GenerationOptions(max_new_tokens=most, stop=(stop,))
    alone = mav.generate("Hi", 0.0, decoding)
    assert (len(alone.tokens), alone.finish) == (FOURTH + 1, "stop")
    assert "<bos>" not in alone.response
    assert (
        alone.response
        == mav.generate("Hi", 0.0, GenerationOptions(max_new_tokens=FOURTH - mixed)).response
    )
    others = ["How do I mend a kite, and where?", "Hi", "Why?"]
    together = mav.generate_batch(others, 0.0, decoding)
    assert (together[1].tokens, together[1].finish) == (alone.tokens, "stop")
    assert [one.finish for one in together] == [
        mav.generate(prompt, 0.0, decoding).finish for prompt in others
    ]
    assert "".join(mav.stream("Hi", 0.0, decoding)).rstrip() == alone.response
    listener = Listener(decoder_of(mav))
    prompt = mav.joined.form.tokens(alone.prompt)
    request = Request(prompt=tuple(prompt), alpha=as_schedule(0.0), decoding=decoding)
    listener.add(request)
    listener.until_done()
    heard = listener.of(request)
    assert (heard.tokens, heard.finish) == (list(alone.tokens), "stop")
    assert heard.text.rstrip() == alone.response


def test_without_the_stop_text_the_answer_goes_on(mav: MAVInference) -> None:
    answer = mav.generate("Hi", 0.0, GenerationOptions(max_new_tokens=8))
    assert (len(answer.tokens), answer.finish) == (8, "length")
    assert mav.base.tokenizer.convert_tokens_to_ids("<bos>") == answer.tokens[FOURTH]


def test_a_stop_text_at_the_end_of_the_prompt_ends_nothing(mav: MAVInference) -> None:
    prompt = "\n\nHuman: Hi<bos>\n\nAssistant:"
    decoding = GenerationOptions(max_new_tokens=2, stop=("<bos>", "<bos>\n\nAssistant:"))
    assert mav.generate(prompt, 0.0, decoding).finish == "length"


def test_beams_end_at_stop_texts(mav: MAVInference) -> None:
    special = mav.base.tokenizer.convert_tokens_to_ids("<bos>")
    row = mav.base.model.lm_head.weight.data[special]
    before = row.clone()
    row *= 3
    prompts = ["Hi", "Why?", "How do I mend a kite?", "Where?", "Name a tree."]
    decoding = GenerationOptions(max_new_tokens=8, num_beams=3, stop=("<bos>",))
    answers = mav.generate_batch(prompts, 0.0, decoding)
    row.copy_(before)
    for answer in answers:
        assert special not in answer.tokens[:-1]
        assert (answer.finish == "stop") == (answer.tokens[-1] in (special, 0))
        assert answer.finish == "stop" or len(answer.tokens) == 8
    assert any(answer.tokens[-1] == special for answer in answers)
