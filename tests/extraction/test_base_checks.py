"""What the checks do where memory is short; what they find is tested with every architecture."""

from functools import cache

import pytest
import torch

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction import forward
from mav.pipeline.extraction import model_checks as base_checks
from mav.pipeline.extraction.model_checks import ModelCheckReport, check_base
from mav.pipeline.extraction.packing import ForwardBatch
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs
from tests.support.models.char_tokenizer import tiny_pairs
from tests.support.models.tiny import tiny_base, tiny_tokenizer


@cache
def some_pairs() -> TokenizedPairs:
    return tokenize_pairs(tiny_pairs(6), tiny_tokenizer(), 128)


def checked(architecture: str = "llama") -> ModelCheckReport:
    return check_base(tiny_base(architecture), some_pairs(), (1, 4), 128, must_factor=True)


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Have a forward pass of more tokens, padding included, run out of memory; list them all."""
    run, ran = forward.run_decoder, []

    def limited(base: BaseModel, batch: ForwardBatch) -> None:
        tokens = batch.inputs["input_ids"].numel()
        if tokens > most:
            raise torch.OutOfMemoryError("too little")
        ran.append(tokens)
        run(base, batch)

    monkeypatch.setattr(base_checks, "run_decoder", limited)
    return ran


@pytest.mark.parametrize(
    ("architecture", "packing"), [("llama", "packed"), ("gptj", "shared_prompt")]
)
def test_where_memory_is_short_fewer_pairs_are_compared(
    monkeypatch: pytest.MonkeyPatch, architecture: str, packing: str
) -> None:
    lengths = sorted(some_pairs().shared_length.tolist())
    ran = limit_memory(monkeypatch, lengths[-1] + 1)
    assert checked(architecture).packing == packing
    assert max(ran) <= lengths[-1]


def test_memory_that_does_not_suffice_for_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, 8)
    longest = int(some_pairs().shared_length.max())
    with pytest.raises(BaseModelError, match=f"out of memory for a single pair of {longest}"):
        checked()


def test_all_states_and_logits_are_kept_of_one_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def noted(base: BaseModel, batch: ForwardBatch) -> torch.Tensor:
        shapes.append(tuple(batch.inputs["input_ids"].shape))
        return run(base, batch)

    run = forward.run_whole
    monkeypatch.setattr(base_checks, "run_whole", noted)
    checked()
    ((sequences, tokens),) = shapes
    assert sequences == 1
    assert tokens < some_pairs().shared_length.max()
