"""A run can be interrupted anywhere and goes on as if nothing had happened."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import HeadError, MismatchError, UsageError
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.training.checkpoint import save_checkpoint
from tests.support.models.tiny import make_cache
from tests.support.running.logs import logged_messages
from tests.support.running.runs import (
    assert_same,
    checkpoint,
    contents,
    interrupted_after,
    metrics,
    run,
    weights,
)


@pytest.mark.parametrize("kind", ["unembedding", "bottleneck"])
def test_a_run_of_any_kind_goes_on(tiny_cache: Path, tmp_path: Path, kind: HeadKind) -> None:
    settings: dict[str, Any] = {"eval_steps": 2, "head_type": kind}
    run(tiny_cache, tmp_path / "whole", **settings)
    with interrupted_after(5):
        run(tiny_cache, tmp_path / "cut", **settings)
    assert checkpoint(tmp_path / "cut").state.trajectory["head_type"] == kind
    with pytest.raises(MismatchError, match=f"head_type: begun with '{kind}', got 'mlp'"):
        run(tiny_cache, tmp_path / "cut", eval_steps=2, resume=True)
    run(tiny_cache, tmp_path / "cut", **settings, resume=True)
    for name in ("best", "last"):
        assert_same(weights(tmp_path / "cut" / name), weights(tmp_path / "whole" / name))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_run_begun_before_there_were_kinds_goes_on_as_an_mlp(
    tiny_cache: Path, tmp_path: Path
) -> None:
    with interrupted_after(5):
        run(tiny_cache, tmp_path, eval_steps=2)
    begun = checkpoint(tmp_path)
    older = {k: v for k, v in begun.state.trajectory.items() if k not in ("head_type", "rank")}
    tensors = {name: begun.tensors(name) for name in ("head", "optimizer")}
    save_checkpoint(tmp_path, tensors, dataclasses.replace(begun.state, trajectory=older))
    assert run(tiny_cache, tmp_path, eval_steps=2, resume=True).steps == 8


@pytest.fixture(scope="module", params=[1, 2, 5, 8, 11, 15])
def resumed(
    request: pytest.FixtureRequest, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of `finished`, interrupted after some steps and gone on with."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    settings: dict[str, Any] = {"num_epochs": 2, "eval_steps": 2}
    with interrupted_after(request.param):
        run(tiny_cache, folder, **settings)
    with logged_messages() as logged:
        report = run(tiny_cache, folder, **settings, resume=True)
    assert report.steps == 16
    checkpointed = request.param // 2 * 2
    assert (f"Going on after step {checkpointed} of 16" in logged) == (checkpointed > 0)
    return folder


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    resumed: Path, finished: Path
) -> None:
    for name in ("best", "last"):
        assert_same(weights(resumed / name), weights(finished / name))
    one, other = checkpoint(resumed), checkpoint(finished)
    assert one.state == other.state
    assert_same(one.tensors("optimizer"), other.tensors("optimizer"))


def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(resumed: Path, finished: Path) -> None:
    assert metrics(resumed) == metrics(finished)


def test_a_run_killed_while_it_saves_is_resumed(tiny_cache: Path, tmp_path: Path) -> None:
    """Lines of the log after the checkpoint, and half a line at its end, are taken out."""
    settings: dict[str, Any] = {"num_epochs": 2, "eval_steps": 10}
    run(tiny_cache, tmp_path / "whole", **settings)
    saves = []

    def save(*arguments: Any) -> None:
        saves.append(arguments)
        if len(saves) == 2:
            raise KeyboardInterrupt
        save_checkpoint(*arguments)

    killed = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mav.pipeline.training.train.save_checkpoint", save)
        run(tiny_cache, killed, **settings)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "eval_lo')
    run(tiny_cache, killed, **settings, resume=True)
    assert_same(weights(killed / "last"), weights(tmp_path / "whole" / "last"))
    assert metrics(killed) == metrics(tmp_path / "whole")


def test_a_complete_run_is_left_as_it_is(
    finished: Path, tiny_cache: Path, messages: list[str]
) -> None:
    before = contents(finished)
    report = run(tiny_cache, finished, num_epochs=2, eval_steps=2, resume=True)
    assert contents(finished) == before
    assert any(line.endswith("trained already, left as it is") for line in messages)
    assert (report.steps, report.evaluation) == (16, {})
    assert report.best_step == max(
        line["step"] for line in metrics(finished) if line.get("eval_loss") == best_loss(finished)
    )


def best_loss(folder: Path) -> float:
    return min(line["eval_loss"] for line in metrics(folder) if "eval_loss" in line)


def test_a_folder_with_a_run_is_not_written_over(finished: Path, tiny_cache: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a training run already\. Add `resume=True`"):
        run(tiny_cache, finished, num_epochs=2, eval_steps=2)


def test_resume_begins_a_run_where_there_is_none(tiny_cache: Path, tmp_path: Path) -> None:
    assert run(tiny_cache, tmp_path / "new", eval_steps=8, resume=True).steps == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_fraction", 0.2),
        ("expansion_size", 8),
        ("dropout", 0.2),
        ("objective", "mav"),
        ("beta", 0.2),
        ("lambda_l2", 0.0),
        ("lambda_kl", 0.5),
        ("lambda_sft", 0.5),
        ("ld_alpha", 0.5),
        ("learning_rate", 1e-3),
        ("weight_decay", 0.0),
        ("max_grad_norm", 2.0),
        ("num_epochs", 3),
        ("warmup_steps", 0),
        ("seed", 1),
    ],
)
def test_a_run_cannot_go_on_with_other_options(
    finished: Path, tiny_cache: Path, name: str, value: object
) -> None:
    before = contents(finished)
    changed: dict[str, Any] = {"num_epochs": 2, name: value}
    with pytest.raises(MismatchError, match=rf"other settings:\n  - {name}: begun with .*{value}"):
        run(tiny_cache, finished, resume=True, **changed)
    assert contents(finished) == before


def test_every_changed_option_is_named(finished: Path, tiny_cache: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        run(tiny_cache, finished, resume=True, num_epochs=1, seed=3, beta=0.3)
    named = [line.split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert named == ["  - beta", "  - num_epochs", "  - seed"]


def test_a_run_may_be_moved_and_evaluated_more_often(
    tiny_cache: Path, tmp_path: Path, finished: Path
) -> None:
    with interrupted_after(5):
        run(tiny_cache, tmp_path / "old", num_epochs=2, eval_steps=4)
    (tmp_path / "old").rename(tmp_path / "new")
    shutil.copytree(tiny_cache, tmp_path / "cache")
    run(tmp_path / "cache", tmp_path / "new", num_epochs=2, eval_steps=1, resume=True)
    assert_same(weights(tmp_path / "new" / "last"), weights(finished / "last"))


@pytest.fixture(scope="module")
def begun(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after three steps; read only."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with interrupted_after(3):
        run(tiny_cache, folder, eval_steps=2)
    return folder


@pytest.mark.parametrize(
    "other",
    [
        {"pairs": 39},
        {"layer_selection": "0,2,4"},
        {"block_tokens": 512},
        {"dtype": "bfloat16"},
        {"logits": "topk", "top_k": 8},
    ],
    ids=str,
)
def test_a_run_cannot_go_on_with_another_cache(
    begun: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    """Whatever decides a weight or the order of pairs; where the cache lies does not."""
    cache = make_cache(tmp_path / "other", **other)
    shutil.copytree(begun, tmp_path / "run")
    with pytest.raises(MismatchError, match=r"- cache: another cache"):
        run(cache, tmp_path / "run", eval_steps=2, resume=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 4}, r"pairs in a step \(.*\): begun with 4, got 8"),
        ({"grad_accum": 1}, r"pairs in a step \(.*\): begun with 4, got 2"),
        ({"batch_size": None, "batch_tokens": 64}, r"batch_tokens: begun with None, got 64"),
    ],
    ids=str,
)
def test_a_run_cannot_go_on_with_other_steps(
    finished: Path, tiny_cache: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(MismatchError, match=told):
        run(tiny_cache, finished, resume=True, num_epochs=2, **changes)


def test_a_step_may_be_shared_out_otherwise_on_resuming(tiny_cache: Path, tmp_path: Path) -> None:
    """What counts is the pairs of a step; without dropout even the weights are the same."""
    settings: dict[str, Any] = {"eval_steps": 2, "dropout": 0.0}
    run(tiny_cache, tmp_path / "whole", **settings)
    with interrupted_after(3):
        run(tiny_cache, tmp_path / "run", **settings)
    run(tiny_cache, tmp_path / "run", **settings, resume=True, batch_size=4, grad_accum=1)
    found, expected = weights(tmp_path / "run" / "last"), weights(tmp_path / "whole" / "last")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def begun_longer(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that was interrupted after seven steps; read only."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with interrupted_after(7):
        run(tiny_cache, folder, num_epochs=2, eval_steps=2)
    return folder


@pytest.mark.parametrize("name", ["state.json", "head.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_passed_over(
    *,
    tiny_cache: Path,
    begun_longer: Path,
    tmp_path: Path,
    finished: Path,
    name: str,
    messages: list[str],
) -> None:
    shutil.copytree(begun_longer, tmp_path, dirs_exist_ok=True)
    file = checkpoint(tmp_path).folder / name
    file.write_bytes(file.read_bytes()[:100])
    messages.clear()
    run(tiny_cache, tmp_path, num_epochs=2, eval_steps=2, resume=True)
    assert any("damaged" in line for line in messages)
    assert "Going on after step 4 of 16" in messages
    assert_same(weights(tmp_path / "last"), weights(finished / "last"))
    assert metrics(tmp_path) == metrics(finished)


def test_a_run_without_a_sound_checkpoint_is_refused(
    tiny_cache: Path, begun: Path, tmp_path: Path
) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("checkpoints/*/state.json"):
        file.write_text("{")
    with pytest.raises(HeadError, match=r"[Rr]emove .* to start over"):
        run(tiny_cache, tmp_path, eval_steps=2, resume=True)


def test_held_out_pairs_cannot_be_taken_into_training_on_resuming(
    tiny_cache: Path, begun: Path, tmp_path: Path, small_cache: Path
) -> None:
    """With a cache of its own to evaluate on, nothing is held out of the training cache."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    with pytest.raises(MismatchError, match=r"eval_(cache|fraction)"):
        run(tiny_cache, tmp_path, eval_steps=2, eval_cache=small_cache, resume=True)
