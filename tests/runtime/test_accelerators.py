"""What only an accelerator brings about, shown without one."""

import importlib.metadata
import threading
from pathlib import Path

import pytest
import torch

from mav.pipeline.loader.batch import Batch
from mav.pipeline.loader.dataset import prefetch
from mav.pipeline.loader.sampler import StepLayout
from mav.pipeline.runtime.memory import is_out_of_memory
from mav.pipeline.runtime.versions import UNKNOWN, package_versions
from tests.support.caches.streams import stream


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.95 GB)"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:30],
)
def test_memory_that_did_not_suffice(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_not_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


def test_batches_are_pinned_by_the_accelerator_in_use(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = threading.local()
    pinned: list[int] = []

    def pin(batch: Batch) -> Batch:
        pinned.append(getattr(current, "index", 0))
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pin)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_device_index", lambda: 3)
    monkeypatch.setattr(
        "torch.accelerator.set_device_index", lambda index: setattr(current, "index", index)
    )
    batches_of_8 = stream(tiny_cache, StepLayout(batch_size=8, grad_accum=1))
    batches = len(list(prefetch(batches_of_8, pinned=True)))
    assert pinned == [3] * batches
    assert len(list(prefetch(batches_of_8))) == batches and len(pinned) == batches


def test_versions_of_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version("torch")
    assert package_versions(["torch", "no-such-package"]) == {
        "torch": known,
        "no-such-package": UNKNOWN,
    }
