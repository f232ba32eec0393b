"""What goes wrong at the hub: every failure for every kind of thing gives one clear line.

All commands run in one process against the loopback server, once for all tests of this file.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from mav.cache_schema.errors import MAVError
from mav.pipeline.base.source import resolve_base
from mav.pipeline.head.storage import find_head
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from tests.support.hub.commands import Ran, run
from tests.support.hub.repositories import base_files, hh_rlhf
from tests.support.hub.server import TROUBLES, Hub, hub_server
from tests.support.models.tiny import save_base, tiny_base, write_rows

KINDS: Final = ("base", "data", "head")
SMALL: Final = ("--pooled-size", 16, "--max-length", 128, "--dtype", "float32", "--device", "cpu")
PICKLES: Final = "a pickle can run code when loaded"

SAID: Final = {
    "gated": ("access to this {noun} is restricted (HTTP 401)", "then log in with `hf auth login`"),
    "disabled": ("the hub has disabled this {noun} (HTTP 403)", "Take another one"),
    "bad-token": ("the hub refuses the token (HTTP 401)", "Log in again with `hf auth login`"),
    "rate-limited": ("too many requests (HTTP 429)", "Try again later"),
    "unavailable": ("the hub is out of order (HTTP 503", "Try again later"),
    "error-page": ("the hub is out of order (HTTP 504", "Try again later"),
    "no-hub": ("is not the hub (a page without its headers)", "HF_ENDPOINT"),
    "file-gone": (" is gone (HTTP 404)", "name another revision"),
    "cut": (" broke off (", "Run it again"),
    "short": (" ended early (file should be of size ", "Run it again"),
    "missing": ("there is no {noun} of that name, or it is private (HTTP 401)", "Check the id"),
}
"""Trouble -> what is told of it, and what to do."""
HEALS: Final = {"cut-once", "cut-six"}
"""Troubles that the clients get over."""

BAD_BASES: Final = {
    "bad/pickles": f"no .safetensors file in it, but pytorch_model.bin: {PICKLES}",
    "bad/no-config": "no config.json in it; it has ",
    "bad/only-gguf": "no config.json in it, but q4.gguf: name one with --gguf-file",
    "bad/no-weights": "no .safetensors file in it; it has ",
    "bad/no-tokenizer": "no tokenizer in it; it has ",
    "bad id": "Name it as owner/name.",
}
BAD_HEADS: Final = {
    "bad/pickles": f"no model.safetensors in it, but pytorch_model.bin: {PICKLES}",
    "bad/no-config": "no config.json in it; it has ",
    "bad/one-file": "expected 'mav-alignment-head'",
    "bad/other name": "Name it as owner/name.",
}
BAD_DATA: Final = {
    ("org/hh", "--data-dir", "../.."): "it has no data folder '../..'",
    ("org/hh", "--data-dir", "nope"): "it has no data folder 'nope'; it has harmless-",
    ("org/hh", "--split", "nope"): "Unknown split \"nope\". Should be one of ['train', 'test']",
    ("bad/no-data",): "it has no data files (.gitattributes, README.md)",
    ("bad/no-rows",): "its files of data are empty.",
    ("bad/no-json",): "JSON parse error",
}


@dataclass(frozen=True)
class Done:
    """What became of the commands: by kind and repository, or by the words of the data set."""

    hub: Hub
    folder: Path
    python: Path
    ran: dict[tuple[str, ...], list[Ran]]

    def failed(self, *key: str) -> str:
        """The one line that a command failed with, which left nothing that looks whole."""
        (ran,) = self.ran[key]
        assert ran.code == 1, ran.err
        assert not Path(self.folder, _output(key)).exists()
        return ran.error


def _output(key: tuple[str, ...]) -> str:
    return "-".join(key).replace("/", "-").replace(" ", "-")


def _command(key: tuple[str, ...]) -> list[object]:
    kind, name, *words = key
    if kind == "head":
        return ["generate", "--head", name, "--prompt", "Hello"]
    base, data = (name, "rows.jsonl") if kind == "base" else ("local", name)
    asked = ["--base-model", base, "--dataset", data, *words, "--output", _output(key)]
    return ["extract", *SMALL, *asked]


@pytest.fixture(scope="module")
def done(warm_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder, python = tmp_path_factory.mktemp("failures"), warm_programs / "early-python"
    base = tiny_base()
    save_base(base, folder / "local")
    write_rows(folder / "rows.jsonl", 10)
    sharded = base_files(base, folder / "sharded")
    with hub_server() as hub:
        for trouble in TROUBLES:
            hub.add("models", f"bad/{trouble}", sharded, trouble)
            hub.add("datasets", f"bad/{trouble}", hh_rlhf(), trouble)
        _add_bad_ones(hub, sharded, {**base_files(base, folder / "whole", shards=False)})
        keys: list[tuple[str, ...]] = [
            ("base", "bad/cut-six"),
            *((kind, f"bad/{trouble}") for trouble in SAID for kind in KINDS),
            *((kind, "bad/cut-once") for kind in ("base", "data")),
            *(("base", name) for name in BAD_BASES),
            *(("head", name) for name in BAD_HEADS),
            *(("data", *words) for words in BAD_DATA),
            ("base", "bad/one-file", "--revision", "v9"),
            ("base", "bad/one-file", "--gguf-file", "q8.gguf"),
        ]
        groups = [[_command(key)] * (2 if "bad/cut-six" in key else 1) for key in keys]
        ran = run(python, groups, folder, hub.environment(folder / "home"))
        yield Done(hub, folder, python, dict(zip(keys, ran, strict=True)))


def _add_bad_ones(hub: Hub, sharded: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """Add repositories that are not what is expected of them."""
    plain = {n: c for n, c in sharded.items() if "safetensors" not in n}
    hub.add("models", "bad/pickles", plain | {"pytorch_model.bin": b"\x80\x02."})
    hub.add("models", "bad/no-config", {n: c for n, c in whole.items() if n != "config.json"})
    hub.add("models", "bad/only-gguf", {"README.md": b"", "q4.gguf": b"GGUF"})
    hub.add("models", "bad/no-weights", plain)
    hub.add("models", "bad/no-tokenizer", {n: c for n, c in whole.items() if "token" not in n})
    hub.add("models", "bad/one-file", whole)
    hub.add("datasets", "org/hh", hh_rlhf())
    hub.add("datasets", "bad/no-data", {"README.md": b"# Nothing\n", ".gitattributes": b""})
    hub.add("datasets", "bad/no-rows", {"train.jsonl": b""})
    hub.add("datasets", "bad/no-json", {"train.jsonl": b"<html>\n"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trouble", SAID)
def test_every_failure_of_every_kind_is_one_clear_line(done: Done, kind: str, trouble: str) -> None:
    error = done.failed(kind, f"bad/{trouble}")
    assert error.startswith(f"bad/{trouble}: ")
    what, remedy = SAID[trouble]
    noun = "data set" if kind == "data" else "model"
    assert what.format(noun=noun) in error
    assert remedy in error
    assert error.endswith(".")


def test_all_troubles_have_been_met() -> None:
    assert {*SAID, *HEALS} == {*TROUBLES, "missing"}


@pytest.mark.parametrize("kind", ["base", "data"])
def test_a_transfer_that_breaks_off_once_is_taken_up(done: Done, kind: str) -> None:
    (ran,) = done.ran[kind, "bad/cut-once"]
    assert ran.code == 0, ran.err


def test_what_has_arrived_is_kept_for_the_next_run(done: Done) -> None:
    first, second = done.ran["base", "bad/cut-six"]
    assert first.code == 1
    assert " broke off (" in first.error
    assert second.code == 0, second.err


@pytest.mark.parametrize("name", BAD_BASES)
def test_a_repository_that_is_no_base_says_what_it_has(done: Done, name: str) -> None:
    error = done.failed("base", name)
    assert error.startswith(f"{name}: ")
    assert BAD_BASES[name] in error


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_repository_that_is_no_head_says_what_it_has(done: Done, name: str) -> None:
    assert BAD_HEADS[name] in done.failed("head", name)


@pytest.mark.parametrize("words", BAD_DATA, ids=" ".join)
def test_a_data_set_without_what_is_asked_for_says_what_it_has(
    done: Done, words: tuple[str, ...]
) -> None:
    error = done.failed("data", *words)
    assert error.startswith(words[0])
    assert BAD_DATA[words] in error


def test_a_revision_that_is_not_there(done: Done) -> None:
    error = done.failed("base", "bad/one-file", "--revision", "v9")
    assert "it has no revision 'v9' (HTTP 404). Name a branch, tag or commit" in error


def test_a_file_that_is_not_there(done: Done) -> None:
    error = done.failed("base", "bad/one-file", "--gguf-file", "q8.gguf")
    assert "no file 'q8.gguf' in it; it has README.md, config.json" in error


@pytest.mark.parametrize("kind", KINDS)
def test_offline_and_not_in_the_cache(kind: str) -> None:
    # The tests' own process is offline.
    with pytest.raises(MAVError) as caught:
        if kind == "base":
            resolve_base("mav-tests/nothing")
        elif kind == "head":
            find_head("mav-tests/nothing")
        else:
            next(read_pairs(DataSource(id="mav-tests/nothing"), ReadCounts()))
    told = str(caught.value)
    assert "HF_HUB_OFFLINE forbids asking the hub. Run it once with HF_HUB_OFFLINE=0" in told
    assert "\n" not in told


def test_a_hub_that_cannot_be_reached(done: Done, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    elsewhere = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_ETAG_TIMEOUT": "1"}
    keys = [(kind, "org/unreachable") for kind in KINDS]
    ran = run(
        done.python,
        [[_command(key)] for key in keys],
        done.folder,
        done.hub.environment(tmp_path / "home") | elsewhere,
    )
    for (one,) in ran:
        assert one.code == 1
        assert f"http://127.0.0.1:{port} cannot be reached" in one.error
        assert "Check the network, the proxy and HF_ENDPOINT" in one.error


@pytest.mark.slow
def test_a_hub_that_takes_the_connection_and_says_nothing(done: Done, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        elsewhere = {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HUB_ETAG_TIMEOUT": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        }
        ran = run(
            done.python,
            [[_command((kind, "org/silent"))] for kind in ("base", "head")],
            done.folder,
            done.hub.environment(tmp_path / "home") | elsewhere,
        )
    for (one,) in ran:
        assert one.code == 1
        assert f"http://127.0.0.1:{port} did not answer in time. Try again later" in one.error
