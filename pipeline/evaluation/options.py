"""What an evaluation is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from mav.pipeline.runtime.choices import Split
from mav.pipeline.runtime.load_options import DeviceOptions
from mav.pipeline.runtime.options import known, option


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DeviceOptions):
    """What `mav evaluate` is asked for.

    Attributes:
        head: Folder of a head or of a training run, or a hub id.
        cache: Folder or URL of the cache.
        alphas: Strengths.
        pairs: Part of the cache's pairs. If None, those held out from training where the cache
            has pairs of a data set the head was trained on, or one that is for evaluation alone;
            else all.
        dtype: Type of the products; `auto` is bfloat16 where states are stored in it and the device
            multiplies it natively, else float32.
        device: `auto` or a torch device.
    """

    head: str | Path = field(metadata=known(help="Folder or hub id of a head."))
    cache: str | Path = field(metadata=known(help="Cache to use: folder or URL."))
    alphas: Sequence[float] = option((0.0, 0.5, 1.0, 1.5, 2.0), numbers=True, help="Strengths.")
    pairs: Split | None = option(
        None,
        choices=get_args(Split),
        default_text="held-out if the head was trained on it, else all",
        help="Part of the cache.",
    )
