"""What an engine answers equals what MAV answers, token by token, in float32."""

import random
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.engine.compared import alone, assert_all_equal, assert_equal
from tests.support.engine.jobs import Run
from tests.support.engine.world import write_world
from tests.support.running.once import made_once
from tests.support.steering.heads import KINDS

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


def twice(job: dict[str, Any], asked: list[dict[str, Any]]) -> dict[str, Any]:
    """A job whose requests are sent twice, so that prefixes are there the second time."""
    return {**job, "rounds": [asked, asked]}


def compare(run: Run, job: dict[str, Any], **environment: str) -> None:
    """Run a job in a process of its own, and compare."""
    answered = run("engine.run", job, **environment)
    assert_all_equal(answered, run("engine.reference", alone(job)))


CASES: Final[dict[str, tuple[str, Any, Any]]] = {
    "mlp": ("llama", "mlp", ALPHAS),
    "unembedding": ("llama", "unembedding", ALPHAS),
    "bottleneck": ("llama", "bottleneck", ALPHAS),
    "mlp reads embeddings and not the last state": ("layers", "mlp", ALPHAS[:5]),
    "unembedding reads embeddings and not the last state": ("layers", "unembedding", ALPHAS[:5]),
    "mlp in transformers' code": ("gemma", "mlp", ALPHAS[:5]),
    "unembedding in transformers' code": ("gemma", "unembedding", ALPHAS[:5]),
    "several by name": ("llama", {"a": KINDS[0], "b": KINDS[1], "c": KINDS[2]}, SEVERAL),
}
"""What is compared: a world, its heads and alphas."""
Compared = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def compared(run: Run, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """What the engine and the reference answer in each case, one process for each of the two."""
    worlds = {
        "llama": world,
        "layers": made_once(
            tmp_path_factory, "vllm-layers", partial(write_world, layer_selection="0,2")
        ),
        "gemma": made_once(
            tmp_path_factory, "vllm-gemma", partial(write_world, architecture="gemma")
        ),
    }
    jobs = []
    for place, kinds, alphas in CASES.values():
        folder = worlds[place]
        heads: Any = (
            str(folder / kinds)
            if isinstance(kinds, str)
            else {name: str(folder / kind) for name, kind in kinds.items()}
        )
        job = {"head": heads, "base": str(folder / "base"), "options": {"alpha": 0}}
        jobs.append(twice(job, requests(alphas)))
    answered = run("engine.run", jobs)
    expected = run("engine.reference", [alone(job) for job in jobs])
    return dict(zip(CASES, zip(answered, expected, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_log_probabilities_are_mavs(compared: Compared, case: str) -> None:
    assert_all_equal(*compared[case])


def test_requests_join_leave_and_are_put_back(run: Run, world: Path) -> None:
    head, base = str(world / "mlp"), str(world / "base")
    asked = requests(ALPHAS * 3, seed=5)
    for number in (4, 11):
        asked[number] = {**asked[number], "max_tokens": 60, "aborted_after": 5}
    # So few blocks that requests are put back to wait.
    engine = {"num_gpu_blocks_override": 9, "disable_log_stats": False}
    job = {"head": head, "base": base, "joining": asked, "seed": 1, "engine": engine}
    answered = run("engine.run", job)
    kept = [number for number in range(len(asked)) if "aborted_after" not in asked[number]]
    assert sorted(map(int, answered["answers"])) == kept
    assert answered["preemptions"] > 0
    ended = {"heads": head, "base": base, "requests": [asked[number] for number in kept]}
    for number, expected in zip(kept, run("engine.reference", ended), strict=True):
        assert_equal(answered["answers"][str(number)], expected)


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_compiled(run: Run, world: Path, kind: str) -> None:
    head, base = str(world / kind), str(world / "base")
    job = {"head": head, "base": base, "engine": {"enforce_eager": False}}
    compare(run, twice(job, requests(ALPHAS[:5])), TORCH_COMPILE_DISABLE="0")


def test_three_processes(run: Run, world: Path) -> None:
    head, base = str(world / "unembedding"), str(world / "base")
    job = twice({"head": head, "base": base}, requests(ALPHAS[:5]))
    compare(run, job, VLLM_ENABLE_V1_MULTIPROCESSING="1")


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_two_ranks(run: Run, world: Path, kind: str) -> None:
    head, base = str(world / kind), str(world / "base")
    job = {"head": head, "base": base, "engine": {"tensor_parallel_size": 2}}
    binding = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    compare(run, twice(job, requests(ALPHAS[:5])), **binding)
