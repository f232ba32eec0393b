"""Quantized bases under heads: states of the quantized base, and nothing else that differs."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from tests.support.engine.jobs import Run
from tests.support.engine.quantized import BLOCK, SCHEMES, write_quantized
from tests.support.engine.world import write_world
from tests.support.running.once import made_once

CLOSE: Final = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.25}
"""Most that the next token's distribution may differ by, in total variation, from that which the
reference has in float32: what the type rounds, and inputs that round the other way."""
KERNELS: Final[dict[str, Callable[[], bool]]] = {
    **dict.fromkeys(("awq", "gptq", "int4"), torch.cpu._is_avx512_supported),
    "fp8": torch.cpu._is_amx_tile_supported,
}
"""What tells whether the processor has what vLLM's kernel asks for."""
SIZES: Final = {
    "hidden_size": BLOCK,
    "intermediate_size": BLOCK,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
ALPHAS: Final = (
    {"mlp": 1, "unembedding": 0},
    {"mlp": 0, "unembedding": 1},
    {"mlp": 0, "unembedding": 0},
    {"mlp": "0:1,3:0.5", "unembedding": -0.5},
)


def requests() -> list[dict[str, Any]]:
    """Requests with prompts in several pieces."""
    chance = random.Random(0)
    return [
        {
            "prompt": [chance.randrange(2, 300) for _ in range(chance.randrange(20, 70))],
            "alpha": alpha,
            "max_tokens": 6,
        }
        for alpha in ALPHAS
    ]


@pytest.fixture(scope="module")
def answers(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the quantized base answers in vLLM, and what its weights mean to MAV."""

    def write(folder: Path) -> None:
        write_world(folder, changes=SIZES)
        for name, scheme in SCHEMES.items():
            write_quantized(folder / "base", folder / name, scheme)

    world = made_once(tmp_path_factory, "vllm-quantized", write)
    heads = {kind: str(world / kind) for kind in ("mlp", "unembedding")}
    job = {"head": heads, "options": {"alpha": "mlp=0,unembedding=0"}, "rounds": [requests()]}
    answered = run(
        "engine.run",
        [
            {
                **job,
                "base": str(world / name / "quantized"),
                "engine": {"dtype": scheme.dtype},
            }
            for name, scheme in SCHEMES.items()
        ],
    )
    asked = []
    for (name, scheme), answer in zip(SCHEMES.items(), answered, strict=True):
        found = [one["tokens"] for (one,) in answer.get("rounds", [[]])[0]]
        asked.append(
            {
                "heads": heads,
                "base": str(world / name / "dense"),
                "rounds_inputs": scheme.rounds_inputs,
                "requests": [
                    {**request, "forced": tokens}
                    for request, tokens in zip(requests(), found, strict=False)
                ],
            }
        )
    expected = run("engine.reference", asked)
    return dict(zip(SCHEMES, zip(answered, expected, strict=True), strict=True))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_quantized_base_is_its_weights_under_heads(answers: dict[str, Any], name: str) -> None:
    if not KERNELS.get(name, lambda: True)():
        pytest.skip("vLLM has no kernel for it on this processor")
    answered, expected = answers[name]
    assert "failed" not in answered, answered["failed"]
    for (got,), reference in zip(answered["rounds"][0], expected, strict=True):
        assert len(got["tokens"]) == 6
        for ours, theirs in zip(got["logprobs"], reference["logprobs"], strict=True):
            pairs = zip(ours, theirs, strict=True)
            apart = sum(abs(math.exp(a) - math.exp(b)) for a, b in pairs) / 2
            assert apart < CLOSE[SCHEMES[name].dtype]
