"""Memory of this process, as Linux counts it: what is resident now, and the most that was."""

import ctypes
import gc
from pathlib import Path

import psutil


def resident_bytes() -> int:
    """Return what is resident after the allocator gave back what it holds but does not use."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    resident: int = psutil.Process().memory_info().rss
    return resident


def forget_peak() -> None:
    """Begin the peak anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the most that was resident since the peak began anew."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
