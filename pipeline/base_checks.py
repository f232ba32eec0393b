"""What is measured on the first batch before an extraction is trusted.

Every base model is its own code. Three facts that everything rests on are therefore not assumed
but compared on real pairs: that the taps see transformers' own hidden states, that the factored
logits are the model's own, and that a shared prompt changes nothing.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from cache_schema.errors import BaseModelError
from pipeline.base_logits import Unembedding
from pipeline.base_model import BaseModel
from pipeline.packing import ForwardBatch, TokenizedPairs, pack_separate, pack_shared

# Relative errors (Frobenius norm) above which two results count as different. The same tensor
# through the same kernels differs by nothing; the same product in another order by rounding,
# which depth multiplies. A wrong layer or mask gives 0.1 to 1.
SAME_PASS: Final = {torch.bfloat16: 1e-3, torch.float16: 1e-3, torch.float32: 1e-5}
OTHER_ORDER: Final = {torch.bfloat16: 5e-2, torch.float16: 2e-2, torch.float32: 1e-4}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return ||got - expected|| / ||expected||, in float64."""
    wide = expected.double()
    return float((got.double() - wide).norm() / wide.norm().clamp_min(1e-30))


@torch.inference_mode()
def check_layers(base: BaseModel, layers: tuple[int, ...], batch: ForwardBatch) -> float:
    """Compare tapped states with `output_hidden_states=True`.

    Returns:
        The largest relative error over the layers.

    Raises:
        BaseModelError: A layer differs.
    """
    with base.taps(layers) as taps:
        expected = base.decoder(**batch.inputs, use_cache=False, output_hidden_states=True)
        worst = 0.0
        for layer in layers:
            got, want = taps.states[layer], expected.hidden_states[layer]
            error = relative_error(got, want) if got.shape == want.shape else float("inf")
            worst = max(worst, error)
            if error > SAME_PASS[base.dtype]:
                raise BaseModelError(
                    f"{base.config.model_type}: the states taken for layer {layer} are not its "
                    f"hidden_states[{layer}] (shapes {tuple(got.shape)} and {tuple(want.shape)}, "
                    f"relative error {error:.2g}). Please report this architecture."
                )
    return worst


@torch.inference_mode()
def check_unembedding(base: BaseModel, unembedding: Unembedding, batch: ForwardBatch) -> float:
    """Compare factored logits with the model's own.

    Returns:
        The relative error.

    Raises:
        BaseModelError: They differ, so only `--logits dense` or `topk` can serve this model.
    """
    last = base.num_hidden_layers
    with base.taps((last,)) as taps:
        own = base.model(**batch.inputs, use_cache=False).logits
        final = taps.states[last]
    flat = own.reshape(-1, own.shape[-1])[batch.predict]
    error = relative_error(unembedding(final.reshape(-1, final.shape[-1])[batch.predict]), flat)
    if error > SAME_PASS[base.dtype] * 10:
        raise BaseModelError(
            f"{base.config.model_type}: the model's logits are not its final state times its "
            f"output embedding (relative error {error:.2g}), so they cannot be factored. "
            f"Use --logits dense or --logits topk."
        )
    return error


@torch.inference_mode()
def check_shared_prompt(
    base: BaseModel, layers: tuple[int, ...], pairs: TokenizedPairs, chosen: Sequence[int]
) -> float:
    """Compare one packed pass over pairs with the plain pass, each answer apart.

    Returns:
        The largest relative error over the layers; infinity where the model refuses the packing.
    """
    shared = pack_shared(pairs, chosen, base.dtype).to(base.device)
    plain = pack_separate(pairs, chosen).to(base.device)
    want = _predicting_states(base, layers, plain)
    try:
        got = _predicting_states(base, layers, shared)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return float("inf")
    return max(relative_error(got[layer], want[layer]) for layer in layers)


def honours_shared_prompt(base: BaseModel, error: float, max_length: int) -> bool:
    """Tell whether a model may run with shared prompts.

    Sliding windows count positions in the packed sequence, so the longest text must fit in one.
    """
    window = getattr(base.config, "sliding_window", None)
    return error <= OTHER_ORDER[base.dtype] and (window is None or max_length <= window)


def _predicting_states(
    base: BaseModel, layers: tuple[int, ...], batch: ForwardBatch
) -> dict[int, Tensor]:
    with base.taps(layers) as taps:
        base.decoder(**batch.inputs, use_cache=False)
        return {
            layer: taps.states[layer].flatten(0, 1).index_select(0, batch.predict)
            for layer in layers
        }
