"""Bases in fewer bits: named in the manifest for what they are, and never taken for another."""

import builtins
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from mav.cache_schema.errors import BaseModelError, MismatchError, UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.quantization import (
    named,
    quantization_of,
)
from mav.pipeline.base.source import BaseSource, resolve_base
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.choices import Quantize
from mav.pipeline.verification.against_base import verify_against_base
from mav.pipeline.verification.options import VerifyOptions
from tests.support.models.tiny import save_base, tiny_base, write_rows

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_base(dtype=torch.bfloat16, **WIDE)
    return save_base(base, tmp_path_factory.mktemp("quantized") / "base")


def options(folder: Path, root: Path, **more: Any) -> ExtractOptions:
    return ExtractOptions(
        base_model=str(folder),
        data=DataSource(id=str(write_rows(root / "pairs.jsonl", 8))),
        output=root / "cache",
        pooled_size=64,
        max_length=128,
        device="cpu",
        **more,
    )


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (None, None),
        ({}, None),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "bitsandbytes nf4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4 bit"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_what_a_configuration_is_called(config: dict[str, Any] | None, name: str | None) -> None:
    assert named(config) == name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantized_base_is_extracted_and_verified_as_such(
    folder: Path, tmp_path: Path, quantize: Quantize, dtype: str
) -> None:
    asked = options(folder, tmp_path, quantize=quantize, dtype=dtype)
    extract(asked)
    reader = CacheReader(asked.output)
    assert reader.manifest.base.quantization == f"bitsandbytes {quantize}"
    found = verify_against_base(VerifyOptions(cache=asked.output, against_base=8, device="cpu"))
    assert found.differing == {}
    # The states are those of the quantized weights and not of the others.
    (tmp_path / "plain").mkdir()
    plain = options(folder, tmp_path / "plain", dtype=dtype)
    extract(plain)
    one, other = (
        torch.from_numpy(CacheReader(it.output).read_block(0).rows["hidden_states"].view(np.int16))
        .view(torch.bfloat16)
        .float()
        for it in (asked, plain)
    )
    assert float((one - other).norm() / other.norm()) > 1e-3
    assert CacheReader(plain.output).manifest.base.quantization is None


def test_a_cache_of_one_goes_on_with_no_other(folder: Path, tmp_path: Path) -> None:
    extract(options(folder, tmp_path, quantize="nf4"))
    assert extract(options(folder, tmp_path, quantize="nf4")).pairs_done == 0
    for other in (None, "int8"):
        with pytest.raises(MismatchError, match=r"base\.quantization: stored 'bitsandbytes nf4'"):
            extract(options(folder, tmp_path, quantize=other))


def test_what_is_quantized_is_not_quantized_again(folder: Path, tmp_path: Path) -> None:
    source = resolve_base(str(save_base(tiny_base(**WIDE), tmp_path / "base")))
    path = source.folder / "config.json"
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    assert quantization_of(source, None) == "gptq 4 bit"
    with pytest.raises(UsageError, match=r"already quantized \(gptq 4 bit\)"):
        load_base(str(source.folder), quantize="nf4")
    path.write_text("{")
    with pytest.raises(BaseModelError, match=r"config\.json: cannot be read"):
        quantization_of(source, None)


def write_gguf(path: Path, file_type: int | None) -> BaseSource:
    """A file with values of all kinds before the one that is looked for, as some have them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.floats", [1.5, 2.5])
    writer.add_float32("a.float", 1.0)
    writer.add_uint64("a.long", 2**40)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "general.file_type")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_uint32("another", 5)
    writer.add_tensor("norm", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return resolve_base(str(path))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (gguf.LlamaFileType.MOSTLY_Q4_1, "GGUF Q4_1"),
        (gguf.LlamaFileType.MOSTLY_Q4_K_M, "GGUF Q4_K_M"),
        (gguf.LlamaFileType.MOSTLY_F16, None),
        (gguf.LlamaFileType.MOSTLY_BF16, None),
        (gguf.LlamaFileType.ALL_F32, None),
        (9999, "GGUF type 9999"),
        (None, "GGUF"),
    ],
)
def test_a_gguf_file_is_called_what_it_calls_itself(
    tmp_path: Path, kind: int | None, name: str | None
) -> None:
    source = write_gguf(tmp_path / "model.gguf", kind)
    assert quantization_of(source, None) == name
    field = gguf.GGUFReader(tmp_path / "model.gguf").get_field("general.file_type")
    assert (field is None) == (kind is None)
    if field is not None:
        assert field.contents() == kind


@pytest.mark.parametrize("text", [b"", b"GGUF but no more", b"PK" * 40, b"GGUF" + b"\x63" * 90])
def test_a_file_that_is_no_gguf(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(text)
    with pytest.raises(BaseModelError, match="cannot be read as GGUF"):
        quantization_of(resolve_base(str(tmp_path / "model.gguf")), None)


def test_a_base_in_memory_has_no_files_to_tell() -> None:
    base = tiny_base()
    assert isinstance(base, BaseModel)
    assert base.fingerprint().quantization is None


def test_without_bitsandbytes_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "bitsandbytes":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"`quantize` needs bitsandbytes: pip install"):
        load_base(str(folder), device="cpu", quantize="nf4")
