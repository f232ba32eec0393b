"""Answers of an engine beside the reference's."""

from typing import Any, Final

CLOSE: Final = 1e-4
"""Most that a log-probability may differ by, of any token of the vocabulary, in float32."""


def alone(job: dict[str, Any]) -> dict[str, Any]:
    """The first round of a job's requests for the reference."""
    return {"heads": job["head"], "base": job["base"], "requests": job["rounds"][0]}


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare tokens and log-probabilities of one answer."""
    assert got["tokens"] == expected["tokens"]
    for ours, theirs in zip(got["logprobs"], expected["logprobs"], strict=True):
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < CLOSE


def assert_all_equal(answered: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    """Compare all answers of a job to the reference's."""
    assert "failed" not in answered, answered["failed"]
    for answers in answered["rounds"]:
        for (got,), reference in zip(answers, expected, strict=True):
            assert_equal(got, reference)
