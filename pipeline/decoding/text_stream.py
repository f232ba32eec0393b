"""Streams text out of `generate()` running in another thread."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from mav.pipeline.decoding.response_text import ResponseText


class TextStream(BaseStreamer):  # type: ignore[misc]
    """A streamer for one response, to iterate over while `generate()` runs elsewhere.

    Raises, where it is iterated over, what `fail` was given.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._prompt_is_next = True
        self._text: ResponseText | None = None

    def begin(self, text: ResponseText) -> None:
        """Set the decoder for the tokens that follow."""
        self._text = text

    def put(self, value: Tensor) -> None:
        """Take the prompt, then token after token; called by `generate()`."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        assert self._text is not None
        for token in value.flatten().tolist():
            self._give(self._text.push(token))

    def end(self) -> None:
        """End the response; called by `generate()`."""
        assert self._text is not None
        self._give(self._text.finish())
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[str]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _give(self, piece: str) -> None:
        if piece:
            self._queue.put(piece)


class Abandoned(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation whose listener has gone."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, _: Any, **__: Any) -> Tensor:
        """Return, for each sequence, whether it is to end."""
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


def stream_from(run: Callable[[TextStream, Abandoned], None]) -> Iterator[str]:
    """Yield the text that a generation in a thread of its own writes.

    Args:
        run: Generates into the stream, until what it is given second says stop.

    Raises:
        BaseException: What `run` raises.
    """
    stream, abandoned = TextStream(), threading.Event()

    def guarded() -> None:
        try:
            run(stream, Abandoned(abandoned))
        except BaseException as error:
            stream.fail(error)

    thread = threading.Thread(target=guarded, name="generate", daemon=True)
    thread.start()
    try:
        yield from stream
    finally:
        # Also where the caller stops listening: nothing may steer the base any longer.
        abandoned.set()
        thread.join()
