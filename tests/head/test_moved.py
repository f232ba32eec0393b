"""What is kept of the author's machine: names and digests, so that caches and heads can travel."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.pretrained import load_head
from tests.support.models.tiny import save_base, tiny_base, write_rows
from tests.support.running.commands import Line, done, refused

AUTHOR = "ann-of-the-secret-project"


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything made in one folder, all paths named whole."""
    folder = tmp_path_factory.mktemp("machine") / AUTHOR
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAV_CACHE_HOME", str(folder.parent / "known"))
        line = line_in(folder)
        save_base(tiny_base(), line.base)
        write_rows(line.data, 24)
        done(*line.extract)
        done(*line.train)
        evaluate = ["evaluate", "--head", line.run, "--cache", line.cache, "--alphas", "1"]
        told = done(*evaluate, "--report", folder / "report.html", "--json")
        (folder / "evaluation.json").write_text(told)
        prompts = folder / "prompts.txt"
        prompts.write_text("Hello?\n")
        done(*line.generate, "--prompts", prompts, "--output", folder / "answers.jsonl")
    yield folder


def line_in(folder: Path) -> Line:
    return Line(
        base=folder / "base",
        data=folder / "pairs.jsonl",
        cache=folder / "data" / "cache",
        run=folder / "runs" / "head",
    )


@pytest.fixture
def moved(author: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    """The same on another machine, which knows of nothing."""
    monkeypatch.setenv("MAV_CACHE_HOME", str(tmp_path / "nothing-known"))
    return line_in(shutil.copytree(author, tmp_path / "elsewhere"))


def test_no_file_holds_a_path_of_the_author(author: Path) -> None:
    files = [path for path in author.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert not [path for path in files if AUTHOR.encode() in path.read_bytes()]
    config = json.loads((author / "runs" / "head" / "best" / "config.json").read_bytes())
    assert config["cache"]["base"]["id"] == "base"
    assert config["cache"]["data"]["sources"][0]["id"] == "pairs.jsonl"
    assert json.loads((author / "evaluation.json").read_text())["head"] == "head/best"


def test_the_author_finds_base_and_data_from_any_folder(
    author: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAV_CACHE_HOME", str(author.parent / "known"))
    monkeypatch.chdir(tmp_path)
    head = shutil.copytree(author / "runs" / "head", tmp_path / "a" / "b" / "c" / "d" / "head")
    cache = shutil.copytree(author / "data" / "cache", tmp_path / "a" / "b" / "cache")
    line = line_in(author)
    done(*[head if arg == line.run else arg for arg in line.generate], "--prompt", "Hello?")
    assert "Sound." in done("verify", cache, "--against-base", 2, "--device", "cpu")


def test_what_moves_together_is_found_together(moved: Line) -> None:
    done(*moved.generate, "--prompt", "Hello?")
    # The data set lies elsewhere than beside the cache.
    told = refused(1, "verify", moved.cache, "--against-base", 2, "--device", "cpu")
    assert told.startswith("pairs.jsonl: this data set of ")
    assert "Name it with --dataset" in told
    named = ["--dataset", moved.data]
    assert "Sound." in done("verify", moved.cache, "--against-base", 2, "--device", "cpu", *named)


def test_a_base_that_is_not_found_is_described(moved: Line) -> None:
    away = moved.base.rename(moved.base.parent / "llama")
    digest = CacheReader(moved.cache).manifest.base.weights_digest
    for command in (
        [*moved.generate, "--prompt", "Hello?"],
        ["verify", moved.cache, "--against-base", 2, "--device", "cpu"],
    ):
        told = refused(1, *command)
        assert f"base (LlamaForCausalLM, 4 layers, weights SHA-256 {digest[:12]}…)" in told
        assert "not found here. Name it with --base-model" in told
    done(*moved.generate, "--prompt", "Hello?", "--base-model", away)
    done(*moved.generate, "--prompt", "Hello?")  # known from now on


def test_another_base_of_the_name_is_not_taken(moved: Line) -> None:
    shutil.rmtree(moved.base)
    save_base(tiny_base(seed=1), moved.base)
    told = refused(1, *moved.generate, "--prompt", "Hello?")
    assert f"{moved.base} has other weights" in told


def test_paths_in_a_cache_of_an_earlier_program_do_not_reach_heads(
    author: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAV_CACHE_HOME", str(tmp_path / "known"))
    line = line_in(author)
    manifest = CacheReader.__init__

    def with_paths(self: CacheReader, *args: object, **kwargs: object) -> None:
        manifest(self, *args, **kwargs)  # type: ignore[arg-type]
        object.__setattr__(self.manifest.base, "id", str(line.base))
        object.__setattr__(self.manifest.data.sources[0], "id", str(line.data))

    monkeypatch.setattr(CacheReader, "__init__", with_paths)
    run = tmp_path / "run"
    done(*[run if arg == line.run else arg for arg in line.train])
    stored = load_head(str(run)).origin.manifest
    assert (stored.base.id, stored.data.sources[0].id) == ("base", "pairs.jsonl")
    done(*[run if arg == line.run else arg for arg in line.generate], "--prompt", "Hello?")
