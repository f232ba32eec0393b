"""Which layers are chosen, and how their states are pooled."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.layer_selection import parse_indices, select_layers
from mav.pipeline.ops.tensor_storage import pool_states


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (2, (1, 2)),
        (3, (1, 3)),
        (4, (1, 2, 4)),
        (5, (1, 2, 5)),
        (32, (1, 16, 32)),
        (80, (1, 40, 80)),
    ],
)
def test_auto_takes_first_middle_and_last(layers: int, expected: tuple[int, ...]) -> None:
    assert select_layers("auto", 3, layers) == expected


@pytest.mark.parametrize(
    ("wanted", "layers", "expected"),
    [
        (1, 32, (32,)),
        (2, 32, (1, 32)),
        (3, 33, (1, 17, 33)),
        (4, 4, (1, 2, 3, 4)),
        (4, 31, (1, 11, 21, 31)),
        (5, 9, (1, 3, 5, 7, 9)),
    ],
)
def test_uniform_examples(wanted: int, layers: int, expected: tuple[int, ...]) -> None:
    assert select_layers("uniform", wanted, layers) == expected


@given(st.data())
def test_uniform_is_evenly_spaced_from_first_to_last(data: st.DataObject) -> None:
    layers = data.draw(st.integers(2, 200))
    wanted = data.draw(st.integers(2, layers))
    found = select_layers("uniform", wanted, layers)
    gaps = [after - before for before, after in pairwise(found)]
    assert len(found) == wanted
    assert (found[0], found[-1]) == (1, layers)
    assert max(gaps) - min(gaps) <= 1
    for place, index in enumerate(found):
        assert abs(index - (1 + (layers - 1) * place / (wanted - 1))) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("1,15,30", (1, 15, 30)), ("30,1", (1, 30)), ("0", (0,)), (" 2, 3 ", (2, 3)), ("32", (32,))],
)
def test_explicit_indices_come_ascending(selection: str, expected: tuple[int, ...]) -> None:
    # `num_layers` is no concern of a selection that names its layers.
    assert select_layers(selection, 3, 32) == expected


@pytest.mark.parametrize(
    ("selection", "wanted", "message"),
    [
        ("auto", 2, r"num_layers: got 2.*`layer_selection` uniform"),
        ("uniform", 0, r"num_layers: got 0, expected 1 to 32"),
        ("uniform", 33, r"num_layers: got 33, expected 1 to 32"),
        ("1,33", 3, r"got index 33.*0 \(embeddings\) to 32"),
        ("-1", 3, r"got index -1"),
        ("1,1", 3, r"'1,1', which names a layer twice"),
        ("first", 3, r"got 'first', expected auto, uniform, or indices"),
        ("1,,2", 3, r"got '1,,2'"),
        ("1.5", 3, r"got '1.5'"),
        ("", 3, r"got ''"),
    ],
)
def test_refused_selections(selection: str, wanted: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select_layers(selection, wanted, 32)


def test_indices_are_parsed_in_their_order() -> None:
    assert parse_indices("3,1,2") == [3, 1, 2]


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], 3, [0.5, 2.5, 4.5]),
        ([0, 1, 2, 3, 4], 2, [1, 3]),
        ([1, 2], 4, [1, 1, 2, 2]),
        ([1, 2], 3, [1, 1.5, 2]),
        ([7], 2, [7, 7]),
    ],
)
def test_pooling_by_hand(values: list[float], size: int, expected: list[float]) -> None:
    assert pool_states(torch.tensor(values, dtype=torch.float64), size).tolist() == expected


@pytest.mark.parametrize(("width", "size"), [(12, 4), (10, 4), (7, 1), (4, 12), (3, 7), (96, 64)])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0, 3)])
def test_pooling_is_torch_adaptive_average_pooling(
    width: int, size: int, shape: tuple[int, ...]
) -> None:
    states = torch.randn(*shape, width, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(states.reshape(-1, 1, width), size).reshape(*shape, size)
    torch.testing.assert_close(pool_states(states, size), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_states_of_the_right_width_are_left_alone(dtype: torch.dtype) -> None:
    states = torch.randn(2, 3, 8).to(dtype)
    assert pool_states(states, 8) is states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [3, 20])
def test_narrow_types_are_averaged_in_float32(dtype: torch.dtype, size: int) -> None:
    states = (torch.randn(4, 3, 10) * 100).to(dtype)
    found = pool_states(states, size)
    assert found.dtype == dtype
    expected = F.adaptive_avg_pool1d(states.float().reshape(-1, 1, 10), size).to(dtype)
    assert torch.equal(found, expected.reshape(4, 3, size))


def test_sums_beyond_float16_do_not_overflow() -> None:
    states = torch.full((1, 8), 60000.0, dtype=torch.float16)
    assert pool_states(states, 2).tolist() == [[60000.0, 60000.0]]


def test_pooling_takes_states_that_are_not_contiguous() -> None:
    states = torch.randn(6, 3, dtype=torch.float64)
    assert torch.equal(pool_states(states.t(), 2), pool_states(states.t().contiguous(), 2))
