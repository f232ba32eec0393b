"""The GPU benchmark in miniature on a CPU, so that it works the first time a card is there."""

import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import check_cache, check_decoding, check_forward, check_training
from benchmarks.gpu.__main__ import PAGE, PARTS, main, parse
from benchmarks.gpu.place import Place, Settings
from benchmarks.gpu.report import BEGIN, END, all_right, docs_block, is_check, write_docs
from benchmarks.gpu.running import Outcome, Part, run_parts
from benchmarks.gpu.sizes import compute_dtype
from mav.cache_schema.errors import UsageError
from mav.pipeline.base.packed_attention import PackedSegments
from mav.pipeline.decoding.steering.weighted_heads import WeightedHeads
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.tensor_storage import HostCopies, pool_states
from tests.support.caches.written_caches import quick_disk
from tests.support.running import gpu_parts

ROOT = Path(__file__).parents[2]
CHECKS = {
    "check forward": ("packed, float32", "shared_prompt, sdpa, bfloat16", "separate, eager",
                      "windows, packed", "soft-caps, packed", "wide heads, packed", "hooks",
                      "unembedding", "kernel for many lengths", "pooling", "copies to the host"),
    "check cache": ("factored, float32", "dense", "topk", "int8", "fp8", "batches read ahead"),
    "check training": ("tiles as they fit", "tiling 1", "steps, bfloat16", "checkpoint",
                       "loss and gradients, unembedding, bfloat16", "bottleneck, float32",
                       "a run and its evaluation, mlp", "a run and its evaluation, unembedding",
                       "a run with credit"),
    "check decoding": ("scores, mlp", "answers, alone", "static cache", "alpha 0",
                       "KL of answers, mlp", "answers, batch, bottleneck",
                       "in flight, unembedding, bfloat16", "a seed, alone and in company"),
}  # fmt: skip
"""Part -> what some of its comparisons are called."""
FIGURES = {
    "machine": ("device_name", "driver", "dtype", "matmul_flops_per_second",
                "copy_bytes_per_second"),
    "extraction": ("extract_tokens_per_second", "share_of_matmul", "extract_over_padded"),
    "training step": ("tokens_per_second", "flops_over_matmul", "peak_device_bytes", "kinds"),
    "stream": ("files_bytes_per_second", "by_threads"),
    "decode": ("seconds_per_token", "over_base", "floor_latency", "peak_bytes"),
    "serve": ("by_way", "requests"),
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run in miniature says, in JSON."""
    folder = tmp_path_factory.mktemp("gpu")
    options = ["--miniature", "--device", "cpu", "--json", str(folder / "gpu.json")]
    assert main([*options, "--work", str(folder), "--minutes", "60"]) == 0
    assert [path.name for path in folder.iterdir()] == ["gpu.json"], "nothing is left behind"
    read: dict[str, Any] = json.loads((folder / "gpu.json").read_text(), parse_constant=pytest.fail)
    return read


def outcomes(found: Mapping[str, Any]) -> dict[str, Outcome]:
    return {name: Outcome(**outcome) for name, outcome in found["parts"].items()}


def test_every_part_is_done_and_right(found: dict[str, Any]) -> None:
    assert list(found["parts"]) == [part.name for part in PARTS]
    for name, outcome in found["parts"].items():
        assert outcome["state"] == "done", f"{name}: {outcome['error']}"
    assert found["right"] and all_right(outcomes(found))


@pytest.mark.parametrize("part", CHECKS)
def test_verdicts(found: dict[str, Any], part: str) -> None:
    verdicts = found["parts"][part]["figures"]
    for wanted in CHECKS[part]:
        assert any(wanted in name for name in verdicts), wanted
    for name, verdict in verdicts.items():
        assert verdict["right"] and verdict["error"] <= verdict["tolerance"], name
    # Narrow types round, and say so.
    assert any(verdict["error"] > 1e-5 for verdict in verdicts.values())


@pytest.mark.parametrize("part", FIGURES)
def test_figures(found: dict[str, Any], part: str) -> None:
    figures = found["parts"][part]["figures"]
    assert {*FIGURES[part]} <= {*figures}
    for name, value in figures.items():
        if isinstance(value, float):
            assert value > 0, name


def test_ways_of_decoding(found: dict[str, Any]) -> None:
    figures = found["parts"]["decode"]["figures"]
    kinds = ["mlp", "unembedding", "bottleneck"]
    for name in ("base", *kinds, "two models", "hooks, alpha 0", "in flight", "head alone"):
        assert figures["seconds_per_token"][name] > 0
    assert [*figures["floor_latency"]] == [*figures["parameters"]] == kinds
    assert [*found["parts"]["serve"]["figures"]["by_way"]] == ["base", *kinds]
    assert [*found["parts"]["training step"]["figures"]["kinds"]] == kinds
    assert figures["over_base"]["base"] == 1
    assert list(found["parts"]["stream"]["figures"]["by_threads"]) == ["1", "2"]


def test_the_block_of_the_documentation(found: dict[str, Any], tmp_path: Path) -> None:
    assert PAGE.read_text(encoding="utf-8").count(BEGIN) == 1
    page = tmp_path / "gpu.md"
    page.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_docs(page, outcomes(found))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Before\n") and text.endswith("after\n") and "old" not in text
    for words in ("| device |", "check forward | ", "(aim 0.6)", "(aim 0.5)", "a token, two models",
                  "requests at once, unembedding", "of a head of kind bottleneck",
                  "stream, 2 threads", torch.__version__):  # fmt: skip
        assert words in text
    write_docs(page, outcomes(found))
    assert page.read_text(encoding="utf-8") == text
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(UsageError, match=r"gpu\.md: has no line"):
        write_docs(page, outcomes(found))


def part(name: str, work: Callable[..., None], seconds: float = 600.0) -> Part:
    return Part(name=name, work=f"{gpu_parts.__name__}:{work.__name__}", seconds=seconds)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are there in a moment; a new interpreter would import torch for seconds."""
    forks = multiprocessing.get_context("fork")
    monkeypatch.setattr("multiprocessing.get_context", lambda _: forks)


# What newer Pythons say of a process that has threads.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_parts_that_go_wrong_are_told_and_the_others_go_on(
    tmp_path: Path, forked_workers: None
) -> None:
    told: list[list[str]] = []
    found = run_parts(
        [
            part("first", gpu_parts.works),
            part("hangs", gpu_parts.hangs, seconds=0.5),
            part("dies", gpu_parts.dies),
            part("fails", gpu_parts.fails),
        ],
        Settings(device="cpu", miniature=True, work=tmp_path),
        3600.0,
        lambda outcomes: told.append(list(outcomes)),
    )
    assert [outcome.state for outcome in found.values()] == ["done", "late", "died", "failed"]
    # What was told before is kept.
    assert all(found[name].figures == {"begun": 1} for name in ("dies", "fails"))
    assert found["dies"].error == "its process ended, exit code 3"
    assert "ValueError: one | two" in str(found["fails"].error)
    assert [len(names) for names in told] == [1, 2, 3, 4]
    assert not all_right({name: found[name] for name in ("first", "dies")})
    block = docs_block({name: found[name] for name in ("hangs", "dies", "fails")})
    assert "fails: failed | ValueError: one / two |" in block


