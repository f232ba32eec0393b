"""Asks a judge about the answers of every system and those of the reference."""

from collections.abc import Sequence
from typing import Final

from mav.pipeline.comparison.judge import Duel, Judge
from mav.pipeline.comparison.prompts import Prompts
from mav.pipeline.comparison.records import AnswerKey
from mav.pipeline.comparison.systems import System

_COUNTED: Final = ("identical", "by_place", "failed", "unreadable", "not_asked")


def judge_systems(
    judge: Judge, prompts: Prompts, systems: Sequence[System], reference: str
) -> dict[str, int]:
    """Store a judge's results in the systems; compares answers with the reference's same sample.

    All answers of a conversation with several turns are judged together.

    Args:
        judge: The judge.
        prompts: The prompts.
        systems: The systems.
        reference: Name of the system that the others are compared with.

    Returns:
        Calls made now, and the counts of `Judged` over all systems.

    Raises:
        MAVError: The model is not a judge, or cannot be reached.
    """
    (against,) = (system for system in systems if system.name == reference)
    counts = dict.fromkeys(("duels", *_COUNTED), 0)
    for system in systems:
        if system is against:
            continue
        keys = [key for key in sorted(system.answers) if key.turn == 0]
        duels = [
            Duel(
                prompt=prompts.questions[key.question].prompt,
                answer=_conversation(prompts, system, key),
                reference=_conversation(prompts, against, key),
            )
            for key in keys
        ]
        judged = judge.decide(duels)
        system.verdicts = dict(zip(keys, judged.results, strict=True))
        counts["duels"] += len(duels)
        for name in _COUNTED:
            counts[name] += getattr(judged, name)
    return {"calls": judge.calls, **counts}


def _conversation(prompts: Prompts, system: System, key: AnswerKey) -> str | None:
    """Return the answers to all turns with the messages between them; None if one is missing."""
    given, question = system.given(), prompts.questions[key.question]
    parts: list[str] = []
    for turn in range(question.turns):
        answer = given.get(key._replace(turn=turn))
        if answer is None:
            return None
        if turn:
            parts += [f"User: {question.follow_ups[turn - 1]}", f"Assistant: {answer.response}"]
        else:
            parts.append(answer.response)
    return "\n\n".join(parts)
