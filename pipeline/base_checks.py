"""What is measured on the first batch before an extraction is trusted.

Every base model is its own code. Three facts that everything rests on are therefore not assumed
but compared on real pairs: that the taps see transformers' own hidden states, that the factored
logits are the model's own, and that packing changes nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cache_schema.errors import BaseModelError
from pipeline.base_logits import Unembedding
from pipeline.base_model import BaseModel
from pipeline.forward import run_decoder, run_whole
from pipeline.packing import PACKINGS, ForwardBatch, Packing, pack
from pipeline.tokenizing import TokenizedPairs

# Relative errors (Frobenius norm) above which two results count as different. The same tensor
# through the same kernels differs by nothing; the same product in another order by rounding,
# which depth multiplies. A wrong layer or mask gives 0.1 to 1.
SAME_PASS: Final = {torch.bfloat16: 1e-3, torch.float16: 1e-3, torch.float32: 1e-5}
OTHER_ORDER: Final = {torch.bfloat16: 5e-2, torch.float16: 2e-2, torch.float32: 1e-4}


_CHECKED_PAIRS: Final = 4


@dataclass(frozen=True, kw_only=True)
class BaseVerdict:
    """What was found out about a base model.

    Attributes:
        errors: Relative errors that were measured, by what was compared.
        factored: Whether its logits are a function of the final state.
        packing: How pairs may be packed: the quickest way that changes nothing.
    """

    errors: dict[str, float]
    factored: bool
    packing: Packing


def check_base(
    base: BaseModel,
    pairs: TokenizedPairs,
    layers: tuple[int, ...],
    max_length: int,
    *,
    must_factor: bool,
    say: Callable[[str], None],
) -> BaseVerdict:
    """Run all checks on a few pairs.

    Args:
        base: The base model.
        pairs: All pairs; the longest and others over the whole range of lengths are used.
        layers: The layers that are taken.
        max_length: Most tokens of a prompt with one response.
        must_factor: Whether logits that cannot be factored are an error.
        say: Called with each line worth telling the user.

    Raises:
        BaseModelError: A check failed that nothing can make up for.
    """
    longest_first = np.argsort(-pairs.shared_length, kind="stable")
    spread = np.linspace(0, len(pairs) - 1, min(_CHECKED_PAIRS, len(pairs))).astype(int)
    chosen = [int(longest_first[place]) for place in spread]
    batch = pack(pairs, chosen, "apart", base.dtype).to(base.device)
    errors = {"layers": check_layers(base, layers, batch)}
    factored = True
    try:
        errors["factored_logits"] = check_unembedding(base, base.unembedding(), batch)
    except BaseModelError as cause:
        if must_factor:
            raise
        factored = False
        say(f"{cause} They are taken from the whole model.")
    packing, difference = choose_packing(base, layers, pairs, chosen, max_length)
    if math.isfinite(difference):
        errors["shared_prompt"] = difference
    listed = ", ".join(f"{name} {value:.1e}" for name, value in errors.items())
    say(f"Checked on {len(chosen)} pairs, relative errors: {listed}")
    if packing == "padded":
        say(
            f"{base.config.model_type}: its attention cannot be replaced, so each pair is run in a "
            f"sequence of its own, padded, which takes about 1.2 times as long"
        )
    elif packing == "apart":
        say(
            f"{base.config.model_type}: sharing a prompt between two answers changes its states "
            f"(relative error {difference:.2g}) or its attention window is shorter than the "
            f"maximum length; each answer is run apart, which takes about twice as long"
        )
    return BaseVerdict(errors=errors, factored=factored, packing=packing)


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
            # Written so that a NaN, from an overflow in float16 say, does not pass.
            if not error <= SAME_PASS[base.dtype]:
                raise BaseModelError(
                    f"{base.config.model_type}: the states taken for layer {layer} are not its "
                    f"hidden_states[{layer}] (shapes {tuple(got.shape)} and {tuple(want.shape)}, "
                    f"relative error {error:.2g}). If that is no number, use another "
                    f"--dtype; else please report this architecture."
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
        own = run_whole(base, batch)
        final = taps.states[last]
    flat = own.reshape(-1, own.shape[-1])[batch.predict]
    error = relative_error(unembedding(final.reshape(-1, final.shape[-1])[batch.predict]), flat)
    if not error <= SAME_PASS[base.dtype] * 10:
        raise BaseModelError(
            f"{base.config.model_type}: the model's logits are not its final state times its "
            f"output embedding (relative error {error:.2g}), so they cannot be factored. "
            f"Use --logits dense or --logits topk."
        )
    return error


@torch.inference_mode()
def choose_packing(
    base: BaseModel,
    layers: tuple[int, ...],
    pairs: TokenizedPairs,
    chosen: Sequence[int],
    max_length: int,
) -> tuple[Packing, float]:
    """Find the quickest way of packing that changes no state.

    Returns:
        The way, and its largest relative error over the layers; of the last one that was tried
        where every answer must be run apart, infinite where the model refuses it.
    """
    want = _predicting_states(base, layers, pack(pairs, chosen, "apart", base.dtype))
    error = math.inf
    for packing in PACKINGS[:-1]:
        batch = pack(pairs, chosen, packing, base.dtype)
        try:
            got = _predicting_states(base, layers, batch)
        except (RuntimeError, ValueError, TypeError, IndexError):
            # NotImplementedError, which is a RuntimeError, is one of them.
            continue
        error = max(relative_error(got[layer], want[layer]) for layer in layers)
        if error <= OTHER_ORDER[base.dtype] and (
            packing == "packed" or window_fits(base, max_length)
        ):
            return packing, error
    return "apart", error


def window_fits(base: BaseModel, max_length: int) -> bool:
    """Tell whether a model attends to all of a text of the maximum length.

    The mask of a padded sequence says what is hidden, in place of the model's sliding window, so
    the longest text must fit in one. GPT-Neo counts its window in the padded sequence besides,
    which must fit as a whole.
    """
    limits = [
        (getattr(base.config, "sliding_window", None), max_length),
        (getattr(base.config, "window_size", None), 2 * max_length),
    ]
    # A window of 0 is none.
    return all(not window or needed <= window for window, needed in limits)


def _predicting_states(
    base: BaseModel, layers: tuple[int, ...], batch: ForwardBatch
) -> dict[int, Tensor]:
    placed = batch.to(base.device)
    with base.taps(layers) as taps:
        run_decoder(base, placed)
        return {
            layer: taps.states[layer].flatten(0, 1).index_select(0, placed.predict)
            for layer in layers
        }
