"""Chooses the element type to compute in: what the device multiplies natively, unless given.

On a processor without bfloat16 instructions a bfloat16 product takes a hundred times as long as the
same product in float32, so no type is right everywhere.
"""

import logging
import os
import platform
from functools import cache
from time import perf_counter
from typing import Final, get_args

import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import DtypeName
from mav.pipeline.runtime.devices import pick_device

_log = logging.getLogger(__name__)

Dtype = DtypeName | torch.dtype
"""Accepted from Python: a name, or torch's own type."""

AUTO: Final = "auto"
TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_ENOUGH_FOR_BFLOAT16: Final = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10")
"""Prefixes of the values of ONEDNN_MAX_CPU_ISA that allow bfloat16 instructions."""
_UNLIMITED: Final = ("", "ALL", "DEFAULT")
_SIZE: Final = {"cpu": 256}
_SIZE_ELSEWHERE: Final = 2048
_REPEATS: Final = 3
_AS_FAST: Final = 1.25
"""Largest ratio to the time of a float32 product at which a narrower type counts as native."""


def dtype_name(dtype: Dtype, option: str = "dtype") -> DtypeName:
    """Return the name of a type, or `auto`.

    Raises:
        UsageError: MAV does not compute in it.
    """
    for name in get_args(DtypeName):
        if dtype == name or (name != AUTO and dtype == TORCH_DTYPES[name]):
            known: DtypeName = name
            return known
    raise UsageError(f"{option}: got {dtype!r}, expected one of {', '.join(get_args(DtypeName))}")


def resolve_dtype(asked: Dtype, device: torch.device | str, *, spread: bool = False) -> torch.dtype:
    """Return the type to compute in.

    Args:
        asked: A type, or `auto` for what the device multiplies natively.
        device: Where to compute, or `auto`.
        spread: Whether a model is spread over all devices of that kind.

    Raises:
        UsageError: There is no such type or device.
    """
    return _resolve(asked, device, spread=spread)[0]


def pick_dtype(asked: Dtype, device: torch.device | str, *, spread: bool = False) -> torch.dtype:
    """Return the type to compute in, as `resolve_dtype`, and log why.

    Logs the result of `auto`, or warns, once per process, that the type is slow on the device.
    """
    dtype, placed, reason = _resolve(asked, device, spread=spread)
    if asked == AUTO:
        _log.info(f"Computing in {plain_name(dtype)}: {reason}")
    # float32 is native on every CPU; a user who asks for it there wants its precision.
    elif dtype in TORCH_DTYPES.values() and (dtype, placed.type) != (torch.float32, "cpu"):
        native, _ = _native(placed, spread=spread)
        if dtype != native:
            _warn_if_slow(dtype, native, placed)
    return dtype


def _resolve(
    asked: Dtype, device: torch.device | str, *, spread: bool
) -> tuple[torch.dtype, torch.device, str]:
    """Return the type, the device, and for `auto` the reason for the type."""
    placed = device if isinstance(device, torch.device) else pick_device(device)
    if isinstance(asked, torch.dtype) and asked not in TORCH_DTYPES.values():
        return asked, placed, ""  # float64, for example, which a loaded base may have
    name = dtype_name(asked)
    if name != AUTO:
        return TORCH_DTYPES[name], placed, ""
    native, reason = _native(placed, spread=spread)
    return native, placed, reason


def native_dtype(device: torch.device) -> torch.dtype:
    """Return the fastest type of a device with sufficient range.

    bfloat16 where it is native; on a CUDA device without it float16; else float32.
    """
    return _native(device)[0]


def pick_dtype_for_stored(asked: Dtype, device: torch.device) -> torch.dtype:
    """Return the type for products over stored states.

    As `pick_dtype`, but `auto` is never float16, which stored values may overflow.
    """
    if asked == AUTO and native_dtype(device) == torch.float16:
        _log.info("Computing in float32: stored states may exceed what float16 holds")
        return torch.float32
    return pick_dtype(asked, device)


