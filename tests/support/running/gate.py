"""Decoding that goes on when a test says so."""

import threading
from typing import Any, cast

import pytest

from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.serving.prompts import Choice
from mav.pipeline.serving.worker import Worker
from tests.support.running.limits import wait_until


class Gate:
    """Stops decoding until it is opened, except to start choices or drop cancelled ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, worker: Worker) -> None:
        self.open = threading.Event()
        self.fail: Exception | None = None
        step = ContinuousBatchDecoder.step

        def passes(decoder: ContinuousBatchDecoder) -> bool:
            starts = len(worker.queue) > 0 and worker.rows < worker.max_rows
            cancelled = any(cast("Choice", row.request).job.cancelled for row in decoder.sequences)
            return self.open.is_set() or self.fail is not None or starts or cancelled

        def gated(decoder: ContinuousBatchDecoder) -> Any:
            wait_until(lambda: passes(decoder))
            if self.fail is not None:
                error, self.fail = self.fail, None
                raise error
            return step(decoder)

        monkeypatch.setattr(ContinuousBatchDecoder, "step", gated)
