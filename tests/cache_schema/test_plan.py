"""The block plan: whole pairs, disjoint rows, nothing over the block size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mav.cache_schema.errors import UsageError
from mav.cache_schema.plan import (
    LEAST_BLOCK_TOKENS,
    MOST_BLOCK_TOKENS,
    TARGET_BLOCK_BYTES,
    default_block_tokens,
    plan_blocks,
)

_LONGEST_ANSWER = 40

lengths = arrays(
    np.int32,
    st.tuples(st.integers(0, 60), st.just(2)),
    elements=st.integers(1, _LONGEST_ANSWER),
)
block_sizes = st.integers(2 * _LONGEST_ANSWER, 400)


@given(lengths, block_sizes)
def test_every_pair_lies_in_exactly_one_block(length: NDArray[np.int32], size: int) -> None:
    plan = plan_blocks(length, size)
    listed = [pair for block in range(plan.blocks) for pair in plan.pairs_of(block)]
    assert listed == list(range(len(length)))
    assert all(len(plan.pairs_of(block)) for block in range(plan.blocks))
    assert (plan.pairs, plan.tokens) == (len(length), length.sum())


@given(lengths, block_sizes)
def test_no_block_holds_more_than_its_rows(length: NDArray[np.int32], size: int) -> None:
    plan = plan_blocks(length, size)
    used = [plan.used_rows(block) for block in range(plan.blocks)]
    assert all(0 < rows <= size for rows in used)
    assert sum(used) == length.sum()


@given(lengths, block_sizes)
def test_answers_fill_the_first_rows_of_their_block(length: NDArray[np.int32], size: int) -> None:
    plan = plan_blocks(length, size)
    for block in range(plan.blocks):
        rows = [
            row
            for pair in plan.pairs_of(block)
            for answer in (0, 1)
            for row in range(
                plan.response_start[pair, answer],
                plan.response_start[pair, answer] + plan.response_length[pair, answer],
            )
        ]
        # In this very order, so that no row has two owners and a block is read in one piece.
        first = block * size
        assert plan.first_row(block) == first
        assert rows == list(range(first, first + plan.used_rows(block)))


@given(lengths, block_sizes)
def test_chosen_lies_directly_before_rejected(length: NDArray[np.int32], size: int) -> None:
    plan = plan_blocks(length, size)
    chosen, rejected = plan.response_start[:, 0], plan.response_start[:, 1]
    assert np.array_equal(plan.response_length, length)
    assert np.array_equal(rejected, chosen + length[:, 0])


@given(lengths, block_sizes)
def test_blocks_are_filled_greedily(length: NDArray[np.int32], size: int) -> None:
    plan = plan_blocks(length, size)
    for block in range(plan.blocks - 1):
        following = plan.pairs_of(block + 1).start
        assert plan.used_rows(block) + int(length[following].sum()) > size


def test_golden_plan() -> None:
    plan = plan_blocks(np.array([[3, 2], [4, 1], [1, 1], [10, 0]], np.int32), 10)
    assert plan.block_start.tolist() == [0, 2, 3, 4]
    assert plan.response_start.tolist() == [[0, 3], [5, 9], [10, 11], [20, 30]]
    assert plan.block_start.dtype == plan.response_start.dtype == np.int64


def test_a_pair_as_long_as_a_block_fits() -> None:
    assert plan_blocks(np.array([[5, 5], [5, 5]], np.int32), 10).blocks == 2


def test_a_pair_longer_than_a_block_is_refused_with_both_sizes() -> None:
    with pytest.raises(UsageError, match=r"got 10 tokens, but the longest pair has 11"):
        plan_blocks(np.array([[2, 3], [5, 6]], np.int32), 10)


def test_rows_beyond_32_bits_do_not_wrap() -> None:
    length = np.full((300_000, 2), 4096, np.int32)
    plan = plan_blocks(length, 8192)
    assert plan.tokens == 300_000 * 8192
    assert plan.response_start[-1].tolist() == [299_999 * 8192, 299_999 * 8192 + 4096]


@pytest.mark.parametrize(
    ("token_bytes", "longest_pair", "total", "tokens"),
    [
        (24_584, 700, 10**8, 8192),  # LLaMA-7B, factored: 256 MiB would hold more, 8,192 is most
        (88_584, 700, 10**8, 3072),  # dense
        (4_000_000, 700, 10**8, 768),  # one pair of 700 tokens, rounded up
        (4_000_000, 3, 10**8, 256),
        (24_584, 9000, 10**8, 9216),
        (24_584, 300, 20_000, 768),  # 199 pairs: 27 blocks, where 8,192 tokens made three
        (24_584, 300, 262_144, 8192),
        (24_584, 100, 1000, 512),  # not smaller still
        (24_584, 600, 1000, 768),
        (1_000_000, 100, 1000, 512),
    ],
)
def test_default_block_tokens(token_bytes: int, longest_pair: int, total: int, tokens: int) -> None:
    assert default_block_tokens(token_bytes, longest_pair, total) == tokens


@given(st.integers(1, 10_000_000), st.integers(1, 20_000))
def test_default_blocks_fit_any_pair_and_are_no_larger_than_need_be(
    token_bytes: int, longest_pair: int
) -> None:
    tokens = default_block_tokens(token_bytes, longest_pair, 10**9)
    assert tokens % LEAST_BLOCK_TOKENS == 0
    assert tokens >= max(longest_pair, LEAST_BLOCK_TOKENS)
    smaller = tokens - LEAST_BLOCK_TOKENS
    wanted = min(MOST_BLOCK_TOKENS, TARGET_BLOCK_BYTES // token_bytes)
    assert smaller < max(longest_pair, wanted, 1)
