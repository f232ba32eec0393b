"""Decodes the answers of one system by continuous batching, turn by turn."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Final

from mav.cache_schema.errors import MAVError
from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request, TokenOutput
from mav.pipeline.decoding.steering.strengths import Strength
from mav.pipeline.runtime.memory import PROMPT_OUT_OF_MEMORY, free_memory, is_out_of_memory

_log = logging.getLogger(__name__)

_NO_TURN_BEFORE: Final = "the turn before it has no answer"


@dataclass(eq=False, kw_only=True)
class _Job:
    """An answer that is being decoded.

    Attributes:
        request: Its decoding request, whose identity says which job a token belongs to.
    """

    key: AnswerKey
    request: Request
    text: str = ""
    tokens: int = 0
    steered: int = 0
    kl: float = 0.0
    base_logprob: float = 0.0
    seconds: float = 0.0

    def again(self) -> "_Job":
        """Return the job as it was at the start."""
        return _Job(key=self.key, request=self.request)


@dataclass(kw_only=True)
class _Running:
    """Running jobs, by the identity of their requests."""

    decoder: ContinuousBatchDecoder
    jobs: dict[int, _Job] = field(default_factory=dict)


class AnswerWork:
    """The finished answers of a system, and those still to be decoded.

    Attributes:
        answers: The answers so far.
    """

    def __init__(
        self,
        joined: AttachedModel,
        prompts: Prompts,
        alpha: Strength,
        decoding: GenerationOptions,
        samples: int,
        answers: dict[AnswerKey, Answer],
    ) -> None:
        """Prepare; see `run`.

        Args:
            joined: Base and head; nothing else may decode with them in the meantime.
            prompts: The prompts.
            alpha: The strength.
            decoding: How tokens are chosen; see `seed_of`.
            samples: Answers to each prompt.
            answers: Answers from an earlier run.
        """
        self.answers = answers
        self._joined = joined
        self._questions = prompts.questions
        self._alpha = alpha
        self._decoding = decoding
        self._samples = samples

    def run(self, batch_size: int) -> Iterator[list[Answer]]:
        """Yield missing answers as they finish, and failures.

        Args:
            batch_size: Most prompts decoded together; fewer when out of memory.
        """
        waiting, wrong = self._first()
        if wrong:
            yield wrong
        running = _Running(decoder=ContinuousBatchDecoder(self._joined))
        while waiting or running.jobs:
            new = waiting[: batch_size - len(running.jobs)]
            try:
                ended = _step(running, new)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                begun = [*running.jobs.values(), *new]
            else:
                del waiting[: len(new)]
                answers, following = self._finish(ended)
                waiting += following
                if answers:
                    yield answers
                continue
            del running
            free_memory()
            running = _Running(decoder=ContinuousBatchDecoder(self._joined))
            waiting = [job for job in waiting if job not in begun]
            if batch_size == 1:
                yield self._failed(begun[0].key, PROMPT_OUT_OF_MEMORY)
                continue
            waiting = [*(job.again() for job in begun), *waiting]
            batch_size = max(1, len(begun) // 2)
            _log.info(f"Out of memory; continuing with {batch_size} prompts at a time")

    def _first(self) -> tuple[list[_Job], list[Answer]]:
        """Return the first jobs, longest prompts first, and failures."""
        jobs, wrong = [], []
        for number in range(len(self._questions)):
            for sample in range(self._samples):
                turn = self._turns_there(number, sample)
                if turn == self._questions[number].turns:
                    continue
                begun = self._begin(AnswerKey(number, sample, turn))
                if isinstance(begun, _Job):
                    jobs.append(begun)
                else:
                    wrong += begun
        # So that running out of memory happens at once.
        jobs.sort(key=lambda job: (-len(job.request.prompt), job.key))
        return jobs, wrong

    def _turns_there(self, number: int, sample: int) -> int:
        turn = 0
        while AnswerKey(number, sample, turn) in self.answers:
            turn += 1
        return turn

    def _begin(self, key: AnswerKey) -> _Job | list[Answer]:
        """Return the job of an answer, or failures of it and of the turns that follow."""
        before = [self.answers[key._replace(turn=turn)] for turn in range(key.turn)]
        if any(answer.error is not None for answer in before):
            return self._failed(key, _NO_TURN_BEFORE)
        question, form = self._questions[key.question], self._joined.form
        try:
            asked = question.asked([answer.response for answer in before])
            tokens = tuple(form.tokens(form.render(asked)))
        except MAVError as error:
            return self._failed(key, str(error))
        wrong = self._joined.base.excess(len(tokens), self._decoding.max_new_tokens)
        if wrong is not None:
            return self._failed(key, wrong)
        decoding = replace(self._decoding, seed=seed_of(self._decoding.seed, key))
        return _Job(
            key=key,
            request=Request(
                prompt=tokens, alpha=self._alpha, decoding=decoding, top_logprobs=0, kl=True
            ),
        )

    def _finish(self, ended: Sequence[tuple[_Job, str]]) -> tuple[list[Answer], list[_Job]]:
        """Return the answers of jobs that have ended, and the jobs of the turns after them."""
        answers, following = [], []
        for job, finish in ended:
            answers.append(self._answer(job, finish))
            after = job.key._replace(turn=job.key.turn + 1)
            if after.turn == self._questions[after.question].turns:
                continue
            begun = self._begin(after)
            if isinstance(begun, _Job):
                following.append(begun)
            else:
                answers += begun
        return answers, following

    def _answer(self, job: _Job, finish: str) -> Answer:
        answer = Answer(
            key=job.key,
            response=job.text.rstrip(),
            new_tokens=job.tokens,
            finish=finish,
            kl=job.kl,
            base_logprob=job.base_logprob,
            steered_tokens=None if self._decoding.steer_above is None else job.steered,
            seconds=job.seconds,
        )
        self.answers[job.key] = answer
        return answer

    def _failed(self, key: AnswerKey, error: str) -> list[Answer]:
        """Return failures of an answer and of those to later turns."""
        turns = range(key.turn, self._questions[key.question].turns)
        failed = [
            Answer(
                key=key._replace(turn=turn),
                error=error if turn == key.turn else _NO_TURN_BEFORE,
            )
            for turn in turns
        ]
        self.answers |= {answer.key: answer for answer in failed}
        return failed


def _step(running: _Running, new: Sequence[_Job]) -> list[tuple[_Job, str]]:
    """Decode one token of new jobs, or of running ones; return finished jobs with their reasons."""
    started = perf_counter()
    if new:
        outputs = running.decoder.add([job.request for job in new])
        running.jobs |= {id(job.request): job for job in new}
    else:
        outputs = running.decoder.step()
    share = (perf_counter() - started) / len(outputs)
    ended: list[tuple[_Job, str]] = []
    for output in outputs:
        job = running.jobs[id(output.sequence.request)]
        _take(job, output, share)
        if output.finish:
            del running.jobs[id(job.request)]
            ended.append((job, output.finish))
    return ended


def _take(job: _Job, output: TokenOutput, seconds: float) -> None:
    assert output.logprobs is not None
    assert output.logprobs.kl is not None
    job.text += output.text
    job.tokens += 1
    job.steered += output.steered
    job.kl += output.logprobs.kl
    job.base_logprob += output.logprobs.base
    job.seconds += seconds


def seed_of(seed: int | None, key: AnswerKey) -> int:
    """Return the seed of an answer, from 0 to 2^62 - 1.

    Args:
        seed: The seed for all answers.
        key: Identifies the answer.
    """
    identity = f"{seed or 0}/{key.question}/{key.sample}/{key.turn}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:8], "little") % 2**62
