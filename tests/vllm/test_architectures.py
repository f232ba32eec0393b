"""Every architecture that is said to run in vLLM with heads, in the code it is said to run in."""

import random
from pathlib import Path
from typing import Any, Final

import pytest

from mav.pipeline.engine.architectures import RUNS_IN
from tests.support.engine.compared import alone, assert_all_equal
from tests.support.engine.jobs import Run
from tests.support.engine.variants import VARIANT_KINDS, write_variant
from tests.support.models.architectures import CATALOGUE
from tests.support.models_page import architecture_of
from tests.support.running.once import made_once

VARIANTS: Final = tuple(
    name
    for name, variant in CATALOGUE.items()
    # vLLM itself refuses a Qwen2 whose window is that of some layers alone.
    if architecture_of(variant.model_type) in RUNS_IN and name != "qwen2-window"
)
ALPHAS: Final = (
    {"mlp": 1, "unembedding": 0},
    {"mlp": 0, "unembedding": 1},
    0,
    {"mlp": "0:0.5,3:1", "unembedding": 0.5},
    {"mlp": -1, "unembedding": -0.5},
)


def requests() -> list[dict[str, Any]]:
    """Requests whose prompts come in pieces and are longer than the windows."""
    chance = random.Random(0)
    return [
        {
            "prompt": [chance.randrange(2, 300) for _ in range(chance.randrange(20, 100))],
            "alpha": alpha,
            "max_tokens": chance.randrange(4, 12),
        }
        for alpha in ALPHAS
    ]


@pytest.fixture(scope="module")
def compared(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the engine and the reference answer for each variant."""
    jobs: dict[str, Any] = {}

    def write(folder: Path) -> None:
        for name in VARIANTS:
            write_variant(folder / name, name)

    world = made_once(tmp_path_factory, "vllm-variants", write)
    for name in VARIANTS:
        jobs[name] = {
            "head": {kind: str(world / name / kind) for kind in VARIANT_KINDS},
            "base": str(world / name / "base"),
            "options": {"alpha": 0},
            "rounds": [requests()],
        }
    answered = run("engine.run", [*jobs.values()])
    expected = run("engine.reference", [alone(job) for job in jobs.values()])
    return dict(zip(jobs, zip(answered, expected, strict=True), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_architecture_answers_as_in_mav(compared: dict[str, Any], name: str) -> None:
    answered, expected = compared[name]
    assert_all_equal(answered, expected)
    code = "transformers" if answered["class"].startswith("Transformers") else "vllm"
    assert code == RUNS_IN[architecture_of(CATALOGUE[name].model_type)]
