"""Whether a figure on the device is that of float32 on the CPU, as nearly as its type allows."""

import math
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor

from benchmarks.gpu.place import Tell
from mav.pipeline.extraction.model_checks import relative_error

TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Relative errors (Frobenius norm) that count as rounding; wrong code gives 0.1 to 1."""
_FRAMES: Final = 4
SAME: Final = 0.0
"""Of what is only moved, to the last bit."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a comparison.

    Attributes:
        error: What was measured, or None where nothing could be.
        tolerance: The most that is right.
        right: Whether it is.
        failure: What was raised in place of a figure.
    """

    error: float | None
    tolerance: float
    right: bool
    failure: str | None = None


class Checks:
    """Compares, and goes on whatever comes of it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._failed = 0

    def check(self, name: str, tolerance: float, measure: Callable[[], float]) -> None:
        """Tell a verdict.

        Args:
            name: What is compared.
            tolerance: The most that is right.
            measure: Returns the error.
        """
        try:
            error = measure()
        except Exception as raised:
            self._failed += 1
            verdict = Verdict(error=None, tolerance=tolerance, right=False, failure=told(raised))
        else:
            # JSON knows no number that is none.
            finite = error if math.isfinite(error) else None
            # Written so that a NaN is not right.
            verdict = Verdict(error=finite, tolerance=tolerance, right=error <= tolerance)
        self._tell(**{name: asdict(verdict)})

    def finish(self) -> None:
        """End the part.

        Raises:
            RuntimeError: A comparison could not be made, which can spoil the process.
        """
        if self._failed:
            raise RuntimeError(f"{self._failed} comparisons raised an error")


def told(error: Exception) -> str:
    """Return an error with the places it last came through."""
    return "".join(traceback.format_exception(error, limit=-_FRAMES))


def apart(got: Tensor, want: Tensor) -> float:
    """Return the relative error of a tensor on any device."""
    if got.shape != want.shape:
        return math.inf
    return relative_error(got.detach().cpu(), want.detach().cpu())


def named(dtype: torch.dtype) -> str:
    """Return what a type is called."""
    return str(dtype).removeprefix("torch.")
