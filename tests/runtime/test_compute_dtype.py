"""Which type is computed in, on which device, and what is told of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime import compute_dtype
from mav.pipeline.runtime.compute_dtype import (
    dtype_name,
    native_dtype,
    pick_dtype,
    pick_dtype_for_stored,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was warned of, and the environment limits nothing."""
    monkeypatch.setattr(compute_dtype, "_warned", set())
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)


def has(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool | None) -> None:
    monkeypatch.setattr(compute_dtype, "_cpu_has_bfloat16", lambda: bfloat16)


def ratio(monkeypatch: pytest.MonkeyPatch, value: float) -> list[Any]:
    asked: list[Any] = []

    def measured(*of: Any) -> float:
        asked.append(of)
        return value

    monkeypatch.setattr(compute_dtype, "product_ratio", measured)
    return asked


@pytest.mark.parametrize(
    ("bfloat16", "measured", "expected"),
    [
        (True, None, torch.bfloat16),
        (False, None, torch.float32),
        (None, 0.9, torch.bfloat16),
        (None, 20.0, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch,
    bfloat16: bool | None,
    measured: float | None,
    expected: torch.dtype,
) -> None:
    has(monkeypatch, bfloat16=bfloat16)
    timed = ratio(monkeypatch, measured or 0.0)
    assert native_dtype(CPU) == expected
    # A product is timed only where torch cannot tell.
    assert bool(timed) == (measured is not None)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", torch.float32),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core_vnni", torch.float32),
        ("DNNL_MAX_CPU_ISA", "AVX512_CORE", torch.float32),
        ("ATEN_CPU_CAPABILITY", "avx2", torch.float32),
        ("ATEN_CPU_CAPABILITY", "default", torch.float32),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", torch.bfloat16),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", torch.bfloat16),
        ("ONEDNN_MAX_CPU_ISA", "ALL", torch.bfloat16),
        ("ATEN_CPU_CAPABILITY", "avx512", torch.bfloat16),
    ],
)
def test_the_environment_can_take_a_cpu_its_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    expected: torch.dtype,
    messages: list[str],
) -> None:
    has(monkeypatch, bfloat16=True)
    monkeypatch.setenv(name, value)
    messages.clear()
    assert pick_dtype("auto", CPU) == expected
    (line,) = messages
    assert (f"{name}={value}".lower() in line.lower()) == (expected == torch.float32)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_card_without_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert native_dtype(CUDA) == expected
    # States in a cache may be too large for it.
    stored = torch.bfloat16 if expected == torch.bfloat16 else torch.float32
    assert pick_dtype_for_stored("auto", CUDA) == stored


def test_of_several_cards_the_oldest_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n: [(9, 0), (7, 0)][n])
    assert pick_dtype("auto", CUDA) == torch.bfloat16
    assert pick_dtype("auto", CUDA, spread=True) == torch.float16


@pytest.mark.parametrize(
    ("measured", "expected"), [(1.0, torch.bfloat16), (float("inf"), torch.float32)]
)
def test_other_devices_are_timed(
    monkeypatch: pytest.MonkeyPatch, measured: float, expected: torch.dtype
) -> None:
    ratio(monkeypatch, measured)
    assert native_dtype(torch.device("mps")) == expected


def test_a_type_that_a_device_does_not_know_is_infinitely_slow() -> None:
    assert compute_dtype.product_ratio(torch.int8, torch.float32, torch.device("meta")) > 1e9


def test_a_slow_type_is_warned_of_once_with_the_ratio(
    monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    has(monkeypatch, bfloat16=False)
    ratio(monkeypatch, 150.0)
    messages.clear()
    for _ in range(2):
        assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    (line,) = messages
    assert "bfloat16 is slow here" in line
    assert "150 times" in line
    pick_dtype(torch.float16, CPU)
    assert len(messages) == 2


@pytest.mark.parametrize("asked", ["bfloat16", "float32"])
def test_a_type_that_is_native_or_wide_is_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, asked: Any, messages: list[str]
) -> None:
    has(monkeypatch, bfloat16=True)
    timed = ratio(monkeypatch, 150.0)
    messages.clear()
    pick_dtype(asked, CPU)
    assert (messages, timed) == ([], [])


def test_what_is_as_fast_is_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    has(monkeypatch, bfloat16=True)
    ratio(monkeypatch, 1.0)
    messages.clear()
    pick_dtype("float16", CPU)
    assert messages == []


def test_measuring_takes_nobody_his_random_numbers() -> None:
    before = torch.get_rng_state()
    assert compute_dtype.product_ratio.__wrapped__(torch.float16, torch.float32, CPU) > 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("asked", ["bf16", "float64", torch.float64, None, 16])
def test_other_types_are_refused_by_name(asked: Any) -> None:
    with pytest.raises(UsageError, match="expected one of auto, bfloat16, float16, float32"):
        dtype_name(asked)


def test_names_and_torchs_types_are_the_same() -> None:
    assert dtype_name(torch.bfloat16) == dtype_name("bfloat16") == "bfloat16"
    assert dtype_name("auto") == "auto"


def test_this_processor_without_its_instructions_computes_in_float32() -> None:
    program = (
        "import torch; from mav.pipeline.runtime.compute_dtype import native_dtype;"
        "print(native_dtype(torch.device('cpu')))"
    )
    env = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=env,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "torch.float32", done.stderr
