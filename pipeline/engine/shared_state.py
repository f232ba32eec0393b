"""What the model and the logits processor of one engine know of each other.

vLLM makes them apart, the processor first, and hands neither to the other.
"""

import weakref
from collections.abc import Callable
from typing import Any, Final

from mav.pipeline.engine.slots import SteeredRows

_OF_ENGINES: "Final[dict[int, tuple[weakref.ref[Any], SharedState]]]" = {}


class SharedState:
    """What is shared in one engine's worker.

    Attributes:
        plan: Returns the rows that will be steered and how many rows there are, where that is
            known before logits are computed; else None.
    """

    def __init__(self) -> None:
        self._model: Callable[[], Any] = lambda: None
        self.plan: Callable[[], tuple[SteeredRows, int]] | None = None

    @classmethod
    def of(cls, vllm_config: Any) -> "SharedState":
        """Return that of an engine; of several in one process each has its own."""
        # A model may be given a copy of the configuration, which shares this part of it.
        key = vllm_config.compilation_config
        found = _OF_ENGINES.get(id(key))
        if found is None or found[0]() is not key:
            _OF_ENGINES[id(key)] = found = (weakref.ref(key), cls())
        return found[1]

    @property
    def model(self) -> Any:
        """The model, once it is made; it is not kept alive here."""
        return self._model()

    @model.setter
    def model(self, model: Any) -> None:
        self._model = weakref.ref(model)

    def planned_rows(self, count: int) -> SteeredRows | None:
        """Return the rows that will be steered, or None if unknown.

        Args:
            count: Rows whose logits are computed. Where the prompt's log-probabilities are, these
                are others than the batch's.
        """
        if self.plan is None:
            return None
        planned, rows = self.plan()
        return planned if rows == count else None
