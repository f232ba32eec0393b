"""Options of everything that computes, and of a base that is to be loaded."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from mav.pipeline.runtime.argument_names import NamedArguments
from mav.pipeline.runtime.choices import DtypeName, Quantize, SpreadName
from mav.pipeline.runtime.options import check_options, option

if TYPE_CHECKING:
    from mav.pipeline.runtime.compute_dtype import Dtype

DeviceMap = str | Mapping[str, int | str]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(NamedArguments):
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


@dataclass(frozen=True, kw_only=True)
class PlacementOptions(DeviceOptions):
    """In what type and on which devices a base computes.

    Attributes:
        device_map: How accelerate spreads the base over several devices (`auto`, `balanced`,
            `sequential`, or a device by module), instead of `device`; None for one device.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.
    """

    device_map: DeviceMap | None = option(
        None,
        choices=get_args(SpreadName),
        other_types=True,
        help="Spread the base over several devices, instead of --device.",
    )
    gguf_cache: bool = option(
        True, help="Convert a GGUF base to safetensors once, in MAV_CACHE_HOME, and load that."
    )


@dataclass(frozen=True, kw_only=True)
class LoadOptions(PlacementOptions):
    """Element type, device and quantization of a base that is to be loaded.

    Attributes:
        dtype: Element type, or `auto` for what the device multiplies natively; GGUF weights are
            dequantised to it.
        device: `auto`, or a torch device such as `cuda:1`.
        device_map: How accelerate spreads the base over several devices (`auto`, `balanced`,
            `sequential`, or a device by module), instead of `device`; None for one device.
        quantize: How the base's weights are quantized when they are loaded.
        gguf_cache: Whether to keep GGUF weights as safetensors in the cache folder, and use them.
        merge_adapter: Add the weights of a base that is an adapter to its base's own, once; else
            its layers stay beside them.
    """

    quantize: Quantize | None = option(
        None,
        choices=get_args(Quantize),
        help="Quantize the base's weights when it is loaded; needs bitsandbytes.",
    )
    merge_adapter: bool = option(
        False, help="Merge a base that is an adapter (LoRA) into the base it names."
    )

    def in_one_dtype(self) -> "LoadOptions":
        """Return a copy with `auto` resolved to a type, and log the choice."""
        from mav.pipeline.runtime.compute_dtype import pick_dtype

        spread = self.device_map is not None
        dtype = pick_dtype(self.dtype, "auto" if spread else self.device, spread=spread)
        return dataclasses.replace(self, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class BaseOptions(LoadOptions):
    """Which files of a base are to be loaded, and how.

    Attributes:
        gguf_file: File inside the base's folder or repository, for weights in GGUF.
        revision: Branch, tag or commit of a hub repository.
    """

    gguf_file: str | None = option(None, help="GGUF file inside the base's folder or repository.")
    revision: str | None = option(None, help="Branch, tag or commit of the base on the hub.")
