"""Bad input at the command line: one clear message, the right exit code, nothing half-written."""

import copy
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from mav.cache_schema.checksummed_json import UNSEALED, add_checksum
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import tokenizer_digest
from tests.support.commands import extract_args, mav, refused
from tests.support.tiny import VOCAB, make_cache, save_base, tiny_base, write_rows
from tests.support.written_caches import all_same_bits, leftovers, read_all, stored_objects

USAGE, DATA = 2, 1

Args = list[object]


@dataclass(frozen=True, kw_only=True)
class World:
    """A base, data, caches and a head that are all well; read only."""

    base: Path
    data: Path
    cache: Path
    other_vocabulary: Path
    head: Path
    model: BaseModel


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    base = save_base(tiny_base(), folder / "base")
    model = load_base(str(base), dtype=torch.float32, device="cpu")
    made = World(
        base=base,
        data=write_rows(folder / "pairs.jsonl", 12),
        cache=make_cache(folder / "own", model, pairs=12),
        other_vocabulary=make_cache(folder / "other", tiny_base(vocab_size=VOCAB + 8), pairs=4),
        head=folder / "run",
        model=model,
    )
    result = mav(*train_args(made.cache, made.head))
    assert result.exit_code == 0, result.output
    return made


def train_args(cache: Path, output: Path) -> Args:
    sizes = ["--expansion-size", 16, "--batch-size", 2, "--grad-accum", 1, "--no-bf16"]
    return ["train", "--cache", cache, "--output-dir", output, *sizes, "--eval-fraction", 0.3]


def evaluate_args(head: Path, cache: Path) -> Args:
    return ["evaluate", "--head", head, "--cache", cache, "--device", "cpu"]


def generate_args(head: Path) -> Args:
    options = ["--device", "cpu", "--dtype", "float32", "--max-new-tokens", 2]
    return ["generate", "--head", head, *options]


def tree(folder: Path) -> dict[Path, bytes | None]:
    """Every path below a folder, files with their contents."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where a command that is refused must write nothing."""
    return tmp_path / "out" / "put"


# Extract: data


def test_missing_data_file(world: World, output: Path) -> None:
    message = refused(
        DATA, *extract_args(world.base, world.data, output), "--dataset", "nowhere/at/all.jsonl"
    )
    assert "nowhere/at/all.jsonl: no such file or folder. Name a .jsonl, " in message
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"chosen": "a", \n', "line 1: not JSON"),
        ('{"question": "a", "answer": "b"}\n', "line 1: not a preference pair. Got ['answer', "),
        ('["a", "b"]\n', "line 1: not a preference pair. Got list; expected texts or lists"),
        ("", "no usable pair among 0 rows (dropped: none)"),
        ('{"chosen": "a", "rejected": "b"}\n', "among 1 rows (dropped: 1 no_assistant_turn)"),
    ],
)
def test_malformed_rows(world: World, output: Path, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    message = refused(DATA, *extract_args(world.base, world.data, output), "--dataset", path)
    assert message.startswith(str(path))
    assert told in message
    assert not output.parent.exists()


def test_a_half_of_a_surrogate_pair_is_no_crash(world: World, output: Path, tmp_path: Path) -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant:"
    row = {"chosen": f"{prompt} a \ud83d", "rejected": f"{prompt} b"}
    (tmp_path / "cut.jsonl").write_text(json.dumps(row) + "\n")
    message = refused(
        DATA, *extract_args(world.base, world.data, output), "--dataset", tmp_path / "cut.jsonl"
    )
    assert "no usable pair among 1 rows (dropped: 1 invalid_unicode)" in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-length", 0], "--max-length: got 0, expected at least 8"),
        (["--pooled-size", 0], "--pooled-size: got 0, expected at least 1"),
        (["--batch-tokens", 0], "--batch-tokens: got 0, expected at least 1"),
        (["--limit", 0], "limit: got 0, expected at least 1"),
        (["--num-layers", 0], "--num-layers: got 0, but `auto` takes the first, the middle"),
        (["--layer-selection", "uniform", "--num-layers", 0], "--num-layers: got 0, expected 1"),
        (["--layer-selection", "uniform", "--num-layers", 5], "got 5, expected 1 to 4"),
        (["--layer-selection", "1,1"], "got '1,1', which names a layer twice"),
        (["--layer-selection", "1,99"], "got index 99, but the base has 4 decoder layers"),
        (["--layer-selection", "-1"], "got index -1, but the base has 4 decoder layers"),
        (["--layer-selection", "foo"], "got 'foo', expected auto, uniform, or indices like"),
        (["--layer-selection", "1,"], "got '1,', expected auto, uniform, or indices like"),
        (["--logits", "topk", "--top-k", 0], "--top-k: got 0, expected at least 1"),
        (["--logits", "topk", "--top-k", 300], "got 300, expected less than the vocabulary, 300"),
        (["--logits", "sparse"], "'sparse' is not one of 'factored', 'dense', 'topk'"),
        (
            ["--dtype", "float64"],
            "'float64' is not one of 'auto', 'bfloat16', 'float16', 'float32'",
        ),
        (["--device", "warp"], "--device: got 'warp', which is not available"),
        (
            ["--data-dir", "harmless-base"],
            "data_dir=harmless-base goes with a data set that has subset folders, but",
        ),
        (["--limit", "many"], "'many' is not a valid integer"),
    ],
)
def test_extract_options_that_cannot_be(
    world: World, output: Path, options: Args, told: str
) -> None:
    message = refused(USAGE, *extract_args(world.base, world.data, output), *options)
    assert told in message
    assert not output.parent.exists()


