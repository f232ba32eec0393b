"""Names by which vLLM finds MAV's classes, in every process of an engine."""

from collections.abc import Sequence
from typing import Final

_PREFIX: Final = "MAV"
_CLASS: Final = "Steered"
_PROCESSOR: Final = "HeadProcessor"
MODELS: Final = "mav.pipeline.engine.models"
PROCESSOR: Final = "mav.pipeline.engine.processor"


def engine_architecture(architecture: str) -> str:
    """Return what a base's architecture is called with heads in it."""
    return _PREFIX + architecture


def model_class(architecture: str, version: str) -> str:
    """Return the name of a base's class with heads in it.

    vLLM keeps what it finds out about a class under the name and the file of the class, which is
    MAV's; so that the name has vLLM's own release in it.
    """
    return f"{_CLASS}_{version.replace('.', '_')}_{architecture}"


def architecture_of(class_name: str, version: str) -> str | None:
    """Return the architecture in a name that `model_class` made, or None."""
    start = model_class("", version)
    return class_name.removeprefix(start) if class_name.startswith(start) else None


def processor_class(names: Sequence[str]) -> str:
    """Return the name of the logits processor's class.

    Requests are checked in processes that are told nothing of the engine but this name, so that
    the names of the heads are in it.
    """
    return _PROCESSOR + (f"_{','.join(names).encode().hex()}" if names else "")


def heads_in(class_name: str) -> tuple[str, ...] | None:
    """Return the heads' names in a name that `processor_class` made, or None."""
    if class_name == _PROCESSOR:
        return ()
    start, _, coded = class_name.partition("_")
    if start != _PROCESSOR:
        return None
    try:
        return tuple(bytes.fromhex(coded).decode().split(","))
    except ValueError:
        return None
