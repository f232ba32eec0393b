"""The queue between clients and the thread that decodes: first come, first served, bounded."""

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from mav.pipeline.serving.errors import ApiError, shutting_down
from mav.pipeline.serving.jobs import Job


class Waiting:
    """Jobs that wait, and the signal that wakes the one thread that takes them."""

    def __init__(self, most: int) -> None:
        """Begin empty.

        Args:
            most: Most jobs that may wait.
        """
        self._most = most
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._deadline = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def closed(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closed

    @property
    def overdue(self) -> bool:
        """Whether the time that was left for running jobs at the closing is over."""
        return self._closed and monotonic() >= self._deadline

    def put(self, job: Job) -> None:
        """Add a job.

        Raises:
            ApiError: Too many wait already, or the server goes.
        """
        with self._changed:
            if self._closed:
                raise shutting_down()
            if len(self._jobs) >= self._most:
                raise ApiError(
                    429,
                    f"{len(self._jobs)} requests wait already, no more are taken; try again soon.",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            self._jobs.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Cancel a job; drop it if it still waits."""
        with self._changed:
            job.cancelled = True
            if job in self._jobs:
                self._jobs.remove(job)
            self._changed.notify_all()

    def take(self, fits: Callable[[Job], bool]) -> list[Job]:
        """Return the jobs from the head of the queue on, up to the first that does not fit."""
        taken: list[Job] = []
        with self._changed:
            while self._jobs and fits(self._jobs[0]):
                taken.append(self._jobs.popleft())
        return taken

    def head(self) -> Job | None:
        """Return the job that is next, which stays where it is."""
        with self._changed:
            return self._jobs[0] if self._jobs else None

    def wait(self) -> None:
        """Sleep until there is a job, or until the closing."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs) or self._closed)

    def close(self, grace: float = 0.0) -> None:
        """Take no more jobs and refuse those that wait; running ones have some seconds left."""
        with self._changed:
            if not self._closed:
                self._closed = True
                self._deadline = monotonic() + grace
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in left:
            job.outbox.put([shutting_down()])
