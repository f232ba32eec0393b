"""Options, and runs that are there already, that `mav train` refuses."""

import shutil
from pathlib import Path

import pytest

from tests.support.models.tiny import make_cache
from tests.support.running.commands import refused, tree
from tests.support.running.refusals import DATA, USAGE, World, train_args


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--cache", "other", "--cache is given 2 times, but takes one value"),
        ("--eval-fraction", 1.5, "got 1.5, expected 0 or more and less than 1"),
        ("--eval-fraction", -0.1, "got -0.1, expected 0 or more and less than 1"),
        ("--eval-fraction", "nan", "got 'nan', expected a finite number such as 0.5"),
        ("--dropout", 1, "got 1.0, expected 0 or more and less than 1"),
        ("--expansion-size", 0, "got 0, expected at least 1"),
        ("--batch-size", 0, "got 0, expected at least 1"),
        ("--grad-accum", 0, "got 0, expected at least 1"),
        ("--num-epochs", 0, "got 0, expected at least 1"),
        ("--eval-steps", 0, "got 0, expected at least 1"),
        ("--warmup-steps", -1, "got -1, expected at least 0"),
        ("--seed", -1, "got -1, expected at least 0"),
        ("--learning-rate", 0, "got 0.0, expected more than 0"),
        ("--learning-rate", "inf", "got 'inf', expected a finite number such as 0.5"),
        ("--beta", 0, "got 0.0, expected more than 0"),
        ("--max-grad-norm", 0, "got 0.0, expected more than 0"),
        ("--lambda-l2", -1, "got -1.0, expected at least 0"),
        ("--weight-decay", -1, "got -1.0, expected at least 0"),
        ("--objective", "ppo", "'ppo' is not one of 'dpo', 'mav', 'sigmoid'"),
    ],
)
def test_train_options_that_cannot_be(
    world: World, output: Path, option: str, value: object, told: str
) -> None:
    message = refused(USAGE, *train_args(world.cache, output), option, value)
    assert option in message
    assert told in message
    assert not output.parent.exists()


def test_eval_fraction_that_holds_out_everything(world: World, output: Path) -> None:
    message = refused(DATA, *train_args(world.cache, output), "--eval-fraction", 0.9999)
    assert "--eval-fraction 0.9999 holds out all of its 12 pairs; use a smaller one" in message
    assert not output.exists()


def test_training_folder_in_use_without_resume(world: World) -> None:
    before = tree(world.head)
    message = refused(USAGE, *train_args(world.cache, world.head))
    assert message.startswith(f"{world.head}: holds a training run already. Add --resume ")
    assert tree(world.head) == before


def test_resuming_with_other_options_names_each(world: World) -> None:
    before = tree(world.head)
    other = ["--resume", "--beta", 0.2, "--seed", 3, "--objective", "mav"]
    message = refused(DATA, *train_args(world.cache, world.head), *other)
    assert f"{world.head}: this run cannot go on with other settings:" in message
    for line in (
        "--beta: begun with 0.1, got 0.2",
        "--seed: begun with 0, got 3",
        "--objective: begun with 'dpo', got 'mav'",
    ):
        assert f"\n  - {line}" in message
    assert message.count("\n  - ") == 3
    assert tree(world.head) == before


def test_resuming_with_another_cache(world: World, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "other", world.model, pairs=14)
    message = refused(DATA, *train_args(other, world.head), "--resume")
    assert "\n  - --cache: another cache than it was begun with" in message


@pytest.mark.parametrize(
    ("name", "keep"), [("state.json", 20), ("head.safetensors", 50), ("optimizer.safetensors", 0)]
)
def test_resuming_from_a_damaged_checkpoint(
    world: World, tmp_path: Path, name: str, keep: int
) -> None:
    run = shutil.copytree(world.head, tmp_path / "run")
    for file in run.glob(f"checkpoints/*/{name}"):
        file.write_bytes(file.read_bytes()[:keep])
    message = refused(DATA, *train_args(world.cache, run), "--resume")
    assert "damaged checkpoint" in message
    assert str(run / "checkpoints") in message
