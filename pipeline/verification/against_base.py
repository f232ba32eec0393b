"""Runs pairs of a cache through the live base again and compares.

Each response is run apart, in one unpadded sequence through the whole model, with all hidden states
kept: nothing of what extraction does to be fast is shared.

Shape legend: N tokens of a response, K stored layers, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mav.cache_schema.manifest import Manifest
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.model_checks import relative_error, reordering_tolerance
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.ops.tensor_storage import pool_states
from mav.pipeline.preferences.tokenization import TokenizedPairs
from mav.pipeline.runtime.compute_dtype import TORCH_DTYPES
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.verification.inputs import (
    load_base_of,
    require_same_tokens,
    tokenize_sampled,
)
from mav.pipeline.verification.options import VerifyOptions

LOSS: Final = {"computed": 0.0, "int8": 0.02, "fp8": 0.05}
"""Relative error that quantization of states may add."""


@dataclass(frozen=True, kw_only=True)
class BaseComparison:
    """Errors of the cached values against the live base.

    Attributes:
        pairs: Pairs that were run.
        tolerance: Largest relative error (Frobenius norm over a response) that counts as equal.
        errors: Largest relative error met, by what was compared; infinite where values are wrong
            beyond measure.
        differing: Pair -> what differs beyond the tolerance.
    """

    pairs: int
    tolerance: float
    errors: dict[str, float]
    differing: dict[int, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        return {
            "pairs": self.pairs,
            "tolerance": self.tolerance,
            # JSON has no infinity.
            "errors": {n: e if math.isfinite(e) else None for n, e in self.errors.items()},
            "differing": self.differing,
        }


def verify_against_base(options: VerifyOptions, base: BaseModel | None = None) -> BaseComparison:
    """Compare pairs spread over a cache with the live base.

    Args:
        options: The cache, how many pairs to run, and where base and data are now.
        base: A loaded base to use instead of `base_model`.

    Raises:
        MAVError: Cache, base or data are missing, or the base or data are not those of the cache.
    """
    assert options.against_base is not None
    reader = CacheReader(options.cache)
    manifest = reader.manifest
    if base is None:
        base = load_base_of(reader, options)
    wanted = np.unique(
        np.linspace(0, len(reader.pair_id) - 1, options.against_base).round().astype(int)
    )
    pairs = tokenize_sampled(reader, wanted, options.datasets, base)
    require_same_tokens(reader, pairs, base)
    cached = CachedBase(reader, torch.device("cpu"), torch.float32)
    tolerance = _tolerance(manifest, base)
    errors: dict[str, float] = {}
    differing: dict[int, str] = {}
    block = reader.read_block(0)
    with progress_bar(len(wanted), "Running the base", "pair") as bar:
        for pair in wanted.tolist():
            if pair not in block.pairs:
                at = int(np.searchsorted(reader.plan.block_start, pair, side="right")) - 1
                block = reader.read_block(at)
            batch = collate([(block, pair - block.pairs.start)], manifest, 1)
            live = int(np.searchsorted(pairs.pair_id, reader.pair_id[pair]))
            for name, error in _compare(base, pairs, live, batch, cached).items():
                errors[name] = max(errors.get(name, 0.0), error)
                if error > tolerance:
                    known = f"{differing[pair]}; " if pair in differing else ""
                    differing[pair] = f"{known}{name}: relative error {error:.2g}"
            bar.update()
    return BaseComparison(
        pairs=len(wanted), tolerance=tolerance, errors=errors, differing=differing
    )


def _tolerance(manifest: Manifest, base: BaseModel) -> float:
    """Return the tolerance: that of the coarsest type computed, stored or compared in."""
    states = manifest.states
    used = {TORCH_DTYPES[name] for name in (states.dtype, *states.compute_dtypes)} | {base.dtype}
    return (
        max(reordering_tolerance(dtype, manifest.base.quantization) for dtype in used)
        + LOSS[manifest.storage.states]
    )


@torch.inference_mode()
def _compare(
    base: BaseModel, pairs: TokenizedPairs, number: int, batch: Batch, cached: CachedBase
) -> dict[str, float]:
    """Return the relative errors of one pair, the worse of its two responses each."""
    manifest = cached.manifest
    errors: dict[str, float] = {}
    prompt, *responses = pairs.parts(number)
    for response, start in zip(responses, batch.offsets.tolist(), strict=False):
        part = slice(start, start + len(response))
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        output = base.model(
            input_ids=ids[None].to(base.device),
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
        )
        predicting = slice(len(prompt) - 1, len(ids) - 1)
        states_NKW = torch.stack(
            [
                pool_states(
                    output.hidden_states[layer][0, predicting], manifest.states.stored_width
                ).cpu()
                for layer in manifest.states.layers
            ],
            dim=1,
        )
        logits_NV = output.logits[0, predicting].float().cpu()
        label_N1 = ids[len(prompt) :, None]
        logprobs_N = logits_NV.log_softmax(-1).gather(-1, label_N1)[:, 0]
        same_labels = torch.equal(batch.labels[part].long(), label_N1[:, 0])
        by_part = {
            "labels": 0.0 if same_labels else float("inf"),
            **_by_layer(manifest, batch.states[part], states_NKW),
        }
        if batch.base_logprobs is not None:
            by_part["base_logprobs"] = relative_error(batch.base_logprobs[part], logprobs_N)
        # Of a few largest logits only those can be compared, and the log-probabilities are.
        if manifest.logits.encoding != "topk":
            kept_NV = cached.logits(batch).chunk(part.start, part.stop)
            by_part["logits"] = relative_error(kept_NV, logits_NV)
        for name, error in by_part.items():
            # A NaN is neither larger nor smaller than anything.
            worst = float("inf") if math.isnan(error) else error
            errors[name] = max(errors.get(name, 0.0), worst)
    return errors


def _by_layer(manifest: Manifest, got_NKW: Tensor, want_NKW: Tensor) -> dict[str, float]:
    return {
        f"layer {layer}": relative_error(got_NKW[:, place], want_NKW[:, place])
        for place, layer in enumerate(manifest.states.layers)
    }
