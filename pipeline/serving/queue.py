"""The queue between the event loop, which talks to clients, and the worker thread.

First come, first served, with a limit. A job carries a request to the worker and its events back.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Literal

from mav.pipeline.serving.api.echo import Echo
from mav.pipeline.serving.api.errors import ApiError, shutting_down
from mav.pipeline.serving.api.logprobs import TokenLogprob
from mav.pipeline.serving.api.requests import CompletionRequest


@dataclass(frozen=True, kw_only=True)
class Started:
    """The prompts of a job have been tokenized.

    Attributes:
        model: Name of the base that generates.
        prompt_tokens: Number of tokens of all prompts.
        echoes: Each prompt as it is sent back, if that is requested.
    """

    model: str
    prompt_tokens: int
    echoes: tuple[Echo, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """A new token of a job.

    Attributes:
        choice: Index of the choice it belongs to.
        text: Text that became final with it; may be empty.
        offset: Position in the choice's text where the token begins, in characters.
        finish_reason: Why the choice ends with this token, or None.
        steered: Whether a head was added at it.
        logprob: Its log-probabilities, if requested; of an end token, only with `echo`.
        prompt: Those of the prompt's tokens, with a choice's first token, if requested.
    """

    choice: int
    text: str
    offset: int
    finish_reason: Literal["stop", "length"] | None
    steered: bool
    logprob: TokenLogprob | None
    prompt: tuple[TokenLogprob, ...] = ()


class Job:
    """A request and the way back to its client.

    Its mailbox holds at most the tokens of one request, whose number is limited.

    Attributes:
        request: The request.
        cancelled: Whether the client is gone; set by the event loop, read by the worker.
        received: When the request arrived, by `perf_counter`.
        request_id: The request's id, for the log.
    """

    def __init__(self, request: CompletionRequest, request_id: str = "unknown") -> None:
        """Create a job; must be called in the event loop that reads its events."""
        self.request, self.request_id = request, request_id
        self.cancelled = False
        self.received = perf_counter()
        self._loop = asyncio.get_running_loop()
        self._mailbox: asyncio.Queue[Started | ApiError | Sequence[TokenEvent]] = asyncio.Queue()

    def send(self, event: Started | ApiError | Sequence[TokenEvent]) -> None:
        """Send an event to the event loop; an `ApiError` ends the job.

        May be called from any thread, also after the loop was closed.
        """
        try:
            self._loop.call_soon_threadsafe(self._mailbox.put_nowait, event)
        except RuntimeError:
            # A closed loop has no clients left.
            assert self._loop.is_closed()

    async def started(self) -> Started:
        """Wait until the prompts have been tokenized.

        Raises:
            ApiError: The job cannot be started.
        """
        event = await self._mailbox.get()
        if isinstance(event, ApiError):
            raise event
        assert isinstance(event, Started)
        return event

    async def tokens(self) -> Sequence[TokenEvent]:
        """Wait for the next tokens, after `started`.

        Raises:
            ApiError: The job failed.
        """
        event = await self._mailbox.get()
        if isinstance(event, ApiError):
            raise event
        assert not isinstance(event, Started)
        return event


class JobQueue:
    """Jobs that wait to be decoded, with a condition that wakes the worker thread."""

    def __init__(self, max_jobs: int) -> None:
        """Create an empty queue.

        Args:
            max_jobs: Most jobs that may wait.
        """
        self._max_jobs = max_jobs
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._deadline = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def closed(self) -> bool:
        """Whether new jobs are refused."""
        return self._closed

    @property
    def overdue(self) -> bool:
        """Whether the queue is closed and the time left to running jobs is over."""
        return self._closed and monotonic() >= self._deadline

    def put(self, job: Job) -> None:
        """Add a job.

        Raises:
            ApiError: The queue is full or closed.
        """
        with self._changed:
            if self._closed:
                raise shutting_down()
            if len(self._jobs) >= self._max_jobs:
                raise ApiError(
                    429,
                    f"The queue is full: {len(self._jobs)} requests are waiting; try again soon.",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            self._jobs.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Mark a job as cancelled, and remove it if it is waiting."""
        with self._changed:
            job.cancelled = True
            if job in self._jobs:
                self._jobs.remove(job)
            self._changed.notify_all()

    def take(self, fits: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the jobs at the front, up to the first that does not fit."""
        taken: list[Job] = []
        with self._changed:
            while self._jobs and fits(self._jobs[0]):
                taken.append(self._jobs.popleft())
        return taken

    def head(self) -> Job | None:
        """Return the next job without removing it, or None."""
        with self._changed:
            return self._jobs[0] if self._jobs else None

    def wait(self) -> None:
        """Block until a job is waiting or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs) or self._closed)

    def close(self, grace: float = 0.0) -> None:
        """Refuse new and waiting jobs.

        Args:
            grace: Seconds left to running jobs. A later call does not change them.
        """
        with self._changed:
            if not self._closed:
                self._closed = True
                self._deadline = monotonic() + grace
            refused = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in refused:
            job.send(shutting_down())
