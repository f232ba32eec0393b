"""What the base model is given of pairs: which tokens see which, and how batches are filled."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mav.pipeline.extraction.packing import (
    ForwardBatch,
    batches_by_length,
    even_batches,
    packed_batch,
    separate_batch,
    shared_prompt_batch,
)
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from tests.support.models.char_tokenizer import CharTokenizer, pair, tiny_pairs


def mixed_pairs() -> TokenizedPairs:
    """Pairs of many lengths; one has nothing but the end of sequence for an answer."""
    extra = [pair("p", "", "longer"), pair("prompt", "c", ""), pair("pq", "same", "same!")]
    return tokenize_pairs([*tiny_pairs(6), *extra], CharTokenizer(begins=True), 120)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_behind_one_prompt_a_token_sees_what_it_would_see_alone(dtype: torch.dtype) -> None:
    pairs = mixed_pairs()
    chosen_pairs = [2, 0, 5, 8, 1, 3, 4, 6, 7]
    batch = shared_prompt_batch(pairs, chosen_pairs, dtype)
    ids, positions = batch.inputs["input_ids"], batch.inputs["position_ids"]
    mask = batch.inputs["attention_mask"][:, 0]
    assert mask.dtype == dtype
    assert sorted(set(mask.flatten().tolist())) == [torch.finfo(dtype).min, 0.0]

    for row, number in enumerate(chosen_pairs):
        prompt, chosen, rejected = (part.tolist() for part in pairs.parts(number))
        shared = len(prompt) + len(chosen) - 1
        for place in range(shared + len(rejected) - 1):
            if place < shared:
                alone = [*prompt, *chosen][: place + 1]
            else:
                alone = [*prompt, *rejected[: place - shared + 1]]
            seen = (mask[row, place] == 0).nonzero()[:, 0]
            assert ids[row, seen].tolist() == alone
            assert positions[row, seen].tolist() == list(range(len(alone)))
            assert seen[-1] == place


def test_packed_behind_one_prompt_every_answer_token_is_predicted_by_those_before_it() -> None:
    pairs = mixed_pairs()
    batch = shared_prompt_batch(pairs, range(len(pairs)), torch.float32)
    mask = batch.inputs["attention_mask"][:, 0]
    row_ids = batch.inputs["input_ids"]
    predicted = []
    for flat, label in zip(batch.predict.tolist(), batch.labels.tolist(), strict=True):
        row, place = divmod(flat, row_ids.shape[1])
        predicted.append([*row_ids[row, mask[row, place] == 0].tolist(), label])
    assert predicted == expected_predictions(pairs, range(len(pairs)))


def expected_predictions(pairs: TokenizedPairs, numbers: Sequence[int]) -> list[list[int]]:
    """For every answer token, all tokens up to it, pair by pair, chosen before rejected."""
    found = []
    for number in numbers:
        prompt, *answers = (part.tolist() for part in pairs.parts(number))
        for answer in answers:
            found += [[*prompt, *answer[: end + 1]] for end in range(len(answer))]
    return found


def test_packed_apart_every_answer_token_is_predicted_by_those_before_it() -> None:
    pairs = mixed_pairs()
    numbers = [3, 1, 8, 0, 2]
    batch = separate_batch(pairs, numbers)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert len(ids) == 2 * len(numbers)
    predicted = []
    for flat, label in zip(batch.predict.tolist(), batch.labels.tolist(), strict=True):
        row, place = divmod(flat, ids.shape[1])
        assert mask[row, : place + 1].all()
        predicted.append([*ids[row, : place + 1].tolist(), label])
    assert predicted == expected_predictions(pairs, numbers)


def test_packed_apart_padding_is_masked() -> None:
    pairs = mixed_pairs()
    batch = separate_batch(pairs, range(len(pairs)))
    parts = [pairs.parts(number) for number in range(len(pairs))]
    lengths = [len(p) + len(answer) - 1 for p, *answers in parts for answer in answers]
    assert batch.inputs["attention_mask"].sum(1).tolist() == lengths
    assert batch.inputs["attention_mask"].shape[1] == max(lengths)
    assert batch.inputs["attention_mask"].diff(dim=1).max() <= 0


def test_a_batch_on_another_device_is_the_same_batch() -> None:
    batch = shared_prompt_batch(mixed_pairs(), [0, 1], torch.float32)
    moved = batch.to(torch.device("meta"))
    assert {name: t.device.type for name, t in moved.inputs.items()} == dict.fromkeys(
        batch.inputs, "meta"
    )
    assert moved.predict.device.type == "meta"
    assert moved.labels is batch.labels


def seen_by_segment(batch: ForwardBatch, window: int | None = None) -> list[list[list[int]]]:
    """For each segment and each token of it, the places it sees, by way of the mask."""
    layout = batch.layout
    assert layout is not None
    places = torch.split(layout.key_places, [one.keys for one in layout.segments])
    found = []
    for one, keys in zip(layout.segments, places, strict=True):
        mask = layout.mask(one, window, torch.device("cpu"))
        if mask is None:
            mask = torch.ones(one.length, one.keys, dtype=torch.bool).tril()
        found.append([keys[row].tolist() for row in mask])
    return found


@pytest.mark.parametrize("window", [None, 1, 3, 8, 1000])
def test_packed_together_a_token_sees_what_it_would_see_alone(window: int | None) -> None:
    pairs = mixed_pairs()
    numbers = [2, 0, 5, 8, 1, 3, 4, 6, 7]
    batch = packed_batch(pairs, numbers)
    ids, positions = batch.inputs["input_ids"][0], batch.inputs["position_ids"][0]
    segments = iter(seen_by_segment(batch, window))
    last: list[int] = []
    for prompt, *answers in (map(np.ndarray.tolist, pairs.parts(number)) for number in numbers):
        for which, answer in enumerate(answers):
            text = [*prompt, *answer[:-1]]
            begins = 0 if which == 0 else len(prompt)
            if begins == len(text):
                continue  # an answer of one token, which the prompt predicts
            for place, seen in enumerate(next(segments), begins):
                first = 0 if window is None else max(0, place - window + 1)
                assert ids[seen].tolist() == text[first : place + 1]
                assert positions[seen].tolist() == list(range(first, place + 1))
                last.append(seen[-1])
    assert last == list(range(len(ids)))
    assert next(segments, None) is None


def test_packed_together_the_same_tokens_are_predicted() -> None:
    pairs = mixed_pairs()
    numbers = [3, 1, 8, 0, 2]
    together, plain = packed_batch(pairs, numbers), separate_batch(pairs, numbers)
    assert together.labels.tolist() == plain.labels.tolist()
    ids = together.inputs["input_ids"][0]
    assert len(ids) == sum(pairs.shared_length[number] for number in numbers)
    seen = {tokens[-1]: ids[tokens].tolist() for one in seen_by_segment(together) for tokens in one}
    predicted = [
        [*seen[place], label]
        for place, label in zip(together.predict.tolist(), together.labels.tolist(), strict=True)
    ]
    assert predicted == expected_predictions(pairs, numbers)


def test_edges_are_where_segments_begin() -> None:
    layout = packed_batch(mixed_pairs(), range(4)).layout
    assert layout is not None
    assert layout.query_edges.tolist() == [
        *(one.start for one in layout.segments),
        layout.segments[-1].start + layout.segments[-1].length,
    ]
    assert layout.key_edges.diff().tolist() == [one.keys for one in layout.segments]
    assert layout.key_edges[-1] == len(layout.key_places)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.data())
def test_even_batches(lengths: list[int], budget: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lengths)))
    pairs = range(start, len(lengths))

    def filled(most: int) -> list[list[int]]:
        """Each batch as full as can be, which makes the fewest."""
        batches: list[list[int]] = []
        for number in pairs:
            if not batches or sum(lengths[p] for p in batches[-1]) + lengths[number] > most:
                batches.append([])
            batches[-1].append(number)
        return batches

    smallest = next(most for most in range(budget + 1) if len(filled(most)) == len(filled(budget)))
    found = even_batches(pairs, np.array(lengths, np.int64), budget)
    assert [list(batch) for batch in found] == filled(smallest)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200), st.data())
def test_batches_by_length(lengths: list[int], budget: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lengths)))
    pairs = range(start, len(lengths))
    batches = list(batches_by_length(pairs, np.array(lengths, np.int64), budget))
    assert sorted(pair for batch in batches for pair in batch) == list(pairs)
    longest = [max(lengths[pair] for pair in batch) for batch in batches]
    for batch, most in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * most <= budget
    # Sorted by length, so that padding is little; and no batch could have taken one pair more.
    assert longest == sorted(longest, reverse=True)
    for batch, most, following in zip(batches, longest, batches[1:], strict=False):
        assert (len(batch) + 1) * most > budget
        assert min(lengths[p] for p in batch) >= max(lengths[p] for p in following)
