"""Rows of a step and their strengths, of both runners, with steps made up."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.engine.slots import (
    Answering,
    PermanentSlots,
    SteeredRows,
    is_steering,
    rows_by_slot,
)

NAMES = ("a", "b")


@dataclass
class Step:
    """What the second runner says of a step."""

    slots: list[int]
    lengths: list[int]
    padding: int = 0
    idx_mapping_np: Any = field(init=False)
    seq_lens_upper_bound_np: Any = field(init=False)

    def __post_init__(self) -> None:
        self.idx_mapping_np = np.array(self.slots, dtype=np.int32)
        self.seq_lens_upper_bound_np = np.array(self.lengths + [0] * self.padding, dtype=np.int32)


def test_the_first_runners_rows_are_slots_and_count_the_response() -> None:
    schedule = as_strength("0:2,8:0")
    slots = {
        3: Answering(schedule, [7, 7]),
        0: Answering(as_strength(1), []),
        1: Answering(schedule, [1] * 8),
    }
    assert rows_by_slot(slots) == SteeredRows(rows=(0, 3), alphas=((1.0,), (1.5,)))


def test_the_list_of_a_response_is_read_anew_at_every_step() -> None:
    response: list[int] = []
    slots = {0: Answering(as_strength("0:0,2:2"), response)}
    assert rows_by_slot(slots).rows == ()
    response.append(5)
    assert rows_by_slot(slots).alphas == ((1.0,),)


@pytest.mark.parametrize("padding", [0, 3])
def test_the_second_runners_rows_are_found_by_slot_and_position(padding: int) -> None:
    slots, prompts = PermanentSlots(), np.array([5, 0, 4, 9])
    assert slots.add(0, as_strength("0:2,8:0"))
    assert slots.add(2, as_strength(1))
    assert slots.add(3, as_strength(3))
    assert not slots.add(1, as_strength(0))
    # Slot 3 is amid its prompt, slot 0 predicts its third token, slot 2 its first.
    step = Step([3, 1, 0, 2], [6, 2, 7, 4], padding)
    assert slots.rows(step, prompts) == SteeredRows(rows=(2, 3), alphas=((1.5,), (1.0,)))


def test_a_slot_forgets_who_had_it() -> None:
    slots = PermanentSlots()
    slots.add(0, as_strength(2))
    assert not slots.add(0, as_strength(0))
    assert slots.rows(Step([0], [3]), np.array([3])).rows == ()


def test_several_heads_have_an_alpha_each() -> None:
    strength = as_strength({"a": "0:1,2:0", "b": 0}, NAMES)
    assert is_steering(strength)
    assert rows_by_slot({0: Answering(strength, [1])}).alphas == ((0.5, 0.0),)
    assert rows_by_slot({0: Answering(strength, [1, 1])}).rows == ()
    assert not is_steering(as_strength(0, NAMES))


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-2, 2), st.integers(0, 5)), max_size=8))
def test_both_runners_agree(requests: list[tuple[int, float, int]]) -> None:
    first, second, prompts = {}, PermanentSlots(), np.zeros(len(requests), dtype=np.int32)
    for slot, (prompt, start, written) in enumerate(requests):
        strength = as_strength(f"0:{start!r},4:1")
        prompts[slot] = prompt
        first[slot] = Answering(strength, [0] * written)
        second.add(slot, strength)
    step = Step([*range(len(requests))], [prompt + done for prompt, _, done in requests])
    assert second.rows(step, prompts) == rows_by_slot(first)