def test_parts_that_no_time_is_left_for(tmp_path: Path) -> None:
    settings = Settings(device="cpu", miniature=True, work=tmp_path)
    found = run_parts([part("late", gpu_parts.works)], settings, 1.0, lambda _: None)
    assert found["late"].state == "left out"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Settings(device="cpu", miniature=True, work=tmp_path))


def wrong(check: Any, place: Place) -> list[str]:
    """The comparisons of a part that are not right."""
    found: dict[str, Any] = {}
    with quick_disk():
        check.run(place, lambda **figures: found.update(figures))
    return [name for name, verdict in found.items() if not verdict["right"]]


@pytest.mark.slow
def test_a_wrong_mask_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedSegments, "mask", lambda *_: None)
    names = wrong(check_forward, place)
    assert {"plain, packed, float32", "soft-caps, packed, bfloat16"} <= {*names}
    assert all(", packed, " in name for name in names)


@pytest.mark.slow
def test_wrong_copies_are_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = HostCopies.arrays

    def too_early(self: HostCopies) -> Any:
        found = whole(self)
        return {name: values * 0 for name, values in found.items()}

    monkeypatch.setattr(HostCopies, "arrays", too_early)
    assert {"copies to the host, float32"} <= {*wrong(check_forward, place)}


@pytest.mark.slow
def test_wrong_states_are_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(states: Tensor, size: int) -> Tensor:
        pooled = pool_states(states, size)
        return pooled * 1.5 if pooled.dtype == torch.bfloat16 else pooled

    monkeypatch.setattr("mav.pipeline.extraction.block_runner.pool_states", off)
    names = wrong(check_cache, place)
    assert "states, int8, bfloat16" in names
    assert all("bfloat16" in name for name in names)


