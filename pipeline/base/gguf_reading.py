"""Reads a GGUF file with transformers once, and notes tensors that it skips.

transformers parses the whole file for the configuration, again for the tokenizer and again for the
weights, makes a table of all tensor names for each module, and silently skips tensors that it has
no name for.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import gguf
from transformers import modeling_gguf_pytorch_utils

from mav.cache_schema.errors import BaseModelError

_READING = threading.RLock()


class _Names(dict[str, str]):
    """Maps tensor names of the file to the model's; remembers names that had no match."""

    def __init__(self, names: dict[str, str], skipped: set[str]) -> None:
        super().__init__(names)
        self._skipped = skipped

    def __contains__(self, name: object) -> bool:
        known = super().__contains__(name)
        if not known and isinstance(name, str):
            self._skipped.add(name)
        return known


@contextmanager
def gguf_read_once() -> Iterator[set[str]]:
    """Yield a list of the tensor names that transformers skips while the context is open."""
    skipped: set[str] = set()
    mapped: Any = getattr(modeling_gguf_pytorch_utils, "get_gguf_hf_weights_map", None)
    nested = 0

    def names(*arguments: Any, **options: Any) -> dict[str, str]:
        nonlocal nested
        nested += 1
        try:
            tensor_names: dict[str, str] = mapped(*arguments, **options)
        finally:
            nested -= 1
        return tensor_names if nested else _Names(tensor_names, skipped)

    with (
        _READING,
        patch.multiple(
            gguf,
            GGUFReader=lru_cache(maxsize=1)(gguf.GGUFReader),
            get_tensor_name_map=lru_cache(maxsize=1)(gguf.get_tensor_name_map),
        ),
    ):
        # Newer versions read some architectures in another way, and report what they leave out.
        if mapped is None:
            yield skipped
        else:
            with patch.object(modeling_gguf_pytorch_utils, "get_gguf_hf_weights_map", names):
                yield skipped


def require_none_skipped(skipped: set[str], name: str) -> None:
    """Refuse a GGUF file with tensors that transformers does not load.

    Raises:
        BaseModelError: Naming them.
    """
    if not skipped:
        return
    listed = ", ".join(sorted(skipped)[:5]) + (", …" if len(skipped) > 5 else "")
    rotary = any(name.startswith("rope_") for name in skipped)
    raise BaseModelError(
        f"{name}: {len(skipped)} of its tensors not used: transformers does not read them from "
        f"GGUF: {listed}."
        + (
            " They scale the rotary embeddings, so without them every state would differ."
            if rotary
            else ""
        )
        + " Use the model as safetensors."
    )
