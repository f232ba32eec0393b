"""The head: its sizes, its formula and its locality."""

import pytest
import torch

from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.tensor_storage import pool_states
from tests.support.steering.heads import SIZES, seeded_head


def test_parameters_at_the_default_sizes() -> None:
    with torch.device("meta"):
        head = AlignmentHead(
            HeadConfig(num_layers=3, pooled_size=4096, expansion_size=16384, vocab_size=32000)
        )
    sizes = head.config
    assert (sizes.alignment_parameters, sizes.total_parameters) == (591_445_248, 641_780_992)
    assert sizes.fusion_parameters == 50_335_744
    counts = {
        name: sum(p.numel() for p in layer.parameters()) for name, layer in head.named_children()
    }
    assert sizes.fusion_parameters == counts["fusion"]
    assert sizes.alignment_parameters == counts["expand"] + counts["project"]
    assert sizes.total_parameters == sum(p.numel() for p in head.parameters())
    assert head.dropout.p == 0.1


def test_an_untrained_head_gives_zero_vectors() -> None:
    head = AlignmentHead(SIZES)
    vector = head(torch.randn(5, 3, 32))
    assert vector.shape == (5, 300)
    assert not vector.any()


def test_the_vector_follows_the_formula() -> None:
    head = seeded_head().double()
    states = torch.randn(3, 32, dtype=torch.float64)
    weights = head.state_dict()
    fused = (weights["fusion.weight"] @ states.flatten() + weights["fusion.bias"]).clamp(min=0)
    wide = (weights["expand.weight"] @ fused + weights["expand.bias"]).clamp(min=0)
    torch.testing.assert_close(
        head(states), weights["project.weight"] @ wide + weights["project.bias"]
    )
    torch.testing.assert_close(head.features(states), wide)


@pytest.mark.parametrize("width", [16, 32, 80])
def test_states_of_another_width_are_pooled(width: int) -> None:
    head, states = seeded_head(), torch.randn(2, 4, 3, width)
    assert torch.equal(head(states), head(pool_states(states, 32)))
    assert head(states).shape == (2, 4, 300)


def test_a_positions_vector_ignores_all_other_positions() -> None:
    head, states = seeded_head(), torch.randn(2, 6, 3, 32)
    changed = states.clone()
    changed[0, 2] += 100
    moved = (head(changed) != head(states)).any(-1)
    assert moved.tolist() == [[False, False, True, False, False, False], [False] * 6]
    torch.testing.assert_close(head(states)[1, 3], head(states[1, 3]))


def test_dropout_acts_in_training_alone() -> None:
    head, states = seeded_head(), torch.randn(4, 3, 32)
    assert torch.equal(head(states), head(states))
    head.train()
    assert not torch.equal(head(states), head(states))


def test_narrow_states_are_taken_in_the_type_of_the_weights() -> None:
    head, states = seeded_head(), torch.randn(4, 3, 32).bfloat16()
    assert head(states).dtype == torch.float32
    assert torch.equal(head(states), head(states.float()))
