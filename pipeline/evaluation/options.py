"""What an evaluation is asked for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import Split
from mav.pipeline.runtime.load_options import DeviceOptions
from mav.pipeline.runtime.named_values import names_of, text_of
from mav.pipeline.runtime.options import known, option


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DeviceOptions):
    """What `mav evaluate` is asked for.

    Attributes:
        head: Folder of a head or of a training run, or a hub id; or several by name.
        cache: Folder or URL of the cache.
        alphas: Strengths; of several heads they multiply those of `alpha`.
        alpha: Of several heads the strength of each; the vector is sum_i alpha_i a_i.
        pairs: Part of the cache's pairs. If None, those held out from training where the cache
            has pairs of a data set the head was trained on, or one that is for evaluation alone;
            else all.
        dtype: Type of the products; `auto` is bfloat16 where states are stored in it and the device
            multiplies it natively, else float32.
        device: `auto` or a torch device.
    """

    head: str | Path | Mapping[str, str | Path] = field(
        metadata=known(
            help="Folder or hub id of a head; of several NAME=HEAD, given again.",
            metavar="[NAME=]HEAD",
        )
    )
    cache: str | Path = field(metadata=known(help="Cache to use: folder or URL."))
    alphas: Sequence[float] = option((0.0, 0.5, 1.0, 1.5, 2.0), numbers=True, help="Strengths.")
    alpha: Mapping[str, float] | None = option(
        None,
        metavar="NAME=ALPHA,…",
        help="Strength of each of several heads; those above multiply it.",
    )
    pairs: Split | None = option(
        None,
        choices=get_args(Split),
        default_text="held-out if the head was trained on it, else all",
        help="Part of the cache.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = names_of(self.head)
        given = self.alpha or {}
        wrong = [name for name in given if name not in names]
        missing = [name for name in names if name not in given]
        if wrong or missing:
            told = text_of(given) or "none"
            raise UsageError(
                f"alpha: got {told}, expected a number for each of the heads by name "
                f"({', '.join(names) or 'there is one head, without a name'}); `alphas` multiply it"
            )
        if not all(math.isfinite(alpha) for alpha in given.values()):
            raise UsageError(f"alpha: got {dict(given)}, expected finite numbers")
