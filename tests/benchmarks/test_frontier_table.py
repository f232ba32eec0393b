"""The frontier's file of results, its curves and its table."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.frontier.__main__ import main
from benchmarks.frontier.curves import (
    Point,
    best_of_n_kl,
    best_of_n_reward,
    difference_with_interval,
    interval,
    reward_at,
    reward_with_interval,
    spearman,
)
from benchmarks.frontier.measure import run_method
from benchmarks.frontier.methods import METHODS, Method, methods_named
from benchmarks.frontier.picture import draw
from benchmarks.frontier.policies import steered
from benchmarks.frontier.results import Results, Run
from benchmarks.frontier.settings import Place, Sizes
from benchmarks.frontier.stages import World
from benchmarks.frontier.summary import chosen_setting, ranking_predicts, rows_of, summary, table
from mav.cache_schema.errors import UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.preferences.prompt_format import PromptFormat
from tests.support.models.tiny import HIDDEN, tiny_base

SIZES = Sizes(
    base="tiny",
    tuning_prompts=2,
    held_out_prompts=3,
    kl_prompts=2,
    ranking_prompts=3,
    of_n=4,
    of_n_prompts=2,
    new_tokens=4,
)


def add(results: Results, method: str, kl: float, reward: float, **run: Any) -> None:
    found = {"reward": [reward, reward + 0.1, reward - 0.1], "kl": [kl, kl]}
    results.add(Run(kind="curve", method=method, sizes=SIZES, **run), found)


def test_rewards_are_read_off_between_neighbours_and_not_beyond() -> None:
    kls, rewards = np.array([8.0, 0.0, 4.0]), np.array([0.9, 0.1, 0.5])
    assert reward_at(2, kls, rewards) == pytest.approx(0.3)
    assert reward_at(5, kls, rewards) == pytest.approx(0.6)
    assert reward_at(8, kls, rewards) == pytest.approx(0.9)
    assert reward_at(8.1, kls, rewards) is None


def test_an_interpolated_reward_has_an_interval_where_the_curve_surely_reaches() -> None:
    draws = np.random.default_rng(0)
    points = [
        Point(
            strength=strength,
            reward=draws.normal(mean, 0.4, 200),
            kl=np.abs(draws.normal(kl, 0.3 * kl, 50)),
        )
        for strength, mean, kl in ((0.0, 0.2, 0.0), (1.0, 0.5, 3.0), (2.0, 0.7, 6.0))
    ]
    found = reward_with_interval(2, points)
    assert found is not None and found[1] is not None
    low, high = found[1]
    assert low < found[0] < high and high - low < 0.2
    barely = float(points[-1].kl.mean()) - 0.01
    surely_not = reward_with_interval(barely, points)
    assert surely_not is not None and surely_not[1] is None
    assert surely_not[0] == pytest.approx(points[-1].reward.mean(), abs=0.01)
    assert reward_with_interval(10, points) is None


def test_a_difference_is_paired_by_prompt() -> None:
    draws = np.random.default_rng(0)
    base = Point(strength=0.0, reward=draws.normal(0.2, 0.4, 200), kl=np.zeros(50))
    hard = draws.normal(0.5, 0.4, 200)
    kl = np.abs(draws.normal(4.0, 1.0, 50))
    theirs = [base, Point(strength=1.0, reward=hard, kl=kl)]
    ours = [base, Point(strength=1.0, reward=hard + draws.normal(0.1, 0.02, 200), kl=kl)]
    found = difference_with_interval(4 * 0.75, ours, theirs)
    assert found is not None and found[1] is not None
    low, high = found[1]
    # Three quarters of the way to where they differ by 0.1, give or take what prompts do not share.
    assert low < found[0] < high
    assert found[0] == pytest.approx(0.075, abs=0.01)
    assert high - low < 0.02, "the prompts' own differences drop out"
    assert difference_with_interval(9, ours, theirs) is None


def test_a_bootstrap_interval_is_about_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    half = 1.96 * values.std() / 20
    low, high = interval(values)
    assert low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.2 * half)


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 6))
    for n in (1, 2, 5, 6):
        expected = [np.mean([max(some) for some in combinations(row, n)]) for row in rewards]
        np.testing.assert_allclose(best_of_n_reward(rewards, n), expected)
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(16) == pytest.approx(np.log(16) - 15 / 16)


def test_rank_correlation_knows_ties() -> None:
    assert spearman([1, 2, 3, 4], [10, 100, 1000, 1e4]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3.
    assert spearman([1, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_lines_are_kept_and_a_cut_one_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "results.jsonl"
    results = Results(path)
    run = Run(kind="curve", method="bipo", setting=1e-3, strength=2.0, sizes=SIZES)
    assert results.get(run) is None
    add(results, "bipo", 1.0, 0.5, setting=1e-3, strength=2.0)
    assert Results(path).get(run) == results.get(run)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"run": {"kind": "cur')
    again = Results(path)
    assert "line 2: is no result" in capsys.readouterr().err
    add(again, "bipo", 2.0, 0.6, setting=1e-3, strength=4.0)
    last = Results(path)
    assert [at.strength for at, _ in last.of(SIZES, "curve")] == [2.0, 4.0]
    assert not [*last.of(Sizes(base="other"), "curve")] and not [*last.of(SIZES, "time")]
    found = last.get(run)
    assert found is not None and found["machine"]["torch"] == torch.__version__


def test_a_setting_is_chosen_by_its_correlation_with_the_reward(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    (bipo,) = methods_named("bipo")
    assert chosen_setting(results, SIZES, bipo) == bipo.default
    for setting, correlation in ((3e-3, 0.1), (3e-4, 0.3), (1e-4, -0.4)):
        run = Run(kind="correlation", method="bipo", setting=setting, part="tuning", sizes=SIZES)
        results.add(run, {"correlation": correlation})
    assert chosen_setting(results, SIZES, bipo) == 3e-4
    add(results, "bipo", 6.0, 0.5, setting=3e-4, strength=1.0)
    (row,) = rows_of(results, SIZES)
    assert row["correlations"] == {1e-4: -0.4, 3e-4: 0.3, 3e-3: 0.1}
    assert "| 0.0003 of 0.0001, 0.0003, 0.003 |" in table(summary(results, SIZES))
    # Another rate has a row once its whole curve is there, behind the one that was chosen.
    for strength in bipo.strengths:
        assert len(rows_of(results, SIZES)) == 1
        add(results, "bipo", 6.0 + strength, 0.7, setting=3e-3, strength=strength)
    assert [(row["setting"], row["chosen"]) for row in rows_of(results, SIZES)] == [
        (3e-4, True),
        (3e-3, False),
    ]
    assert "| 0.003, not chosen |" in table(summary(results, SIZES))
    (vector,) = methods_named("mean-difference")
    assert chosen_setting(results, SIZES, vector) is None


def test_the_best_head_is_held_against_every_rate_of_lora(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    add(results, "base", 0.0, 0.1)
    for name, reward in (("mav-last", 0.7), ("mav-bottleneck-last", 0.5), ("dpo-lora", 0.4)):
        add(results, name, 6.0, reward, setting=1e-3, strength=1.0)
    told = summary(results, SIZES)
    (found,) = told["over_dpo_lora"]
    assert (found["method"], found["rival_setting"]) == ("MAV mlp, `last`", 1e-3)
    assert found["more"]["2"][0] == pytest.approx(0.1) and found["more"]["10"] is None
    assert "paired by prompt: 0.10 [0.10, 0.10] at 2 nats, 0.25 [0.25, 0.25] at 5" in table(told)


def test_the_table_says_what_it_stands_on(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    add(results, "base", 0.0, 0.1)
    for seed in (0, 1):
        add(results, "mav-last", 4.0, 0.5 + 0.2 * seed, setting=1e-3, strength=1.0, seed=seed)
        run = Run(
            kind="ranking", method="mav-last", setting=1e-3, strength=1.0, seed=seed, sizes=SIZES
        )
        results.add(run, {"pairs": 6, "accuracy": 0.6 + 0.1 * seed})
    base, mav = rows_of(results, SIZES)
    assert base["method"] == "base" and "reward_at" not in base
    assert (mav["seeds"], mav["prompts"], mav["kl_prompts"]) == ([0, 1], 3, 2)
    assert mav["reward_at"]["2"][0] == pytest.approx(0.35)
    assert mav["reward_at"]["5"] is None
    assert mav["accuracy"] == pytest.approx(0.65)
    ranking = ranking_predicts(results, SIZES)
    assert [found["reward"] for found in ranking["runs"]] == pytest.approx([0.3, 0.4])
    assert ranking["spearman"] is None
    told = table(summary(results, SIZES))
    assert "| MAV mlp, `last` | 0.001, not tuned | 2, 3 (2) | 0.35" in told
    assert "not reached | not reached | 4.0, 0.60" in told and "not told of so few" in told
    draw(rows_of(results, SIZES), tmp_path / "a.svg")
    draw(rows_of(results, SIZES), tmp_path / "b.svg")
    picture = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert picture == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "MAV mlp, `last`" in picture and "gold reward" in picture


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(SIZES, Place(work=tmp_path), "tiny")
    base = tiny_base()
    form = PromptFormat(name="hh", tokenizer=base.tokenizer)
    # What is otherwise loaded when it is first asked for.
    found.__dict__.update(base=base, wide=base, form=form, reward=lambda text: len(text) / 100)
    return found


def test_what_is_in_the_file_is_not_run_again(world: World, tmp_path: Path) -> None:
    opened = []

    @contextmanager
    def open_it(world: World, base: BaseModel, _: Path) -> Iterator[Any]:
        opened.append(base)
        vector = torch.linspace(-1, 1, HIDDEN)
        yield lambda strength: steered(base, world.form, 1, strength * vector)

    method = Method(name="steered", label="s", strengths=(0.5, 2.0), means="times", open=open_it)
    results = Results(tmp_path / "results.jsonl")
    run_method(world, results, method, 0, tune=False)
    lines = results.path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["run"]["kind"] for line in found] == ["curve", "curve", "time"]
    assert [len(line["reward"]) for line in found[:2]] == [3, 3]
    assert [len(line["kl"]) for line in found[:2]] == [2, 2]
    assert 0 < sum(found[0]["kl"]) < sum(found[1]["kl"])
    assert found[2]["time_over_base"] > 0
    # A line that is missing is run alone.
    results.path.write_text("\n".join([lines[1], lines[2]]) + "\n", encoding="utf-8")
    opened.clear()
    run_method(world, Results(results.path), method, 0, tune=False)
    again = [json.loads(line) for line in results.path.read_text(encoding="utf-8").splitlines()]
    assert len(again) == 3 and again[-1]["reward"] == found[0]["reward"] and len(opened) == 2
    opened.clear()
    run_method(world, Results(results.path), method, 0, tune=False)
    assert not opened


def test_best_of_n_takes_the_answers_there_are(world: World, tmp_path: Path) -> None:
    (method,) = methods_named("best-of-n")
    results = Results(tmp_path / "results.jsonl")
    run_method(world, results, method, 0, tune=False)
    found = [line for _, line in results.of(SIZES, "curve")]
    assert [line["run"]["strength"] for line in found] == [2, 4]
    assert np.mean(found[0]["reward"]) <= np.mean(found[1]["reward"])
    assert found[1]["kl"] == [pytest.approx(best_of_n_kl(4), abs=1e-4)] * 2


def test_a_folder_is_for_one_choice_of_sizes(tmp_path: Path) -> None:
    place = Place(work=tmp_path / "work")
    place.claim(SIZES)
    place.claim(SIZES)
    with pytest.raises(UsageError, match=r"made with other sizes \(base, .*another --work"):
        place.claim(Sizes(base="other"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mav-last,magic"], "--methods: got magic; known: base, mav-last"),
        (["--seeds", "0;1"], "--seeds: got '0;1', expected numbers"),
        (["--answers", "3"], "answers: got 3, expected an even number"),
        (["--kl-prompts", "300"], "kl_prompts: got 300, expected at most the 200"),
        ([], "--work: got none"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["frontier", "--base-model", "tiny.gguf", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr()
    assert stopped.value.code == 2 and not told.out
    assert told.err.count("\n") == 1 and message in told.err


def test_the_table_alone_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "none.jsonl")
    arguments = ["frontier", "--base-model", "tiny.gguf", "--table", "--json", "--results", file]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert json.loads(capsys.readouterr().out)["rows"] == []
    assert len({method.name for method in METHODS}) == len(METHODS)
