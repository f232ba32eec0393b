"""Responses that are JSON of a schema: always valid, whatever the model, the alpha and the rest."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.decoding.structured.schema import MAX_CHARACTERS, json_grammar
from mav.pipeline.decoding.structured.vocabulary import GrammarVocabulary
from tests.support.models.tiny import tiny_base, tiny_tokenizer
from tests.support.models.tokenizers_of_kinds import TOKENIZERS, metaspace_kind
from tests.support.profiles import examples
from tests.support.steering.listeners import Heard, Listener, alone, decoder_of
from tests.support.steering.steered import steered

PADDED = 330
"""Logits of the base, more than its tokenizer has tokens."""
LENGTH = 160


@pytest.fixture(scope="module")
def mav() -> Iterator[MAVInference]:
    made = steered(tiny_base(vocab_size=PADDED, tie_word_embeddings=False))
    yield made
    made.close()


def request_of(mav: MAVInference, schema: Any, alpha: float = 0.0, **decoding: Any) -> Request:
    grammar = None if schema is None else mav.joined.vocabulary.compile(json_grammar(schema))
    return Request(
        prompt=tuple(mav.joined.form.tokens("\n\nHuman: Hi\n\nAssistant:")),
        alpha=as_strength(alpha),
        decoding=GenerationOptions(**{"max_new_tokens": LENGTH, **decoding}),
        grammar=grammar,
    )


def together(mav: MAVInference, *requests: Request) -> list[Heard]:
    listener = Listener(decoder_of(mav))
    listener.add(*requests)
    listener.until_done()
    return [listener.of(request) for request in requests]


_NAMES = st.text('abé"\\ ', min_size=1, max_size=4)
_VALUES = st.none() | st.booleans() | st.integers(-999, 999) | st.text('xyé\n"😀', max_size=4)
_LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda value: {"const": value}, _VALUES),
    st.builds(lambda values: {"enum": values}, st.lists(_VALUES, min_size=1, max_size=4)),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-200, 200),
        st.integers(0, 50),
    ),
    st.builds(
        lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
        st.integers(0, 2),
        st.integers(0, 4),
    ),
    st.sampled_from(["^[a-c]{2}$", "^x?y{1,3}$", "^[0-9]{1,3}-ok$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
)


def _wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(
        lambda items, low, span: {
            "type": "array", "items": items, "minItems": low, "maxItems": low + span
        },
        inner,
        st.integers(0, 2),
        st.integers(0, 1),
    )  # fmt: skip
    objects = st.dictionaries(_NAMES, inner, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from([*properties] or [""])).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required & properties.keys()),
                "additionalProperties": False,
            }
        )
    )
    choices = st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)
    return arrays | objects | choices


SCHEMAS = st.recursive(_LEAVES, _wider, max_leaves=5)


@settings(max_examples=examples(0.16))
@given(
    schemas=st.lists(SCHEMAS, min_size=4, max_size=4),
    alphas=st.lists(st.sampled_from([-100.0, -1.0, 0.0, 1.0, 100.0]), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_what_stops_is_valid_and_other_rows_are_as_alone(
    mav: MAVInference, schemas: list[Any], alphas: list[float], seed: int
) -> None:
    hows: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": seed},
        {"temperature": 5.0, "seed": seed, "top_k": 3, "min_p": 0.1},
        {"temperature": 1.5, "seed": seed, "top_p": 0.5, "frequency_penalty": 1.0},
    ]
    rows = zip(schemas, alphas, hows, strict=True)
    kept = [request_of(mav, schema, alpha, **how) for schema, alpha, how in rows]
    free = request_of(mav, None, 1.0, temperature=1.3, seed=seed, max_new_tokens=12)
    *heard, beside = together(mav, *kept, free)
    for schema, found in zip(schemas, heard, strict=True):
        if found.finish == "stop":
            jsonschema.validate(json.loads(found.text), schema)
        else:
            assert len(found.tokens) == LENGTH
    assert beside.tokens == alone(mav, free).tokens


@pytest.mark.parametrize(
    ("schema", "count"),
    [({"const": "a"}, 1), ({"enum": [1, 22]}, 2), ({"type": "boolean"}, 2), ({"const": None}, 1)],
    ids=str,
)
def test_a_response_ends_with_its_grammar(mav: MAVInference, schema: Any, count: int) -> None:
    asked = [
        request_of(mav, schema, alpha, temperature=1.0, seed=seed)
        for seed, alpha in enumerate([0.0, 1.0, -100.0, 100.0] * 3)
    ]
    heard = together(mav, *asked)
    assert {found.finish for found in heard} == {"stop"}
    assert 1 <= len({found.text.strip() for found in heard}) <= count
    for found in heard:
        jsonschema.validate(json.loads(found.text), schema)


def test_a_response_may_be_cut(mav: MAVInference) -> None:
    (found,) = together(mav, request_of(mav, {"type": "string", "minLength": 9}, max_new_tokens=3))
    assert (found.finish, len(found.tokens)) == ("length", 3)


def test_nan_and_infinite_logits_leave_what_is_allowed(mav: MAVInference) -> None:
    grammar = mav.joined.vocabulary.compile(json_grammar({"const": True}))
    for value in (torch.nan, torch.inf, -torch.inf):
        constraint = grammar.begin([0])
        found = constraint.masked(torch.full((PADDED,), value))
        assert found.isfinite().any()
        assert found.argmax() == found.isfinite().int().argmax()
    logits = torch.randn(PADDED)
    kept = grammar.begin([0]).masked(logits)
    assert (kept[kept.isfinite()] == logits[kept.isfinite()]).all()
    assert not kept[300:].isfinite().any()


@pytest.mark.parametrize("kind", [*TOKENIZERS])
@given(
    value=st.recursive(
        _VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner)
    )
)
@settings(max_examples=examples(0.3))
def test_a_tokenizers_own_writing_of_a_value_is_allowed(kind: str, value: Any) -> None:
    tokenizer = TOKENIZERS[kind]()
    vocabulary = VOCABULARIES.setdefault(
        kind, GrammarVocabulary(tokenizer, len(tokenizer) + 13, [tokenizer.eos_token_id])
    )
    constraint = vocabulary.compile(json_grammar({})).begin([tokenizer.eos_token_id])
    text = json.dumps(value, ensure_ascii=False)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = torch.zeros(len(tokenizer) + 13)
    for token in [*tokens, tokenizer.eos_token_id]:
        if constraint.finished:
            break
        assert constraint.masked(logits)[token] == 0, tokenizer.convert_ids_to_tokens(token)
        constraint.push(token)
    assert json.loads(tokenizer.decode(tokens)) == value


VOCABULARIES: dict[str, GrammarVocabulary] = {}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "thing"}, "Invalid type"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "colour"}, "format"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "nsatisfiable"),
        ({"$ref": "#/$defs/none"}, "/$defs/none"),
        ({"$ref": "https://my.example/schema"}, "my.example"),
        ({"$ref": "#"}, "no text"),
        ({"enum": ["x" * MAX_CHARACTERS]}, str(MAX_CHARACTERS)),
        ({"type": "integer", "multipleOf": 99999989}, "multipleOf"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 1009}]}, "multipleOf"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
        ({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in "abc"]} for i in range(13)]}, ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_schema_that_is_refused(mav: MAVInference, schema: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        mav.joined.vocabulary.compile(json_grammar(schema))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_that_is_nested_without_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(70):
        deep = {"items": deep}
    with pytest.raises(UsageError, match="nested"):
        json_grammar(deep)


def test_a_recursive_schema_is_followed(mav: MAVInference) -> None:
    schema = {
        "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}},
        "$ref": "#/$defs/node",
    }
    heard = together(
        mav, *(request_of(mav, schema, temperature=3.0, seed=seed) for seed in range(6))
    )
    stopped = [found for found in heard if found.finish == "stop"]
    assert stopped
    for found in stopped:
        jsonschema.validate(json.loads(found.text), schema)


def test_a_grammar_is_compiled_once(mav: MAVInference) -> None:
    text = json_grammar({"const": 5})
    assert mav.joined.vocabulary.compile(text) is mav.joined.vocabulary.compile(text)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="fast tokenizer"):
        GrammarVocabulary(SimpleNamespace(is_fast=False), 10, [0])
    with pytest.raises(UsageError, match="stand for bytes"):
        GrammarVocabulary(metaspace_kind(), 400, [2])


def test_a_token_the_vocabulary_lacks_ends_the_response() -> None:
    tokenizer = tiny_tokenizer()
    vocabulary = GrammarVocabulary(tokenizer, len(tokenizer), [0])
    constraint = vocabulary.compile(json_grammar({"const": "ab"})).begin([0])
    constraint.push(tokenizer.convert_tokens_to_ids("x"))
    logits = torch.zeros(len(tokenizer))
    assert constraint.masked(logits) is logits
    assert constraint.error is not None
