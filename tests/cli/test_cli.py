"""The command line: the whole line of commands on a tiny base."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.reader import CacheReader
from tests.support.models.tiny import HIDDEN, save_base, tiny_base, write_rows
from tests.support.running.commands import Line, done, mav
from tests.support.running.limits import PROCESS


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A base, a cache of it and a head, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("line")
    made = Line(
        base=save_base(tiny_base(), folder / "base"),
        data=write_rows(folder / "pairs.jsonl", 24),
        cache=folder / "cache",
        run=folder / "runs" / "head",
    )
    done(*made.extract)
    done(*made.train)
    return made


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Extract


def test_extracting_again_leaves_the_cache_as_it_is(line: Line) -> None:
    before = contents(line.cache)
    result = mav(*line.extract, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["pairs_done"] == 0
    assert "already complete, nothing to do" in result.stderr
    assert contents(line.cache) == before


def test_extract_prints_figures_as_json(line: Line, tmp_path: Path) -> None:
    found = json.loads(done(*line.extract, "--output", tmp_path / "cache", "--json"))
    assert (found["rows"], found["pairs"], found["dropped"]) == (24, 24, {})
    assert (found["pairs_done"], found["layers"]) == (24, [1, 2, 4])
    assert found["pairs_per_second"] > 0
    assert found["packing"] == "packed"
    assert set(found["checks"]) == {"layers", "factored_logits", "packing"}
    manifest = CacheReader(tmp_path / "cache").manifest
    assert (found["response_tokens"], found["blocks"]) == (
        manifest.plan.tokens,
        manifest.plan.blocks,
    )
    assert found["stored_bytes"] == sum(len(data) for data in contents(tmp_path / "cache").values())


def test_extract_tells_what_it_wrote(line: Line, tmp_path: Path) -> None:
    result = mav(*line.extract, "--output", tmp_path / "cache", "--limit", 5)
    assert f"{tmp_path / 'cache'}: 5 pairs, " in result.stdout
    assert "5 rows, 5 pairs kept; dropped: none" in result.stderr


def test_options_reach_the_extraction(line: Line, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    options = ["--layer-selection", "0,3", "--logits", "topk", "--top-k", 7, "--limit", 4]
    done(*line.extract, *options, "--output", root, "--pooled-size", 8, "--max-length", 64)
    manifest = CacheReader(root).manifest
    assert (manifest.states.layers, manifest.states.layer_selection) == ((0, 3), "explicit")
    assert (manifest.logits.encoding, manifest.logits.top_k) == ("topk", 7)
    assert (manifest.states.pooled_size, manifest.text.max_length) == (8, 64)
    assert (manifest.data.rows, manifest.data.sources[0].limit) == (4, 4)


def test_uniform_layers_of_another_number(line: Line, tmp_path: Path) -> None:
    options = ["--layer-selection", "uniform", "--num-layers", 2, "--limit", 3]
    done(*line.extract, *options, "--output", tmp_path / "cache")
    assert CacheReader(tmp_path / "cache").manifest.states.layers == (1, 4)


# Inspect


def test_inspect_shows_a_cache(line: Line) -> None:
    text = done("inspect", line.cache)
    for part in ("MAV cache, format 2", "complete", "base (LlamaForCausalLM", "24 of 24"):
        assert part in text


def test_inspect_prints_a_cache_as_json(line: Line) -> None:
    found = json.loads(done("inspect", line.cache, "--json"))
    assert found["kind"] == "MAV cache, format 2"
    assert found["complete"] is True
    assert found["bytes_per_token"] == 3 * HIDDEN * 4 + 4
    assert found["arrays"]["labels"].startswith("int32 [")


@pytest.mark.parametrize("part", ["", "best", "last"])
def test_inspect_shows_a_head(line: Line, part: str) -> None:
    text = done("inspect", line.run / part)
    for shown in ("MAV alignment head", "alignment_parameters", "dpo, beta 0.1", "base (Llama"):
        assert shown in text


def test_inspect_prints_a_head_as_json(line: Line) -> None:
    found = json.loads(done("inspect", line.run, "--json"))
    alignment = (HIDDEN + 1) * 16 + (16 + 1) * 300
    assert found["alignment_parameters"] == alignment
    assert found["total_parameters"] == alignment + (3 * HIDDEN + 1) * HIDDEN
    assert found["held_out_fraction"] == 0.3
    assert found["sizes"] == {"layers": 3, "pooled": HIDDEN, "expansion": 16, "vocabulary": 300}


def test_inspect_shows_an_incomplete_cache(line: Line, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for path, data in contents(line.cache).items():
        copy = root / path.relative_to(line.cache)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    next((root / "commits").glob("0*.json")).unlink()
    found = json.loads(done("inspect", root, "--json"))
    assert found["complete"] is False
    assert found["blocks"].startswith("4 of 5 written")


# Train


def test_train_prints_figures_as_json(line: Line, tmp_path: Path) -> None:
    found = json.loads(done(*line.train, "--output-dir", tmp_path / "run", "--json"))
    assert found["output_dir"] == str(tmp_path / "run")
    assert found["steps"] >= 1
    assert 0 <= found["evaluation"]["eval_rewards/accuracies"] <= 1
    assert found["total_parameters"] > found["alignment_parameters"]


def test_train_leaves_heads_checkpoint_and_metrics(line: Line) -> None:
    for name in ("best", "last"):
        assert {path.name for path in (line.run / name).iterdir()} == {
            "config.json",
            "model.safetensors",
        }
    assert len(list(line.run.glob("checkpoints/step-*/state.json"))) in (1, 2)
    lines = (line.run / "metrics.jsonl").read_text().splitlines()
    assert {"loss", "eval_loss"} <= {name for text in lines for name in json.loads(text)}
    assert not list(line.run.rglob(".*"))


def test_a_finished_training_is_left_as_it_is(line: Line) -> None:
    before = contents(line.run)
    result = mav(*line.train, "--resume")
    assert result.exit_code == 0, result.output
    assert "trained already, left as it is" in result.stderr
    assert contents(line.run) == before


def test_runs_of_different_precision_follow_one_another(line: Line, tmp_path: Path) -> None:
    done(*line.train, "--output-dir", tmp_path / "wide", "--no-bf16")
    done(*line.train, "--output-dir", tmp_path / "narrow", "--bf16")
    done(*line.train, "--output-dir", tmp_path / "wide again", "--no-bf16")


# Evaluate


def test_evaluate_prints_one_result_an_alpha(line: Line) -> None:
    found = json.loads(
        done("evaluate", "--head", line.run, "--cache", line.cache, "--alphas", "0,1,-2", "--json")
    )
    assert [result["alpha"] for result in found["results"]] == [0, 1, -2]
    base, aligned, _ = found["results"]
    assert (base["kl_per_token"], base["margin"], base["reward_accuracy"]) == (0, 0, None)
    assert aligned["kl_per_token"] > 0
    assert found["which"] == "held-out"


def test_evaluate_prints_a_table(line: Line) -> None:
    text = done("evaluate", "--head", line.run, "--cache", line.cache, "--alphas", "0,0.5")
    lines = text.splitlines()
    assert "95 % intervals" in lines[0]
    assert lines[1].split()[:3] == ["alpha", "reward", "accuracy"]
    assert [row.split()[0] for row in lines[2:]] == ["0", "0.5"]


def test_evaluate_takes_the_part_that_is_asked_for(line: Line) -> None:
    pairs = {}
    for which in ("held-out", "training", "all"):
        args = ["--head", line.run, "--cache", line.cache, "--alphas", 1, "--pairs", which]
        found = json.loads(done("evaluate", *args, "--json"))
        assert found["which"] == which
        pairs[which] = found["pairs"]
    assert pairs["held-out"] + pairs["training"] == pairs["all"] == 24
    assert 0 < pairs["held-out"] < 24


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_evaluate_draws_a_plot(line: Line, tmp_path: Path, name: str, magic: bytes) -> None:
    args = ["--head", line.run, "--cache", line.cache, "--alphas", "0,1"]
    done("evaluate", *args, "--plot", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


# Generate


def test_generate_answers_a_prompt(line: Line) -> None:
    first = done(*line.generate, "--prompt", "How do I mend a kite?")
    assert first.count("\n") >= 1
    assert done(*line.generate, "--prompt", "How do I mend a kite?") == first


def test_generate_tells_several_alphas_apart(line: Line) -> None:
    text = done(*line.generate, "--prompt", "Hi", "--alphas", "0,1,-0.5")
    heads = [row for row in text.splitlines() if row.startswith("---")]
    assert heads == ["--- alpha 0: Hi", "--- alpha 1: Hi", "--- alpha -0.5: Hi"]


def answers(text: str) -> Iterator[dict[str, Any]]:
    for row in text.splitlines():
        yield json.loads(row)


def test_generate_prints_one_json_object_an_answer(line: Line) -> None:
    found = list(answers(done(*line.generate, "--prompt", "Hi", "--alphas", "0,2", "--json")))
    assert [answer["alpha"] for answer in found] == [0, 2]
    assert {answer["prompt"] for answer in found} == {"\n\nHuman: Hi\n\nAssistant:"}
    assert all(0 < len(answer["tokens"]) <= 6 for answer in found)


def test_strength_reaches_the_tokens(line: Line) -> None:
    strengths = "0,400,-400"
    found = list(answers(done(*line.generate, "--prompt", "Hi", "--alphas", strengths, "--json")))
    assert len({tuple(answer["tokens"]) for answer in found}) > 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.txt", "How do I sew?\n\nWhat is bread?\n"),
        ("prompts.jsonl", '{"prompt": "How do I sew?"}\n\n{"prompt": "What is bread?", "id": 3}'),
    ],
)
def test_generate_reads_prompts_from_a_file(
    line: Line, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    args = ["--prompts", tmp_path / name, "--alphas", "0,1"]
    found = list(answers(done(*line.generate, *args, "--json")))
    asked = [(answer["prompt"].split(": ")[1].split("?")[0], answer["alpha"]) for answer in found]
    assert asked == [
        ("How do I sew", 0),
        ("How do I sew", 1),
        ("What is bread", 0),
        ("What is bread", 1),
    ]
    plain = done(*line.generate, *args).splitlines()
    assert plain[0] == "--- alpha 0: How do I sew?"
    assert "--- alpha 1: What is bread?" in plain


def test_a_prompt_of_json_may_hold_any_character(line: Line, tmp_path: Path) -> None:
    prompt = "one\u2028two\x85three\x0cfour"
    row = json.dumps({"prompt": prompt}, ensure_ascii=False)
    (tmp_path / "prompts.jsonl").write_text(row + "\n", encoding="utf-8")
    (answer,) = answers(done(*line.generate, "--prompts", tmp_path / "prompts.jsonl", "--json"))
    assert prompt in answer["prompt"]


def test_a_stream_is_the_same_answer(line: Line) -> None:
    args = ["--prompt", "How do I paint bread?", "--alphas", "0,300"]
    whole = done(*line.generate, *args).splitlines()
    streamed = done(*line.generate, *args, "--stream").splitlines()
    assert [row.strip() for row in streamed] == [row.strip() for row in whole]


def test_sampling_repeats_with_its_seed(line: Line) -> None:
    args = ["--prompt", "Hi", "--temperature", 1.5, "--top-p", 0.9, "--json"]
    tokens = [
        next(answers(done(*line.generate, *args, "--seed", seed)))["tokens"] for seed in (1, 1, 2)
    ]
    assert tokens[0] == tokens[1] != tokens[2]


def test_another_base_of_the_same_tokenizer_is_told_and_used(line: Line, tmp_path: Path) -> None:
    other = save_base(tiny_base(seed=1), tmp_path / "other")
    result = mav(*line.generate, "--base-model", other, "--prompt", "Hi")
    assert result.exit_code == 0, result.output
    assert f"{other} is another base than the head was trained on" in result.stderr


# The program


def test_the_program_exits_with_the_code_of_the_error(
    line: Line, tmp_path: Path, warm_programs: Path
) -> None:
    def run_program(*args: object) -> subprocess.CompletedProcess[str]:
        command = [str(warm_programs / "python"), "-m", "mav", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PROCESS)

    found = run_program("inspect", line.cache)
    assert (found.returncode, found.stderr) == (0, "")
    missing = run_program("inspect", tmp_path / "nowhere")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("Error: ")
    assert "Traceback" not in missing.stderr
    usage = run_program("generate", "--head", line.run)
    assert (usage.returncode, usage.stdout) == (2, "")
    assert usage.stderr.endswith("Error: give either --prompt or --prompts\n")