@pytest.mark.parametrize("left_out", ["--base-model", "--dataset", "--output"])
def test_extract_says_which_option_is_missing(world: World, output: Path, left_out: str) -> None:
    args = extract_args(world.base, world.data, output)
    place = args.index(left_out)
    assert f"Missing option '{left_out}'" in refused(USAGE, *args[:place], *args[place + 2 :])


# Extract: base models


def with_base(world: World, output: Path, base: Path | str) -> Args:
    return [*extract_args(world.base, world.data, output), "--base-model", base]


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere/llama", "no.gguf"])
def test_unknown_model_folder(world: World, output: Path, name: str) -> None:
    message = refused(DATA, *with_base(world, output, name))
    assert message == f"{name}: no such file or folder\n"
    assert not output.parent.exists()


@pytest.mark.parametrize("option", ["--revision", "--gguf-file"])
def test_base_that_is_here_has_no_revision_and_a_file_no_file(
    world: World, output: Path, tmp_path: Path, option: str
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"")
    message = refused(USAGE, *with_base(world, output, file), option, "main")
    assert f"{option} main: {file} is " in message
    assert "leave it out" in message


def test_model_that_only_the_hub_could_have(world: World, output: Path) -> None:
    message = refused(DATA, *with_base(world, output, "mav-tests/no-such-model"))
    assert message.startswith("mav-tests/no-such-model: no such folder here, and the hub did not")


def test_folder_without_config(world: World, output: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(DATA, *with_base(world, output, tmp_path / "empty"))
    assert message == f"{tmp_path / 'empty'}: no config.json, so not a model's folder.\n"


def test_folder_with_gguf_files_names_them(world: World, output: Path, tmp_path: Path) -> None:
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "q8.gguf").write_bytes(b"GGUF")
    message = refused(DATA, *with_base(world, output, tmp_path / "ggufs"))
    assert "It has q8.gguf: name one with --gguf-file." in message


def test_gguf_file_that_is_not_in_the_folder(world: World, output: Path) -> None:
    message = refused(DATA, *extract_args(world.base, world.data, output), "--gguf-file", "q4.gguf")
    assert message == f"{world.base}: no file 'q4.gguf' in it; check --gguf-file\n"


