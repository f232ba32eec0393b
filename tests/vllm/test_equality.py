"""What an engine answers equals what MAV answers, token by token, in float32."""

import random
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.engine_jobs import Run
from tests.support.engine_world import write_world
from tests.support.heads import KINDS
from tests.support.once import made_once

CLOSE: Final = 1e-4
"""Most that a log-probability may differ by, of any token of the vocabulary."""
ALPHAS: Final = (0, 1, 2, 1, "0:2,8:0.5", 0.5, 0, -1, "0:0,3:2", 1.5)
SEVERAL: Final = (
    {"a": 1, "b": 0.5, "c": 0},
    0,
    {"a": 0, "b": "0:0,3:1", "c": 1},
    "a=0.5,b=0.5,c=-0.5",
)


def requests(alphas: Any, seed: int = 0) -> list[dict[str, Any]]:
    """Requests whose prompts come in pieces, some of which begin alike."""
    chance = random.Random(seed)
    shared = [chance.randrange(2, 300) for _ in range(96)]
    made = []
    for number, alpha in enumerate(alphas):
        own = [chance.randrange(2, 300) for _ in range(chance.randrange(13, 90))]
        prompt = [*shared, *own] if number % 3 == 2 else own
        made.append({"prompt": prompt, "alpha": alpha, "max_tokens": chance.randrange(3, 24)})
    return made


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> float:
    """Compare tokens and log-probabilities; return the largest difference of the latter."""
    assert got["tokens"] == expected["tokens"]
    worst = 0.0
    for ours, theirs in zip(got["logprobs"], expected["logprobs"], strict=True):
        worst = max(worst, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    assert worst < CLOSE
    return worst


def compare(run: Run, job: dict[str, Any], **environment: str) -> float:
    """Run a job's requests twice, so that prefixes are there the second time; compare both."""
    asked = job["rounds"][0]
    answered = run("engine_run", {**job, "rounds": [asked, asked]}, **environment)
    alone = {"heads": job["head"], "base": job["base"], "requests": asked}
    expected = run("engine_reference", alone)
    worst = 0.0
    for answers in answered["rounds"]:
        for (got,), reference in zip(answers, expected, strict=True):
            worst = max(worst, assert_equal(got, reference))
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_head(run: Run, world: Path, kind: str) -> None:
    head, base = str(world / kind), str(world / "base")
    compare(run, {"head": head, "base": base, "rounds": [requests(ALPHAS)]})


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_embeddings_are_read_and_the_last_state_is_not(
    run: Run, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    made = partial(write_world, layer_selection="0,2")
    world = made_once(tmp_path_factory, "vllm-layers", made)
    head, base = str(world / kind), str(world / "base")
    compare(run, {"head": head, "base": base, "rounds": [requests(ALPHAS[:5])]})


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_a_base_in_transformers_code(
    run: Run, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    made = partial(write_world, architecture="gemma")
    world = made_once(tmp_path_factory, "vllm-gemma", made)
    head, base = str(world / kind), str(world / "base")
    compare(run, {"head": head, "base": base, "rounds": [requests(ALPHAS[:5])]})


def test_several_heads_by_name(run: Run, world: Path) -> None:
    heads = {name: str(world / kind) for name, kind in zip("abc", KINDS, strict=True)}
    job = {"head": heads, "base": str(world / "base"), "options": {"alpha": 0}}
    compare(run, {**job, "rounds": [requests(SEVERAL)]})


def test_requests_join_leave_and_are_put_back(run: Run, world: Path) -> None:
    head, base = str(world / "mlp"), str(world / "base")
    asked = requests(ALPHAS * 3, seed=5)
    for number in (4, 11):
        asked[number] = {**asked[number], "max_tokens": 60, "aborted_after": 5}
    # So few blocks that requests are put back to wait.
    engine = {"num_gpu_blocks_override": 9, "disable_log_stats": False}
    job = {"head": head, "base": base, "joining": asked, "seed": 1, "engine": engine}
    answered = run("engine_run", job)
    kept = [number for number in range(len(asked)) if "aborted_after" not in asked[number]]
    assert sorted(map(int, answered["answers"])) == kept
    assert answered["preemptions"] > 0
    alone = {"heads": head, "base": base, "requests": [asked[number] for number in kept]}
    for number, expected in zip(kept, run("engine_reference", alone), strict=True):
        assert_equal(answered["answers"][str(number)], expected)


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_compiled(run: Run, world: Path, kind: str) -> None:
    head, base = str(world / kind), str(world / "base")
    job = {"head": head, "base": base, "engine": {"enforce_eager": False}}
    compare(run, {**job, "rounds": [requests(ALPHAS[:5])]}, TORCH_COMPILE_DISABLE="0")


def test_three_processes(run: Run, world: Path) -> None:
    head, base = str(world / "unembedding"), str(world / "base")
    job = {"head": head, "base": base, "rounds": [requests(ALPHAS[:5])]}
    compare(run, job, VLLM_ENABLE_V1_MULTIPROCESSING="1")


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_two_ranks(run: Run, world: Path, kind: str) -> None:
    head, base = str(world / kind), str(world / "base")
    job = {"head": head, "base": base, "engine": {"tensor_parallel_size": 2}}
    binding = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    compare(run, {**job, "rounds": [requests(ALPHAS[:5])]}, **binding)
