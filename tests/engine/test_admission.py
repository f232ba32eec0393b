"""What a request may give as alpha, and that nothing else gets through."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.steering.strengths import HeadAlphas, Strength, as_strength
from mav.pipeline.engine.admission import checked_strength, strength_of
from mav.pipeline.engine.slots import alphas_at
from tests.support.steering.strange_alphas import ANYTHING, NAMES


@pytest.mark.parametrize(
    "alpha",
    [
        True,
        False,
        "x:y",
        "nan",
        "inf",
        "1e39",
        "0:1e39",
        1e39,
        -1e39,
        math.nan,
        math.inf,
        10**400,
        [1, 2],
        [],
        {"a": 1},
        b"1",
        1j,
        "",
        " ",
        "kind=1",
        100.1,
        "0:1,0:2",
        "-1:2",
        "5:1,2:1",
        "0:1," + "1" * 2000 + ":2",
        "9" * 5000,
        "2000000:1",
        object(),
    ],
)
def test_what_is_not_a_strength_is_refused(alpha: object) -> None:
    with pytest.raises(UsageError, match=r"^alpha: got "):
        checked_strength(alpha, ())


@pytest.mark.parametrize(
    "alpha",
    [
        1.0,
        "1",
        0.5,
        {"kind": 1},
        {"kind": 1, "careful": True},
        {"kind": 1, "careful": [1]},
        {"kind": 1, "careful": 1e39},
        {"kind": 1, "careful": 1, "x": 1},
        {1: 1, 2: 2},
        "kind=1",
        "kind=1,careful=x",
        dict.fromkeys(map(str, range(100)), 1),
    ],
)
def test_of_several_heads_each_is_named(alpha: object) -> None:
    with pytest.raises(UsageError, match=r"^alpha: got "):
        checked_strength(alpha, NAMES)


@pytest.mark.parametrize(
    ("alpha", "names", "expected"),
    [
        (1, (), AlphaSchedule(((0, 1.0),))),
        ("1.5", (), AlphaSchedule(((0, 1.5),))),
        ("0:2,64:0.5", (), AlphaSchedule(((0, 2.0), (64, 0.5)))),
        (-100, (), AlphaSchedule(((0, -100.0),))),
        (0, NAMES, as_strength(0, NAMES)),
        ("kind=1,careful=0:1,5:2", NAMES, HeadAlphas.parse("kind=1,careful=0:1,5:2")),
        ({"careful": "0:1,5:2", "kind": 1}, NAMES, HeadAlphas.parse("kind=1,careful=0:1,5:2")),
    ],
)
def test_what_is_a_strength_is_read_as_mav_reads_it(
    alpha: Any, names: tuple[str, ...], expected: Strength
) -> None:
    assert checked_strength(alpha, names) == expected


@pytest.mark.parametrize("extra", [None, {}, {"alpha": None}, {"other": 3}])
def test_a_request_without_alpha_has_the_servers(extra: dict[str, Any] | None) -> None:
    default = AlphaSchedule(((0, 0.25),))
    assert strength_of(extra, (), default) is default


@given(alpha=ANYTHING, named=st.booleans())
def test_whatever_is_let_in_gives_finite_strengths(alpha: Any, named: bool) -> None:
    names = NAMES if named else ()
    try:
        strength = checked_strength(alpha, names)
    except UsageError:
        return
    for token in (0, 1, 7, 10**6, 10**7):
        found = torch.tensor([alphas_at(strength, token)], dtype=torch.float32)
        assert found.shape == (1, len(names) or 1)
        assert found.isfinite().all()
        assert float(found.abs().max()) <= 100
