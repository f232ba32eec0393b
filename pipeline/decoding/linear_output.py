"""Whether a base's logits are linear in its last state, as a head that adds to this state needs."""

from typing import Final

import torch
from torch import Tensor

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.output_forms import possible_forms
from mav.pipeline.ops.base_logits import capped

_TEXT: Final = "How do I say no politely?"
_MOST_ERROR: Final = 1e-2
"""Relative; rounding in bfloat16 makes 0.004, another factor or cap than expected far more."""


@torch.inference_mode()
def require_linear_output(base: BaseModel) -> None:
    """Refuse a base whose logits are not linear in its last state, inside of scale and soft-cap.

    One short text goes through the base.

    Raises:
        BaseModelError: Its output embedding is given something else than the last state, or its
            logits are something else than the products, scaled and capped.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    embedding, last = base.model.get_output_embeddings(), base.num_hidden_layers
    handle = embedding.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    ids = base.tokenizer(_TEXT, return_tensors="pt")["input_ids"].to(base.device)
    try:
        with base.hidden_state_hooks((last,)) as taps:
            logits = base.model(input_ids=ids, use_cache=False, return_dict=True).logits
            state = taps.states[last]
    finally:
        handle.remove()
    if len(seen) == 1 and seen[0][0].shape == state.shape:
        given, product = seen[0]
        forms = possible_forms(base.config)
        least = min(_error(capped(product * form.scale, form.softcap), logits) for form in forms)
        # Written so that what is not a number does not pass.
        if _error(given, state) <= _MOST_ERROR and least <= _MOST_ERROR:
            return
    raise BaseModelError(
        f"{base.config.model_type}: this model's logits are not its last state times its output "
        f"embedding, scaled and capped, so a head of kind unembedding cannot steer it exactly. "
        f"Use a head of kind mlp."
    )


def _error(got: Tensor, expected: Tensor) -> float:
    wide = expected.float()
    return float((got.float().to(wide.device) - wide).norm() / wide.norm().clamp_min(1e-30))
