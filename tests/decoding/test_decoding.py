"""How an answer is asked for: what is taken, what is refused, and seeds of several answers."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.options import GenerationOptions

LARGEST = 2**62


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_new_tokens", 2.5, "a whole number"),
        ("max_new_tokens", "8", "a whole number"),
        ("max_new_tokens", True, "a whole number"),
        ("max_new_tokens", None, "a whole number"),
        ("top_k", 1.0, "a whole number"),
        ("num_beams", "2", "a whole number"),
        ("seed", 0.5, "a whole number"),
        ("seed", "7", "a whole number"),
        ("seed", LARGEST + 1, f"{-LARGEST} to {LARGEST}"),
        ("temperature", "0.7", "a number"),
        ("temperature", float("nan"), "0 to"),
        ("top_p", None, "a number"),
        ("min_p", [0.1], "a number"),
        ("repetition_penalty", False, "a number"),
        ("frequency_penalty", "1", "a number"),
        ("presence_penalty", -2.5, "-2 to 2"),
        ("logit_bias", None, "a mapping of token ids to numbers"),
        ("logit_bias", "5", "a mapping of token ids to numbers"),
        ("logit_bias", {"5": 1}, "a token's id"),
        ("logit_bias", {-1: 1}, "a token's id"),
        ("logit_bias", {True: 1}, "a token's id"),
        ("logit_bias", {5: 100.5}, "a number from -100 to 100"),
        ("logit_bias", {5: float("nan")}, "a number from -100 to 100"),
        ("logit_bias", {5: "1"}, "a number from -100 to 100"),
        ("logit_bias", ((5, 1), (5, 2)), "each token once"),
        ("cache_implementation", "sttic", "one of dynamic, static, none"),
        ("cache_implementation", ["static"], "one of dynamic, static, none"),
        ("compile", "yes", "True or False"),
        ("stop", 3, "a text, or a list of texts"),
        ("stop", None, "a text, or a list of texts"),
        ("stop", ["a", 3], "a text, or a list of texts"),
        ("stop", ["a", ""], "text that ends a response"),
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused_by_name(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: got .*expected {expected}"):
        GenerationOptions(**{name: value})


def test_numbers_of_other_libraries_become_pythons_own() -> None:
    settings: dict[str, Any] = {
        "max_new_tokens": np.int64(4),
        "temperature": np.float32(0.5),
        "top_p": 1,
        "seed": np.int16(3),
        "stop": ["a", "b"],
        "logit_bias": {np.int64(7): np.float32(-2), 3: 1, 4: 0},
    }
    decoding = GenerationOptions(**settings)
    assert decoding == GenerationOptions(
        max_new_tokens=4,
        temperature=0.5,
        top_p=1.0,
        seed=3,
        stop=("a", "b"),
        logit_bias=((3, 1.0), (7, -2.0)),
    )
    json.dumps(asdict(decoding))
    hash(decoding)


@pytest.mark.parametrize(
    ("seed", "number", "want"),
    [
        (None, 3, None),
        (5, 0, 5),
        (5, 3, 8),
        (-LARGEST, 1, -LARGEST + 1),
        (LARGEST, 0, LARGEST),
        (-LARGEST, 0, -LARGEST),
        (LARGEST, 1, -LARGEST + 1),
        (LARGEST - 1, 4, -LARGEST + 3),
    ],
)
def test_each_of_several_answers_has_the_next_seed(
    seed: int | None, number: int, want: int | None
) -> None:
    decoding = GenerationOptions(temperature=1.0, seed=seed)
    assert decoding.with_seed_offset(number) == GenerationOptions(temperature=1.0, seed=want)


def test_a_record_has_later_fields_only_where_they_are_set() -> None:
    later = {"steer_above", "frequency_penalty", "presence_penalty", "logit_bias"}
    assert not later & GenerationOptions().recorded().keys()
    settings: dict[str, Any] = {"steer_above": 0, "frequency_penalty": 1, "logit_bias": {5: 2}}
    record = GenerationOptions(**settings).recorded()
    assert {name: record[name] for name in later & record.keys()} == {
        "steer_above": 0.0,
        "frequency_penalty": 1.0,
        "logit_bias": [[5, 2.0]],
    }
    assert json.loads(json.dumps(record["logit_bias"])) == record["logit_bias"]
