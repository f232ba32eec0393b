"""The head: its sizes, its locality, and its files."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from mav.cache_schema import CacheReader, HeadError, Manifest
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head, save_head
from mav.pipeline.head.storage import CONFIG, WEIGHTS, HeadOrigin, find_head, read_head_config
from mav.pipeline.ops.pooling import pool_states

SIZES = HeadConfig(num_layers=3, pooled_size=32, expansion_size=16, vocab_size=300, dropout=0.25)


@pytest.fixture(scope="module")
def manifest(tiny_cache: Path) -> Manifest:
    return CacheReader(tiny_cache).manifest


def random_head(seed: int = 0, config: HeadConfig = SIZES) -> AlignmentHead:
    torch.manual_seed(seed)
    head = AlignmentHead(config)
    torch.nn.init.normal_(head.project.weight)
    torch.nn.init.normal_(head.project.bias)
    return head.eval()


def origin_of(manifest: Manifest, steps: int = 12) -> HeadOrigin:
    return HeadOrigin(
        manifest=manifest, objective="mav", beta=0.3, held_out_fraction=0.05, steps=steps
    )


def same_weights(one: AlignmentHead, other: AlignmentHead) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_parameters_at_the_default_sizes() -> None:
    with torch.device("meta"):
        head = AlignmentHead(
            HeadConfig(num_layers=3, pooled_size=4096, expansion_size=16384, vocab_size=32000)
        )
    assert head.alignment_parameters() == 591_445_248
    assert head.total_parameters() == 641_780_992
    assert head.total_parameters() - head.alignment_parameters() == 50_335_744
    assert head.dropout.p == 0.1


def test_an_untrained_head_gives_zero_vectors() -> None:
    head = AlignmentHead(SIZES)
    vector = head(torch.randn(5, 3, 32))
    assert vector.shape == (5, 300)
    assert not vector.any()


def test_the_vector_follows_the_formula() -> None:
    head = random_head().double()
    states = torch.randn(3, 32, dtype=torch.float64)
    weights = head.state_dict()
    fused = (weights["fusion.weight"] @ states.flatten() + weights["fusion.bias"]).clamp(min=0)
    wide = (weights["expand.weight"] @ fused + weights["expand.bias"]).clamp(min=0)
    torch.testing.assert_close(
        head(states), weights["project.weight"] @ wide + weights["project.bias"]
    )
    torch.testing.assert_close(head.features(states), wide)


@pytest.mark.parametrize("width", [16, 32, 80])
def test_states_of_another_width_are_pooled(width: int) -> None:
    head, states = random_head(), torch.randn(2, 4, 3, width)
    assert torch.equal(head(states), head(pool_states(states, 32)))
    assert head(states).shape == (2, 4, 300)


def test_a_positions_vector_ignores_all_other_positions() -> None:
    head, states = random_head(), torch.randn(2, 6, 3, 32)
    changed = states.clone()
    changed[0, 2] += 100
    moved = (head(changed) != head(states)).any(-1)
    assert moved.tolist() == [[False, False, True, False, False, False], [False] * 6]
    torch.testing.assert_close(head(states)[1, 3], head(states[1, 3]))


def test_dropout_acts_in_training_alone() -> None:
    head, states = random_head(), torch.randn(4, 3, 32)
    assert torch.equal(head(states), head(states))
    head.train()
    assert not torch.equal(head(states), head(states))


def test_narrow_states_are_taken_in_the_type_of_the_weights() -> None:
    head, states = random_head(), torch.randn(4, 3, 32).bfloat16()
    assert head(states).dtype == torch.float32
    assert torch.equal(head(states), head(states.float()))


@pytest.mark.parametrize("folder", ["head", "a/new/place", "run/best", "run/last"])
def test_round_trip_is_bitwise(tmp_path: Path, manifest: Manifest, folder: str) -> None:
    head, origin = random_head(), origin_of(manifest)
    save_head(head, origin, tmp_path / folder)
    stored = load_head(str(tmp_path / folder))
    assert same_weights(stored.head, head)
    assert (stored.head.config, stored.origin) == (SIZES, origin)
    assert stored.path == tmp_path / folder
    assert not stored.head.training
    assert same_weights(AlignmentHead.from_pretrained(str(tmp_path / folder)), head)


def test_a_run_folder_gives_its_best_head_or_else_its_last(
    tmp_path: Path, manifest: Manifest
) -> None:
    save_head(random_head(1), origin_of(manifest), tmp_path / "last")
    assert same_weights(AlignmentHead.from_pretrained(str(tmp_path)), random_head(1))
    save_head(random_head(2), origin_of(manifest), tmp_path / "best")
    assert same_weights(AlignmentHead.from_pretrained(str(tmp_path)), random_head(2))
    assert find_head(str(tmp_path)) == tmp_path / "best"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_loaded_in_the_type_asked_for(
    tmp_path: Path, manifest: Manifest, dtype: torch.dtype
) -> None:
    save_head(random_head(), origin_of(manifest), tmp_path / "head")
    head = AlignmentHead.from_pretrained(str(tmp_path / "head"), dtype=dtype)
    assert same_weights(head, random_head().to(dtype))
    assert (head.dtype, head.device) == (dtype, torch.device("cpu"))
    assert {parameter.dtype for parameter in head.parameters()} == {dtype}


def test_a_loaded_head_can_be_trained_on(tmp_path: Path, manifest: Manifest) -> None:
    save_head(random_head(), origin_of(manifest), tmp_path / "head")
    head = AlignmentHead.from_pretrained(str(tmp_path / "head")).train()
    head(torch.randn(2, 3, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_the_files_are_safetensors_and_json(tmp_path: Path, manifest: Manifest) -> None:
    save_head(random_head(), origin_of(manifest), tmp_path / "head")
    assert {path.name for path in (tmp_path / "head").iterdir()} == {CONFIG, WEIGHTS}
    config = json.loads((tmp_path / "head" / CONFIG).read_text())
    assert config["kind"] == "mav-alignment-head"
    assert config["head"] == dataclasses.asdict(SIZES)
    alignment = 33 * 16 + 17 * 300
    assert config["parameters"] == {"alignment": alignment, "total": alignment + 97 * 32}
    assert Manifest.from_json(config["cache"], "it") == manifest


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def drop_tensor(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    del tensors["expand.bias"]
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def add_tensor(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    safetensors.torch.save_file({**tensors, "extra": torch.zeros(2)}, folder / WEIGHTS)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut": (lambda f: cut(f / WEIGHTS, 1000), r"cannot be read as safetensors"),
    "weights empty": (lambda f: cut(f / WEIGHTS, 0), r"cannot be read as safetensors"),
    "weights missing": (
        lambda f: (f / WEIGHTS).unlink(),
        r"no model\.safetensors beside config\.json",
    ),
    "weights no safetensors": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04pickle" * 20),
        r"cannot be read as safetensors",
    ),
    "a tensor missing": (drop_tensor, r"not the head config\.json describes.*expand\.bias"),
    "a tensor too many": (add_tensor, r"not the head config\.json describes.*extra"),
    "wrong shapes": (
        lambda f: change_config(f, lambda c: c["head"].update(expansion_size=17)),
        r"not the head config\.json describes.*got shape .*, expected",
    ),
    "wrong kind": (
        lambda f: change_config(f, lambda c: c.update(kind="adapter")),
        r"kind 'adapter', expected 'mav-alignment-head'",
    ),
    "no kind": (lambda f: change_config(f, lambda c: c.pop("kind")), r"kind None"),
    "config missing": (lambda f: (f / CONFIG).unlink(), r"no head here, expected config\.json"),
    "config no JSON": (lambda f: cut(f / CONFIG, 50), r"not a head's configuration"),
    "config a list": (lambda f: (f / CONFIG).write_text("[]"), r"not a head's configuration"),
    "no sizes": (
        lambda f: change_config(f, lambda c: c.pop("head")),
        r"not a head's configuration",
    ),
    "a size missing": (
        lambda f: change_config(f, lambda c: c["head"].pop("vocab_size")),
        r"not a head's configuration.*vocab_size",
    ),
    "a size too many": (
        lambda f: change_config(f, lambda c: c["head"].update(depth=3)),
        r"not a head's configuration.*depth",
    ),
    "a size that is text": (
        lambda f: change_config(f, lambda c: c["head"].update(expansion_size="16")),
        r"config\.json.*expansion_size",
    ),
    "a negative size": (
        lambda f: change_config(f, lambda c: c["head"].update(pooled_size=-1)),
        r"config\.json.*pooled_size",
    ),
    "no dropout rate": (
        lambda f: change_config(f, lambda c: c["head"].update(dropout=7)),
        r"config\.json.*dropout",
    ),
    "fewer layers in the cache": (
        lambda f: change_config(f, lambda c: c["cache"]["states"].update(layers=[1, 2])),
        r"config\.json: head\.num_layers: got 3, expected 2, as the cache",
    ),
    "another pooled size in the cache": (
        lambda f: change_config(f, lambda c: c["cache"]["states"].update(pooled_size=64)),
        r"config\.json: head\.pooled_size: got 32, expected 64, as the cache",
    ),
    "another vocabulary in the cache": (
        lambda f: change_config(f, lambda c: c["cache"]["base"].update(vocab_size=301)),
        r"config\.json: head\.vocab_size: got 300, expected 301, as the cache",
    ),
    "no origin": (
        lambda f: change_config(f, lambda c: c["training"].pop("beta")),
        r"not a head's configuration.*beta",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_head_is_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    damage, message = DAMAGES[name]
    save_head(random_head(), origin_of(manifest), tmp_path / "head")
    damage(tmp_path / "head")
    with pytest.raises(HeadError, match=f"(?s){message}"):
        load_head(str(tmp_path / "head"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["fusion.weight", "expand.bias", "project.weight"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, manifest: Manifest, name: str, value: float
) -> None:
    head = random_head()
    with torch.no_grad():
        head.get_parameter(name).view(-1)[-1] = value
    save_head(head, origin_of(manifest), tmp_path / "head")
    with pytest.raises(HeadError, match=rf"model\.safetensors: {name} holds values that are no"):
        load_head(str(tmp_path / "head"))


def test_weights_that_are_no_numbers_in_the_type_asked_for(
    tmp_path: Path, manifest: Manifest
) -> None:
    head = random_head()
    with torch.no_grad():
        head.project.weight[0, 0] = 1e5
    save_head(head, origin_of(manifest), tmp_path / "head")
    assert load_head(str(tmp_path / "head"), dtype=torch.bfloat16)
    with pytest.raises(HeadError, match=r"project\.weight holds .* in float16, expected finite"):
        load_head(str(tmp_path / "head"), dtype=torch.float16)


def test_a_broken_manifest_is_refused_by_the_path_of_the_config(
    tmp_path: Path, manifest: Manifest
) -> None:
    save_head(random_head(), origin_of(manifest), tmp_path / "head")
    change_config(tmp_path / "head", lambda c: c["cache"]["base"].pop("vocab_size"))
    with pytest.raises(HeadError, match=r"config\.json is not.*\s*- base\.vocab_size: missing"):
        read_head_config(tmp_path / "head")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c", "~/head"])
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(HeadError, match=r"no such folder"):
        load_head(name)


def test_a_hub_id_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(HeadError, match=r"nobody/nothing: no such folder here, and the hub did"):
        load_head("nobody/nothing")


def test_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(HeadError, match=r"pytorch_model\.bin is a pickle.*MAV reads none"):
        load_head(str(tmp_path))
    with pytest.raises(HeadError, match=r"pytorch_model\.bin is a pickle"):
        load_head(str(tmp_path / "pytorch_model.bin"))


def fail_to_save(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)


def fail_to_serialize(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    """As safetensors itself tells of a full disk."""

    def full(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)


def fail_to_sync(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)


def interrupted(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stop)


@pytest.mark.parametrize("fail", [fail_to_save, fail_to_serialize, fail_to_sync, interrupted])
def test_a_failing_write_leaves_the_old_head_in_place(
    tmp_path: Path,
    manifest: Manifest,
    fail: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    folder = tmp_path / "best"
    save_head(random_head(1), origin_of(manifest, steps=1), folder)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, folder)
        with pytest.raises((OSError, HeadError, KeyboardInterrupt)):
            save_head(random_head(2), origin_of(manifest, steps=2), folder)
    stored = load_head(str(folder))
    assert same_weights(stored.head, random_head(1))
    assert stored.origin.steps == 1
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_head(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "best"
    save_head(random_head(1), origin_of(manifest), folder)
    replace = os.replace

    def refusing(source: Path, target: Path) -> None:
        # The old folder, if it was moved aside, may be moved back.
        if Path(target) == folder and same_weights(load_head(str(source)).head, random_head(2)):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("os.replace", refusing)
    monkeypatch.setattr("os.rename", refusing)
    with contextlib.suppress(OSError):
        save_head(random_head(2), origin_of(manifest), folder)
    head = load_head(str(folder)).head
    assert same_weights(head, random_head(1)) or same_weights(head, random_head(2))


KILLED_AT_A_RENAME = """
import os, sys
from pathlib import Path
from mav.pipeline.head.pretrained import load_head, save_head

folder, left = sys.argv[1], int(sys.argv[2])
stored = load_head(folder)
stored.head.project.bias.data.fill_(5.0)

def killed(rename):
    def wrapper(*arguments, **options):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return rename(*arguments, **options)
    return wrapper

os.replace, os.rename = killed(os.replace), killed(os.rename)
save_head(stored.head, stored.origin, Path(folder))
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_process_killed_while_writing_leaves_a_head(
    tmp_path: Path, manifest: Manifest, renames: int
) -> None:
    folder = tmp_path / "best"
    save_head(random_head(1), origin_of(manifest), folder)
    subprocess.run([sys.executable, "-c", KILLED_AT_A_RENAME, folder, str(renames)], check=False)
    head = load_head(str(folder)).head
    assert same_weights(head, random_head(1)) or (head.project.bias == 5).all()


def test_a_new_head_takes_the_place_of_the_old_one(tmp_path: Path, manifest: Manifest) -> None:
    folder = tmp_path / "best"
    for steps in (1, 2):
        save_head(random_head(steps), origin_of(manifest, steps=steps), folder)
    stored = load_head(str(folder))
    assert same_weights(stored.head, random_head(2))
    assert stored.origin.steps == 2
    assert list(tmp_path.iterdir()) == [folder]
