"""Kinds of head: what each is made of, what it costs, and what its files say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema import CacheReader, Manifest
from mav.cache_schema.errors import HeadError, MismatchError
from mav.pipeline.head.compatibility import check_kind
from mav.pipeline.head.config import HeadConfig, head_config
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head, save_head
from mav.pipeline.head.storage import CONFIG
from mav.pipeline.reporting.inspect import describe
from mav.pipeline.runtime.choices import HeadKind
from tests.support.caches.manifests import llama_7b
from tests.support.models.tiny import make_cache
from tests.support.steering.heads import KINDS, origin_of, same_weights, seeded_head, sizes_of

W, V = 4096, 32000
FUSION = 3 * W * W + W


@pytest.mark.parametrize(
    ("kind", "rank", "parameters", "fusion", "decoding", "through"),
    [
        ("mlp", None, 641_780_992, FUSION, 2 * (3 * W * W + W * 16384 + 16384 * V), 0),
        ("unembedding", None, 67_117_056, FUSION, 2 * 4 * W * W, 4 * V * W),
        (
            "unembedding",
            256,
            FUSION + 257 * W + 256 * (W + 1),
            FUSION,
            2 * (3 * W * W + 2 * 256 * W),
            4 * V * W,
        ),
        ("bottleneck", None, 9_240_576, 0, 2 * 256 * (W + V), 0),
        ("bottleneck", 16, 16 * (W + V), 0, 2 * 16 * (W + V), 0),
    ],
)
def test_sizes_and_costs_on_llama_7b(
    kind: HeadKind, rank: int | None, parameters: int, fusion: int, decoding: int, through: int
) -> None:
    config = head_config(llama_7b().base, kind, num_layers=3, pooled_size=W, rank=rank)
    with torch.device("meta"):
        head = AlignmentHead(config)
    assert config.total_parameters == parameters == sum(p.numel() for p in head.parameters())
    assert config.fusion_parameters == fusion
    assert config.alignment_parameters == parameters - fusion
    assert config.decoding_flops == decoding
    assert config.training_flops == 3 * decoding + through
    assert config.dropout == (0.0 if kind == "bottleneck" else 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_of_any_kind_adds_nothing(kind: HeadKind) -> None:
    config = sizes_of(kind, pooled_size=20, hidden_size=40 if kind == "unembedding" else None)
    added = AlignmentHead(config).eval()(torch.randn(5, 3, 20))
    assert added.shape == (5, 40 if kind == "unembedding" else 300)
    assert not added.any()


def test_a_bottleneck_follows_its_formula() -> None:
    head = seeded_head(config=sizes_of("bottleneck", inner=4)).double()
    assert head.state_dict().keys() == {"expand.weight", "project.weight"}
    states = torch.randn(7, 3, 32, dtype=torch.float64)
    down, up = head.state_dict()["expand.weight"], head.state_dict()["project.weight"]
    torch.testing.assert_close(head(states), (states[:, 2] @ down.t()).clamp(min=0) @ up.t())
    wide = torch.randn(7, 3, 64, dtype=torch.float64)
    pooled = wide[:, 2].view(7, 32, 2).mean(-1)
    torch.testing.assert_close(head(wide), (pooled @ down.t()).clamp(min=0) @ up.t())


@pytest.mark.parametrize("rank", [None, 4])
def test_a_shift_follows_its_formula(rank: int | None) -> None:
    head = seeded_head(config=sizes_of("unembedding", inner=rank, hidden_size=40)).double()
    states, weights = torch.randn(7, 3, 32, dtype=torch.float64), head.state_dict()

    def layer(name: str, given: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = given @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]
        return product

    inner = layer("fusion", states.flatten(1)).clamp(min=0)
    if rank is not None:
        inner = layer("expand", inner).clamp(min=0)
    torch.testing.assert_close(head(states), layer("project", inner))
    assert (len(weights) == 4) == (rank is None)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_every_kind_acts_in_training_alone(kind: HeadKind) -> None:
    head, states = seeded_head(config=sizes_of(kind, dropout=0.5)), torch.randn(4, 3, 32)
    assert torch.equal(head(states), head(states))
    head.train()
    assert not torch.equal(head(states), head(states))


@pytest.fixture(scope="module")
def manifest(tiny_cache: Path) -> Manifest:
    return CacheReader(tiny_cache).manifest


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_inspect_name_the_kind(
    tmp_path: Path, manifest: Manifest, kind: HeadKind
) -> None:
    head = seeded_head(config=sizes_of(kind))
    save_head(head, origin_of(manifest), tmp_path / "head")
    assert json.loads((tmp_path / "head" / CONFIG).read_text())["head"]["kind"] == kind
    loaded = load_head(str(tmp_path / "head")).head
    assert loaded.config == head.config
    assert same_weights(loaded, head)
    told = describe(str(tmp_path / "head"))
    assert told["head_type"] == kind
    assert ("rank" in told["sizes"]) == (kind != "mlp")
    assert told["flops_per_token"] == {
        "training": head.config.training_flops,
        "decoding": head.config.decoding_flops,
    }


def change(folder: Path, **sizes: Any) -> None:
    value = json.loads((folder / CONFIG).read_text())
    value["head"] = {
        name: size for name, size in {**value["head"], **sizes}.items() if size is not None
    }
    (folder / CONFIG).write_text(json.dumps(value))


def test_a_head_that_names_no_kind_is_an_mlp(tmp_path: Path, manifest: Manifest) -> None:
    save_head(seeded_head(), origin_of(manifest), tmp_path)
    change(tmp_path, kind=None)
    assert "kind" not in json.loads((tmp_path / CONFIG).read_text())["head"]
    assert load_head(str(tmp_path)).head.config.kind == "mlp"


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("mlp", {"kind": "linear"}, "kind: got 'linear', expected mlp, unembedding, bottleneck"),
        ("mlp", {"rank": 3}, "rank: got 3, which a head of kind mlp has not"),
        ("mlp", {"expansion_size": None}, "expansion_size: got None, expected a whole number"),
        ("bottleneck", {"rank": 0}, "rank: got 0, expected a whole number from 1"),
        ("bottleneck", {"rank": None}, "rank: got None"),
        ("bottleneck", {"hidden_size": 32}, "hidden_size: got 32, which a head of kind bottleneck"),
        ("unembedding", {"hidden_size": None}, "hidden_size: got None"),
        ("unembedding", {"hidden_size": 64}, "head.hidden_size: got 64, expected 32"),
        ("unembedding", {"expansion_size": 8}, "expansion_size: got 8, which a head of kind unemb"),
        ("unembedding", {"kind": "bottleneck"}, "hidden_size: got 32, which"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, manifest: Manifest, kind: HeadKind, changes: dict[str, Any], told: str
) -> None:
    save_head(seeded_head(config=sizes_of(kind)), origin_of(manifest), tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(HeadError) as raised:
        load_head(str(tmp_path))
    assert told in str(raised.value)


@pytest.mark.parametrize("encoding", ["dense", "topk"])
def test_a_cache_without_last_states_is_refused_with_what_to_do(
    tmp_path: Path, encoding: str
) -> None:
    more: dict[str, Any] = {"top_k": 8} if encoding == "topk" else {}
    manifest = CacheReader(make_cache(tmp_path, pairs=4, logits=encoding, **more)).manifest
    with pytest.raises(MismatchError, match=rf"encoding {encoding}.*`logits` factored.*mlp"):
        check_kind(sizes_of("unembedding"), manifest, "The cache")
    for kind in ("mlp", "bottleneck"):
        check_kind(sizes_of(kind), manifest, "The cache")


def test_a_base_of_another_width_is_refused(manifest: Manifest) -> None:
    with pytest.raises(MismatchError, match=r"adds to last states 64 wide, but the cache has.* 32"):
        check_kind(sizes_of("unembedding", hidden_size=64), manifest, "the cache")


def test_sizes_of_another_kind_are_no_configuration() -> None:
    with pytest.raises(ValueError, match="which a head of kind unembedding has not"):
        HeadConfig(
            kind="unembedding",
            num_layers=1,
            pooled_size=8,
            vocab_size=9,
            hidden_size=8,
            expansion_size=4,
        )
