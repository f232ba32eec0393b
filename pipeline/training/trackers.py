"""Trackers that metrics go to beside the run's own log, through accelerate."""

import importlib.util
from typing import Any

from accelerate import Accelerator

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import Tracker


def require_tracker(name: Tracker) -> None:
    """Refuse a tracker whose package is not there; accelerate would go on without it."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UsageError(f"--report-to {name} needs its package: pip install {name}")


def start_tracker(
    accelerator: Accelerator, name: Tracker, first_step: int, settings: dict[str, Any]
) -> None:
    """Begin, or go on with, a run of a tracker.

    Args:
        accelerator: Made with `log_with` naming the tracker.
        name: The tracker.
        first_step: Steps already taken; TensorBoard forgets later ones.
        settings: What decides the run.
    """
    if name == "tensorboard":
        # It shows settings as a run of their own, without which its folder is clearer.
        purged = {"tensorboard": {"purge_step": first_step + 1}}
        accelerator.init_trackers("tensorboard", init_kwargs=purged)
    elif name != "none":
        accelerator.init_trackers("mav", config=settings)
