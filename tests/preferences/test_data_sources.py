"""What names a data set on the command line."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import UsageError
from mav.pipeline.preferences.sources import DataSource, parse_source, require_weights

PLAIN = DataSource(id="")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("pairs.jsonl", DataSource(id="pairs.jsonl")),
        (
            "Anthropic/hh-rlhf,data_dir=harmless-base,split=test",
            DataSource(id="Anthropic/hh-rlhf", data_dir="harmless-base", split="test"),
        ),
        (
            "x/y,limit=5,weight=0.5,held_out=true",
            DataSource(id="x/y", limit=5, weight=0.5, held_out=True),
        ),
        ("x/y,held_out=false", DataSource(id="x/y", held_out=False)),
        ("pairs, mine.jsonl", DataSource(id="pairs, mine.jsonl")),
        ("a,b c=d.jsonl,limit=2", DataSource(id="a,b c=d.jsonl", limit=2)),
        ("x/y,split=train[:10%]", DataSource(id="x/y", split="train[:10%]")),
    ],
)
def test_what_is_read(text: str, source: DataSource) -> None:
    assert parse_source(text, PLAIN) == source


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "data: got '', expected a file, a folder or a hub id"),
        (",split=test", "data: got ',split=test', expected a file"),
        ("x,splt=test", "got 'splt=test', expected one of data_dir=, split="),
        ("x,limit=0", "limit: got 0"),
        ("x,split=train+test", "split of x: got 'train+test', of which a part is for training"),
        ("x,split=test[:10%]+train", "say held_out=true or held_out=false for all of it"),
        ("x,limit=many", "limit: got 'many', expected a whole number"),
        ("x,weight=-1", "weight of x: got -1.0, expected more than 0"),
        ("x,weight=nan", "weight of x: got nan"),
        ("x,weight=heavy", "weight: got 'heavy', expected a number"),
        ("x,held_out=yes", "held_out: got 'yes', expected true or false"),
        ("x,split=", "split: got '', expected a name"),
        ("x,limit=1,limit=2", "limit is there twice"),
        ("x,limit=1,colour=red", "got 'colour=red', expected one of data_dir=, split="),
    ],
)
def test_what_cannot_be(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text, PLAIN)
    assert told in str(caught.value)


@given(st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1))
def test_a_name_without_commas_is_the_name(name: str) -> None:
    assert parse_source(name, PLAIN).id == name


def test_what_it_does_not_say_is_as_for_all() -> None:
    defaults = DataSource(id="", data_dir="a", split="test", limit=3)
    assert parse_source("x/y,limit=7", defaults) == DataSource(
        id="x/y", data_dir="a", split="test", limit=7
    )


@pytest.mark.parametrize(
    ("split", "said", "held_out"),
    [
        ("train", None, False),
        ("train_prefs", None, False),
        ("test", None, True),
        ("test_prefs", None, True),
        ("prefs_test[:50%]", None, True),
        ("test+validation", None, True),
        ("train+extra", None, False),
        ("latest", None, False),
        ("train+test", True, True),
        ("train+test", False, False),
        ("validation", None, True),
        ("dev", None, True),
        ("eval", None, True),
        ("test", False, False),
        ("train", True, True),
    ],
)
def test_test_splits_are_for_evaluation_unless_it_is_said(
    split: str, said: bool | None, held_out: bool
) -> None:
    assert DataSource(id="x", split=split, held_out=said).is_held_out is held_out


def test_one_weight_alone_means_nothing() -> None:
    weighted, plain = DataSource(id="a", weight=1.0), DataSource(id="b")
    require_weights([plain, plain])
    require_weights([weighted, weighted, plain])
    with pytest.raises(UsageError, match="weight of a: no other data set has one"):
        require_weights([weighted, plain])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_weights_are_above_nothing(weight: float) -> None:
    with pytest.raises(UsageError, match="expected more than 0"):
        DataSource(id="x", weight=weight)
