"""Prompts in the base's own chat template, from the extraction to the answer."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mav.cache_schema.errors import UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import tokenize_pairs
from mav.pipeline.preferences.transcripts import CHAT_TEMPLATE, TEMPLATE, parse_transcript
from mav.pipeline.runtime.known_places import recall
from mav.pipeline.verification.against_base import verify_against_base
from mav.pipeline.verification.options import VerifyOptions
from tests.support.models.chat_templates import TEMPLATE_TEXT
from tests.support.models.tiny import make_cache, tiny_base, tiny_tokenizer, write_rows
from tests.support.steering.heads import write_head


@pytest.fixture(scope="module")
def base() -> BaseModel:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = TEMPLATE_TEXT
    return replace(tiny_base(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def cache(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("chat"), base, pairs=8, prompt_form="chat")


def test_the_base_reads_the_template_and_then_the_bare_answer(
    base: BaseModel, tmp_path: Path
) -> None:
    source = DataSource(id=str(write_rows(tmp_path / "pairs.jsonl", 5)))
    pairs = {pair.pair_id: pair for pair in read_pairs(source, ReadCounts())}
    tokenized = tokenize_pairs(pairs.values(), base.tokenizer, 128, form="chat")
    for at, pair_id in enumerate(tokenized.pair_id.tolist()):
        prompt, chosen, rejected = tokenized.parts(at)
        asked = parse_transcript(pairs[pair_id].prompt)[0]["content"]
        assert base.tokenizer.decode(prompt) == f"<bos><user>{asked}<eos><assistant>"
        for answer, text in ((chosen, pairs[pair_id].chosen), (rejected, pairs[pair_id].rejected)):
            assert base.tokenizer.decode(answer) == f"{text.strip()}<eos>"


def test_what_decoding_reads_is_what_was_extracted(base: BaseModel, cache: Path) -> None:
    reader = CacheReader(cache)
    assert reader.manifest.text.prompt_template == CHAT_TEMPLATE
    head = write_head(cache.parent / "head", cache)
    form = MAVInference(head, base).joined.form
    assert form.name == "chat"
    source = DataSource(id=str(recall(reader.manifest.data.sources[0].fingerprint)))
    pairs = {pair.pair_id: pair for pair in read_pairs(source, ReadCounts())}
    tokenized = tokenize_pairs(pairs.values(), base.tokenizer, 128, form="chat")
    for at, pair_id in enumerate(tokenized.pair_id.tolist()):
        prompt = pairs[pair_id].prompt
        message = parse_transcript(prompt)[0]["content"]
        for asked in (prompt, message, [{"role": "user", "content": message}]):
            got = form.tokens(form.render(asked))
            np.testing.assert_array_equal(tokenized.parts(at)[0], got)


def test_a_cache_in_the_chat_template_is_that_of_its_base(base: BaseModel, cache: Path) -> None:
    found = verify_against_base(VerifyOptions(cache=cache, against_base=4), base=base)
    assert not found.differing


def test_the_form_is_the_users_to_choose(base: BaseModel, cache: Path) -> None:
    head = write_head(cache.parent / "head", cache)
    assert MAVInference(head, base, prompt_form="hh").joined.form.name == "hh"
    with pytest.raises(UsageError, match="has no chat template"):
        MAVInference(head, tiny_base())


def test_pairs_the_template_refuses_are_counted(base: BaseModel, tmp_path: Path) -> None:
    rows: list[Any] = [
        {
            "prompt": [{"role": role, "content": "Be kind."}, {"role": "user", "content": "Hi"}],
            "chosen": [{"role": "assistant", "content": "Hello"}],
            "rejected": [{"role": "assistant", "content": "No"}],
        }
        for role in ("system", "user")
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows))
    pairs = list(read_pairs(DataSource(id=str(path)), ReadCounts()))
    tokenized = tokenize_pairs(pairs, base.tokenizer, 128, form="chat")
    assert tokenized.dropped == {"refused_by_chat_template": 1}
    assert len(tokenized) == 1


@pytest.mark.parametrize(
    ("transcript", "turns"),
    [
        (TEMPLATE.format(prompt="a"), [("user", "a")]),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nd\n\nAssistant:",
            [("user", "a"), ("assistant", "b"), ("user", "c\n\nd")],
        ),
        (
            "\n\nSystem: s\n\nHuman: a\n\nAssistant: b",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        ("", []),
    ],
)
def test_a_transcript_is_turns(transcript: str, turns: list[tuple[str, str]]) -> None:
    assert [(turn["role"], turn["content"]) for turn in parse_transcript(transcript)] == turns
