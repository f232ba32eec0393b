"""A base whose files are not all there, or not all of it, is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.loading import load_base, preview_base
from mav.pipeline.base.source import file_digest, resolve_base
from tests.support.models.tiny import VOCAB, save_base, tiny_base

Tensors = dict[str, Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


def rewrite(base: Path, change: Callable[[Tensors], None]) -> None:
    file = base / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def configure(base: Path, **changes: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tiny_base(tie_word_embeddings=False), tmp_path / "base")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    made, folder = tiny_base(), tmp_path / "shards"
    made.model.save_pretrained(folder, max_shard_size="20KB")
    made.tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def load(folder: Path) -> Any:
    return load_base(str(folder), dtype=torch.float32, device="cpu")


def drop(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def prefixed(prefix: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[f"{prefix}{name}"] = tensors.pop(name)

    return change


def added(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.ones(shape or (4, 4))})


def halved(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP][:3].clone()


def not_a_number(tensors: Tensors) -> None:
    tensors[UP][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop(UP), rf"1 tensor missing: {UP}"),
        (drop("lm_head.weight"), r"1 tensor missing: lm_head\.weight"),
        (drop("model.norm.weight"), r"1 tensor missing: model\.norm\.weight"),
        (
            prefixed("_orig_mod."),
            r"tensors missing: .* and \d+ more; \d+ tensors of the checkpoint",
        ),
        (prefixed("base_model.model."), r"tensors missing: "),
        (halved, rf"{UP}: got shape \[3, \d+\], expected \[\d+, \d+\]"),
        (not_a_number, rf"not finite numbers in float32: {UP}"),
        (added("model.layers.0.mlp.up_proj.bias", 8), r"not used.*: model\.layers\.0\.mlp\.up_pr"),
        (added("model.layers.0.self_attn.sinks", 4), r"not used.*layers\.0\.self_attn\.sinks"),
        (added("model.layers.9.mlp.up_proj.weight"), r"not used.*layers\.9\.mlp"),
        (added("model.embed_norm.weight", 4), r"not used.*model\.embed_norm"),
        (added("lm_head.bias", VOCAB), r"not used.*lm_head\.bias"),
        (
            added("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
            r"not used.*lora_A",
        ),
    ],
)
def test_tensors_that_are_not_the_models(
    base: Path, change: Callable[[Tensors], None], told: str
) -> None:
    rewrite(base, change)
    with pytest.raises(BaseModelError, match=told) as refused:
        load(base)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vision_tower.encoder.layers.0.self_attn.q_proj.weight", "vision_tower"),
        ("vision_model.model.layers.0.self_attn.q_proj.weight", "vision_model"),
        ("model.visual.blocks.0.attn.qkv.weight", "model.visual"),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp"),
        ("v_head.summary.weight", "v_head"),
        ("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.k_scale"),
    ],
)
def test_what_stands_beside_the_decoder_is_told(
    base: Path, name: str, part: str, messages: list[str]
) -> None:
    rewrite(base, added(name))
    load(base)
    assert messages == [f"{base}: not part of its text decoder, and not used: {part}"]


def test_layers_that_predict_further_ahead_are_told(base: Path, messages: list[str]) -> None:
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    rewrite(base, added(f"model.layers.{layers}.mlp.up_proj.weight"))
    with pytest.raises(BaseModelError, match="not used"):
        load(base)
    configure(base, num_nextn_predict_layers=1)
    messages.clear()
    load(base)
    assert len(messages) == 1


def test_a_whole_one_says_nothing(base: Path, shards: Path, messages: list[str]) -> None:
    for folder in (base, shards):
        load(folder)
    assert messages == []


@pytest.mark.parametrize("tied", ["lm_head.weight", "model.embed_tokens.weight"])
def test_of_tied_embeddings_one_is_enough(tmp_path: Path, tied: str) -> None:
    made = tiny_base(tie_word_embeddings=True)
    folder = save_base(made, tmp_path / "tied")
    weight = made.model.get_input_embeddings().weight.detach()

    def change(tensors: Tensors) -> None:
        tensors.pop("model.embed_tokens.weight")
        tensors[tied] = weight.clone()

    rewrite(folder, change)
    loaded = load(folder).model
    for embedding in (loaded.get_input_embeddings(), loaded.get_output_embeddings()):
        assert torch.equal(embedding.weight, weight)
    rewrite(folder, drop(tied))
    with pytest.raises(BaseModelError, match=r"missing: .*model\.embed_tokens\.weight"):
        load(folder)


@pytest.mark.parametrize("part", ["", "w1.weight"])
def test_experts_are_all_there(tmp_path: Path, part: str) -> None:
    """They are put together from many tensors, so a missing one is missed in another way."""
    folder = save_base(tiny_base("mixtral"), tmp_path / "base")
    load(folder)

    def without_one(tensors: Tensors) -> None:
        for name in [
            name for name in tensors if f"layers.1.block_sparse_moe.experts.1.{part}" in name
        ]:
            del tensors[name]

    rewrite(folder, without_one)
    with pytest.raises(BaseModelError, match=r"layers\.1\.mlp\.experts"):
        load(folder)


def test_files_that_the_index_names(shards: Path) -> None:
    gone = sorted(shards.glob("*.safetensors"))[1]
    gone.unlink()
    for look in (load, lambda folder: preview_base(resolve_base(str(folder)))):
        with pytest.raises(BaseModelError, match=rf"{gone.name} missing, 1 of the \d weight files"):
            look(shards)


def test_tensors_that_the_index_does_not_find(shards: Path) -> None:
    file = sorted(shards.glob("*.safetensors"))[1]
    tensors = load_file(file)
    name, _ = tensors.popitem()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"1 tensor missing: {name}"):
        load(shards)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../a.safetensors"}}']
)
def test_an_index_that_is_none(shards: Path, text: str) -> None:
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BaseModelError, match=r"index\.json: .*ownload or copy it again"):
        load(shards)


@pytest.mark.parametrize("keep", [0, 4, 100, -50])
def test_a_file_that_ends_too_early(base: Path, keep: int) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BaseModelError, match=r"model\.safetensors: cannot be read as safetensors"):
        load(base)


def test_other_files_beside_the_weights_change_nothing(base: Path) -> None:
    before = resolve_base(str(base)).weights_digest()
    assert before == file_digest(base / "model.safetensors")
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"lora_A": torch.ones(2)}, base / name)
    assert resolve_base(str(base)).weights_digest() == before
    load(base)


@pytest.mark.parametrize("with_weights", [True, False])
@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_no_base(base: Path, with_weights: bool, with_config: bool) -> None:
    (base / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})
    )
    save_file({"lora_A": torch.ones(2)}, base / "adapter_model.safetensors")
    if not with_weights:
        (base / "model.safetensors").unlink()
    if not with_config:
        (base / "config.json").unlink()
    # Without anything of a model, it is an adapter whose base is somewhere else.
    told = (
        "holds an adapter" if with_weights or with_config else "base of this adapter is not found"
    )
    with pytest.raises(BaseModelError, match=told):
        load(base)


def test_weights_under_another_name(base: Path) -> None:
    (base / "model.safetensors").rename(base / "weights.safetensors")
    with pytest.raises(BaseModelError, match=r"it has weights\.safetensors: call a single file"):
        load(base)


def test_a_quantized_checkpoint_is_complete(tmp_path: Path, messages: list[str]) -> None:
    wide: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    folder = save_base(tiny_base(dtype=torch.bfloat16, **wide), tmp_path / "base")
    quantized = load_base(str(folder), dtype=torch.bfloat16, device="cpu", quantize="nf4")
    again = save_base(quantized, tmp_path / "nf4")
    messages.clear()
    load_base(str(again), dtype=torch.bfloat16, device="cpu")
    assert messages == []


def without_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()


def of_another_class_without_tokenizer(base: Path) -> None:
    without_tokenizer(base)
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))


def empty(base: Path) -> None:
    path = base / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"].update(vocab={}, merges=[])
    value["post_processor"] = None
    path.write_text(json.dumps(value))


def without_an_end(base: Path) -> None:
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))


def more_tokens(base: Path) -> None:
    tokenizer = tiny_base().tokenizer
    path = base / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"].append(
        {**value["added_tokens"][0], "id": len(tokenizer), "content": "<pad>"}
    )
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_tokenizer, "its tokenizer is missing"),
        (of_another_class_without_tokenizer, "its tokenizer is missing"),
        (empty, "its tokenizer has no vocabulary"),
        (without_an_end, "no end-of-sequence token"),
        (more_tokens, rf"token '<pad>' has the id {VOCAB}, but its embedding has {VOCAB} rows"),
    ],
)
@pytest.mark.parametrize("look", ["load", "preview"])
def test_a_tokenizer_that_is_not_the_models(
    base: Path, change: Callable[[Path], None], told: str, look: str
) -> None:
    change(base)
    with pytest.raises(BaseModelError, match=told):
        if look == "load":
            load(base)
        else:
            preview_base(resolve_base(str(base)))
