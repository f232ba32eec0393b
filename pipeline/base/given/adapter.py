"""Adapters in folders, as PEFT saves them: found with their base, loaded into it, merged if asked.

PEFT is an optional dependency, needed for these alone.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.pipeline.runtime.library_logging import QuietLibraries

_log = logging.getLogger(__name__)

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no model of its own."""
    of_a_model = ("config.json", "model.safetensors")
    return (folder / CONFIG).is_file() and not any((folder / name).is_file() for name in of_a_model)


def base_of_adapter(folder: Path) -> str:
    """Return the base that an adapter's configuration names: a hub id, or a folder.

    Raises:
        BaseModelError: It names none, its weights are a pickle, or it is of a kind that cannot be
            used.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        named = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelError(f"{folder / CONFIG}: cannot be read: {error}") from error
    if not isinstance(named, str) or not named:
        raise BaseModelError(
            f"{folder / CONFIG}: got base_model_name_or_path {named!r}, expected the adapter's "
            f"base; write its hub id or folder there"
        )
    if not (folder / WEIGHTS).is_file():
        raise BaseModelError(
            f"{folder}: an adapter without {WEIGHTS}; save it with PEFT's save_pretrained, whose "
            f"default that is (a .bin is a pickle, which can run code when loaded)"
        )
    return named


def adapter_digest(folder: Path, base: str) -> str:
    """Return a SHA-256 over an adapter, its configuration and its base's digest.

    Whether it is merged is no part of it: merged weights are the same up to rounding.
    """
    digest = hashlib.sha256(base.encode())
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def require_peft(subject: str) -> Any:
    """Return the module `peft`.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            f"{subject}: is an adapter, and loading one needs PEFT: pip install 'mav-align[peft]'"
        ) from error
    return peft


def with_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """Return a model with an adapter in its layers, or in its weights.

    Args:
        model: The adapter's base.
        folder: The adapter's folder.
        merge: Whether to add it to the base's own weights, which then cost nothing more at
            decoding, and are rounded once.

    Raises:
        UsageError: PEFT is not installed.
        BaseModelError: It cannot be loaded into this base, or has virtual tokens.
    """
    peft = require_peft(str(folder))
    try:
        if peft.PeftConfig.from_pretrained(str(folder)).is_prompt_learning:
            raise BaseModelError(
                f"{folder}: an adapter of virtual tokens, which stand before every text; expected "
                f"one in the layers, such as LoRA"
            )
        with QuietLibraries():
            wrapped = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False)
            found = wrapped.merge_and_unload() if merge else wrapped.get_base_model()
    except BaseModelError:
        raise
    except Exception as error:
        raise BaseModelError(
            f"{folder}: cannot be loaded into its base as an adapter: {error}"
        ) from error
    _log.info(f"{folder}: adapter {'merged into' if merge else 'loaded beside'} its base's weights")
    return found
