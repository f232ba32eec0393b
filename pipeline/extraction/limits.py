"""Checks an extraction's options against the base's configuration, before weights are read."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.layer_selection import select_layers
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.tokenization import TokenizedPairs

_BY_LENGTH: Final = ("dynamic", "longrope")
"""Rotary embeddings that are rescaled for all positions once a text exceeds a length."""


def require_allowed(options: ExtractOptions, config: Any) -> None:
    """Refuse options that the base does not support.

    Args:
        options: What is asked for.
        config: The configuration of the base's text decoder.

    Raises:
        UsageError: Naming the option.
    """
    select_layers(options.layer_selection, options.num_layers, int(config.num_hidden_layers))
    options.require_top_k(int(config.vocab_size))


def require_readable(base: str, pairs: TokenizedPairs, config: Any) -> None:
    """Refuse texts longer than the context, or long enough to rescale the rotary embedding.

    Args:
        base: What the base is called.
        pairs: The pairs.
        config: The configuration of the base's text decoder.

    Raises:
        UsageError: Naming the longest length allowed.
    """
    lengths = np.diff(pairs.bounds, axis=1)
    # The last token of a text is only predicted.
    longest = int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max()) - 1
    reads = getattr(config, "max_position_embeddings", None)
    if reads is not None and longest > reads:
        raise UsageError(
            f"max_length: a text has {longest} tokens, but {base} reads at most {reads}; use "
            f"`max_length` {reads}"
        )
    for rotary in _rotary_embeddings(config):
        kind = rotary.get("rope_type")
        steady = rotary.get("original_max_position_embeddings", reads)
        if kind in _BY_LENGTH and steady is not None and longest > steady:
            raise UsageError(
                f"max_length: a text has {longest} tokens, but beyond {steady} {base} rescales "
                f"its rotary embedding (rope_type {kind}), so hidden states would depend on the "
                f"rest of the batch; use `max_length` {steady}"
            )


def _rotary_embeddings(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of rotary embeddings, which may differ by layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (own for own in parameters.values() if isinstance(own, Mapping))
