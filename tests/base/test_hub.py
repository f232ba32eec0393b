"""The README's commands with ids, against a loopback hub reached by the hub's own clients."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.source import file_digest
from tests.docs.world import free_port
from tests.support.hub.commands import ROOT, Ran, run
from tests.support.hub.repositories import base_files, files_in, hh_rlhf, ultrafeedback
from tests.support.hub.server import TOKEN, Asked, Hub, hub_server
from tests.support.models.tiny import tiny_base
from tests.support.models.tiny_gguf import write_tiny_gguf
from tests.support.running.limits import EVENT

SMALL: Final = ("--pooled-size", 16, "--max-length", 128, "--dtype", "float32", "--device", "cpu")
DECODE: Final = ("--dtype", "float32", "--device", "cpu", "--max-new-tokens", 6)
HARMLESS: Final = ("--dataset", "org/hh", "--data-dir", "harmless-base")
TRAIN: Final = ("--expansion-size", 16, "--eval-fraction", 0.25, "--report-to", "none", "--no-bf16")
OF_ANOTHER_BASE: Final = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
MESSAGES: Final = ("--dataset", "org/uf", "--split", "train_prefs", "--limit", 12)


@dataclass(frozen=True)
class World:
    """A hub with bases, data sets and a head, and what commands did with them by their ids.

    Attributes:
        hub: The hub.
        folder: Where commands were run.
        python: What they were run by.
        commits: Commits of org/base, by the ref that pointed to them at first.
        ran: Name -> what the command did.
        asked: Name of a process -> what it asked of the hub.
    """

    hub: Hub
    folder: Path
    python: Path
    commits: dict[str, str]
    ran: dict[str, Ran]
    asked: dict[str, list[Asked]]

    def run(self, process: str, commands: dict[str, list[object]], **environment: str) -> None:
        """Run commands in one process, in turn, and keep what they did."""
        before = len(self.hub.asked)
        home = self.hub.environment(self.folder / "home") | environment
        (done,) = run(
            self.python,
            [list(commands.values())],
            self.folder,
            home,
            said="/base org/other\nHello\n",
        )
        self.ran.update(zip(commands, done, strict=True))
        self.asked[process] = self.hub.asked[before:]

    def result(self, name: str) -> Any:
        """What a command that succeeded printed as JSON."""
        assert self.ran[name].code == 0, self.ran[name].err
        return json.loads(self.ran[name].out)

    def manifest(self, cache: str) -> Any:
        return CacheReader(self.folder / cache).manifest


def _extract(*words: object, output: str) -> list[object]:
    return ["extract", *SMALL, *words, "--output", output, "--json"]


@pytest.fixture(scope="module")
def world(warm_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hub")
    with hub_server() as hub:
        python = warm_programs / "early-python"
        made = World(hub, folder, python, _add_repositories(hub, folder), {}, {})
        named = ("--base-model", "org/base")
        made.run(
            "first",
            {
                "hh": _extract(*named, *HARMLESS, output="hh.cache"),
                "train": ["train", "--cache", "hh.cache", "--output-dir", "runs", *TRAIN],
                "evaluate": ["evaluate", "--head", "runs", "--cache", "hh.cache", "--json"],
                "uf": _extract(*named, *MESSAGES, output="uf.cache"),
                "tag": _extract(*named, "--revision", "v1", *MESSAGES, output="tag.cache"),
                "commit": _extract(
                    *named, "--revision", made.commits["v1"], *MESSAGES, output="commit.cache"
                ),
                "gguf": _extract(
                    *("--base-model", "org/gguf", "--gguf-file", "tiny.gguf"),
                    *MESSAGES,
                    output="gguf.cache",
                ),
                "gated": _extract("--base-model", "org/gated", *MESSAGES, output="gated.cache"),
            },
            HF_TOKEN=TOKEN,
        )
        best = folder / "runs" / "best"
        hub.add("models", "org/head", files_in(best) | {"README.md": b"# A head\n"})
        head = ("--head", "org/head")
        decoding: dict[str, list[object]] = {
            "generate": [
                "generate",
                *head,
                *DECODE,
                "--prompt",
                "Hello",
                "--alphas",
                "0,1",
                "--json",
            ],
            "evaluate-hub": ["evaluate", *head, "--cache", "hh.cache", "--json"],
            "inspect": ["inspect", "org/head", "--json"],
            "chat": ["chat", *head, *DECODE],
        }
        base = hub.repositories["models", "org/base"]
        base.commit(base.commits[base.refs["main"]] | {"README.md": b"# Another text\n"})
        made.run(
            "second",
            {
                **decoding,
                "again": _extract(*named, *HARMLESS, output="again.cache"),
                "same": _extract(*named, *MESSAGES, output="uf.cache"),
                "other": _extract(*named, "--revision", "v1", *MESSAGES, output="uf.cache"),
            },
        )
        offline = {f"{name}-offline": decoding[name] for name in ("generate", "evaluate-hub")}
        made.run(
            "offline",
            offline | {"hh-offline": _extract(*named, *HARMLESS, output="offline.cache")},
            HF_HUB_OFFLINE="1",
        )
        yield made


def _add_repositories(hub: Hub, folder: Path) -> dict[str, str]:
    """Add what commands name; return commits of org/base."""
    old, new = (base_files(tiny_base(seed=seed), folder / str(seed)) for seed in (1, 0))
    base = hub.add("models", "org/base", old)
    base.refs["v1"] = base.refs["main"]
    base.commit(new)
    hub.add("models", "org/other", base_files(tiny_base(seed=2), folder / "2", shards=False))
    hub.add("models", "org/gated", old, "gated")
    gguf = write_tiny_gguf(folder / "tiny.gguf").read_bytes()
    hub.add("models", "org/gguf", {"README.md": b"# Quantized\n", "tiny.gguf": gguf})
    hub.add("datasets", "org/hh", hh_rlhf())
    hub.add("datasets", "org/uf", ultrafeedback())
    return dict(base.refs)


def test_a_base_and_a_data_set_by_their_ids(world: World) -> None:
    assert world.result("hh")["pairs"] == 40
    manifest = world.manifest("hh.cache")
    assert (manifest.base.id, manifest.base.revision) == ("org/base", world.commits["main"])
    (source,) = manifest.data.sources
    assert (source.id, source.data_dir, source.split) == ("org/hh", "harmless-base", "train")


def test_a_data_set_of_messages_with_splits_of_its_own(world: World) -> None:
    assert world.result("uf")["pairs"] == 12


@pytest.mark.parametrize("name", ["tag", "commit"])
def test_a_revision_is_the_commit_it_names(world: World, name: str) -> None:
    assert world.result(name)["pairs"] == 12
    stored = world.manifest(f"{name}.cache").base
    assert stored.revision == world.commits["v1"]
    assert stored.weights_digest != world.manifest("hh.cache").base.weights_digest


def test_a_gguf_file_in_a_repository(world: World) -> None:
    assert world.result("gguf")["pairs"] == 12
    stored = world.manifest("gguf.cache").base
    assert (stored.id, stored.gguf_file) == ("org/gguf", "tiny.gguf")


def test_a_head_by_its_id_finds_its_base_by_its_id(world: World) -> None:
    here, there = (world.result(name) for name in ("evaluate", "evaluate-hub"))
    assert here | {"head": None} == there | {"head": None}
    assert "org/base" in json.dumps(world.result("inspect"))
    assert len(_answers(world.ran["generate"])) == 2
    chat = world.ran["chat"]
    assert chat.code == 0, chat.err
    assert "org/other" in chat.out + chat.err


def test_a_token_goes_to_the_hub_and_not_to_where_it_leads(world: World) -> None:
    asked = world.asked["first"]
    assert {one.authorized for one in asked if one.on_cdn} == {False}
    assert {one.authorized for one in asked if "/api/models/org/base" in one.path} == {True}
    assert "access to this model is restricted (HTTP 403). Accept" in world.ran["gated"].error


def test_a_second_run_fetches_no_file_again(world: World) -> None:
    # Not even of another commit, in which the files are the same.
    fetched = {
        asked.path.rpartition("/")[2]
        for asked in world.asked["second"]
        if asked.method == "GET" and ("/resolve/" in asked.path or asked.on_cdn)
    }
    assert fetched == {"config.json", "model.safetensors"} | OF_ANOTHER_BASE
    assert world.result("again")["pairs"] == 40


def test_offline_does_the_same_from_the_cache(world: World) -> None:
    assert world.asked["offline"] == []
    assert world.result("hh-offline")["pairs"] == 40
    first, offline = (world.manifest(f"{name}.cache") for name in ("hh", "offline"))
    assert first.base.weights_digest == offline.base.weights_digest
    assert first.data == offline.data
    assert _answers(world.ran["generate-offline"]) == _answers(world.ran["generate"])
    assert world.ran["evaluate-hub-offline"].out == world.ran["evaluate-hub"].out


def _answers(ran: Ran) -> list[tuple[float, list[int]]]:
    """Return (alpha, tokens) of each answer."""
    assert ran.code == 0, ran.err
    answers = [json.loads(line) for line in ran.out.splitlines()]
    return [(answer["alpha"], answer["tokens"]) for answer in answers]


def test_a_branch_that_moved_to_the_same_weights_is_told(world: World) -> None:
    assert world.result("same")["pairs"] == 12
    now, before = world.hub.repositories["models", "org/base"].refs["main"], world.commits["main"]
    told = f"org/base is at commit {now} now; when the cache was begun it was at {before}"
    assert told in world.ran["same"].err
    assert world.manifest("uf.cache").base.revision == before


def test_other_weights_are_refused_and_the_former_commit_is_named(world: World) -> None:
    refused = world.ran["other"]
    assert refused.code == 1
    before, now = world.commits["main"], world.commits["v1"]
    told = f"The base is at commit {now} now, and was at {before}: --revision {before} names it."
    assert told in refused.err


def test_weights_are_told_by_their_content(world: World) -> None:
    # What the hub calls a file is believed, and no byte is read again.
    source = world.folder / "home" / "hub" / "models--org--base" / "snapshots"
    path = source / world.commits["main"] / "model-00001-of-00006.safetensors"
    assert path.is_symlink()
    assert file_digest(path) == path.readlink().name


@pytest.mark.slow
def test_a_server_with_a_head_by_its_id(world: World) -> None:
    port = free_port()
    words = ["serve", "--head", "org/head", "--port", port, "--dtype", "float32", "--device", "cpu"]
    with (world.folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *(str(word) for word in words)],
            cwd=world.folder,
            env=os.environ | world.hub.environment(world.folder / "home"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        models = _when_it_answers(f"http://127.0.0.1:{port}/v1/models", process)
    finally:
        process.terminate()
        process.wait()
    assert "org/base" in json.dumps(models)


def _when_it_answers(address: str, process: subprocess.Popen[bytes]) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None:
        try:
            with opener.open(address, timeout=EVENT) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server has ended")
