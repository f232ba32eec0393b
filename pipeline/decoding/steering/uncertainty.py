"""How uncertain a base is of its next token, and additions only where it is uncertain enough."""

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats, float32 [...], of the distributions of logits [..., V].

    Tokens that cannot be chosen, whose logits are minus infinity, count nothing.
    """
    logprobs = logits.float().log_softmax(-1)
    share = logprobs.exp()
    return -(share * logprobs).masked_fill(share == 0, 0.0).sum(-1)


def plus_where(values: Tensor, added: Tensor, where: Tensor) -> Tensor:
    """Return float32 values [B, T, size] with rows added at some positions, the others as they are.

    Args:
        values: What is added to; it is not changed.
        added: Rows, [N, size].
        where: The N positions, bool [B, T].
    """
    wide, places = values.float(), where.to(values.device).nonzero(as_tuple=True)
    return wide.index_put(places, wide[places] + added.to(wide.device))
