"""What a pass of a model returns where something is added to its logits."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.steering.uncertainty import plus_where


def with_added(
    model: Any,
    given: tuple[tuple[Any, ...], dict[str, Any]],
    output: Any,
    added: Tensor,
    where: Tensor | None = None,
) -> Any:
    """Return a pass's output with something added to its logits, and its loss as these have it.

    Args:
        model: The transformers model.
        given: Positional and named arguments of its pass.
        output: What it returned.
        added: [B, T, vocab]; or [N, vocab] of the positions that something is added at.
        where: These positions, bool [B, T], or None for all.
    """
    # In float32: a small alpha must not be rounded away against a large logit.
    if where is None:
        logits = output.logits.float() + added.to(output.logits.device)
    else:
        logits = plus_where(output.logits, added, where)
    if output.get("loss") is not None:
        output.loss = _aligned_loss(model, given, output.loss, output.logits, logits)
    output.logits = logits
    return output


def require_named(output: Any) -> None:
    """Refuse an output of a pass that is a plain tuple."""
    if isinstance(output, tuple):
        raise UsageError(
            "return_dict: got False, expected True, as a steered model returns its logits by "
            "name; leave it out, or read `output.to_tuple()`"
        )


def _aligned_loss(
    model: Any,
    given: tuple[Sequence[Any], Mapping[str, Any]],
    base_loss: Tensor,
    base_logits: Tensor,
    logits: Tensor,
) -> Tensor:
    """Return what the model's own loss would have been with other logits.

    Args:
        model: The transformers model.
        given: Positional and named arguments of its pass, `labels` among them.
        base_loss: Its loss.
        base_logits: What that was computed from, [B, T, vocab].
        logits: The other logits, likewise.
    """
    passed = inspect.signature(model.forward).bind(*given[0], **given[1])
    passed.apply_defaults()
    # What a pass has no name for is the loss function's, such as `num_items_in_batch`.
    extra: dict[str, Any] = next(
        (
            passed.arguments[name]
            for name, parameter in passed.signature.parameters.items()
            if parameter.kind is inspect.Parameter.VAR_KEYWORD
        ),
        {},
    )
    mine, before = (
        model.loss_function(
            logits=each, labels=passed.arguments["labels"], vocab_size=each.shape[-1], **extra
        )
        for each in (logits, base_logits)
    )
    # What else is in the loss, such as that which balances experts, is not a function of the
    # logits.
    loss: Tensor = mine + (base_loss - before)
    return loss
