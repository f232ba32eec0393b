"""Rows of blocks: however batches are cut, and what happens when memory does not suffice."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction import block_runner
from mav.pipeline.extraction.batch_size import BatchBudget, DeviceMemory, budget_for
from mav.pipeline.extraction.forward import run_decoder
from mav.pipeline.extraction.job import ExtractionJob, load
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.extraction.packing import ForwardBatch
from mav.pipeline.extraction.prepare import prepare, read
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.memory import is_out_of_memory
from tests.support.models.tiny import tiny_base, write_rows

PAIRS = 14
ENOUGH = 10_000


def work(root: Path, base: BaseModel, budget: int = ENOUGH, **options: Any) -> ExtractionJob:
    asked = ExtractOptions(
        base_model="tiny",
        data=DataSource(id=str(write_rows(root / "pairs.jsonl", PAIRS))),
        output=root / "cache",
        max_length=128,
        batch_tokens=budget,
        block_tokens=ENOUGH,
        **{"dtype": "float32", "storage_dtype": "float32", "pooled_size": 16, **options},
    )
    request = prepare(asked, base)
    data = read(asked, base.tokenizer, None)
    return load(asked, request, data, "float32")


def rows_of(found: ExtractionJob) -> dict[str, Any]:
    done: list[int] = []
    rows = found.forward.run(range(PAIRS), done.append)
    assert sum(done) == PAIRS
    return rows


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for path, values in want.items():
        np.testing.assert_allclose(got[path], values, rtol=1e-4, atol=1e-5, err_msg=path)


RowsInOne = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def rows_in_one(tmp_path_factory: pytest.TempPathFactory) -> RowsInOne:
    """Rows of an architecture whose tokens all go through it in one batch."""

    @cache
    def run(architecture: str) -> dict[str, Any]:
        return rows_of(work(tmp_path_factory.mktemp("one"), tiny_base(architecture)))

    return run


@pytest.fixture(scope="module")
def whole(rows_in_one: RowsInOne) -> dict[str, Any]:
    return rows_in_one("llama")


@pytest.mark.parametrize("architecture", ["llama", "gptj", "bloom"])
@pytest.mark.parametrize("budget", [1, 100, 300])
def test_rows_do_not_hang_on_how_batches_are_cut(
    tmp_path: Path, architecture: str, budget: int, rows_in_one: RowsInOne
) -> None:
    found = work(tmp_path, tiny_base(architecture), budget)
    assert (
        found.forward.packing
        == {"llama": "packed", "gptj": "shared_prompt", "bloom": "separate"}[architecture]
    )
    assert_same(rows_of(found), rows_in_one(architecture))


def test_parts_of_a_block_are_its_rows(tmp_path: Path, whole: dict[str, Any]) -> None:
    forward = work(tmp_path, tiny_base(), 200).forward
    parts = [forward.run(some, lambda _: None) for some in (range(5), range(5, PAIRS))]
    assert_same({path: np.concatenate([part[path] for part in parts]) for path in whole}, whole)


def with_room_for(tokens: int, seen: list[int], error: Callable[[], Exception]) -> Any:
    def run(base: BaseModel, batch: ForwardBatch) -> None:
        size = batch.inputs["input_ids"].numel()
        seen.append(size)
        if size > tokens:
            raise error()
        run_decoder(base, batch)

    return run


def _cuda() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def _cpu() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate")


@pytest.mark.parametrize("error", [_cuda, _cpu, MemoryError])
@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_smaller_batches_where_memory_does_not_suffice(
    tmp_path: Path,
    architecture: str,
    error: Callable[[], Exception],
    rows_in_one: RowsInOne,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    want = rows_in_one(architecture)
    found = work(tmp_path, tiny_base(architecture))
    longest = int(found.data.pairs.shared_length.max())
    seen: list[int] = []
    run = with_room_for(2 * longest, seen, error)
    monkeypatch.setattr(block_runner, "run_decoder", run)
    assert_same(rows_of(found), want)
    assert found.forward.budget.tokens < ENOUGH
    failed = sum(size > 2 * longest for size in seen)
    assert failed > 0
    # What was learned holds from then on.
    seen.clear()
    assert_same(rows_of(found), want)
    assert sum(size > 2 * longest for size in seen) < failed


def test_a_single_pair_that_does_not_fit_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = work(tmp_path, tiny_base())
    monkeypatch.setattr(block_runner, "run_decoder", with_room_for(10, [], _cuda))
    with pytest.raises(BaseModelError, match=r"out of memory for a single pair of \d"):
        rows_of(found)


def test_another_error_is_not_taken_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    found = work(tmp_path, tiny_base())
    run = with_room_for(0, [], lambda: RuntimeError("shapes do not match"))
    monkeypatch.setattr(block_runner, "run_decoder", run)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        rows_of(found)


@pytest.mark.parametrize("layer", [1, 4])
def test_states_that_are_not_finite_stop_it(tmp_path: Path, layer: int) -> None:
    base = tiny_base()
    found = work(tmp_path, base)
    weights = [base.model.model.norm, *base.model.model.layers][0 if layer == 4 else layer]
    next(weights.parameters()).data[0] = float("inf")
    with pytest.raises(BaseModelError, match=r"states are not finite in float32\. Use `dtype`"):
        rows_of(found)


@pytest.mark.parametrize(("logits", "calls"), [("factored", 0), ("dense", 1), ("topk", 1)])
def test_over_the_vocabulary_nothing_is_computed_that_is_not_stored(
    tmp_path: Path, logits: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    found = work(tmp_path, base, logits=logits, top_k=4)
    taken: list[int] = []
    base.model.lm_head.register_forward_hook(lambda *_: taken.append(1))
    unembed = type(found.unembedding).__call__

    def counted(*arguments: Any, **more: Any) -> torch.Tensor:
        taken.append(1)
        return unembed(*arguments, **more)

    monkeypatch.setattr(type(found.unembedding), "__call__", counted)
    rows_of(found)
    assert len(taken) == calls


def test_the_scarcest_device_says_how_much_goes_through_at_once() -> None:
    roomy, scarce = DeviceMemory(free=80_000, taken=100), DeviceMemory(free=50_000, taken=400)
    assert budget_for([roomy], 20) == BatchBudget(12_800)
    assert budget_for([roomy, scarce], 20) == BatchBudget(2_000)
    assert budget_for([DeviceMemory(free=10, taken=10**9)], 20) == BatchBudget(256)
    assert budget_for([DeviceMemory(free=10**12, taken=0)], 20) == BatchBudget(65_536)
