"""Sweeps over many axes: of all combinations, few are run always and the others as slow tests."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pytest

_Combination = tuple[int, ...]
"""The place of a value on each axis."""

PAIRS: Final = 2
"""How many axes' values must have met in what is always run: all pairs of values of two axes."""


def few_of(sizes: Sequence[int], meet: int = PAIRS) -> list[_Combination]:
    """Choose combinations in which all values of every `meet` axes meet; the same ones each time.

    Args:
        sizes: How many values each axis has.
        meet: 2 for every pair of values of two axes, 1 for every value of every axis.
    """
    every = list(itertools.product(*map(range, sizes)))
    axes = list(itertools.combinations(range(len(sizes)), meet))

    def meetings(combination: _Combination) -> set[tuple[tuple[int, ...], _Combination]]:
        return {(some, tuple(combination[axis] for axis in some)) for some in axes}

    missing = set().union(*map(meetings, every))
    chosen = []
    while missing:
        best = max(every, key=lambda one: len(meetings(one) & missing))
        missing -= meetings(best)
        chosen.append(best)
    return sorted(chosen)


def sweep(
    axes: Mapping[str, Iterable[Any]], *, meet: int = PAIRS, indirect: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Run a test with all combinations of values, those that `few_of` does not choose as slow ones.

    Args:
        axes: Argument of the test -> its values.
        meet: See `few_of`.
        indirect: Arguments that are fixtures, which get the values.
    """
    axes_values = [list(values) for values in axes.values()]
    chosen = set(few_of([len(values) for values in axes_values], meet))
    params = [
        pytest.param(
            *(values[place] for values, place in zip(axes_values, places, strict=True)),
            marks=[] if places in chosen else [pytest.mark.slow],
        )
        for places in itertools.product(*(range(len(values)) for values in axes_values))
    ]
    return pytest.mark.parametrize(tuple(axes), params, indirect=list(indirect))
