"""A head's files: what is written is read, and nothing else is taken for a head."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from mav.cache_schema import HeadError, Manifest
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head, save_head
from mav.pipeline.head.storage import CONFIG, WEIGHTS, find_head, read_head_config
from mav.pipeline.runtime.durable_files import measure
from tests.support.steering.heads import SIZES, origin_of, same_weights, seeded_head


@pytest.mark.parametrize("folder", ["head", "a/new/place", "run/best", "run/last"])
def test_round_trip_is_bitwise(tmp_path: Path, manifest: Manifest, folder: str) -> None:
    head, origin = seeded_head(), origin_of(manifest)
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
    save_head(seeded_head(1), origin_of(manifest), tmp_path / "last")
    assert same_weights(AlignmentHead.from_pretrained(str(tmp_path)), seeded_head(1))
    save_head(seeded_head(2), origin_of(manifest), tmp_path / "best")
    assert same_weights(AlignmentHead.from_pretrained(str(tmp_path)), seeded_head(2))
    assert find_head(str(tmp_path)) == tmp_path / "best"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_loaded_in_the_type_asked_for(
    tmp_path: Path, manifest: Manifest, dtype: torch.dtype
) -> None:
    save_head(seeded_head(), origin_of(manifest), tmp_path / "head")
    head = AlignmentHead.from_pretrained(str(tmp_path / "head"), dtype=dtype)
    assert same_weights(head, seeded_head().to(dtype))
    assert (head.dtype, head.device) == (dtype, torch.device("cpu"))
    assert {parameter.dtype for parameter in head.parameters()} == {dtype}


def test_a_loaded_head_can_be_trained_on(tmp_path: Path, manifest: Manifest) -> None:
    save_head(seeded_head(), origin_of(manifest), tmp_path / "head")
    head = AlignmentHead.from_pretrained(str(tmp_path / "head")).train()
    head(torch.randn(2, 3, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_the_files_are_safetensors_and_json(tmp_path: Path, manifest: Manifest) -> None:
    save_head(seeded_head(), origin_of(manifest), tmp_path / "head")
    assert {path.name for path in (tmp_path / "head").iterdir()} == {CONFIG, WEIGHTS}
    config = json.loads((tmp_path / "head" / CONFIG).read_text())
    assert config["kind"] == "mav-alignment-head"
    sizes = {"num_layers": 3, "pooled_size": 32, "expansion_size": 16, "vocab_size": 300}
    assert config["head"] == {"kind": "mlp", **sizes, "dropout": 0.25}
    alignment = 33 * 16 + 17 * 300
    assert config["parameters"] == {"alignment": alignment, "total": alignment + 97 * 32}
    assert config["weights"] == measure(tmp_path / "head" / WEIGHTS)
    assert Manifest.from_json(config["cache"], "config.json") == manifest


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


def of_another_save(folder: Path) -> None:
    """Weights of the same shapes, from a folder that was copied while it was written."""
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors["expand.bias"] += 1
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


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
    "weights of another save": (
        of_another_save,
        r"model\.safetensors: got weights of .*, expected .*copy the whole folder again",
    ),
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
    save_head(seeded_head(), origin_of(manifest), tmp_path / "head")
    damage(tmp_path / "head")
    with pytest.raises(HeadError, match=f"(?s){message}"):
        load_head(str(tmp_path / "head"))


def test_heads_of_earlier_programs_record_no_checksum(tmp_path: Path, manifest: Manifest) -> None:
    save_head(seeded_head(), origin_of(manifest), tmp_path / "head")
    change_config(tmp_path / "head", lambda c: c.pop("weights"))
    assert same_weights(load_head(str(tmp_path / "head")).head, seeded_head())
    save_head(seeded_head(1), origin_of(manifest), tmp_path / "head")
    assert same_weights(load_head(str(tmp_path / "head")).head, seeded_head(1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["fusion.weight", "expand.bias", "project.weight"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, manifest: Manifest, name: str, value: float
) -> None:
    head = seeded_head()
    with torch.no_grad():
        head.get_parameter(name).view(-1)[-1] = value
    save_head(head, origin_of(manifest), tmp_path / "head")
    with pytest.raises(
        HeadError, match=rf"model\.safetensors: {name} holds values that are not finite"
    ):
        load_head(str(tmp_path / "head"))


def test_weights_that_are_no_numbers_in_the_type_asked_for(
    tmp_path: Path, manifest: Manifest
) -> None:
    head = seeded_head()
    with torch.no_grad():
        head.project.weight[0, 0] = 1e5
    save_head(head, origin_of(manifest), tmp_path / "head")
    assert load_head(str(tmp_path / "head"), dtype=torch.bfloat16)
    with pytest.raises(HeadError, match=r"project\.weight holds .* in float16, expected finite"):
        load_head(str(tmp_path / "head"), dtype=torch.float16)


def test_a_broken_manifest_is_refused_by_the_path_of_the_config(
    tmp_path: Path, manifest: Manifest
) -> None:
    save_head(seeded_head(), origin_of(manifest), tmp_path / "head")
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
