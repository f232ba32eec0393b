"""What a comparison may be asked for, and what its systems are called."""

from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.comparison.options import CompareOptions
from mav.pipeline.decoding.options import GenerationOptions


def options(**given: Any) -> CompareOptions:
    return CompareOptions(prompts="p.txt", output=Path("out"), **given)


def names(**given: Any) -> list[str]:
    return [system.name for system in options(**given).systems]


def test_one_heads_systems_are_called_by_their_strength() -> None:
    assert names(head=("runs/a",), alphas=(0.0, 0.5, 2.0)) == ["alpha=0", "alpha=0.5", "alpha=2"]


def test_the_base_is_one_system_of_several_heads() -> None:
    found = options(head=("runs/a", "other=runs/b/best", "runs/c/last"), alphas=(0.0, 1.0)).systems
    assert [(one.name, one.head) for one in found] == [
        ("alpha=0", 0),
        ("a,alpha=1", 0),
        ("other,alpha=1", 1),
        ("c,alpha=1", 2),
    ]


def test_minus_zero_is_the_base() -> None:
    assert names(head=("a",), alphas=(-0.0, 1.0)) == ["alpha=0", "alpha=1"]


def test_the_reference_is_the_base_or_the_first_unless_named() -> None:
    assert options(head=("a",)).reference_name == "alpha=0"
    assert options(head=("a",), alphas=(1.0, 2.0)).reference_name == "alpha=1"
    assert options(others=("x=f", "y=g")).reference_name == "x"
    assert options(others=("x=f", "y=g"), reference="y").reference_name == "y"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "head: got none"),
        ({"head": ("a",), "alphas": ()}, "alphas: got none"),
        ({"head": ("a",), "alphas": (float("nan"),)}, "alphas: got .nan., expected finite"),
        ({"head": ("a",), "samples": 2}, "samples: got 2 without temperature"),
        ({"head": ("a",), "limit": 0}, "limit: got 0, expected at least 1"),
        (
            {"head": ("a",), "decoding": GenerationOptions(num_beams=2)},
            "num_beams: got 2, expected 1",
        ),
        ({"head": ("a", "x/a")}, "head: got a, a, which are not all different; name them"),
        ({"others": ("x=f", "x=g")}, "x: two systems have this name"),
        ({"others": ("f.jsonl",)}, "others: got 'f.jsonl', expected NAME=FILE"),
        ({"others": ("a/b=f.jsonl",)}, "others: got 'a/b=f.jsonl', expected NAME=FILE"),
        ({"others": ("x=",)}, "others: got 'x=', expected NAME=FILE"),
        ({"head": ("a",), "export": ("csv",)}, "export: got 'csv', expected one of alpaca-eval"),
        (
            {"head": ("a",), "reference": "alpha=3"},
            "reference: got 'alpha=3', expected one of alpha=0, alpha=0.5, alpha=1, alpha=2",
        ),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        options(**given)
