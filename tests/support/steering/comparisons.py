"""Prompts, systems and reward models for comparisons, all small."""

from pathlib import Path
from typing import Any

import torch
import transformers

from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.questions import Question
from mav.pipeline.comparison.records import Answer, AnswerKey
from mav.pipeline.comparison.systems import System
from tests.support.models.tiny import ARCHITECTURES, tiny_tokenizer


def prompts_of(*questions: Question | str) -> Prompts:
    """Prompts that come from no file."""
    made = tuple(
        Question(prompt=q, id=n) if isinstance(q, str) else q for n, q in enumerate(questions)
    )
    return Prompts(source="here", kind="prompts", questions=made, rows=len(made), dropped={})


def system_of(name: str, *responses: str | None, **more: object) -> System:
    """A system with an answer to each prompt; None is one that could not be given."""
    answers = {
        AnswerKey(number): Answer(
            key=AnswerKey(number),
            response=response or "",
            error="it broke" if response is None else None,
        )
        for number, response in enumerate(responses)
    }
    return System(name=name, answers=answers, **more)  # type: ignore[arg-type]


def classifier(kind: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A random sequence classifier of a variant, with one logit unless told otherwise."""
    config = transformers.AutoConfig.for_model(
        **{**ARCHITECTURES[kind], "num_labels": 1, **changes}
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def save_reward_model(folder: Path, *, labels: int = 1, seed: int = 0) -> Path:
    """Write a random sequence classifier as TRL's `RewardTrainer` would."""
    model = classifier(num_labels=labels, pad_token_id=1, seed=seed)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
