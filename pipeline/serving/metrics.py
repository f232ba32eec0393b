"""What a server counts and times, in Prometheus' form."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ENDPOINTS: Final = (
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
)
"""Paths that are counted by name; all others are counted as `other`."""

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_TOKEN_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Metrics:
    """All counters of one server; several servers in a process do not share them.

    Attributes:
        prompt_tokens: Tokens of prompts that were read.
        generated_tokens: Tokens of answers.
        first_token: Seconds from a request's coming to its first token.
        each_token: Seconds from a token of an answer to the next.
        switches: Switches of the base by result, `done` or `refused`.
        failures: Passes that failed, such as for lack of memory.
    """

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mav_requests",
            "Requests answered; status 499 where the client had gone.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self.prompt_tokens = self._counter("mav_prompt_tokens", "Tokens of prompts read.")
        self.generated_tokens = self._counter("mav_generated_tokens", "Tokens of answers.")
        self.failures = self._counter("mav_failed_passes", "Passes of the base that failed.")
        self.switches = Counter(
            "mav_base_switches", "Switches of the base.", ["result"], registry=self._registry
        )
        self.first_token = Histogram(
            "mav_first_token_seconds",
            "From a request's coming to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.each_token = Histogram(
            "mav_token_seconds",
            "From a token of an answer to the next.",
            buckets=_TOKEN_SECONDS,
            registry=self._registry,
        )

    def watch(self, queue: Callable[[], int], rows: Callable[[], int]) -> None:
        """Tell from now on how many requests wait and how many answers are decoded."""
        for name, text, value in (
            ("mav_queue_length", "Requests that wait.", queue),
            ("mav_rows", "Answers that are decoded.", rows),
        ):
            gauge = Gauge(name, text, registry=self._registry)
            gauge.set_function(value)

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        endpoint = path if path in ENDPOINTS else "other"
        self._requests.labels(endpoint=endpoint, status=str(status)).inc()

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)
