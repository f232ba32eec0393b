"""`mav compare` as a user runs it: its tables, its files, and one line for each mistake."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.commands import done, refused
from tests.support.running.judge_server import judging, says
from tests.support.steering.comparisons import save_reward_model
from tests.support.steering.heads import write_head

USAGE, DATA = 2, 1
TEXTS = ("Hi", "How do I mend a kite?")


@dataclass(frozen=True, kw_only=True)
class World:
    """What comparisons take; read only."""

    base: Path
    head: str
    reward: Path
    prompts: Path
    theirs: Path

    @property
    def line(self) -> list[object]:
        return [
            *["compare", "--head", self.head, "--base-model", self.base],
            *["--prompts", self.prompts, "--alphas", "0,1", "--max-new-tokens", 4],
            *["--device", "cpu", "--dtype", "float32"],
        ]

    @property
    def files(self) -> list[object]:
        return ["compare", "--prompts", self.prompts, "--with", f"theirs={self.theirs}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("compare")
    base = tiny_base(tie_word_embeddings=False)
    prompts, theirs = folder / "prompts.txt", folder / "theirs.jsonl"
    prompts.write_text("\n".join(TEXTS), encoding="utf-8")
    rows = [{"prompt": text, "response": f"Well, {text}"} for text in TEXTS]
    theirs.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return World(
        base=save_base(base, folder / "base"),
        head=write_head(folder / "head", make_cache(folder / "cached", base, pairs=4)),
        reward=save_reward_model(folder / "reward"),
        prompts=prompts,
        theirs=theirs,
    )


def test_tables_and_files(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--with", f"theirs={world.theirs}", "--reward-model", world.reward]
    told = done(*world.line, *more, "--export", "alpaca-eval", "--output", out)
    first, _, head, base, *_ = told.splitlines()
    assert first == (
        "2 prompts of prompts.txt; base base, greedy, at most 4 new tokens; 95 % intervals over "
        "prompts in brackets, against alpha=0"
    )
    assert re.split(r"  +", head) == [
        *("system", "answers", "reward reward", "gain", "win % reward", "length-controlled"),
        *("KL (nats)", "perplexity", "tokens/s"),
    ]
    assert re.match(r"alpha=0 +2 +-?\d+\.\d\d \[.*\] +- +- +- +0\.00 \[0\.00, 0\.00\] ", base)
    assert told.endswith(f"Page: {out}/page.html\n")
    assert sorted(path.name for path in out.iterdir()) == [
        *("alpaca-eval", "answers", "page.html", "summary.json"),
    ]
    as_json = json.loads(done(*world.line, *more, "--output", out, "--json"))
    assert as_json == json.loads((out / "summary.json").read_text())
    assert [one["name"] for one in as_json["systems"]] == ["alpha=0", "alpha=1", "theirs"]


def test_a_judge_is_asked_and_counted(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": TEXTS[0], "response": "No."}, {"prompt": TEXTS[1], "response": "Well, "}]
    other.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def prefers_well(message: str, _: int) -> object:
        first, second = (message.rfind(said) for said in ("No.", f"Well, {TEXTS[0]}"))
        return says(
            "Verdict: tie" if min(first, second) < 0 else f"Verdict: {'AB'[first < second]}"
        )

    with judging(prefers_well) as server:  # type: ignore[arg-type]
        line = [
            *[*world.files, "--with", f"other={other}", "--output", tmp_path / "out"],
            *["--judge-url", server.url, "--judge-model", "it"],
        ]
        told = done(*line)
        calls = len(server.asked)
        assert calls == 4
        found = json.loads(done(*line, "--json"))
        assert len(server.asked) == calls
    wins = found["systems"][1]["wins"]["judge"]["rate"]
    assert (wins["value"], wins["n"]) == (0.25, 2)  # one lost, one tied
    assert "win % judge" in told
    assert "Judge: 4 calls, 2 duels, 0 identical, 0 by place, 0 failed, 0 unreadable" in told


@pytest.mark.parametrize(
    ("code", "more", "told"),
    [
        (USAGE, ["--reference", "best"], "--reference: got 'best', expected one of theirs"),
        (USAGE, ["--with", "nameless.jsonl"], "--with: got 'nameless.jsonl', expected NAME=FILE"),
        (USAGE, ["--judge-model", "it"], "a judge needs --judge-url and --judge-model"),
        (USAGE, ["--judge-url", "ftp://x", "--judge-model", "it"], "ftp://x"),
        (USAGE, ["--limit", "0"], "--limit: got 0, expected at least 1"),
        (USAGE, ["--export", "csv"], "Invalid value for '--export'"),
        (DATA, ["--reward-model", "nowhere/"], "nowhere"),
        (DATA, ["--with", "x=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (DATA, ["--refusals", "nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(
    world: World, tmp_path: Path, code: int, more: list[str], told: str
) -> None:
    message = refused(code, *world.files, "--output", tmp_path / "out", *more)
    assert told in message
    assert len(message.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "summary.json").exists()


def test_nothing_to_compare_is_told(world: World, tmp_path: Path) -> None:
    told = refused(USAGE, "compare", "--prompts", world.prompts, "--output", tmp_path / "out")
    assert told.startswith("--head: got none; name one, or give answers of systems")


def test_the_output_of_another_run_is_refused(world: World, tmp_path: Path) -> None:
    done(*world.line, "--output", tmp_path / "out")
    told = refused(DATA, *world.line, "--output", tmp_path / "out", "--temperature", 1)
    assert "alpha=0.jsonl: answers of a run with other settings (temperature: 0.0, now 1.0)" in told


def test_answers_of_a_comparison_are_taken_by_another(world: World, tmp_path: Path) -> None:
    done(*world.line, "--output", tmp_path / "out")
    theirs = tmp_path / "out" / "answers" / "alpha=1.jsonl"
    line = ["compare", "--prompts", world.prompts, "--with", f"it={theirs}", "--json"]
    found = json.loads(done(*line, "--output", tmp_path / "again"))
    assert found["systems"][0]["kl"]["value"] > 0
    assert found["systems"][0]["tokens_per_second"] > 0


def test_missing_answers_are_counted(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "Hi", "response": "Ho"}), encoding="utf-8")
    told = done(*world.files, "--with", f"other={other}", "--output", tmp_path / "out")
    assert re.search(r"^other +1 \(-1\) ", told, re.MULTILINE)
    assert "other: 1 answers are missing" in told
