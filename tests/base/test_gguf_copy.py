"""A GGUF base is converted once, kept as safetensors, and computes the same either way."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base import gguf_copy
from mav.pipeline.base.gguf_copy import resolve_with_copy
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import file_digest
from mav.pipeline.runtime import known_places
from tests.support.models.gguf_files import SIZES, Tensors, write_gguf
from tests.support.models.tiny import rows, tiny_base

Kind = gguf.GGMLQuantizationType


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAV_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def load(path: Path, *, gguf_cache: bool = True, dtype: torch.dtype = torch.float32) -> BaseModel:
    return load_base(str(path), dtype=dtype, device="cpu", gguf_cache=gguf_cache)


def copies(home: Path) -> list[Path]:
    return [path for path in home.glob("gguf/*/*") if path.is_dir()]


def assert_same(one: BaseModel, other: BaseModel) -> None:
    weights = other.model.state_dict()
    assert one.model.state_dict().keys() == weights.keys()
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    for row in rows(3):
        assert one.tokenizer.encode(row["chosen"]) == other.tokenizer.encode(row["chosen"])
    assert one.fingerprint() == other.fingerprint()
    assert one.end_tokens == other.end_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.F16, Kind.BF16, Kind.F32])
def test_a_copy_is_what_the_file_is(
    home: Path, tmp_path: Path, kind: gguf.GGMLQuantizationType, dtype: torch.dtype
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", kind=kind)
    assert_same(load(path, dtype=dtype), load(path, gguf_cache=False, dtype=dtype))
    (copy,) = copies(home)
    assert copy.parent.name == file_digest(path)
    stored = load_file(copy / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype
    assert stored == {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}.get(kind, torch.float32)


def test_weights_are_those_that_were_written(home: Path, tmp_path: Path) -> None:
    """Not only the same both ways: names, permutations of heads, tied or not."""
    found = load(write_gguf(tmp_path / "tiny.gguf", kind=Kind.F32))
    for name, weight in tiny_base(**SIZES).model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight), name


def test_it_is_made_once_and_said_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    messages.clear()
    first = resolve_with_copy(str(path))
    assert first.converted == copies(home)[0]
    assert messages == [f"Converting tiny.gguf to safetensors, once: {first.converted}"]
    monkeypatch.setattr(gguf_copy, "convert", lambda *_: pytest.fail("it is there"))
    monkeypatch.setattr(gguf, "GGUFReader", lambda *_: pytest.fail("it was parsed"))
    assert resolve_with_copy(str(path)) == first
    assert load_base(str(path), device="cpu").source == first
    assert len(messages) == 1


def test_a_file_is_parsed_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    read, real = [], gguf.GGUFReader

    def reader(name: str) -> gguf.GGUFReader:
        read.append(name)
        return real(name)

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    resolve_with_copy(str(path))
    assert len(read) == 1


def test_without_it_nothing_is_kept(home: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    assert resolve_with_copy(str(path), gguf_cache=False).converted is None
    assert not home.exists()


def test_another_file_is_another_copy(home: Path, tmp_path: Path) -> None:
    def other(tensors: Tensors) -> None:
        tensors["output_norm.weight"] += 1

    first = load(write_gguf(tmp_path / "tiny.gguf"))
    second = load(write_gguf(tmp_path / "tiny.gguf", change=other))
    assert len(copies(home)) == 2
    one, two = (base.model.state_dict()["model.norm.weight"] for base in (first, second))
    assert torch.allclose(one + 1, two)


def cut(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip(copy: Path) -> None:
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def drop(name: str) -> Callable[[Path], None]:
    return lambda copy: (copy / name).unlink()


def empty_record(copy: Path) -> None:
    (copy / "copy.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [cut, flip, drop("config.json"), drop("copy.json"), empty_record]
)
def test_a_damaged_copy_is_made_again(
    home: Path, tmp_path: Path, damage: Callable[[Path], None], messages: list[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    whole = load(path, gguf_cache=False)
    resolve_with_copy(str(path))
    (copy,) = copies(home)
    damage(copy)
    gguf_copy._has_checksums.cache_clear()  # as in a new process
    messages.clear()
    again = resolve_with_copy(str(path))
    assert len(messages) == 1 and messages[0].startswith("Converting")
    assert again.converted == copy and copies(home) == [copy]
    assert_same(load(path), whole)


def test_one_that_was_interrupted_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")

    def stopped(_: object, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_copy, "convert", stopped)
        with pytest.raises(KeyboardInterrupt):
            resolve_with_copy(str(path))
    assert copies(home) == []
    # One that was killed could not tidy up.
    source = resolve_with_copy(str(path))
    assert source.converted is not None
    left = source.converted.with_name(f".{source.converted.name}.partial")
    source.converted.rename(left)
    assert resolve_with_copy(str(path)).converted == source.converted
    assert copies(home) == [source.converted]


def test_several_processes_at_once_make_one(
    home: Path, tmp_path: Path, warm_programs: Path
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    code = (
        "import logging, sys; from mav.pipeline.base.gguf_copy import resolve_with_copy; "
        "logging.basicConfig(stream=sys.stdout, format='%(message)s', force=True); "
        "logging.getLogger('mav').setLevel('INFO'); "
        "print(resolve_with_copy(sys.argv[1]).converted)"
    )
    runs = [
        subprocess.Popen(
            [warm_programs / "python", "-c", code, path], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    lines = [line for run in runs for line in run.communicate()[0].splitlines()]
    assert [run.returncode for run in runs] == [0, 0, 0]
    (copy,) = copies(home)
    assert sorted(lines) == sorted(
        [f"Converting tiny.gguf to safetensors, once: {copy}"] + [str(copy)] * 3
    )


@pytest.mark.parametrize("lacking", ["memory", "disk"])
def test_where_there_is_no_room_the_file_is_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str, messages: list[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    target = {"memory": "psutil.virtual_memory", "disk": "shutil.disk_usage"}[lacking]
    nothing = type("Free", (), {"available": 10, "free": 10})
    monkeypatch.setattr(f"mav.pipeline.base.gguf_copy.{target}", lambda *_: nothing)
    messages.clear()
    assert resolve_with_copy(str(path)).converted is None
    assert f"of {lacking}, and 0.0 are free" in messages[0]
    assert copies(home) == []


def test_where_nothing_can_be_kept_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAV_CACHE_HOME", str(tmp_path / "file"))
    path = write_gguf(tmp_path / "tiny.gguf")
    messages.clear()
    source = resolve_with_copy(str(path))
    assert source.converted is None
    assert "no copy can be kept" in messages[0] and "MAV_CACHE_HOME names another" in messages[0]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAV_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert known_places.cache_home() == Path.home() / ".cache" / "mav"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert known_places.cache_home() == Path("/x/mav")
    monkeypatch.setenv("MAV_CACHE_HOME", "/y")
    assert known_places.cache_home() == Path("/y")


def test_what_it_was_made_from_is_told(home: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    copy = resolve_with_copy(str(path)).converted
    assert copy is not None
    record = json.loads((copy / "copy.json").read_text())
    assert record["origin"]["sha256"] == file_digest(path)
    assert {"transformers", "gguf", "tokenizers"} < record["origin"].keys()
    assert "model.safetensors" in record["files"]


def missing(tensors: Tensors) -> None:
    del tensors["blk.1.ffn_up.weight"]


def unknown(tensors: Tensors) -> None:
    tensors["blk.0.ffn_extra.weight"] = tensors["blk.0.ffn_up.weight"]


def rotary(tensors: Tensors) -> None:
    tensors["rope_freqs.weight"] = tensors["output_norm.weight"][:8]


def shape(tensors: Tensors) -> None:
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"][:64]


def infinite(tensors: Tensors) -> None:
    tensors["output_norm.weight"][0] = float("inf")


@pytest.mark.parametrize("gguf_cache", [True, False])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (missing, r"1 tensor missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (unknown, r"1 of its tensors not used.*blk\.0\.ffn_extra\.weight"),
        (rotary, r"rope_freqs\.weight\. They scale the rotary embeddings"),
        (shape, r"mlp\.up_proj\.weight: got shape \[64, 64\], expected \[128, 64\]"),
        (infinite, r"not finite numbers in float32: model\.norm\.weight"),
    ],
)
def test_a_file_that_is_not_the_model_is_refused(
    home: Path, tmp_path: Path, change: Callable[[Tensors], None], told: str, gguf_cache: bool
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", change=change)
    with pytest.raises(BaseModelError, match=told):
        load(path, gguf_cache=gguf_cache)
    assert copies(home) == []


@pytest.mark.parametrize("gguf_cache", [True, False])
def test_a_file_that_ends_too_early(home: Path, tmp_path: Path, gguf_cache: bool) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BaseModelError, match="the file is truncated"):
        load(path, gguf_cache=gguf_cache)