@pytest.mark.slow
def test_wrong_gradients_are_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AlignmentHead.features

    def off(self: AlignmentHead, states: Tensor) -> Tensor:
        found = plain(self, states)
        return found * 1.5 if torch.is_autocast_enabled("cpu") else found

    monkeypatch.setattr(AlignmentHead, "features", off)
    names = wrong(check_training, place)
    assert "loss and gradients, tiling 1, bfloat16" in names
    assert all("bfloat16" in name for name in names)


def test_wrong_vectors_are_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = WeightedHeads.vector

    def off(self: WeightedHeads, states: Tensor, number: int = 0) -> Tensor:
        found = plain(self, states, number)
        return -found if self.heads[number].dtype == torch.bfloat16 else found

    monkeypatch.setattr(WeightedHeads, "vector", off)
    names = wrong(check_decoding, place)
    for way in ("scores", "answers, alone", "answers, batch", "answers, in flight"):
        assert f"{way}, mlp, bfloat16" in names
    assert all("bfloat16" in name for name in names)


def test_an_error_in_a_comparison_is_told_and_the_others_are_made(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.nn.functional.scaled_dot_product_attention

    def broken(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        if query.dtype == torch.bfloat16:
            raise RuntimeError("no kernel image is available")
        return plain(query, *rest, **named)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", broken)
    found: dict[str, Any] = {}
    with pytest.raises(RuntimeError, match=r"\d+ comparisons raised an error"):
        check_forward.run(place, lambda **figures: found.update(figures))
    assert "no kernel image" in found["plain, packed, bfloat16"]["failure"]
    assert found["plain, packed, float32"]["right"] and found["pooling to 16, bfloat16"]["right"]


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)],
)
def test_the_type_follows_the_card(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    assert compute_dtype(torch.device("cuda", 0)) == dtype
    assert compute_dtype(torch.device("cpu")) == torch.float32


def test_what_is_told_of_a_card(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = SimpleNamespace(major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: card)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.159.04\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    place.device, place.dtype = torch.device("cuda", 0), torch.bfloat16
    found = place.described()
    assert (found["device_name"], found["driver"]) == ("NVIDIA H100", "580.159.04")
    assert (found["capability"], found["dtype"]) == ("9.0", "bfloat16")
    assert found["memory_bytes"] == 80 << 30
    assert place.types == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("one", PARTS, ids=lambda one: one.name)
def test_parts_exist(one: Part) -> None:
    assert callable(one.load())
    assert is_check(one.name) == one.work.split(":")[0].split(".")[-1].startswith("check_")


def test_the_parts_fit_into_eight_minutes() -> None:
    assert parse([]).minutes <= 8


def test_unknown_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--parts", "machine,sing"])
    assert "--parts: got 'sing', expected some of machine, check forward" in capsys.readouterr().err


def test_what_is_carried_is_what_the_tests_are_run_with() -> None:
    pinned = {
        line.split("==")[0].lower(): line
        for line in (ROOT / "constraints" / "tested.txt").read_text().split()
        if "==" in line
    }
    carried = [
        line
        for line in (ROOT / "benchmarks" / "gpu" / "carry.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert carried and carried == [pinned[line.split("==")[0]] for line in carried]


def test_nothing_is_imported_that_a_machine_with_a_gpu_may_lack(warm_programs: Path) -> None:
    modules = sorted({part.work.split(":")[0] for part in PARTS})
    lacking = "bitsandbytes datasets dill fastapi openai pydantic starlette torchao trl uvicorn"
    # What stands in `sys.modules` as None cannot be imported.
    code = (
        f"import sys; sys.modules |= dict.fromkeys({lacking.split()}); import {','.join(modules)}"
    )
    python = warm_programs / "early-python"
    ran = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
