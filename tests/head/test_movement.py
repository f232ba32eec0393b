"""A head that leaves its base about as it is: told after training and in every report."""

import json
from pathlib import Path

import pytest

from mav.pipeline.evaluation.statistics import LEAST_KL, has_hardly_moved
from tests.support.running.commands import Line, done, mav

TOLD = "This head hardly moves the base: at alpha 1 the KL is "


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line.begun(tmp_path_factory.mktemp("line"), 24)


@pytest.mark.parametrize(("rate", "hardly"), [(1e-6, True), (0.05, False)])
def test_both_sides_are_told_everywhere(
    line: Line, tmp_path: Path, rate: float, hardly: bool
) -> None:
    run, page = tmp_path / "run", tmp_path / "report.html"
    train = [run if arg == line.run else arg for arg in line.train[:-1]] + [rate, "--json"]
    result = mav(*train)
    assert result.exit_code == 0, result.output
    trained = json.loads(result.stdout)
    assert trained["hardly_moved"] is hardly
    assert (trained["kl_per_token"] < LEAST_KL) is hardly
    assert (TOLD in result.stderr) is hardly
    evaluate = ["evaluate", "--head", run, "--cache", line.cache, "--device", "cpu"]
    shown = done(*evaluate, "--report", page)
    assert (TOLD in shown) is hardly
    assert ("higher learning rate or for more epochs" in shown) is hardly
    assert (TOLD in page.read_text()) is hardly
    found = json.loads(done(*evaluate, "--json"))
    assert found["hardly_moved"] is hardly
    # The same pairs by the same arithmetic.
    (at_one,) = (one["kl_per_token"] for one in found["results"] if one["alpha"] == 1)
    assert trained["kl_per_token"] == pytest.approx(at_one)
    without = json.loads(done(*evaluate, "--json", "--alphas", "0,2"))
    assert without["hardly_moved"] is None


def test_without_held_out_pairs_nothing_can_be_told(line: Line, tmp_path: Path) -> None:
    train = [tmp_path / "run" if arg == line.run else arg for arg in line.train]
    train[train.index("--eval-fraction") + 1] = 0
    result = mav(*train, "--json")
    found = json.loads(result.stdout)
    assert (found["kl_per_token"], found["hardly_moved"]) == (None, None)
    assert TOLD not in result.stderr


def test_the_bound_itself() -> None:
    assert has_hardly_moved(LEAST_KL * 0.999)
    assert not has_hardly_moved(LEAST_KL)
