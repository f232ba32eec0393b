"""Writes answers as AlpacaEval and MT-Bench's judge read them.

Sources: tatsu-lab/alpaca_eval, `--model_outputs`: a JSON list of `instruction`, `output`,
`generator` and `dataset`; lm-sys/FastChat, `fastchat/llm_judge`, `gen_model_answer.py`: JSON lines
of `question_id`, `answer_id`, `model_id`, `choices` of `index` and `turns`, and `tstamp`.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mav.pipeline.comparison.options import Export
from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.records import AnswerKey
from mav.pipeline.comparison.systems import System
from mav.pipeline.preferences.prompt_format import Messages
from mav.pipeline.preferences.transcripts import messages_of
from mav.pipeline.runtime.durable_files import write_file
from mav.pipeline.runtime.resumable_lines import json_line

_DATASET: Final = "mav-compare"
"""AlpacaEval's `dataset` for prompts without one."""


def export_answers(
    form: Export, prompts: Prompts, systems: Sequence[System], folder: Path
) -> list[Path]:
    """Write each system's answers for another tool, under a folder with the tool's name.

    AlpacaEval takes one answer per prompt: the first turn of the first sample. Prompts without an
    answer are omitted for MT-Bench and empty for AlpacaEval, which pairs by instruction.

    Args:
        form: The tool to write for.
        prompts: The prompts.
        systems: The systems.
        folder: Parent of the tool's folder.

    Returns:
        The files.
    """
    written = []
    for system in systems:
        if form == "alpaca-eval":
            path = folder / form / f"{system.name}.json"
            text = json.dumps(alpaca_eval(prompts, system), ensure_ascii=False, indent=1)
        else:
            path = folder / form / "model_answer" / f"{system.name}.jsonl"
            text = "".join(map(json_line, mt_bench(prompts, system, time.time())))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
        written.append(path)
    return written


def alpaca_eval(prompts: Prompts, system: System) -> list[dict[str, str]]:
    """Return a system's answers as AlpacaEval's model outputs."""
    given = system.given()
    rows = []
    for number, question in enumerate(prompts.questions):
        answer = given.get(AnswerKey(number))
        rows.append(
            {
                "instruction": _instruction(question.prompt),
                "output": "" if answer is None else answer.response,
                "generator": system.name,
                "dataset": question.dataset or _DATASET,
            }
        )
    return rows


def mt_bench(prompts: Prompts, system: System, written: float) -> list[dict[str, Any]]:
    """Return a system's answers as FastChat's model answers.

    Args:
        prompts: The prompts.
        system: The system.
        written: Time stamp of the answers, in seconds since 1970.
    """
    given = system.given()
    samples = range(1 + max((key.sample for key in given), default=-1))
    rows = []
    for number, question in enumerate(prompts.questions):
        choices = []
        for sample in samples:
            turns = [given.get(AnswerKey(number, sample, turn)) for turn in range(question.turns)]
            texts = [answer.response for answer in turns if answer is not None]
            if len(texts) == question.turns:
                choices.append({"index": sample, "turns": texts})
        if choices:
            identity = json.dumps([question.id, system.name, choices]).encode()
            rows.append(
                {
                    "question_id": question.id,
                    "answer_id": hashlib.sha256(identity).hexdigest()[:22],
                    "model_id": system.name,
                    "choices": choices,
                    "tstamp": written,
                }
            )
    return rows


def _instruction(prompt: str | Messages) -> str:
    """Return a single user message unchanged, and a conversation as a transcript."""
    turns = messages_of(prompt)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
