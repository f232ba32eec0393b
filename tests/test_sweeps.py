"""What is always run of a sweep covers it, and the rest is run as slow tests."""

import itertools

import pytest

from tests.support.sweeps import few_of, sweep


@pytest.mark.parametrize("sizes", [(2, 5, 3), (3, 4, 2, 2), (4, 4), (1, 3), (7,)])
@pytest.mark.parametrize("meet", [1, 2])
def test_all_values_of_so_many_axes_meet(sizes: tuple[int, ...], meet: int) -> None:
    chosen = few_of(sizes, meet)
    assert len(set(chosen)) == len(chosen)
    for axes in itertools.combinations(range(len(sizes)), meet):
        met = {tuple(one[axis] for axis in axes) for one in chosen}
        assert met == set(itertools.product(*(range(sizes[axis]) for axis in axes)))


@pytest.mark.parametrize(
    ("sizes", "meet", "most"), [((2, 5, 3), 2, 16), ((3, 4, 2, 2), 2, 13), ((9, 6), 1, 9)]
)
def test_few_are_chosen(sizes: tuple[int, ...], meet: int, most: int) -> None:
    assert len(few_of(sizes, meet)) <= most


def test_no_combination_is_lost() -> None:
    mark = sweep({"one": "abc", "other": [1, 2]}, meet=1).mark
    names, params = mark.args
    assert names == ("one", "other")
    assert [param.values for param in params] == list(itertools.product("abc", [1, 2]))
    slow = [[mark.name for mark in param.marks] == ["slow"] for param in params]
    assert slow.count(False) == 3
    assert all(param.marks in ([], [pytest.mark.slow]) for param in params)