def test_gguf_file_that_is_none(world: World, output: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    message = refused(DATA, *with_base(world, output, tmp_path / "x.gguf"))
    assert message.startswith(f"{tmp_path / 'x.gguf'}: cannot be read as GGUF")


def copy_of_base(world: World, folder: Path) -> Path:
    return shutil.copytree(world.base, folder / "base")


def test_folder_with_pickled_weights_only(world: World, output: Path, tmp_path: Path) -> None:
    base = copy_of_base(world, tmp_path)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    message = refused(DATA, *with_base(world, output, base))
    assert "no model.safetensors.index.json; it has pytorch_model.bin, a pickle" in message
    assert "convert it to safetensors" in message
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.safetensors", "cannot be read as safetensors"),
        ("tokenizer.json", "its tokenizer cannot be loaded"),
        ("config.json", "its configuration cannot be read"),
    ],
)
def test_base_with_a_damaged_file(
    world: World, output: Path, tmp_path: Path, name: str, told: str
) -> None:
    base = copy_of_base(world, tmp_path)
    (base / name).write_bytes(b"{damaged")
    message = refused(DATA, *with_base(world, output, base))
    assert message.startswith(str(base))
    assert told in message
    assert not output.parent.exists()


# Extract: what is there already


def test_output_that_holds_something_else(world: World, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    before = tree(tmp_path)
    message = refused(DATA, *extract_args(world.base, world.data, tmp_path / "thesis"))
    assert "exists and is not a MAV cache. Name another --output, or remove it." in message
    assert tree(tmp_path) == before


def test_going_on_with_other_settings_names_each(world: World, tmp_path: Path) -> None:
    root = shutil.copytree(world.cache, tmp_path / "cache")
    before = tree(tmp_path)
    other = ["--max-length", 64, "--layer-selection", "0,4", "--pooled-size", 16]
    message = refused(DATA, *extract_args(world.base, world.data, root), *other)
    assert f"{root}: this cache was begun with other settings:" in message
    for line in (
        "states.layer_selection: stored 'auto', asked for 'explicit'",
        "states.layers: stored (1, 2, 4), asked for (0, 4)",
        "states.pooled_size: stored 32, asked for 16",
        "text.max_length: stored 128, asked for 64",
    ):
        assert f"\n  - {line}" in message
    assert "or another --output" in message
    assert tree(tmp_path) == before


def test_going_on_with_another_base_names_its_digest(world: World, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    assert mav(*extract_args(world.base, world.data, root)).exit_code == 0
    other = save_base(tiny_base(seed=1), tmp_path / "other")
    before = tree(root)
    message = refused(DATA, *with_base(world, root, other))
    assert message.count("\n  - ") == 1
    assert "base.weights_digest: stored " in message
    assert tree(root) == before


# Caches that are refused

READERS: dict[str, Callable[[World, Path, Path], Args]] = {
    "train": lambda _, cache, output: train_args(cache, output),
    "evaluate": lambda world, cache, _: evaluate_args(world.head, cache),
}
ALL_READERS: dict[str, Callable[[World, Path, Path], Args]] = {
    **READERS,
    "inspect": lambda _, cache, __: ["inspect", cache],
    "extract": lambda world, cache, _: extract_args(world.base, world.data, cache),
}


@pytest.fixture
def cache(world: World, tmp_path: Path) -> Path:
    """A copy of the cache, to damage."""
    return shutil.copytree(world.cache, tmp_path / "cache")


def edit_manifest(cache: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    root = json.loads((cache / "zarr.json").read_text())
    edit(root["attributes"]["mav"])
    root["attributes"]["seal"] = UNSEALED
    (cache / "zarr.json").write_bytes(add_checksum(root))


@pytest.mark.parametrize("command", ALL_READERS)
def test_cache_of_another_format_version(
    world: World, cache: Path, output: Path, command: str
) -> None:
    edit_manifest(cache, lambda manifest: manifest.update(format_version=7))
    before = tree(cache)
    message = refused(DATA, *ALL_READERS[command](world, cache, output))
    assert message.startswith(f"{cache}: format version 7, but this MAV reads version 2.")
    assert tree(cache) == before
    assert not output.parent.exists()


@pytest.mark.parametrize("command", ALL_READERS)
def test_cache_with_a_broken_manifest(
    world: World, cache: Path, output: Path, command: str
) -> None:
    edit_manifest(cache, lambda manifest: manifest["base"].update(vocab_size="300", size=1))
    message = refused(DATA, *ALL_READERS[command](world, cache, output))
    assert "\n  - base.size: unknown field" in message
    assert "\n  - base.vocab_size: got '300', expected int" in message


@pytest.mark.parametrize("command", READERS)
def test_incomplete_cache(world: World, cache: Path, output: Path, command: str) -> None:
    commits = sorted((cache / "commits").glob("0*.json"))
    commits[1].unlink()
    message = refused(DATA, *READERS[command](world, cache, output))
    assert f"{cache}: incomplete, {len(commits) - 1} of {len(commits)} blocks" in message
    assert "Run the same `mav extract` command again" in message
    assert not output.parent.exists()


@pytest.mark.parametrize("command", READERS)
def test_cache_with_a_lost_shard(world: World, cache: Path, output: Path, command: str) -> None:
    (cache / "labels" / "c.1").unlink()
    message = refused(DATA, *READERS[command](world, cache, output))
    assert "\n  - labels/c.1: missing, expected " in message
    assert not output.parent.exists()


@pytest.mark.parametrize("command", READERS)
def test_cache_with_a_flipped_bit(world: World, cache: Path, output: Path, command: str) -> None:
    for shard in stored_objects(cache, "labels"):
        damaged = bytearray(shard.read_bytes())
        damaged[3] ^= 1
        shard.write_bytes(damaged)
    message = refused(DATA, *READERS[command](world, cache, output))
    assert message.startswith(f"{cache}/labels/c.")
    assert "checksum" in message
    assert f"`mav verify --repair {cache}` removes what is damaged" in message
    assert message.count("\n") <= 3


@pytest.mark.parametrize("command", READERS)
def test_not_a_cache(world: World, tmp_path: Path, output: Path, command: str) -> None:
    message = refused(DATA, *READERS[command](world, world.base, output))
    assert f"{world.base}: not a MAV cache (it has no zarr.json)" in message
    nowhere = tmp_path / "nowhere"
    message = refused(DATA, *READERS[command](world, nowhere, output))
    assert message.startswith(f"{nowhere}: no such cache. `mav extract --output {nowhere}`")
    assert not output.parent.exists()


def test_lost_shards_are_computed_again_by_the_same_command(world: World, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    assert mav(*extract_args(world.base, world.data, fresh)).exit_code == 0
    before, lost = read_all(fresh), fresh / "labels" / "c.0"
    blocks = CacheReader(fresh).manifest.plan.blocks
    lost.write_bytes(lost.read_bytes()[:-7])
    result = mav(*extract_args(world.base, world.data, fresh))
    assert result.exit_code == 0, result.output
    assert f"{blocks - 1} of {blocks} blocks are written" in result.stderr
    assert all_same_bits(read_all(fresh), before)


# Heads that are refused

HEAD_READERS: dict[str, Callable[[World, Path], Args]] = {
    "inspect": lambda _, head: ["inspect", head],
    "evaluate": lambda world, head: evaluate_args(head, world.cache),
    "generate": lambda _, head: [*generate_args(head), "--prompt", "Hi"],
}
EVERY_HEAD_READER = pytest.mark.parametrize("command", HEAD_READERS)


@EVERY_HEAD_READER
def test_missing_head(world: World, tmp_path: Path, command: str) -> None:
    nowhere = tmp_path / "nowhere"
    message = refused(DATA, *HEAD_READERS[command](world, nowhere))
    assert message == f"{nowhere}: no such folder\n"


@EVERY_HEAD_READER
def test_head_that_only_the_hub_could_have(world: World, command: str) -> None:
    message = refused(DATA, *HEAD_READERS[command](world, Path("mav-tests/no-such-head")))
    assert message.startswith("mav-tests/no-such-head: no such folder here, and the hub did not")


@EVERY_HEAD_READER
@pytest.mark.parametrize("name", ["head.pt", "pytorch_model.bin", "head.pkl", "head.pth"])
def test_head_that_is_a_pickle_only(world: World, tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    message = refused(DATA, *HEAD_READERS[command](world, tmp_path))
    assert f"{tmp_path}: no head here, expected config.json and model.safetensors." in message
    assert f"{name} is a pickle, which can run code when loaded; MAV reads none." in message


@EVERY_HEAD_READER
def test_head_that_is_a_base_model(world: World, command: str) -> None:
    message = refused(DATA, *HEAD_READERS[command](world, world.base))
    assert f"{world.base / 'config.json'}: kind None, expected 'mav-alignment-head'" in message


@pytest.mark.parametrize("command", ["evaluate", "generate"])
@pytest.mark.parametrize("keep", [0, 30, -9])
def test_head_with_damaged_weights(world: World, tmp_path: Path, command: str, keep: int) -> None:
    head = shutil.copytree(world.head / "best", tmp_path / "head")
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    message = refused(DATA, *HEAD_READERS[command](world, head))
    assert message.startswith(f"{weights}: cannot be read as safetensors: ")


@EVERY_HEAD_READER
def test_head_from_a_cache_of_another_format_version(
    world: World, tmp_path: Path, command: str
) -> None:
    head = shutil.copytree(world.head / "best", tmp_path / "head")
    config = json.loads((head / "config.json").read_text())
    config["cache"]["format_version"] = 7
    (head / "config.json").write_text(json.dumps(config))
    message = refused(DATA, *HEAD_READERS[command](world, head))
    assert message.startswith(f"{head / 'config.json'}: format version 7, but this MAV reads")


def test_inspecting_what_is_neither_cache_nor_head(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in refused(DATA, "inspect", tmp_path / "empty")
    (tmp_path / "file.txt").write_text("text")
    assert "no head here" in refused(DATA, "inspect", tmp_path / "file.txt")


# Things that do not belong together


def test_head_and_cache_of_another_vocabulary_size(world: World) -> None:
    message = refused(DATA, *evaluate_args(world.head, world.other_vocabulary))
    assert f"vocabulary of {VOCAB} tokens" in message
    assert f"{world.other_vocabulary} has {VOCAB + 8}" in message


def test_head_and_cache_of_another_tokenizer(world: World, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(world.model.tokenizer)
    tokenizer.add_tokens(["another"])
    other = make_cache(tmp_path, BaseModel(model=world.model.model, tokenizer=tokenizer), pairs=3)
    message = refused(DATA, *evaluate_args(world.head, other))
    assert f"both have {VOCAB} tokens, but other tokenizers" in message
    assert tokenizer_digest(tokenizer.get_vocab())[:12] in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layer_selection": "1,4"}, "differ in layers: 3 and 2"),
        ({"layer_selection": "0,2,4"}, "differ in layers: (1, 2, 4) and (0, 2, 4)"),
        ({"pooled_size": 16}, "differ in pooled size: 32 and 16"),
    ],
)
def test_head_and_cache_of_other_features(
    world: World, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    other = make_cache(tmp_path / "other", world.model, pairs=3, **options)
    assert told in refused(DATA, *evaluate_args(world.head, other))


def test_eval_cache_of_another_vocabulary_size(world: World, output: Path) -> None:
    args = [*train_args(world.cache, output), "--eval-cache", world.other_vocabulary]
    message = refused(DATA, *args)
    assert str(VOCAB) in message
    assert str(VOCAB + 8) in message
    assert not output.exists()


def test_base_of_another_vocabulary_size_at_generate(world: World, tmp_path: Path) -> None:
    base = save_base(tiny_base(vocab_size=VOCAB + 8), tmp_path / "base")
    args = [*generate_args(world.head), "--base-model", base, "--prompt", "Hi"]
    message = refused(DATA, *args)
    assert f"vocabulary of {VOCAB} tokens" in message
    assert f"the base has {VOCAB + 8} ({base})" in message


def test_base_of_another_tokenizer_at_generate(world: World, tmp_path: Path) -> None:
    base = copy_of_base(world, tmp_path)
    path = base / "tokenizer.json"
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(value))
    args = [*generate_args(world.head), "--base-model", base, "--prompt", "Hi"]
    assert f"both have {VOCAB} tokens, but other tokenizers" in refused(DATA, *args)


# Evaluate and generate: options


@pytest.mark.parametrize(
    ("alphas", "got"), [("0,x", "'x'"), ("", "''"), ("0,,1", "''"), ("1,nan", "'nan'")]
)
def test_alphas_that_are_no_numbers(world: World, alphas: str, got: str) -> None:
    for args in (
        evaluate_args(world.head, world.cache),
        [*generate_args(world.head), "--prompt", "Hi"],
    ):
        message = refused(USAGE, *args, "--alphas", alphas)
        assert "Invalid value for '--alphas'" in message
        assert f"got {got}, expected a finite number such as 0.5" in message


@pytest.mark.parametrize("alpha", ["abc", "nan", "inf", "-inf", "", "1,2"])
def test_alpha_that_is_no_number(world: World, alpha: str) -> None:
    message = refused(USAGE, *generate_args(world.head), "--prompt", "Hi", "--alpha", alpha)
    assert "Invalid value for '--alpha'" in message
    assert f"got '{alpha}', expected a finite number such as 1.5" in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give either --prompt or --prompts"),
        (["--prompt", "Hi", "--prompts", "x.txt"], "give either --prompt or --prompts"),
        (["--prompt", "Hi", "--prompt", "Ho"], "--prompt is given 2 times, and takes one value"),
        (["--prompt", "Hi", "--alpha", 0, "--alpha", 1], "--alpha is given 2 times"),
        (["--prompt", "Hi", "--stream", "--json"], "--stream prints text as it comes"),
        (["--prompt", "Hi", "--max-new-tokens", 0], "--max-new-tokens: got 0, expected at least 1"),
        (["--prompt", "Hi", "--temperature", -1], "--temperature: got -1.0, expected 0 to 10000"),
        (["--prompt", "Hi", "--temperature", "nan"], "expected a finite number"),
        (["--prompt", "Hi", "--top-k", "-1"], "--top-k: got -1, expected at least 0"),
        (["--prompt", "Hi", "--min-p", "2"], "--min-p: got 2.0, expected 0 to 1"),
        (
            ["--prompt", "Hi", "--repetition-penalty", "0"],
            "--repetition-penalty: got 0.0, expected more than 0",
        ),
        (
            ["--prompt", "Hi", "--seed", "99999999999999999999"],
            "--seed: got 99999999999999999999, expected -4611",
        ),
        (["--prompt", "Hi", "--top-p", 0], "--top-p: got 0.0, expected more than 0, at most 1"),
        (["--prompt", "Hi", "--top-p", 1.5], "--top-p: got 1.5, expected more than 0, at most 1"),
        (["--prompt", "Hi", "--device", "warp"], "--device: got 'warp'"),
        (["--prompt", "Hi", "--seed", "x"], "'x' is not a valid integer"),
    ],
)
def test_generate_options_that_cannot_be(world: World, options: Args, told: str) -> None:
    assert told in refused(USAGE, *generate_args(world.head), *options)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("nowhere.txt", None, "cannot be read"),
        ("empty.txt", "\n \n", "no prompt in it"),
        ("a.jsonl", '{"prompt": "a"}\nplain\n', "line 2: got 'plain', expected JSON"),
        ("a.jsonl", '\n{"text": "a"}\n', 'line 2: got \'{"text": "a"}\', expected either'),
        ("a.jsonl", '{"prompt": 3}\n', "expected either 'prompt', a text, or 'messages'"),
        ("a.jsonl", "[1]\n", "line 1: got '[1]', expected an object"),
    ],
)
def test_prompts_that_cannot_be_read(
    world: World, tmp_path: Path, name: str, text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    message = refused(DATA, *generate_args(world.head), "--prompts", tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert told in message


def test_plot_of_an_unknown_kind(world: World, tmp_path: Path) -> None:
    args = [*evaluate_args(world.head, world.cache), "--alphas", 1]
    message = refused(USAGE, *args, "--plot", tmp_path / "plot.docx")
    assert message.startswith(f"--plot: got {tmp_path / 'plot.docx'}, ")
    assert list(tmp_path.iterdir()) == []


def test_plot_into_no_folder(world: World, tmp_path: Path) -> None:
    args = [*evaluate_args(world.head, world.cache), "--alphas", 1]
    message = refused(USAGE, *args, "--plot", tmp_path / "nowhere" / "plot.png")
    assert message.startswith(f"{tmp_path / 'nowhere' / 'plot.png'}: No such file or directory")


# Train: options and what is there already


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--cache", "other", "--cache is given 2 times, and takes one value"),
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
        ("--objective", "ppo", "'ppo' is not one of 'dpo', 'mav'"),
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


# A full disk


def fill_disk(patch: pytest.MonkeyPatch, works: int) -> list[int]:
    """Let file writes fail after some, as on a full disk; return those that work, as they do."""
    written: list[int] = []

    def full(descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        if len(written) >= works:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(descriptor)

    patch.setattr(os, "fsync", full)
    return written


@pytest.fixture(scope="module")
def extract_writes(world: World, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Number of files that an extraction writes."""
    with pytest.MonkeyPatch.context() as patch:
        written = fill_disk(patch, 1_000_000)
        assert (
            mav(
                *extract_args(world.base, world.data, tmp_path_factory.mktemp("x") / "cache")
            ).exit_code
            == 0
        )
    return len(written)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_disk_that_is_full_while_extracting(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extract_writes: int,
    share: float,
) -> None:
    root = tmp_path / "cache"
    with monkeypatch.context() as patch:
        fill_disk(patch, round(share * (extract_writes - 1)))
        message = refused(DATA, *extract_args(world.base, world.data, root))
    assert "No space left on device. The disk is full; free some space. The same" in message
    assert leftovers(tmp_path) == []
    assert mav(*extract_args(world.base, world.data, root)).exit_code == 0
    assert len(CacheReader(root).pair_id) == 12


@pytest.mark.parametrize("works", [0, 3, 8])
def test_disk_that_is_full_while_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_disk(patch, works)
        message = refused(DATA, *train_args(world.cache, run))
    assert "The disk is full; free some space. The same command with --resume goes on" in message
    assert leftovers(tmp_path) == []
    assert mav(*train_args(world.cache, run), "--resume").exit_code == 0
    weights = "last/model.safetensors"
    assert (run / weights).read_bytes() == (world.head / weights).read_bytes()


@pytest.mark.parametrize("works", [0, 4])
def test_disk_that_is_full_while_safetensors_writes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: int
) -> None:
    # It raises this on a full disk (safetensors 0.8 on a tmpfs without room), not an OSError.
    written = iter(range(works))
    save = safetensors.torch.save_file

    def full(tensors: Any, path: Path, *args: Any) -> None:
        if next(written, None) is None:
            path.write_bytes(b"\x00" * 100)
            raise safetensors.SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
        save(tensors, path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        message = refused(DATA, *train_args(world.cache, tmp_path / "run"))
    assert "No space left on device" in message
    assert leftovers(tmp_path) == []
    assert mav(*train_args(world.cache, tmp_path / "run"), "--resume").exit_code == 0


# What is nobody's input


def test_an_interrupt_says_how_to_go_on(
    world: World, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mav.pipeline.extraction.extract.extract", interrupted)
    result = mav(*extract_args(world.base, world.data, output))
    assert result.exit_code == 130
    assert "goes on where it was" in result.stderr


def test_a_mistake_in_the_program_keeps_its_traceback(
    world: World, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mav.pipeline.extraction.extract.extract", mistaken)
    assert isinstance(
        mav(*extract_args(world.base, world.data, output)).exception, ZeroDivisionError
    )
