"""Figures of a run, from results as lm-eval gives them; needs no lm-eval."""

import importlib.util
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import UsageError
from mav.pipeline.harness.options import HarnessOptions
from mav.pipeline.harness.report import HarnessReport, figures_of, paired, table
from tests.support.running.commands import mav

VALUES = st.floats(-1e3, 1e3)


def result(values: list[float], perplexity: float = 3.0) -> dict[str, Any]:
    """What lm-eval's `evaluate` returns of one task."""
    return {
        "results": {
            "t": {
                "alias": "t",
                "sample_len": len(values),
                "acc,none": sum(values) / len(values),
                "acc_stderr,none": 0.25,
                "word_perplexity,none": perplexity,
                "word_perplexity_stderr,none": "N/A",
            }
        },
        "n-samples": {"t": {"original": 100, "effective": len(values)}},
        "samples": {
            "t": [
                {
                    "doc_id": number,
                    "filter": "none",
                    "metrics": ["acc", "word_perplexity"],
                    "acc": value,
                    "word_perplexity": (-3.0, 4),
                }
                for number, value in enumerate(values)
            ]
        },
    }


def report(by_alpha: dict[float, Any]) -> HarnessReport:
    return HarnessReport(
        head="runs/head",
        base="a-base",
        lm_eval="0",
        limit=4,
        num_fewshot=2,
        tasks={"t": "1.0"},
        figures=figures_of(by_alpha),
    )


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=20))
def test_a_paired_difference_is_that_of_each_document(pairs: list[tuple[float, float]]) -> None:
    before = {number: pair[0] for number, pair in enumerate(pairs)}
    after = {number: pair[1] for number, pair in enumerate(pairs)}
    differences = [second - first for first, second in pairs]
    mean, stderr = paired(before, after)
    assert mean == pytest.approx(statistics.fmean(differences), abs=1e-9)
    expected = statistics.stdev(differences) / math.sqrt(len(differences))
    assert stderr == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_paired_has_no_difference() -> None:
    assert paired({0: 1.0}, {0: 3.0}) == (2.0, None)
    assert paired({0: 1.0}, {1: 3.0}) == (None, None)
    without_0 = figures_of({1.0: result([0, 1]), 2.0: result([1, 1])})
    assert {figure.difference for figure in without_0} == {None}


def test_the_table_and_the_json_say_the_same() -> None:
    found = report({0.0: result([0, 1, 0, 1]), 2.0: result([1, 1, 0, 1], math.inf)})
    assert table(found).splitlines() == [
        "a-base with runs/head; lm-eval 0, 2 examples before each; +- standard errors",
        "",
        "t: acc (4 documents, the first 4 at most)",
        "  alpha  value               less alpha 0, paired",
        "      0  0.5000 +- 0.2500",
        "      2  0.7500 +- 0.2500    +0.2500 +- 0.2500",
        "",
        "t: word_perplexity (4 documents, the first 4 at most)",
        "  alpha  value               less alpha 0, paired",
        "      0  3.0000",
        "      2  inf",
    ]
    figures = json.loads(json.dumps(found.to_json(), allow_nan=False))["figures"]
    assert figures[1]["difference"] == 0.25
    assert figures[3]["value"] is None
    assert figures[2]["stderr"] is None


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"tasks": ()}, "tasks: got none"),
        ({"alphas": ()}, r"alphas: got \[\], expected finite numbers"),
        ({"alphas": (math.nan,)}, "expected finite numbers"),
        ({"alphas": (1.0, 1.0)}, "alphas: got 1 twice"),
        ({"tasks": ("a", "b", "a")}, "tasks: got a twice"),
        ({"limit": 0}, "limit: got 0, expected at least 1"),
        ({"include_path": (Path("nowhere"),)}, "include_path: got nowhere, expected a folder"),
    ],
)
def test_options_that_cannot_be_are_refused(given_options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HarnessOptions(**{"head": "h", "tasks": ("a",), "loading": {}, **given_options})


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def missing(name: str, package: str | None = None) -> Any:
        return None if name == "lm_eval" else find(name, package)

    monkeypatch.setattr("mav.pipeline.harness.installed.find_spec", missing)
    result = mav("harness", "--head", "nowhere", "--tasks", "blimp")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "Error: lm-eval, which runs the tasks, is not installed; pip install 'mav-align[eval]'"
    ]
