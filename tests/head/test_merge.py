"""Heads merged into one: the same vectors as their weighted sum."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import DataError, MismatchError, UsageError
from mav.cli import main
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.head.merge import merge_heads
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head, save_head
from mav.pipeline.reporting.inspect import describe, screen
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import HIDDEN, make_cache, tiny_base
from tests.support.steering.heads import origin_of, seeded_head, sizes_of
from tests.support.steering.live import relative

ALPHA = {"a": 1.5, "b": -0.5, "c": 0.25}
STATES = torch.randn(5, 3, HIDDEN, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache"), tiny_base(), pairs=6)


def write(cache: Path, folder: Path, kind: HeadKind, *inner: int | None) -> dict[str, Path]:
    """Heads of a kind, each with an inner width, all their weights random."""
    manifest = CacheReader(cache).manifest
    heads = {}
    for number, (name, width) in enumerate(zip("abc", inner, strict=False)):
        head = seeded_head(number, sizes_of(kind, inner=width))
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        save_head(head, origin_of(manifest, steps=number + 1), folder / name)
        heads[name] = folder / name
    return heads


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "inner"),
    [
        ("mlp", (16, 24, 8)),
        ("bottleneck", (16, 24, 8)),
        ("unembedding", (16, 24, 8)),
        ("unembedding", (None, None)),
        ("unembedding", (None, 24, None)),
        ("mlp", (16,)),
    ],
    ids=str,
)
def test_one_head_is_the_weighted_sum_of_several(
    cache: Path, tmp_path: Path, kind: HeadKind, inner: tuple[int | None, ...]
) -> None:
    heads = write(cache, tmp_path, kind, *inner)
    alpha = {name: ALPHA[name] for name in heads}
    merge_heads(heads, alpha, tmp_path / "all")
    merged = AlignmentHead.from_pretrained(str(tmp_path / "all"), dtype=torch.float64)
    parts = {
        name: AlignmentHead.from_pretrained(str(place), dtype=torch.float64)
        for name, place in heads.items()
    }
    want = torch.stack([alpha[name] * part(STATES) for name, part in parts.items()]).sum(0)
    assert relative(merged(STATES), want) < 1e-6
    assert relative(merged(STATES), next(iter(parts.values()))(STATES)) > 0.01
    assert merged.config.kind == kind


@torch.no_grad()
def test_a_merged_head_is_merged_again(cache: Path, tmp_path: Path) -> None:
    heads = write(cache, tmp_path, "mlp", 16, 24)
    merge_heads(heads, {"a": 1, "b": 2}, tmp_path / "both")
    both = {"both": tmp_path / "both", "a": heads["a"]}
    merged = merge_heads(both, {"both": 1, "a": -1}, tmp_path / "less")
    want = 2 * AlignmentHead.from_pretrained(str(heads["b"]))(STATES)
    assert relative(merged(STATES), want) < 1e-4


def test_the_merged_head_answers_as_both(cache: Path, tmp_path: Path) -> None:
    heads = write(cache, tmp_path, "unembedding", None, 16)
    merge_heads(heads, {"a": 1.0, "b": 0.5}, tmp_path / "both")
    base = tiny_base()
    two = MAVInference(heads, base)
    how = two.decoding(max_new_tokens=8)
    want = two.generate("Hi", {"a": 1.0, "b": 0.5}, how)
    two.close()
    assert MAVInference(tmp_path / "both", base).generate("Hi", 1.0, how).tokens == want.tokens


def test_its_origin_tells_of_its_parts(cache: Path, tmp_path: Path) -> None:
    heads = write(cache, tmp_path, "bottleneck", 16, 24)
    result = CliRunner().invoke(
        main,
        [
            *("merge", "--head", f"a={heads['a']}", "--head", f"b={heads['b']}"),
            *("--alpha", "a=1,b=-0.5", "--output", str(tmp_path / "both"), "--json"),
        ],
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["head_type"], told["parameters"]) == ("bottleneck", 40 * (HIDDEN + 300))
    origin = load_head(str(tmp_path / "both")).origin
    assert [(part.name, part.alpha, part.steps) for part in origin.merged] == [
        ("a", 1.0, 1),
        ("b", -0.5, 2),
    ]
    assert origin.steps == 3
    assert "-0.5 times b (mav, beta 0.3, 2 steps" in screen(describe(str(tmp_path / "both")))
    found = evaluate(
        EvaluateOptions(head=tmp_path / "both", cache=cache, alphas=[1.0], pairs="all")
    )
    assert found.pairs


def test_data_of_all_parts_is_known(cache: Path, tmp_path: Path) -> None:
    heads = write(cache, tmp_path, "mlp", 16, 24)
    stored = load_head(str(heads["b"]))
    manifest = stored.origin.manifest
    (source,) = manifest.data.sources
    other = dataclasses.replace(
        manifest.data,
        sources=(dataclasses.replace(source, id="other"),),
        fingerprint="1" * 64,
    )
    changed = dataclasses.replace(manifest, data=other)
    origin = dataclasses.replace(stored.origin, manifest=changed, held_out_fraction=0.01)
    save_head(stored.head, origin, tmp_path / "b")
    merge_heads(heads, {"a": 1, "b": 1}, tmp_path / "both")
    merged = load_head(str(tmp_path / "both")).origin
    assert [source.id for source in merged.manifest.data.sources] == [source.id, "other"]
    assert merged.manifest.data.fingerprint not in ("1" * 64, manifest.data.fingerprint)
    assert merged.held_out_fraction == 0.01


@pytest.mark.parametrize(
    ("alpha", "told"),
    [
        ({"a": 1.0}, "got a=1, expected a number for each of a, b"),
        ({"a": 1.0, "c": 1.0}, "got a=1,c=1, expected a number for each of a, b"),
        ({"a": 0.0, "b": 0.0}, "got 0 for every head"),
    ],
)
def test_strengths_are_of_the_heads(
    cache: Path, tmp_path: Path, alpha: dict[str, float], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        merge_heads(write(cache, tmp_path, "mlp", 16, 24), alpha, tmp_path / "both")


def test_what_cannot_be_one_head_is_refused(cache: Path, tmp_path: Path) -> None:
    mlp = write(cache, tmp_path / "mlp", "mlp", 16, 24)
    shift = write(cache, tmp_path / "shift", "unembedding", 16)
    both: dict[str, Any] = {"a": 1.0, "b": 1.0}
    with pytest.raises(MismatchError, match=r"a and b differ in kind: 'mlp' and 'unembedding'"):
        merge_heads({"a": mlp["a"], "b": shift["a"]}, both, tmp_path / "both")
    stored = load_head(str(mlp["b"]))
    base = dataclasses.replace(stored.origin.manifest.base, weights_digest="0" * 64)
    manifest = dataclasses.replace(stored.origin.manifest, base=base)
    origin = dataclasses.replace(stored.origin, manifest=manifest)
    save_head(stored.head, origin, tmp_path / "elsewhere")
    with pytest.raises(MismatchError, match=r"a and b differ in base: .* and '000000000000'"):
        merge_heads({"a": mlp["a"], "b": tmp_path / "elsewhere"}, both, tmp_path / "both")
    with pytest.raises(DataError, match="exists already"):
        merge_heads(mlp, both, tmp_path / "mlp")
    assert not (tmp_path / "both").exists()
