"""The logits processor as both of vLLM's runners load, fill and call it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.engine.names import PROCESSOR, processor_class
from mav.pipeline.engine.shared_state import SharedState
from mav.pipeline.engine.slots import SteeredRows
from mav.pipeline.engine.steering_config import KEY, PlacedHead, SteeringConfig
from tests.support.steering.strange_alphas import ANYTHING, NAMES

pytestmark = pytest.mark.filterwarnings("default")
VOCAB = 7


class Configuration:
    """In place of vLLM's compilation configuration, which is one object for each engine."""


@dataclass
class Model:
    """Adds to each row its first alpha."""

    seen: SteeredRows | None = None

    def added_logits(self, steered: SteeredRows) -> Tensor:
        self.seen = steered
        return torch.tensor(steered.alphas)[:, :1].expand(-1, VOCAB)


def engine(names: tuple[str, ...] = (), alpha: Any = 0.0) -> Any:
    heads = tuple(PlacedHead(name=name, folder="f", digest="d") for name in names or ("",))
    config = SteeringConfig(
        heads=heads, layers=(1,), num_hidden_layers=1, tokenizer_digest="t", alpha=alpha
    )
    additional = {KEY: config.to_json()}
    return SimpleNamespace(additional_config=additional, compilation_config=Configuration())


def asked(alpha: Any = None) -> Any:
    from vllm import SamplingParams

    return SamplingParams(extra_args=None if alpha is None else {"alpha": alpha})


def loaded(names: tuple[str, ...] = ()) -> Any:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    place = [f"{PROCESSOR}:{processor_class(names)}"]
    (first,), (second,) = _load_logitsprocs_by_fqcns(place), _load_v2_logitsprocs_by_fqcns(place)
    assert first is second
    return first


def test_the_second_runner_steers_rows_by_slot_and_position() -> None:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

    config, model = engine(alpha=1.0), Model()
    SharedState.of(config).model = model
    lengths = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([5, 9, 4, 2])))
    processor = loaded()(config, lengths)
    assert processor.add_request(0, asked("0:2,8:0"))
    assert not processor.add_request(1, asked(0))
    assert processor.add_request(2, asked())
    assert processor.add_request(3, asked(3))
    slots = torch.tensor([3, 1, 0, 2])
    context = LogitsContext(
        expanded_idx_mapping=slots,
        idx_mapping=slots,
        idx_mapping_np=slots.numpy(),
        expanded_local_pos=torch.zeros(4),
        input_ids=torch.zeros(4),
        pos=torch.tensor([0, 8, 6, 3]),
        seq_lens_upper_bound_np=np.array([1, 9, 7, 4]),
    )
    logits = torch.zeros(4, VOCAB)
    logits[2, 3] = -torch.inf  # by a grammar
    got = processor.apply(logits.clone(), context)
    # Slot 3 is amid its prompt; the others are at their first, third and first token.
    assert got[:, 0].tolist() == [0.0, 0.0, 1.5, 1.0]
    assert got[2, 3] == -torch.inf
    assert not processor.add_request(0, asked(0))
    assert processor.apply(logits.clone(), context)[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_the_first_runner_steers_rows_that_move() -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    config, model = engine(("a", "b"), {"a": 0, "b": 0}), Model()
    shared = SharedState.of(config)
    shared.model = model
    processor = loaded(("a", "b"))(config, torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    response: list[int] = []
    added = [(0, asked("a=1,b=0"), [1], []), (1, asked({"a": "0:2,4:0", "b": 0}), [1], response)]
    processor.update_state(BatchUpdate(batch_size=2, removed=[], added=added, moved=[]))
    assert processor.apply(torch.zeros(2, VOCAB))[:, 0].tolist() == [1.0, 2.0]
    response += [5, 5]
    processor.update_state(None)
    assert processor.apply(torch.zeros(2, VOCAB))[:, 0].tolist() == [1.0, 1.0]
    assert shared.planned_rows(2) == SteeredRows(rows=(0, 1), alphas=((1.0, 0.0), (1.0, 0.0)))
    assert shared.planned_rows(3) is None  # rows of a prompt
    moved = [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]
    processor.update_state(BatchUpdate(batch_size=1, removed=[0], added=[], moved=moved))
    response += [5]
    assert processor.apply(torch.zeros(1, VOCAB))[:, 0].tolist() == [0.5]
    response += [5]
    model.seen = None
    assert processor.apply(torch.zeros(1, VOCAB))[:, 0].tolist() == [0.0]
    assert model.seen is None  # no head is run where nothing is steered


@settings(max_examples=300)
@given(alpha=ANYTHING, named=st.booleans())
def test_nothing_gets_through_that_the_worker_cannot_take(alpha: Any, named: bool) -> None:
    """What is let in is taken into a slot and steers with finite strengths, by both runners."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import BatchUpdate

    names = NAMES if named else ()
    kind = loaded(names)
    try:
        params = asked(alpha)  # vLLM itself refuses whole numbers of more than 64 bits
        kind.validate_params(params)
    except (ValueError, VLLMValidationError) as refused:
        assert str(refused).startswith(("alpha: got ", "extra_args integers must be"))
        return
    config = engine(names, dict.fromkeys(names, 1) or 1)
    model = Model()
    SharedState.of(config).model = model
    first = kind(config, torch.device("cpu"), False)
    added = [(0, params, [1], [3] * 5)]
    first.update_state(BatchUpdate(batch_size=1, removed=[], added=added, moved=[]))
    assert first.apply(torch.zeros(1, VOCAB)).isfinite().all()
    second = kind(config, SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([1]))))
    second.add_request(0, params)


def test_requests_without_alpha_have_the_servers() -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate

    config, model = engine(alpha=as_strength("0:1,4:2").to_json()), Model()
    SharedState.of(config).model = model
    processor = loaded()(config, torch.device("cpu"), False)
    added = [(0, asked(), [1], [3, 3])]
    processor.update_state(BatchUpdate(batch_size=1, removed=[], added=added, moved=[]))
    assert processor.apply(torch.zeros(1, VOCAB))[0, 0] == 1.5
