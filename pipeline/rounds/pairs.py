"""Makes preference pairs of sampled answers and their scores."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mav.cache_schema.errors import DataError
from mav.pipeline.comparison.reward import RewardModel, require_reward_model
from mav.pipeline.decoding.files.batch_file import require_new
from mav.pipeline.preferences.prompt_format import Messages
from mav.pipeline.rounds.options import PairOptions
from mav.pipeline.rounds.pairing import pairs_of
from mav.pipeline.rounds.samples import Key, Samples, read_samples, read_scores
from mav.pipeline.runtime.durable_files import write_file
from mav.pipeline.runtime.resumable_lines import json_line

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What became of sampled answers.

    Attributes:
        output: Where the pairs are.
        prompts: Prompts with an answer.
        pairs: Pairs that were written.
        margin: Mean difference of the scores of a pair.
        answers_left_out: Lines and answers that no pair could have, by cause: `failed`, `empty`,
            `repeated` (the same text for the same prompt) and `unscored`.
        prompts_left_out: Prompts without a pair, by cause: `one_answer`, `tie`, `small_margin`.
    """

    output: str
    prompts: int
    pairs: int
    margin: float
    answers_left_out: Mapping[str, int]
    prompts_left_out: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def make_pairs(options: PairOptions, **placed: Any) -> PairReport:
    """Write preference pairs, as `mav extract` reads them.

    A line has `prompt`, `chosen` and `rejected`, as texts or, behind a prompt of messages, as
    messages, and `chosen_score` and `rejected_score`.

    Args:
        options: Which answers, scores and rule.
        **placed: `device` and `dtype` of the reward model.

    Raises:
        DataError: A file is invalid, or no pair comes of it.
        BaseModelError: The reward model is not found or is none.
    """
    require_new(options.output)
    if options.reward_model is not None:
        require_reward_model(options.reward_model)
    samples = read_samples(options.samples)
    if options.scores is not None:
        scores = read_scores(options.scores)
    else:
        assert options.reward_model is not None
        scores = _scored(options.reward_model, samples, placed)
    answers_out = Counter(samples.left_out)
    prompts_out: Counter[str] = Counter()
    lines = []
    for key, one in samples.by_prompt.items():
        scored = [text for text in one.responses if (key, text) in scores]
        answers_out["unscored"] += len(one.responses) - len(scored)
        values = [scores[key, text] for text in scored]
        pairs, cause = pairs_of(values, options.rule, options.margin)
        if cause:
            prompts_out[cause] += 1
        lines += [
            {
                **_row(one.prompt, scored[pair.chosen], scored[pair.rejected]),
                "chosen_score": values[pair.chosen],
                "rejected_score": values[pair.rejected],
            }
            for pair in pairs
        ]
    report = PairReport(
        output=str(options.output),
        prompts=len(samples.by_prompt),
        pairs=len(lines),
        margin=_mean([line["chosen_score"] - line["rejected_score"] for line in lines]),
        answers_left_out=dict(+answers_out),
        prompts_left_out=dict(prompts_out),
    )
    if not lines:
        raise DataError(
            f"{', '.join(options.samples)}: no pair of {report.prompts:,} prompts; left out: "
            f"{left_out(report) or 'none'}"
        )
    write_file(options.output, "".join(map(json_line, lines)).encode())
    return report


def left_out(report: PairReport) -> str:
    """Return what no pair was made of, by cause, in words."""
    counts = {**report.answers_left_out, **report.prompts_left_out}
    kinds = dict.fromkeys(report.answers_left_out, "answers")
    return ", ".join(
        f"{count:,} {kinds.get(cause, 'prompts')} {cause}" for cause, count in counts.items()
    )


def _scored(model: str, samples: Samples, placed: dict[str, Any]) -> dict[Key, float]:
    keys = [(key, text) for key, one in samples.by_prompt.items() for text in one.responses]
    asked = [samples.by_prompt[key].prompt for key, _ in keys]
    scorer = RewardModel.load(model, **placed)
    rewards = scorer.score(asked, [text for _, text in keys])
    scorer.close()
    return {key: score for key, score in zip(keys, rewards, strict=True) if math.isfinite(score)}


def _row(prompt: str | Messages, chosen: str, rejected: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {
        "prompt": [dict(message) for message in prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
