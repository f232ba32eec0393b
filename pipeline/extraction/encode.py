"""Rows of a block derived from its states: logits in the cache's encoding, and quantized codes.

Shape legend: N response tokens, H hidden, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mav.cache_schema.encoding.quantization import QUANTIZED
from mav.cache_schema.errors import BaseModelError
from mav.cache_schema.manifest import Manifest
from mav.pipeline.extraction.quantize import quantize
from mav.pipeline.ops.base_logits import Unembedding, encode_topk
from mav.pipeline.ops.tensor_storage import from_stored, require_holds, to_stored
from mav.pipeline.runtime.compute_dtype import TORCH_DTYPES

_LOGITS_AT_ONCE: Final = 1 << 25
"""Elements of the largest tokens-by-vocabulary tensor, 128 MiB in float32."""


def vocabulary_rows(
    manifest: Manifest,
    final_NH: Tensor,
    labels_N: NDArray[np.int32],
    unembedding: Unembedding | None,
    own_NV: Tensor | None,
) -> dict[str, NDArray[Any]]:
    """Return the logits rows of encodings other than `factored`, computed in chunks.

    Args:
        manifest: The cache's manifest.
        final_NH: Final states.
        labels_N: The tokens they predict.
        unembedding: The base's output embedding, if its logits follow from it.
        own_NV: Otherwise the base's own logits.

    Raises:
        BaseModelError: A log-probability is not finite.
    """
    if manifest.logits.encoding == "factored":
        return {}
    labels_N1 = torch.from_numpy(labels_N).to(final_NH.device).long()[:, None]
    at_once = max(1, _LOGITS_AT_ONCE // manifest.base.vocab_size)
    parts: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(final_NH), at_once):
        piece = slice(start, start + at_once)
        if unembedding is not None:
            logits_NV = unembedding(final_NH[piece])
        else:
            assert own_NV is not None
            logits_NV = own_NV[piece]
        label = logits_NV.gather(-1, labels_N1[piece])[:, 0]
        rows = {"base_logprobs": label - logits_NV.logsumexp(-1)}
        if not rows["base_logprobs"].isfinite().all():
            computed_in = " and ".join(manifest.states.compute_dtypes)
            raise BaseModelError(
                f"{manifest.base.id}: its log-probabilities are not finite in {computed_in}. Use "
                f"`dtype` bfloat16 or float32."
            )
        if manifest.logits.encoding == "dense":
            require_holds(logits_NV, manifest.states.dtype, f"{manifest.base.id}: its logits")
            rows["base_logits"] = logits_NV.to(TORCH_DTYPES[manifest.states.dtype])
        elif manifest.logits.top_k is not None:
            rows |= encode_topk(logits_NV, manifest.logits.top_k)
        for path, values in rows.items():
            parts.setdefault(path, []).append(to_stored(values))
    return {path: np.concatenate(values) for path, values in parts.items()}


def quantized_rows(
    rows: Mapping[str, NDArray[Any]], manifest: Manifest, device: torch.device
) -> dict[str, NDArray[Any]]:
    """Return the rows of a whole block with its states quantized as the manifest says.

    Args:
        rows: Its rows, the states as computed.
        manifest: The cache's manifest.
        device: Where to compute.
    """
    stored = dict(rows)
    for path in QUANTIZED:
        if path in rows:
            states = from_stored(rows[path], manifest.states.dtype).to(device)
            stored |= quantize(path, states, manifest.storage.states)
    return stored
