"""The one thread that owns the model: it takes jobs from the queue and decodes them together."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from mav.cache_schema.errors import BaseModelError, MAVError
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder, TokenOutput
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.runtime.memory import free_memory
from mav.pipeline.serving.bases import ServedBase
from mav.pipeline.serving.errors import ApiError, shutting_down
from mav.pipeline.serving.jobs import Begun, Event, Job, Piece
from mav.pipeline.serving.logprobs import token_detail
from mav.pipeline.serving.metrics import Metrics
from mav.pipeline.serving.prompts import Choice, Limits, choices_of
from mav.pipeline.serving.queue import Waiting

_log = logging.getLogger(__name__)


class Worker:
    """Decodes jobs, all that the rows have room for at once, and switches bases between them.

    Jobs are begun in the order they came. One for another base waits until those before it have
    ended, and those after it wait for the switch.

    Attributes:
        bases: The bases that jobs may ask for.
        waiting: The queue.
        max_rows: Most answers decoded at once.
    """

    def __init__(
        self,
        mav: MAVInference,
        bases: Sequence[ServedBase],
        *,
        limits: Limits,
        max_rows: int,
        max_queue: int,
        metrics: Metrics,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            mav: Head and base; nothing else may decode with them from now on.
            bases: What can be asked for; the first is the one in use.
            limits: How long prompts and answers may be.
            max_rows: Most answers decoded at once.
            max_queue: Most jobs that wait.
            metrics: Where tokens and seconds are counted.

        Raises:
            BaseModelError: The base cannot decode rows that come and go.
        """
        self.bases = {base.name: base for base in bases}
        self.waiting = Waiting(max_queue)
        self.max_rows = max_rows
        self._mav, self._limits, self._metrics = mav, limits, metrics
        self._base: str | None = bases[0].name
        self._decoder: ContinuousBatchDecoder | None = ContinuousBatchDecoder(mav.joined)
        self._rows = 0
        self._thread = threading.Thread(target=self._run, name="mav-worker", daemon=True)
        metrics.watch(lambda: len(self.waiting), lambda: self._rows)

    @property
    def base(self) -> str | None:
        """Name of the base in use, or None where the last switch failed and left none."""
        return self._base

    @property
    def rows(self) -> int:
        """Number of answers that are being decoded."""
        return self._rows

    @property
    def alive(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self.waiting.closed

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Take no more jobs, give those that run some seconds to end, and return at once."""
        self.waiting.close(grace)

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end; return whether it came."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while True:
                if not self._rows:
                    self.waiting.wait()
                if self.waiting.overdue or (self.waiting.closed and not self._rows):
                    break
                self._drop_cancelled()
                self._switch_if_asked()
                self._admit()
                self._step()
            self._fail(self._running(), shutting_down())
        except BaseException as error:
            _log.exception("the decoding thread ends")
            self.waiting.close()
            self._fail(self._running(), _internal(error))
        self._decoder, self._rows = None, 0

    def _running(self) -> set[Job]:
        if self._decoder is None:
            return set()
        return {_choice(row.request).job for row in self._decoder.rows}

    def _fail(self, jobs: Iterable[Job], error: ApiError) -> None:
        for job in jobs:
            job.outbox.put([error])

    def _drop_cancelled(self) -> None:
        if self._decoder is None:
            return
        for row in list(self._decoder.rows):
            if _choice(row.request).job.cancelled:
                self._decoder.cancel(row)
        self._rows = len(self._decoder.rows)

    def _switch_if_asked(self) -> None:
        job = self.waiting.head()
        wanted = None if job is None else job.asked.model
        if wanted is None or wanted == self._base or self._rows:
            return
        try:
            self._switch(self.bases[wanted])
        except ApiError as error:
            # Those that want it too would be refused for the same reason, after as long a wait.
            refused = self.waiting.take(lambda other: other.asked.model == wanted)
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
            if job.asked.model not in (None, self._base) or job.asked.choices > room:
                return False
            room -= job.asked.choices
            return True

        jobs = self.waiting.take(fits)
        if self._decoder is None:
            self._fail(jobs, ApiError(503, "No base is loaded; name one as model.", code="no_base"))
            return
        choices: list[Choice] = []
        for job in jobs:
            choices += self._prepared(job)
        if choices:
            self._pass(lambda decoder: decoder.add(choices), {choice.job for choice in choices})

    def _prepared(self, job: Job) -> list[Choice]:
        """Return a job's sequences; none if they cannot start, and the client gets the error."""
        assert self._base is not None
        try:
            choices = choices_of(job, self._mav.joined, self._limits)
        except ApiError as error:
            job.outbox.put([error])
            return []
        except Exception as error:
            # Tokenizers and templates are programs of the base's; one job must not end the rest.
            _log.exception("a prompt cannot be read")
            job.outbox.put([_internal(error)])
            return []
        # The prompt's tokens are counted once, however many answers there are to it.
        counted = sum(len(choice.prompt) for choice in choices[:: job.asked.n])
        job.outbox.put([Begun(model=self._base, prompt_tokens=counted)])
        self._metrics.prompt_tokens.inc(counted)
        return choices

    def _step(self) -> None:
        if self._rows:
            self._pass(lambda decoder: decoder.step(), set())

    def _pass(
        self, run: Callable[[ContinuousBatchDecoder], Sequence[TokenOutput]], joining: set[Job]
    ) -> None:
        """Run the base; where that fails, all rows do, for what they hold may be half changed."""
        assert self._decoder is not None
        found: Sequence[TokenOutput] | None = None
        try:
            found = run(self._decoder)
        except Exception as error:
            _log.exception("a pass of the base failed")
            self._metrics.failures.inc()
            self._fail(self._running() | joining, _internal(error))
        if found is None:
            # Not where the error is caught: its frames hold what is to be freed.
            self._decoder = ContinuousBatchDecoder(self._mav.joined)
            free_memory()
        self._rows = len(self._decoder.rows)
        self._tell(found or (), joining)

    def _tell(self, found: Sequence[TokenOutput], joining: set[Job]) -> None:
        by_job: dict[Job, list[Event]] = {}
        for new in found:
            choice = _choice(new.row.request)
            by_job.setdefault(choice.job, []).append(self._piece(choice, new))
            if new.seconds is not None:
                self._metrics.each_token.observe(new.seconds)
        self._metrics.generated_tokens.inc(len(found))
        for job, events in by_job.items():
            if job in joining:
                self._metrics.first_token.observe(perf_counter() - job.since)
            job.outbox.put(events)

    def _piece(self, choice: Choice, new: TokenOutput) -> Piece:
        base = self._mav.joined.base
        told = new.logprobs if new.token not in self._mav.joined.end_tokens else None
        return Piece(
            choice=choice.number,
            text=new.text,
            offset=new.offset,
            finish=new.finish,
            detail=None if told is None else token_detail(base.tokenizer, new.token, told),
        )


def _choice(request: object) -> Choice:
    assert isinstance(request, Choice)
    return request


def _internal(error: BaseException) -> ApiError:
    return ApiError(
        500,
        f"The answer failed with {type(error).__name__}; the server's log says more.",
        code="failed",
    )
