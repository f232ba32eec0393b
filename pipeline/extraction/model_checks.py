"""Checks on the first batch that hidden states and logits are what the model itself gives.

Every architecture has its own code, so three facts that everything relies on are not assumed but
measured on real pairs: that the hooks see transformers' own hidden states, that the factored
logits are the model's own, and that packing changes nothing.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.failures import REFUSALS, explain_failures
from mav.pipeline.base.given.borrowed import without_traces
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.quantization import INT8, quantization_in
from mav.pipeline.extraction.forward import run_decoder, run_whole
from mav.pipeline.extraction.packing import PACKINGS, ForwardBatch, Packing, pack, pack_alone
from mav.pipeline.ops.base_logits import Unembedding
from mav.pipeline.preferences.tokenization import TokenizedPairs
from mav.pipeline.runtime.memory import free_memory, is_out_of_memory, too_long_for_memory

_log = logging.getLogger(__name__)

# Relative errors (Frobenius norm) above which two results count as different. The same tensor
# through the same kernels differs by nothing; the same product in another order by rounding,
# which depth multiplies. A wrong layer or mask gives 0.1 to 1.
RTOL_SAME_KERNEL: Final = {torch.bfloat16: 1e-3, torch.float16: 1e-3, torch.float32: 1e-5}
RTOL_REORDERED: Final = {torch.bfloat16: 5e-2, torch.float16: 2e-2, torch.float32: 1e-4}
# bitsandbytes' int8 rounds activations to eight bits, and which columns it leaves out of that as
# outliers is decided over the whole batch (LLM.int8, https://arxiv.org/abs/2208.07339).
_RTOL_INT8_ACTIVATIONS: Final = 5e-2
_CHECKED_PAIRS: Final = 4


@dataclass(frozen=True, kw_only=True)
class ModelCheckReport:
    """Result of the checks of a base model.

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
) -> ModelCheckReport:
    """Run all checks on a few pairs.

    Args:
        base: The base model.
        pairs: All pairs; the longest and others over the whole range of lengths are used.
        layers: The layers that are taken.
        max_length: Most tokens of a prompt with one response.
        must_factor: Whether logits that cannot be factored are an error.

    Raises:
        BaseModelError: A check failed and no slower way passes it.
    """
    longest_first = np.argsort(-pairs.shared_length, kind="stable")
    spread = np.linspace(0, len(pairs) - 1, min(_CHECKED_PAIRS, len(pairs))).astype(int)
    chosen = [int(longest_first[place]) for place in spread]
    # All hidden states and logits of a text of medium length take little memory.
    batch = pack_alone(pairs, int(longest_first[len(pairs) // 2]))[0].to(base.device)
    with explain_failures(base):
        errors = {"layers": check_layers(base, layers, batch)}
    factored = True
    try:
        with explain_failures(base):
            errors["factored_logits"] = check_unembedding(base, base.unembedding(), batch)
    except BaseModelError as cause:
        if must_factor:
            raise
        factored = False
        _log.warning(f"{cause} They are taken from the whole model.")
    packing, by_packing = choose_packing(base, layers, pairs, chosen, max_length)
    errors["packing"] = by_packing[packing]
    listed = ", ".join(f"{name} {value:.1e}" for name, value in errors.items())
    _log.info(f"Checked on {len(chosen)} pairs, relative errors: {listed}")
    if packing == "shared_prompt":
        _log.warning(
            f"{base.config.model_type}: its attention cannot be replaced, so each pair is run in "
            f"its own sequence, padded, which takes about 1.2 times as long"
        )
    elif packing == "separate":
        _log.warning(
            f"{base.config.model_type}: sharing a prompt between two answers changes its states "
            f"(relative error {by_packing['shared_prompt']:.2g}) or its attention window is "
            f"shorter than the maximum length; each answer is run separately, which "
            f"takes about twice as long"
        )
    return ModelCheckReport(errors=errors, factored=factored, packing=packing)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return ||got - expected|| / ||expected||, in float32 or a wider type."""
    # Not in float64, which not every device has.
    wide = expected.to(torch.promote_types(expected.dtype, torch.float32))
    return float((got.to(wide.dtype) - wide).norm() / wide.norm().clamp_min(1e-30))


@torch.inference_mode()
def check_layers(base: BaseModel, layers: tuple[int, ...], batch: ForwardBatch) -> float:
    """Compare the captured states with `output_hidden_states=True`.

    Returns:
        The largest relative error over the layers.

    Raises:
        BaseModelError: A layer differs.
    """
    with base.hidden_state_hooks(layers) as hooks, without_traces(base.model):
        expected = base.decoder(
            **batch.inputs, use_cache=False, output_hidden_states=True, return_dict=True
        )
        worst = 0.0
        for layer in layers:
            got, want = hooks.states[layer], expected.hidden_states[layer]
            error = relative_error(got, want) if got.shape == want.shape else float("inf")
            worst = max(worst, error)
            # Written so that a NaN, from an overflow in float16 say, does not pass.
            if not error <= RTOL_SAME_KERNEL[base.dtype]:
                raise BaseModelError(
                    f"{base.config.model_type}: the states taken for layer {layer} are not its "
                    f"hidden_states[{layer}] (shapes {tuple(got.shape)} and {tuple(want.shape)}, "
                    f"relative error {error:.2g}). If that is not a number, use another "
                    f"`dtype`; else please report this architecture."
                )
    return worst


@torch.inference_mode()
def check_unembedding(base: BaseModel, unembedding: Unembedding, batch: ForwardBatch) -> float:
    """Compare factored logits with the model's own.

    Returns:
        The relative error.

    Raises:
        BaseModelError: They differ, so only `logits` dense or topk can serve this model.
    """
    last = base.num_hidden_layers
    with base.hidden_state_hooks((last,)) as hooks:
        own = run_whole(base, batch)
        final = hooks.states[last]
    flat = own.reshape(-1, own.shape[-1])[batch.predict]
    error = relative_error(unembedding(final.reshape(-1, final.shape[-1])[batch.predict]), flat)
    if not error <= RTOL_SAME_KERNEL[base.dtype] * 10:
        raise BaseModelError(
            f"{base.config.model_type}: the model's logits are not its final state times its "
            f"output embedding (relative error {error:.2g}), so they cannot be factored. "
            f"Use `logits` dense or `logits` topk."
        )
    return error


def reordering_tolerance(dtype: torch.dtype, quantization: str | None) -> float:
    """Return the relative error that computing the same in another batch may make.

    Args:
        dtype: What the base computes in.
        quantization: How its weights are stored; see `BaseModelRecord.quantization`.
    """
    rounding = RTOL_REORDERED[dtype]
    return max(rounding, _RTOL_INT8_ACTIVATIONS) if quantization == INT8 else rounding


@torch.inference_mode()
def choose_packing(
    base: BaseModel,
    layers: tuple[int, ...],
    pairs: TokenizedPairs,
    chosen: Sequence[int],
    max_length: int,
) -> tuple[Packing, dict[Packing, float]]:
    """Choose the fastest packing under which no state changes.

    Every packing is compared with each response run alone in its batch.

    Returns:
        The packing, and the largest relative error over the layers for every packing tried;
        infinite where the model refuses it.

    Raises:
        BaseModelError: Out of memory for a single pair, or no packing gives the states of a
            response run alone.
    """
    alone = {pair: _alone_states(base, layers, pairs, pair) for pair in chosen}
    tolerance = reordering_tolerance(base.dtype, quantization_in(base.model.config))
    errors: dict[Packing, float] = {}
    for packing in PACKINGS:
        errors[packing] = _packing_error(base, layers, pairs, alone, packing)
        fits = packing != "shared_prompt" or window_fits(base, max_length)
        if fits and errors[packing] <= tolerance:
            return packing, errors
    # Slightly more rounding than usual is accepted if no other packing works.
    if errors["separate"] <= 2 * tolerance:
        return "separate", errors
    raise BaseModelError(
        f"{base.config.model_type}: the states of a text depend on the rest of its batch "
        f"(relative error {errors['separate']:.2g}), so what extraction stores would not be what "
        f"decoding sees. Try `dtype` float32; if that changes nothing, please report this "
        f"architecture."
    )


def _packing_error(
    base: BaseModel,
    layers: tuple[int, ...],
    pairs: TokenizedPairs,
    alone: Mapping[int, dict[int, Tensor]],
    packing: Packing,
) -> float:
    """Return the largest relative error of the pairs together, or of as many as memory allows."""
    together = list(alone)
    while True:
        batch = pack(pairs, together, packing, base.dtype)
        try:
            got = predicting_states(base, layers, batch)
        except Exception as error:
            if not is_out_of_memory(error):
                if packing != "separate" and isinstance(error, REFUSALS):
                    return math.inf
                raise
            if len(together) == 1:
                length = int(pairs.shared_length[together[0]])
                raise too_long_for_memory(base.id, length) from error
        else:
            return max(
                relative_error(got[layer], torch.cat([alone[pair][layer] for pair in together]))
                for layer in layers
            )
        # Not where the error is caught: its frames hold what is to be freed.
        free_memory()
        together = together[len(together) // 2 :]


def _alone_states(
    base: BaseModel, layers: tuple[int, ...], pairs: TokenizedPairs, pair: int
) -> dict[int, Tensor]:
    try:
        answers = [predicting_states(base, layers, batch) for batch in pack_alone(pairs, pair)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise too_long_for_memory(base.id, int(pairs.shared_length[pair])) from error
    return {layer: torch.cat([answer[layer] for answer in answers]) for layer in layers}


def window_fits(base: BaseModel, max_length: int) -> bool:
    """Return whether a model attends to all of a text of the maximum length.

    The mask of a padded sequence replaces the model's sliding window, so
    the longest text must fit in one. GPT-Neo also counts its window in the padded sequence,
    which must fit as a whole.
    """
    limits = [
        (getattr(base.config, "sliding_window", None), max_length),
        (getattr(base.config, "window_size", None), 2 * max_length),
    ]
    # A window of 0 means no window.
    return all(not window or needed <= window for window, needed in limits)


def predicting_states(
    base: BaseModel, layers: tuple[int, ...], batch: ForwardBatch
) -> dict[int, Tensor]:
    """Return the states [N, hidden] of layers at the positions that predict the response tokens.

    Raises:
        NotImplementedError: The base cannot attend as the batch is packed.
    """
    placed = batch.to(base.device)
    with base.hidden_state_hooks(layers) as hooks:
        run_decoder(base, placed)
        return {
            layer: hooks.states[layer].flatten(0, 1).index_select(0, placed.predict)
            for layer in layers
        }
