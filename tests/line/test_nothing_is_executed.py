"""Heads and bases are numbers and JSON: what would run code is refused, and does not run."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError, HeadError, MAVError
from mav.pipeline.base.loading import load_base, preview_base
from mav.pipeline.base.source import resolve_base
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.head.pretrained import load_head
from tests.support.steering.heads import write_base_and_head


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that is there if code from a checkpoint ran."""
    return tmp_path / "executed"


def test_the_payload_works(mark: Path) -> None:
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_and_head(tmp_path_factory.mktemp("written"))


@pytest.fixture
def base(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written / "base", tmp_path / "base")


@pytest.fixture
def head(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written / "head", tmp_path / "head")


def pickled(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"project.weight": Payload(mark)}))


def saved_by_torch(path: Path, mark: Path) -> None:
    torch.save({"project.weight": Payload(mark)}, path)


WRITERS = pytest.mark.parametrize("write", [pickled, saved_by_torch])
NAMES = ("pytorch_model.bin", "model.pt", "head.pth", "head.pkl")


@WRITERS
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_config", [False, True])
def test_a_head_in_a_pickle(
    head: Path, mark: Path, write: Any, name: str, with_config: bool
) -> None:
    (head / "model.safetensors").unlink()
    if not with_config:
        (head / "config.json").unlink()
    write(head / name, mark)
    with pytest.raises(HeadError, match=f"{name} is a pickle, which can run code"):
        load_head(str(head))
    assert not mark.exists()


@WRITERS
def test_a_head_whose_safetensors_is_a_pickle(head: Path, mark: Path, write: Any) -> None:
    write(head / "model.safetensors", mark)
    with pytest.raises(HeadError, match="cannot be read as safetensors"):
        load_head(str(head))
    assert not mark.exists()


@WRITERS
def test_a_file_that_is_a_pickle_is_no_head(tmp_path: Path, mark: Path, write: Any) -> None:
    write(tmp_path / "head.pt", mark)
    with pytest.raises(HeadError, match="pickle"):
        load_head(str(tmp_path / "head.pt"))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "kind 'other'"),
        ({"head": {"num_layers": 3}}, "not a head's configuration"),
        ({"head": None}, "not a head's configuration"),
        ({"training": {"__class__": "os.system"}}, "not a head's configuration"),
        ({"cache": {}}, "format version None"),
        ({"cache": []}, "manifest"),
    ],
)
def test_a_configuration_that_is_none(head: Path, change: dict[str, Any], message: str) -> None:
    path = head / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(HeadError, match=message):
        load_head(str(head))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"kind": 1}', "\x00\x80"])
def test_a_configuration_that_is_no_json_object(head: Path, text: str) -> None:
    (head / "config.json").write_text(text)
    with pytest.raises(HeadError):
        load_head(str(head))


@pytest.mark.parametrize("field", ["pooled_size", "vocab_size", "num_layers"])
def test_sizes_that_are_not_the_weights(head: Path, field: str) -> None:
    path = head / "config.json"
    config = json.loads(path.read_text())
    config["head"][field] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(
        HeadError, match=r"not the head config\.json describes|as the cache it was trained"
    ):
        load_head(str(head))


@WRITERS
def test_a_base_in_a_pickle(base: Path, mark: Path, write: Any) -> None:
    (base / "model.safetensors").unlink()
    write(base / "pytorch_model.bin", mark)
    with pytest.raises(BaseModelError, match=r"pytorch_model\.bin, a pickle, which can run code"):
        load_base(str(base), device="cpu")
    assert not mark.exists()


@WRITERS
def test_a_pickle_beside_a_bases_safetensors_is_left_alone(
    base: Path, head: Path, mark: Path, write: Any
) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        write(base / name, mark)
    mav = MAVInference(str(head), str(base), dtype=torch.float32, device="cpu")
    assert mav.generate("Hi", 1.0, GenerationOptions(max_new_tokens=2)).tokens
    assert not mark.exists()


def with_code(base: Path, mark: Path, model_type: str | None) -> None:
    """Add code that writes a file when imported, and a configuration that names it."""
    code = (
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'custom'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (base / "modeling_custom.py").write_text(code)
    config: dict[str, Any] = {
        "auto_map": {
            "AutoConfig": "modeling_custom.Config",
            "AutoModelForCausalLM": "modeling_custom.Model",
        }
    }
    if model_type is not None:
        config["model_type"] = model_type
    tokenizer = {"auto_map": {"AutoTokenizer": [None, "modeling_custom.Tokenizer"]}}
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        path = base / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def user_says_yes(_: object = "") -> str:
    return "y"


@pytest.mark.parametrize("load", ["load", "preview"])
@pytest.mark.parametrize("model_type", ["custom", "t5", "vit"])
def test_an_architecture_that_comes_as_code_is_refused(
    base: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, load: str, model_type: str
) -> None:
    """Nor may anybody be asked whether to run it: nothing is, and a server has nobody to ask."""
    monkeypatch.setattr("builtins.input", user_says_yes)
    with_code(base, mark, model_type)
    with pytest.raises(BaseModelError):
        if load == "load":
            load_base(str(base), device="cpu")
        else:
            preview_base(resolve_base(str(base)))
    assert not mark.exists()


def test_code_beside_an_architecture_that_is_known_is_left_alone(
    base: Path, head: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", user_says_yes)
    with_code(base, mark, None)
    try:
        mav = MAVInference(str(head), str(base), dtype=torch.float32, device="cpu")
    except MAVError:
        pass  # refusing is as good
    else:
        assert type(mav.base.model).__module__.startswith("transformers.")
        assert mav.generate("Hi", 1.0, GenerationOptions(max_new_tokens=2)).tokens
    assert not mark.exists()
