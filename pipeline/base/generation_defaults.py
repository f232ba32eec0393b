"""A base's generation_config: its end tokens always apply, its sampling settings only on request.

transformers takes settings that a call of `generate()` does not give from the model's own
configuration. So that no such setting acts silently, the configuration is emptied while responses
are decoded, and requested settings are passed as options.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import GenerationConfig

FILE: Final = "generation_config.json"


@contextmanager
def generation_config_set_aside(model: Any) -> Iterator[None]:
    """Give a model an empty generation_config while the context is open."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def tokens_named(config: Any) -> list[int]:
    """Return the tokens that a generation_config says end a response, if it names any."""
    return _ends(getattr(config, "eos_token_id", None))


def readable_config(folder: Path) -> tuple[GenerationConfig | None, str | None]:
    """Return a generation_config to load a base with instead of one that cannot be read.

    Args:
        folder: The base's folder.

    Returns:
        What can be read, or None if the base's own is valid; and the problem, or None.
    """
    path = folder / FILE
    if not path.is_file():
        return None, None
    named: Any = None
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
        GenerationConfig.from_dict(named)
    except Exception as error:
        # A value of the wrong type makes transformers' checks raise exceptions of many types.
        wrong = " ".join(str(error).split())
        problem = (
            f"{path}: ignored, except for the tokens that end answers, because it cannot be read: "
            f"{type(error).__name__}: {wrong}"
        )
    else:
        return None, None
    ends = named.get("eos_token_id") if isinstance(named, dict) else None
    return GenerationConfig(eos_token_id=_ends(ends) or None), problem


def _ends(named: object) -> list[int]:
    each = named if isinstance(named, list | tuple) else [named]
    return [token for token in each if type(token) is int and token >= 0]
