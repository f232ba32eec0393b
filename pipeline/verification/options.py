"""What a verification is asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mav.pipeline.runtime.choices import DtypeName
from mav.pipeline.runtime.load_options import PlacementOptions
from mav.pipeline.runtime.options import known, option

if TYPE_CHECKING:
    from mav.pipeline.runtime.compute_dtype import Dtype


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(PlacementOptions):
    """What `mav verify` is asked for.

    Attributes:
        cache: Folder or URL of the cache.
        full: Read everything and compare all digests, rather than sizes alone.
        against_base: Pairs to run through the live base again; None skips that.
        base_model: Where the base is now; where it was if None.
        datasets: Where the cache's data sets are now, in its order; where they were if empty.
        repair: Mark damaged blocks, so that the next extraction computes them again.
        dtype: Type the base computes in; `auto` is what the cache was computed in.
        device: Where the base runs: `auto` or a torch device.
        device_map: How it is spread over several devices; see `LoadOptions`.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.
    """

    cache: str | Path = field(metadata=known(help="Cache to check: folder or URL."))
    full: bool = option(
        True,
        off="fast",
        help="Read everything and compare all digests, or check existence and sizes only.",
    )
    against_base: int | None = option(
        None,
        whole=True,
        at_least=1,
        metavar="N",
        help="Also run N pairs through the base again.",
    )
    base_model: str | None = option(
        None, default_text="where it was", help="Where the base is now."
    )
    datasets: tuple[str, ...] = option(
        (),
        default_text="where they were",
        help="Where the data sets are now, in the cache's order; with columns= after a comma.",
    )
    repair: bool = option(False, help="Mark what is damaged, so that mav extract writes it again.")
    dtype: "Dtype" = option(
        "auto",
        choices=get_args(DtypeName),
        other_types=True,
        help="Element type the base computes in; auto is what the cache was computed in.",
    )
