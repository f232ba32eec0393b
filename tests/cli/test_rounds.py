"""`mav sample` and `mav pairs` as a user runs them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.commands import done, mav, refused
from tests.support.steering.comparisons import save_reward_model
from tests.support.steering.heads import write_head

DATA, USAGE = 1, 2
PLACED = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """A command that samples from base and head."""
    folder = tmp_path_factory.mktemp("sampled")
    base = tiny_base(tie_word_embeddings=False)
    head = write_head(folder / "head", make_cache(folder / "cached", base, pairs=4))
    prompts = folder / "prompts.txt"
    prompts.write_text("Hi\nHow do I mend a kite?\n")
    saved = save_base(base, folder / "base")
    settings = ["--max-new-tokens", 5, "--seed", 3, *PLACED]
    return ["sample", "--head", head, "--base-model", saved, "--prompts", prompts, *settings]


def test_samples_become_pairs_by_a_reward_model(asked: list[Any], tmp_path: Path) -> None:
    samples, pairs = tmp_path / "samples.jsonl", tmp_path / "pairs.jsonl"
    told = done(*asked, "--n", 3, "--alpha", 2, "--output", samples)
    assert f"{samples}: 6 answers to 2 prompts" in told
    model = save_reward_model(tmp_path / "reward")
    command = ["pairs", "--samples", samples, "--reward-model", model, *PLACED]
    assert f"{pairs}: 2 pairs of 2 prompts" in done(*command, "--output", pairs)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows)
    every = ["--rule", "all", "--output", tmp_path / "all.jsonl", "--json"]
    assert json.loads(done(*command, *every))["pairs"] > 2


def test_what_failed_is_counted_and_ends_in_1(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("Hi\n" + "kite " * 4000)
    line = [*asked, "--prompts", tmp_path / "long.txt", "--output", tmp_path / "out.jsonl"]
    del line[line.index("--prompts") : line.index("--prompts") + 2]
    found = mav(*line, "--n", 2)
    assert found.exit_code == 1
    assert "2 answers to 2 prompts, 2 failed" in found.output


def test_a_mistake_is_one_line(asked: list[Any], tmp_path: Path) -> None:
    out = ["--output", tmp_path / "out.jsonl"]
    assert "--n: got 4 without temperature" in refused(USAGE, *asked, *out, "--temperature", 0)
    without = [part for part in asked if part not in asked[1:5]]
    assert "--head: got none and no --base-model" in refused(USAGE, *without, *out)
    told = refused(USAGE, "pairs", "--samples", "no.jsonl", *out)
    assert "--scores: got neither this nor --reward-model" in told
    told = refused(DATA, "pairs", "--samples", "no.jsonl", "--scores", "no.jsonl", *out)
    assert "no.jsonl: no such file" in told
