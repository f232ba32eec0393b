"""Hooks that capture the hidden states of chosen layers during a forward pass."""

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class HiddenStateHooks:
    """Captures the hidden states of chosen layers in the latest forward pass.

    `hidden_states[i]` is what decoder layer i (counted from 0) is given, for i < L; the last is
    what the decoder returns, after the final norm. Use as a context manager.

    Attributes:
        states: Layer index -> [B, S, hidden] from the latest pass.
        paused: Whether to let states pass without keeping them.
    """

    def __init__(self, decoder: nn.Module, layers: Sequence[nn.Module], indices: Sequence[int]):
        """Prepare; hooks are registered on entering the context.

        Args:
            decoder: The model without its output embedding.
            layers: Its decoder layers, in order.
            indices: The layers to keep, 0 to len(layers).
        """
        self._decoder = decoder
        self._layers = layers
        self._indices = tuple(indices)
        self._handles: list[RemovableHandle] = []
        self.states: dict[int, Tensor] = {}
        self.paused = False

    def __enter__(self) -> Self:
        for index in self._indices:
            if index < len(self._layers):
                self._handles.append(
                    self._layers[index].register_forward_pre_hook(
                        self._keep_input(index), with_kwargs=True
                    )
                )
            else:
                self._handles.append(self._decoder.register_forward_hook(self._keep_final))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.states.clear()

    def _keep_input(self, index: int) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.paused:
                self.states[index] = args[0] if args else kwargs["hidden_states"]

        return keep

    def _keep_final(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if not self.paused:
            self.states[len(self._layers)] = output[0]
