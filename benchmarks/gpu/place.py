"""Where parts run: the device, its type, a folder, and what several parts share."""

import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import which
from time import monotonic
from typing import Any, Protocol

import torch
import transformers

from benchmarks.gpu.sizes import FULL, MINIATURE, Sizes, compute_dtype
from benchmarks.matmul import best_matmul_rate
from benchmarks.shapes import EndlessBase
from benchmarks.synthetic import machine
from mav.pipeline.runtime.devices import pick_device


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a worker.

    Attributes:
        device: `auto` or a torch device.
        miniature: Whether all is small.
        work: Folder for what is written.
    """

    device: str
    miniature: bool
    work: Path


class Tell(Protocol):
    """Takes the figures of a part as they come."""

    def __call__(self, **figures: Any) -> None:
        """Take figures; of one that comes again the latest counts."""


class Place:
    """The machine as parts see it.

    Attributes:
        settings: What was asked for.
        sizes: How large everything is.
        device: Where to compute.
        dtype: In what type.
        ends: When the part that runs has to be done, by `monotonic`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sizes: Sizes = MINIATURE if settings.miniature else FULL
        self.device = pick_device(settings.device)
        self.dtype = compute_dtype(self.device)
        self.ends = monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left to the part."""
        return self.ends - monotonic()

    @property
    def types(self) -> tuple[torch.dtype, ...]:
        """The types whose results are compared: float32 and a narrow one."""
        narrow = torch.bfloat16 if self.dtype == torch.float32 else self.dtype
        return (torch.float32, narrow)

    @cached_property
    def base(self) -> EndlessBase:
        """The base that is timed, made when it is first asked for."""
        return self.sizes.base_shape(self.dtype).load(self.device)

    @cached_property
    def matmul_rate(self) -> float:
        """Floating-point operations per second of a large product."""
        return best_matmul_rate(self.sizes.matmul, self.device, self.dtype)

    def folder(self, name: str) -> Path:
        """Return a new folder."""
        found = self.settings.work / name
        found.mkdir(parents=True)
        return found

    def described(self) -> dict[str, Any]:
        """Return what figures are measured on and with."""
        of_cuda: dict[str, Any] = {}
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            of_cuda = {
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "cuda_version": torch.version.cuda,
            }
        return {
            **machine(self.device),
            **of_cuda,
            "driver": _driver(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "transformers_version": transformers.__version__,
            "sizes": "miniature" if self.settings.miniature else "full",
        }


def _driver() -> str | None:
    program = which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[0].strip() or None
