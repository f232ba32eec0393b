r"""Generates answers of base and head at one strength, with their exact KL to the base.

The KL of an answer is the sum over its tokens of KL(pi_alpha || pi_base) of the two distributions
the token was drawn from, both softmaxes of the models' raw logits, independent of temperature and
nucleus. If tokens are sampled from pi_alpha itself (temperature 1, no truncation), its mean over
answers is the KL between the two models' answers,

    E_{y ~ pi_alpha} log pi_alpha(y) / pi_base(y) = E sum_t KL(pi_alpha(.|y_<t) || pi_base(.|y_<t)),

with less variance than the log-ratio of the tokens. With greedy decoding it is the same sum along
the one answer that is generated. It costs no pass of the base: the head is added to logits that are
the base's own for the same tokens.
"""

import logging
from pathlib import Path
from typing import Any

from mav.pipeline.base.failures import explain_failures
from mav.pipeline.comparison.answer_work import AnswerWork
from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.records import Answer, answer_of
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.steering.strengths import Strength, as_strength
from mav.pipeline.runtime.interruption import Interrupted
from mav.pipeline.runtime.progress import progress_bar
from mav.pipeline.runtime.resumable_lines import resumable_lines

_log = logging.getLogger(__name__)


def generate_answers(
    mav: MAVInference,
    name: str,
    prompts: Prompts,
    alpha: float | Strength,
    path: Path,
    *,
    decoding: GenerationOptions,
    samples: int = 1,
    batch_size: int = 8,
) -> list[Answer]:
    """Answer every prompt at one strength; resume an interrupted run.

    Args:
        mav: Head and base.
        name: Name of head and strength, for progress.
        prompts: The prompts.
        alpha: The strength.
        path: JSON lines; the first describes the run that made the others.
        decoding: How tokens are chosen. The seed of each answer follows from this one (0 if None),
            its prompt's number, turn and sample, so no answer depends on which others it is
            decoded with, and the seed does not depend on the strength.
        samples: Answers to each prompt.
        batch_size: Most prompts decoded together; fewer when out of memory.

    Returns:
        The answers by prompt, sample and turn; failed ones have an `error`.

    Raises:
        DataError: The file holds answers of another run.
        BaseModelError: The base does not support continuous batching.
    """
    made_by = _made_by(mav, prompts, alpha, decoding, samples)
    total = samples * sum(question.turns for question in prompts.questions)
    with resumable_lines(path, made_by, lambda line: answer_of(line).key) as kept:
        answered = {key: answer_of(line) for key, line in kept.lines.items()}
        if 0 < len(answered) < total:
            _log.info(f"{path}: {len(answered):,} of {total:,} answers exist already; resuming")
        with progress_bar(total, f"answering, {name}", "answer", done=len(answered)) as bar:
            try:
                strength = as_strength(alpha, mav.head_names)
                work = AnswerWork(mav.joined, prompts, strength, decoding, samples, answered)
                with mav.exclusive(), explain_failures(mav.base):
                    for answers in work.run(batch_size):
                        kept.append(
                            [a.to_json(prompts.questions[a.key.question].prompt) for a in answers]
                        )
                        bar.update(len(answers))
            except KeyboardInterrupt as stop:
                raise Interrupted(
                    f"{len(kept.lines):,} of {total:,} answers of {name} are kept, in {path}.",
                    "The same command continues with the rest.",
                ) from stop
    return [work.answers[key] for key in sorted(work.answers)]


def _made_by(
    mav: MAVInference,
    prompts: Prompts,
    alpha: float | Strength,
    decoding: GenerationOptions,
    samples: int,
) -> dict[str, Any]:
    """Return everything the answers depend on."""
    base = mav.base.fingerprint()
    steers = any(one for _, one in as_strength(alpha, mav.head_names).points)
    chosen = decoding.recorded()
    for name in ("num_beams", "cache_implementation", "compile"):
        del chosen[name]
    return {
        "prompts": prompts.digest,
        "head": mav.head_digest if steers else None,
        "base": base.weights_digest,
        "form": mav.joined.form.name,
        "dtype": str(mav.base.dtype).removeprefix("torch."),
        "quantization": base.quantization,
        "int8_head": steers and mav.int8_head,
        "alpha": alpha if isinstance(alpha, int | float) else alpha.to_json(),
        "samples": samples,
        **chosen,
        "seed": decoding.seed or 0,
        "stop": list(decoding.stop),
    }
