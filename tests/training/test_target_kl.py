"""The alpha that reaches a KL: found on held-out pairs, kept in the head, and started from."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from mav import cli
from mav.cache_schema.errors import HeadError, UsageError
from mav.cli_commands.shared.answering import DecodingRequest
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions, InferenceOptions
from mav.pipeline.decoding.trained_head import starting_alpha
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.head.card import card
from mav.pipeline.head.pretrained import load_head, recommended_alpha
from mav.pipeline.head.storage import CurvePoint
from mav.pipeline.reporting.inspect import describe
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.own.target_kl import ALPHAS, alpha_for
from tests.support.models.tiny import tiny_base
from tests.support.running.runs import run

TARGET = 0.02


@pytest.fixture(scope="module")
def trained(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target") / "run"
    run(tiny_cache, folder, num_epochs=2, target_kl=TARGET)
    return folder


def test_it_is_the_largest_of_the_grid_that_stays_within(trained: Path, tiny_cache: Path) -> None:
    found = load_head(str(trained)).origin.recommended
    assert found is not None and found.target_kl == TARGET
    alphas = [found.alpha, found.alpha + 0.05]
    measured = evaluate(
        EvaluateOptions(head=trained, cache=tiny_cache, alphas=alphas, pairs="held-out")
    )
    within, beyond = (result.kl_per_token for result in measured.results)
    assert within == pytest.approx(found.kl_per_token) and within <= TARGET < beyond
    assert measured.pairs == found.pairs
    assert {point.alpha for point in found.curve} == {*ALPHAS, found.alpha}


def test_everything_starts_from_it(trained: Path) -> None:
    alpha = recommended_alpha(str(trained))
    assert alpha not in (None, 1.0)
    request = DecodingRequest(
        head=str(trained),
        base_model=None,
        inference=InferenceOptions(),
        decoding=GenerationOptions(),
        given={},
    )
    assert request.strength(None).to_json() == alpha
    assert request.strength(0.5).to_json() == 0.5
    assert ServeOptions(head=str(trained)).alpha == alpha
    assert ServeOptions(head=str(trained), alpha=0.5).alpha == 0.5
    with MAVInference(str(trained), tiny_base(), dtype="float32") as mav:
        assert mav.recommended_alpha == alpha
    stated = CliRunner().invoke(cli.main, ["inspect", str(trained)]).output
    assert f"{alpha:g} (" in stated and "held-out pairs, 0.02 asked for" in stated
    assert describe(str(trained))["recommended_alpha"].startswith(f"{alpha:g} ")
    stored = load_head(str(trained))
    assert f"alpha={alpha:g}))" in card(stored.head.config, stored.origin, name="x")


def test_without_one_it_is_1(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path / "run")
    assert recommended_alpha(str(tmp_path / "run")) is None
    assert starting_alpha(str(tmp_path / "run")) == starting_alpha("nowhere") == 1.0
    assert "recommended" not in json.loads((tmp_path / "run" / "best" / "config.json").read_text())


def test_a_finished_run_may_be_asked_afterwards(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path / "run")
    before = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    run(tiny_cache, tmp_path / "run", resume=True, target_kl=TARGET)
    assert recommended_alpha(str(tmp_path / "run")) is not None
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == before


def square(alphas: Sequence[float], factor: float = 0.01) -> list[CurvePoint]:
    """A head whose KL is a multiple of alpha squared."""
    return [
        CurvePoint(
            alpha=alpha,
            reward_accuracy=0.6,
            logp_accuracy=0.5,
            margin=1.0,
            kl_per_token=factor * alpha**2,
        )
        for alpha in alphas
    ]


@pytest.mark.parametrize(
    ("target", "alpha"), [(0.01, 1.0), (0.0399, 1.95), (0.00011, 0.1), (0.05, 2.2), (0.16, 4.0)]
)
def test_on_a_known_curve(target: float, alpha: float) -> None:
    assert alpha_for(target, square(ALPHAS), square).alpha == pytest.approx(alpha)


def test_a_curve_that_bends_is_measured_until_it_fits() -> None:
    def bent(alphas: Sequence[float]) -> list[CurvePoint]:
        return [
            dataclasses.replace(point, kl_per_token=0.01 * point.alpha**6)
            for point in square(alphas)
        ]

    found = alpha_for(0.1, bent(ALPHAS), bent)
    assert found.kl_per_token <= 0.1 < 0.01 * (found.alpha + 0.05) ** 6


def test_what_is_out_of_reach_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert alpha_for(9.0, square(ALPHAS), square).alpha == 4.0
    assert "`target_kl` 9 is not reached: at alpha 4" in caplog.text
    with pytest.raises(UsageError, match=r"target_kl: got 1e-09, but at alpha 0.05 the head is"):
        alpha_for(1e-9, square(ALPHAS), square)
    with pytest.raises(UsageError, match="target_kl: nothing is held out to measure it on"):
        TrainOptions(cache="c", output_dir="o", eval_fraction=0.0, target_kl=0.1)


def test_a_recommendation_that_makes_no_sense_is_refused(trained: Path, tmp_path: Path) -> None:
    config = json.loads((trained / "best" / "config.json").read_text())
    config["recommended"]["alpha"] = float("nan")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(HeadError, match=r"recommended\.alpha: got nan, expected a finite number"):
        recommended_alpha(str(tmp_path))
