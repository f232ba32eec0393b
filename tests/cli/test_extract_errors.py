"""What `mav extract` refuses: one clear message, the right exit code, nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.models.tiny import save_base, tiny_base
from tests.support.running.commands import extract_args, mav, refused, tree
from tests.support.running.refusals import DATA, USAGE, Args, World, copy_of_base

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
            "--data-dir: got 'harmless-base', which goes with a data set that has subset folders",
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
    assert f"{option}: got 'main', but {file} is " in message
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