@cache
def product_ratio(dtype: torch.dtype, other: torch.dtype, device: torch.device) -> float:
    """Return the ratio of the times of a square product in two types.

    Infinite if the device has no such product.
    """
    try:
        return _seconds(dtype, device) / _seconds(other, device)
    except (RuntimeError, TypeError):
        return float("inf")


def _native(device: torch.device, *, spread: bool = False) -> tuple[torch.dtype, str]:
    """Return a device's type, and why."""
    if device.type == "cpu":
        return _native_to_cpu()
    if device.type == "cuda":
        return _native_to_cuda(device, spread=spread)
    for dtype in (torch.bfloat16, torch.float16):
        if product_ratio(dtype, torch.float32, device) <= _AS_FAST:
            return dtype, f"{device.type} multiplies it natively, by a timed product"
    return torch.float32, f"{device.type} multiplies no narrower type as fast, by a timed product"


def _native_to_cuda(device: torch.device, *, spread: bool) -> tuple[torch.dtype, str]:
    if torch.version.hip:
        return torch.bfloat16, "AMD's cards have it"
    number = torch.cuda.current_device() if device.index is None else device.index
    numbers = range(torch.cuda.device_count()) if spread else [number]
    least = min(torch.cuda.get_device_capability(number) for number in numbers)
    capability = f"compute capability {least[0]}.{least[1]}"
    if least >= (8, 0):
        return torch.bfloat16, f"the card multiplies it natively ({capability})"
    return torch.float16, f"the card has no bfloat16 products ({capability})"


def _native_to_cpu() -> tuple[torch.dtype, str]:
    has = _cpu_has_bfloat16()
    if has is None:
        if product_ratio(torch.bfloat16, torch.float32, torch.device("cpu")) <= _AS_FAST:
            return torch.bfloat16, "this processor multiplies it natively, by a timed product"
        has = False
    if not has:
        return torch.float32, "this processor has no bfloat16 instructions"
    limit = _limit_by_environment()
    if limit is not None:
        return torch.float32, f"{limit} leaves this processor no bfloat16 instructions"
    return torch.bfloat16, "this processor multiplies it natively"


def _cpu_has_bfloat16() -> bool | None:
    """Return whether the processor has bfloat16 products that torch uses; None if unknown."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if platform.machine().lower() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _limit_by_environment() -> str | None:
    """Return the setting that disables bfloat16 instructions on an x86 processor, if any."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        isa = os.environ.get(name, "").upper()
        if isa not in _UNLIMITED and not isa.startswith(_ENOUGH_FOR_BFLOAT16):
            return f"{name}={os.environ[name]}"
    capability = os.environ.get("ATEN_CPU_CAPABILITY", "").lower()
    return f"ATEN_CPU_CAPABILITY={capability}" if capability in ("default", "avx2") else None


_warned: Final[set[tuple[torch.dtype, str]]] = set()


def _warn_if_slow(dtype: torch.dtype, native: torch.dtype, device: torch.device) -> None:
    if (dtype, device.type) in _warned:
        return
    ratio = product_ratio(dtype, native, device)
    if ratio <= _AS_FAST:
        return
    _warned.add((dtype, device.type))
    _log.warning(
        f"{plain_name(dtype)} is slow here: on {device.type} a product takes {ratio:.3g} times as "
        f"long as in {plain_name(native)}, which `dtype` auto chooses"
    )


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Return the best time of a square product."""
    size = _SIZE.get(device.type, _SIZE_ELSEWHERE)
    # Ones, because random numbers would advance the user's generator.
    a = torch.ones(size, size).to(device, dtype)

    def run() -> float:
        began = perf_counter()
        # Reading a value back is the only way to synchronise that every device supports.
        float(torch.mm(a, a)[0, 0])
        return perf_counter() - began

    run()
    return min(run() for _ in range(_REPEATS))


def plain_name(dtype: torch.dtype) -> str:
    """Return a type's short name, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")
