"""The worker thread: it owns the model, takes jobs from the queue and decodes them together."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from mav.cache_schema.errors import BaseModelError, MAVError
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.request import TokenOutput
from mav.pipeline.runtime.memory import free_memory
from mav.pipeline.serving.api.echo import Echo, echo_of
from mav.pipeline.serving.api.errors import ApiError, schema_failed, shutting_down
from mav.pipeline.serving.bases import ServedBase
from mav.pipeline.serving.metrics import Metrics
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.prompts import Choice, job_choices
from mav.pipeline.serving.queue import Job, JobQueue, Started, TokenEvent
from mav.pipeline.serving.token_events import token_event

_log = logging.getLogger(__name__)


class Worker:
    """Decodes as many jobs at once as there is room for, and switches between bases.

    Jobs start in the order they arrived. A job for another base waits until all earlier ones have
    ended, and later jobs wait for the switch.

    Attributes:
        bases: The bases that jobs may name.
        queue: The waiting jobs.
        max_rows: Most choices decoded at once.
    """

    def __init__(
        self,
        mav: MAVInference,
        bases: Sequence[ServedBase],
        *,
        options: ServeOptions,
        metrics: Metrics,
    ) -> None:
        """Prepare the worker; `start` starts its thread.

        Args:
            mav: Head and base; from now on, only the worker may decode with them.
            bases: The bases that jobs may name; the first is loaded.
            options: Limits of queue, batch, prompts and choices.
            metrics: Counts tokens and seconds.

        Raises:
            BaseModelError: The base does not support continuous batching.
        """
        self.bases = {base.name: base for base in bases}
        self.queue = JobQueue(options.max_queue)
        self.max_rows = options.max_rows
        self._mav, self._options, self._metrics = mav, options, metrics
        self._base: str | None = bases[0].name
        self._decoder: ContinuousBatchDecoder | None = ContinuousBatchDecoder(mav.joined)
        self._rows = 0
        self._thread = threading.Thread(target=self._run, name="mav-worker", daemon=True)
        metrics.watch(lambda: len(self.queue), lambda: self._rows)

    @property
    def base(self) -> str | None:
        """Name of the base in use, or None if the last switch failed and left none."""
        return self._base

    @property
    def rows(self) -> int:
        """Number of choices that are being decoded."""
        return self._rows

    @property
    def alive(self) -> bool:
        """Whether jobs are accepted."""
        return self._thread.is_alive() and not self.queue.closed

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Refuse new jobs, leave running ones `grace` seconds, and return without waiting."""
        self.queue.close(grace)

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; return whether it did."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while True:
                if not self._rows:
                    self.queue.wait()
                if self.queue.overdue or (self.queue.closed and not self._rows):
                    break
                self._drop_cancelled()
                self._switch_if_requested()
                self._admit()
                self._step()
            self._fail(self._running(), shutting_down())
        except BaseException as error:
            _log.exception("the decoding thread ends")
            self.queue.close()
            self._fail(self._running(), _internal(error))
        self._decoder, self._rows = None, 0

    def _running(self) -> set[Job]:
        if self._decoder is None:
            return set()
        return {_choice(sequence.request).job for sequence in self._decoder.sequences}

    def _fail(self, jobs: Iterable[Job], error: ApiError) -> None:
        for job in jobs:
            job.send(error)

    def _drop_cancelled(self) -> None:
        if self._decoder is None:
            return
        for sequence in list(self._decoder.sequences):
            if _choice(sequence.request).job.cancelled:
                self._decoder.cancel(sequence)
        self._rows = len(self._decoder.sequences)

    def _switch_if_requested(self) -> None:
        job = self.queue.head()
        name = None if job is None else job.request.model
        if name is None or name == self._base or self._rows:
            return
        try:
            self._switch(self.bases[name])
        except ApiError as error:
            # The next jobs for this base would fail for the same reason, after as long a wait.
            refused = self.queue.take(lambda other: other.request.model == name)
            self._fail(refused, error)

    def _switch(self, base: ServedBase) -> None:
        before, self._decoder = self._base, None
        try:
            self._load(base)
            try:
                self._decoder = ContinuousBatchDecoder(self._mav.joined)
            except BaseModelError:
                if before is not None:
                    self._load(self.bases[before])
                raise
        except Exception as error:
            self._metrics.switches.labels(result="refused").inc()
            if not isinstance(error, MAVError):
                _log.exception("%s: the switch to this base failed", base.name)
            self._keep(before)
            if isinstance(error, MAVError):
                raise ApiError(
                    409, f"{base.name}: {error}", param="model", code="switch_refused"
                ) from error
            raise _internal(error) from error
        self._base = base.name
        self._metrics.switches.labels(result="done").inc()

    def _load(self, base: ServedBase) -> None:
        self._mav.switch_base_model(base.path, gguf_file=base.gguf_file, revision=base.revision)

    def _keep(self, before: str | None) -> None:
        """Go on with the base that was in use, if it could be loaded again."""
        try:
            self._decoder = ContinuousBatchDecoder(self._mav.joined)
            self._base = before
        except BaseModelError:
            self._decoder = self._base = None

    def _admit(self) -> None:
        room = self.max_rows - self._rows

        def fits(job: Job) -> bool:
            nonlocal room
            if job.request.model not in (None, self._base) or job.request.choices > room:
                return False
            room -= job.request.choices
            return True

        jobs = self.queue.take(fits)
        if self._decoder is None:
            self._fail(jobs, ApiError(503, "No base is loaded; name one as model.", code="no_base"))
            return
        choices: list[Choice] = []
        for job in jobs:
            choices += self._prepared(job)
        if choices:
            self._pass(lambda decoder: decoder.add(choices), {choice.job for choice in choices})

    def _prepared(self, job: Job) -> list[Choice]:
        """Return a job's choices; none if it cannot start, and the client gets the error."""
        assert self._base is not None
        try:
            choices = job_choices(job, self._mav.joined, self._options)
            echoes = self._echoes(job, choices)
        except ApiError as error:
            job.send(error)
            return []
        except Exception as error:
            # Tokenizers and templates are code of the base's; a failure must not end other jobs.
            _log.exception("request %s: a prompt could not be tokenized", job.request_id)
            job.send(_internal(error))
            return []
        # A prompt's tokens are counted once, however many choices it has.
        count = sum(len(choice.prompt) for choice in choices[:: job.request.n])
        job.send(Started(model=self._base, prompt_tokens=count, echoes=echoes))
        self._metrics.prompt_tokens.inc(count)
        return choices

    def _echoes(self, job: Job, choices: Sequence[Choice]) -> tuple[Echo, ...]:
        if not job.request.echo:
            return ()
        tokenizer = self._mav.joined.base.tokenizer
        read = [[*choice.prompt] for choice in choices[:: job.request.n]]
        return tuple(
            echo_of(tokenizer, prompt, tokens)
            for prompt, tokens in zip(job.request.prompts, read, strict=True)
        )

    def _step(self) -> None:
        if self._rows:
            self._pass(lambda decoder: decoder.step(), set())

    def _pass(
        self, run: Callable[[ContinuousBatchDecoder], Sequence[TokenOutput]], joining: set[Job]
    ) -> None:
        """Run the base. If that fails, all sequences fail, as the cache may be half updated."""
        assert self._decoder is not None
        outputs: Sequence[TokenOutput] | None = None
        try:
            outputs = run(self._decoder)
        except Exception as error:
            failed = self._running() | joining
            ids = ", ".join(sorted(job.request_id for job in failed))
            _log.exception("a forward pass failed, and with it: %s", ids)
            self._metrics.failures.inc()
            self._fail(failed, _internal(error))
        if outputs is None:
            # Not in the except block, as the error's frames hold the memory to be freed.
            self._decoder = ContinuousBatchDecoder(self._mav.joined)
            free_memory()
        self._rows = len(self._decoder.sequences)
        self._send(outputs or (), joining)

    def _send(self, outputs: Sequence[TokenOutput], joining: set[Job]) -> None:
        events: dict[Job, list[TokenEvent]] = {}
        failed: dict[Job, ApiError] = {}
        for output in outputs:
            choice = _choice(output.sequence.request)
            event = token_event(choice, output, self._mav.joined)
            events.setdefault(choice.job, []).append(event)
            if output.error is not None:
                failed[choice.job] = schema_failed(output.error)
            if output.seconds is not None:
                self._metrics.each_token.observe(output.seconds)
        generated = [
            one for one in outputs if _choice(one.sequence.request).job.request.max_tokens != 0
        ]
        self._metrics.generated_tokens.inc(len(generated))
        self._metrics.steered_tokens.inc(sum(one.steered for one in generated))
        for job, tokens in events.items():
            if job in joining:
                self._metrics.first_token.observe(perf_counter() - job.received)
            # A job that fails is cancelled by its client, and with it the other choices.
            job.send(failed.get(job, tokens))


def _choice(request: object) -> Choice:
    assert isinstance(request, Choice)
    return request


def _internal(error: BaseException) -> ApiError:
    return ApiError(
        500,
        f"The completion failed with {type(error).__name__}; see the server's log.",
        code="failed",
    )
