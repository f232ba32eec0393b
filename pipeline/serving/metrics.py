"""Counters and timings of a server, in Prometheus' format."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ENDPOINTS: Final = (
    "/",
    "/health",
    "/version",
    "/metrics",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
)
"""Paths that are counted by name; all others are counted as `other`."""

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_TOKEN_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Metrics:
    """The metrics of one server; servers in the same process do not share them.

    Attributes:
        prompt_tokens: Prompt tokens processed.
        generated_tokens: Tokens generated.
        steered_tokens: Those of them that heads were added at.
        first_token: Seconds from the arrival of a request to its first token.
        each_token: Seconds from one token of a choice to the next.
        switches: Switches of the base, by result: `done` or `refused`.
        failures: Forward passes that failed, for example because memory ran out.
    """

    def __init__(self) -> None:
        """Create all metrics, at zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mav_requests",
            "Requests by endpoint and status; 499 if the client disconnected.",
            ["endpoint", "status"],
            registry=self._registry,
        )
        self.prompt_tokens = self._counter("mav_prompt_tokens", "Prompt tokens processed.")
        self.generated_tokens = self._counter("mav_generated_tokens", "Tokens generated.")
        self.steered_tokens = self._counter(
            "mav_steered_tokens", "Generated tokens that heads were added at."
        )
        self.failures = self._counter("mav_failed_passes", "Forward passes that failed.")
        self.switches = Counter(
            "mav_base_switches",
            "Switches to another base, by result.",
            ["result"],
            registry=self._registry,
        )
        self.first_token = Histogram(
            "mav_first_token_seconds",
            "Seconds from the arrival of a request to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.each_token = Histogram(
            "mav_token_seconds",
            "Seconds from one token of a choice to the next.",
            buckets=_TOKEN_SECONDS,
            registry=self._registry,
        )

    def watch(self, queue: Callable[[], int], rows: Callable[[], int]) -> None:
        """Report queue length and running choices, read whenever the metrics are."""
        for name, text, value in (
            ("mav_queue_length", "Requests waiting in the queue.", queue),
            ("mav_rows", "Choices being decoded.", rows),
        ):
            gauge = Gauge(name, text, registry=self._registry)
            gauge.set_function(value)

    def count_request(self, path: str, status: int) -> None:
        """Count a request."""
        endpoint = path if path in ENDPOINTS else "other"
        self._requests.labels(endpoint=endpoint, status=str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)
