"""Options of everything that computes: in what type and where."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from mav.pipeline.runtime.choices import DtypeName
from mav.pipeline.runtime.options import check_options, option

if TYPE_CHECKING:
    from mav.pipeline.runtime.compute_dtype import Dtype


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """In what type and where to compute.

    Attributes:
        dtype: Element type, a name or torch's own, or `auto` for what the device multiplies
            natively.
        device: `auto`, or a torch device such as `cuda:1`.
    """

    dtype: "Dtype" = option(
        "auto",
        choices=get_args(DtypeName),
        other_types=True,
        help="Element type to compute in; auto is what the device multiplies natively.",
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps, …")

    def __post_init__(self) -> None:
        check_options(self)
