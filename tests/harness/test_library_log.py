"""What lm-eval logs is told once for each kind; needs no lm-eval."""

import logging

import pytest

from mav.pipeline.harness.library_log import library_log

LIBRARY = logging.getLogger("lm_eval.models.some")


def warn_of(tokens: int) -> None:
    LIBRARY.warning("Truncating %d\ntokens", tokens)


def test_a_kind_is_told_once_with_how_many_there_were(caplog: pytest.LogCaptureFixture) -> None:
    with library_log() as said:
        for _ in range(2):  # two strengths
            said.forget()
            for tokens in (5, 6, 7):
                warn_of(tokens)
            LIBRARY.info("Running")
            said.tell()
        LIBRARY.warning("x" * 400)
        said.tell()
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "lm-eval: Truncating 5 tokens (and 2 more of the kind)"
    assert second == f"lm-eval: {'x' * 300}…"


def test_what_was_forgotten_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with library_log() as said:
        LIBRARY.warning("call me otherwise")
        LIBRARY.error("it broke")
        before = said.last_error
        said.forget()
        said.tell()
        assert (before, said.last_error) == ("it broke", None)
    assert not caplog.records


def test_afterwards_it_logs_as_before(caplog: pytest.LogCaptureFixture) -> None:
    before = {name: vars(logging.getLogger(name)).copy() for name in ("lm_eval", "datasets")}
    with library_log():
        pass
    for name, kept in before.items():
        now = vars(logging.getLogger(name))
        assert all(now[key] == kept[key] for key in ("level", "propagate", "handlers"))
    warn_of(3)
    assert [record.getMessage() for record in caplog.records] == ["Truncating 3\ntokens"]
