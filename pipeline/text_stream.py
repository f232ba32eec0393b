"""Tokens out of a running `generate()`, one by one, in another thread."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class TokenStream(BaseStreamer):  # type: ignore[misc]
    """A streamer for one sequence, to iterate over while `generate()` runs elsewhere.

    Raises, where it is iterated over, what `fail` was given.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._prompt_is_next = True

    def put(self, value: Tensor) -> None:
        """Take the prompt, then token after token; called by `generate()`."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        for token in value.flatten().tolist():
            self._queue.put(token)

    def end(self) -> None:
        """End the stream; called by `generate()`."""
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[int]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class Abandoned(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation nobody listens to any longer."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, _: Any, **__: Any) -> Tensor:
        """Return, for each sequence, whether it is to end."""
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
