"""Sizes of heads that nobody asked for."""

import dataclasses
from typing import Any

import pytest
import torch

from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.head.config import (
    HeadConfig,
    base_parameters,
    default_expansion_size,
    default_pooled_size,
)
from mav.pipeline.head.model import AlignmentHead
from tests.support.caches.manifests import llama_7b
from tests.support.models.tiny import tiny_base

# Hidden size, layers, vocabulary, parameters.
BASES = {
    "SmolLM2-135M": (576, 30, 49152, 134_515_008),
    "Qwen2.5-0.5B": (896, 24, 151936, 494_032_768),
    "Llama-3.2-1B": (2048, 16, 128256, 1_235_814_400),
    "Phi-2": (2560, 32, 51200, 2_779_683_840),
    "Gemma-2-9B": (3584, 42, 256000, 9_241_705_984),
}


def record(name: str) -> Any:
    hidden, layers, vocabulary, parameters = BASES[name]
    return dataclasses.replace(
        llama_7b().base,
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        parameters=parameters,
    )


def total(layers: int, pooled: int, expansion: int, vocabulary: int) -> int:
    with torch.device("meta"):
        head = AlignmentHead(
            HeadConfig(
                num_layers=layers,
                pooled_size=pooled,
                expansion_size=expansion,
                vocab_size=vocabulary,
            )
        )
    return head.config.total_parameters


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("layers", [1, 3, 8])
def test_a_head_is_at_most_a_third_of_a_smaller_base(name: str, layers: int) -> None:
    base = record(name)
    pooled = default_pooled_size(base.hidden_size)
    expansion = default_expansion_size(base, layers, pooled)
    size = total(layers, pooled, expansion, base.vocab_size)
    assert size <= base.parameters / 3
    # And no smaller than it must be, or than the published one.
    wider = total(layers, pooled, expansion + 64, base.vocab_size)
    assert wider > base.parameters / 3 or expansion == 16384


def test_bases_of_4096_and_wider_have_the_published_head() -> None:
    base = llama_7b().base
    assert default_pooled_size(base.hidden_size) == default_pooled_size(8192) == 4096
    assert default_expansion_size(base, 3, 4096) == 16384
    assert total(3, 4096, 16384, 32000) == 641_780_992


def test_parameters_that_were_not_recorded_are_estimated() -> None:
    for name in BASES:
        base = record(name)
        estimated = base_parameters(dataclasses.replace(base, parameters=None))
        assert 0.5 < estimated / base.parameters < 2
    assert base_parameters(record("Phi-2")) == 2_779_683_840


def test_a_new_head_follows_its_base() -> None:
    base = tiny_base()
    head = MAVInference.with_new_head(base).head
    assert head.config.pooled_size == base.hidden_size
    assert head.config.total_parameters <= base_parameters(base.fingerprint()) / 3
    asked = MAVInference.with_new_head(tiny_base(), pooled_size=64, expansion_size=24).head
    assert (asked.config.pooled_size, asked.config.expansion_size) == (64, 24)


def test_the_record_of_a_base_counts_its_parameters() -> None:
    base = tiny_base()
    assert base.fingerprint().parameters == sum(p.numel() for p in base.model.parameters())
