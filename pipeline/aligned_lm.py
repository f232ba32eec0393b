"""A base model whose logits a head steers, inside every forward pass.

Hooks take the states of the head's layers as they pass, and add alpha * a to the logits the model
returns. So all of `generate()` works unchanged, with one forward pass a token, and the head is
computed only where logits are. `docs/decisions/` says why the addition follows the model's own
logits rather than replace its output embedding.

Shape legend: B sequences, S positions of the pass, T positions with logits, K layers, H hidden.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.base_model import BaseModel
from pipeline.head import AlignmentHead


class AlignedLM:
    """A base and a head, joined while the context is open.

    Attributes:
        base: The base model.
        head: The head, on the base's device.
        alpha: Strength; may be set between calls. 0 leaves the base's logits untouched.
    """

    def __init__(
        self, base: BaseModel, head: AlignmentHead, layers: tuple[int, ...], alpha: float = 1.0
    ) -> None:
        """Prepare, without hooking yet.

        Args:
            base: The base model.
            head: A head whose vocabulary is the base's.
            layers: The layers of this base it reads.
            alpha: Strength.
        """
        assert head.config.vocab_size == base.vocab_size
        assert head.config.num_layers == len(layers)
        self.base = base
        self.head = head
        self.alpha = alpha
        self._layers = layers
        self._taps = base.taps(layers)
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Self:
        assert self._handle is None, "an aligned model cannot be joined twice at once"
        self._taps.__enter__()
        self._handle = self.base.model.register_forward_hook(self._steer, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._handle is not None
        self._handle.remove()
        self._handle = None
        self._taps.__exit__()

    def _steer(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.alpha == 0:
            return output
        kept = kwargs.get("logits_to_keep", 0)
        places = slice(-kept, None) if isinstance(kept, int) else kept
        states_BTKH = torch.stack(
            [self._taps.states[layer][:, places] for layer in self._layers], dim=-2
        )
        # In float32: a small alpha must not be rounded away against a large logit.
        output.logits = output.logits.float() + self.alpha * self.vector(states_BTKH)
        return output

    def vector(self, states: Tensor) -> Tensor:
        """Return float32 alignment vectors [..., vocab] for states [..., K, hidden]."""
        with torch.no_grad():
            vector: Tensor = self.head(states.to(self.head.device)).float()
        return vector
