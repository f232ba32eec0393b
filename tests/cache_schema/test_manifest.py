"""The manifest: what is written is what is read, and anything else is refused by name."""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from mav.cache_schema.comparison import differences
from mav.cache_schema.errors import CacheError, ManifestError
from mav.cache_schema.manifest import (
    Manifest,
    SourceRecord,
)
from tests.support.caches.manifests import changed, llama_7b


def unrecorded() -> Manifest:
    """LLaMA-2-7B's manifest as programs wrote it that recorded less."""
    manifest = changed("states", computed_in=None)
    base = dataclasses.replace(manifest.base, parameters=None)
    return dataclasses.replace(manifest, base=base)


def of_sources(*changes: dict[str, Any]) -> Manifest:
    """LLaMA-2-7B's manifest with a data set for each of some changes to its own."""
    (source,) = llama_7b().data.sources
    return changed(
        "data", sources=tuple(dataclasses.replace(source, **fields) for fields in changes)
    )


@pytest.mark.parametrize(
    "manifest",
    [
        llama_7b(),
        llama_7b(complete=False, checks={}),
        changed("logits", encoding="topk", top_k=64, softcap=30.0, has_bias=True),
        changed("base", revision=None, gguf_file="model.gguf"),
        changed("base", quantization="bitsandbytes nf4"),
        unrecorded(),
        of_sources({"data_dir": None, "limit": 23, "rows": 20, "dropped": {}}),
        of_sources({"weight": 0.5}, {"weight": 2.0, "id": "other"}, {"held_out": True}),
    ],
)
def test_round_trip_through_json(manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json())
    assert Manifest.from_json(json.loads(text), "x") == manifest


def test_to_json_holds_plain_values_only() -> None:
    plain = llama_7b().to_json()
    assert plain["states"]["layers"] == [1, 16, 32]
    assert plain == json.loads(json.dumps(plain))


def test_what_was_not_recorded_is_left_out_and_may_be() -> None:
    value = unrecorded().to_json()
    assert "parameters" not in value["base"]
    assert "computed_in" not in value["states"]
    # Which was when states were stored as they were computed.
    assert unrecorded().states.compute_dtypes == ("bfloat16",)
    assert llama_7b().states.compute_dtypes == ("bfloat16", "float32")


def test_what_it_was_computed_in_is_no_part_of_the_identity() -> None:
    assert llama_7b().identity() == unrecorded().identity()


def test_what_all_data_sets_have_together() -> None:
    data = of_sources({}, {"rows": 9, "pairs": 4, "dropped": {"duplicate": 5}}).data
    assert (data.rows, data.pairs) == (32, 24)
    assert data.dropped == {"duplicate": 5, "empty_response": 1, "prompts_differ": 2}


def test_quantization_is_part_of_what_a_cache_is() -> None:
    assert changed("base", quantization="GGUF Q4_K").identity() != llama_7b().identity()


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, "absent"])
def test_another_format_version_is_refused_with_both_versions(version: object) -> None:
    value = llama_7b().to_json() | {"format_version": version}
    if version == "absent":
        del value["format_version"]
        version = None
    with pytest.raises(CacheError) as caught:
        Manifest.from_json(value, "some/cache")
    assert not isinstance(caught.value, ManifestError)
    assert str(caught.value).startswith(f"some/cache: format version {version!r}, ")
    assert "this MAV reads version 2. " in str(caught.value)


def test_other_version_is_told_before_unknown_fields() -> None:
    with pytest.raises(CacheError, match="format version 3"):
        Manifest.from_json({"format_version": 3, "brand_new": 1}, "x")


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(ManifestError, match=f"got {type(value).__name__}, expected an object"):
        Manifest.from_json(value, "x")


def test_all_problems_are_listed_at_once_with_their_paths() -> None:
    value = llama_7b().to_json()
    del value["base"]["vocab_size"]
    value["base"]["colour"] = "red"
    value["states"]["layers"] = [1, "16"]
    value["states"]["dtype"] = "float64"
    value["data"]["sources"][0]["dropped"] = {"empty_response": "one"}
    value["data"]["sources"][0]["limit"] = 1.5
    value["plan"] = []
    value["complete"] = 1
    value["text"] = None
    value["extra"] = {}
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(value, "some/cache")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "extra",
        "base.colour",
        "base.vocab_size",
        "states.layers",
        "states.dtype",
        "text",
        "data.sources[0].limit",
        "data.sources[0].dropped",
        "plan",
        "complete",
    ]
    message = str(caught.value)
    assert message.startswith("some/cache is not a valid MAV manifest:")
    assert all(f"\n  - {problem}" in message for problem in caught.value.problems)


def _leaves(value: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, item in value.items():
        if isinstance(item, dict) and name not in ("created_by", "dropped", "checks"):
            found += _leaves(item, f"{prefix}{name}.")
        elif name == "sources":
            found.append(prefix + name)
            for number, source in enumerate(item):
                found += _leaves(source, f"{prefix}{name}[{number}].")
        else:
            found.append(prefix + name)
    return found


def _owner(value: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *records, name = path.split(".")
    for record in records:
        part, _, number = record.partition("[")
        value = value[part][int(number[:-1])] if number else value[part]
    return value, name


_FIELDS = [path for path in _leaves(llama_7b().to_json()) if path != "format_version"]
_OPTIONAL = {
    "base.parameters",
    "states.computed_in",
    "text.end_token_id",
    "text.template_date",
}


@pytest.mark.parametrize("path", sorted(_OPTIONAL))
def test_a_field_that_is_optional_may_be_missing(path: str) -> None:
    value = llama_7b().to_json()
    owner, name = _owner(value, path)
    del owner[name]
    assert _owner(Manifest.from_json(value, "x").to_json(), path)[0].get(name) is None


@pytest.mark.parametrize("path", sorted({*_FIELDS} - _OPTIONAL))
def test_every_field_is_required(path: str) -> None:
    value = llama_7b().to_json()
    owner, name = _owner(value, path)
    del owner[name]
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(value, "x")
    assert caught.value.problems == (f"{path}: missing",)


@pytest.mark.parametrize("path", _FIELDS)
def test_every_field_has_its_type_checked(path: str) -> None:
    value = llama_7b().to_json()
    owner, name = _owner(value, path)
    owner[name] = wrong = {"of no": ["type"]}
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(value, "x")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: got {wrong}, expected ")


@pytest.mark.parametrize(
    "path", ["base.vocab_size", "data.sources[0].pairs", "data.sources[0].limit"]
)
def test_true_is_no_integer(path: str) -> None:
    value = llama_7b().to_json()
    owner, name = _owner(value, path)
    owner[name] = True
    with pytest.raises(ManifestError, match=f"{re.escape(path)}: got True"):
        Manifest.from_json(value, "x")


def test_whole_floats_may_be_written_without_a_point() -> None:
    value = llama_7b().to_json()
    value["logits"] |= {"scale": 1, "softcap": 30}
    value["checks"] = {"layers": 0}
    manifest = Manifest.from_json(value, "x")
    assert (manifest.logits.scale, manifest.logits.softcap) == (1.0, 30.0)
    assert isinstance(manifest.logits.scale, float)
    assert isinstance(manifest.logits.softcap, float)


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (changed("states", layers=()), "states.layers"),
        (changed("states", layers=(1, 33)), "states.layers"),
        (changed("states", layers=(-1, 32)), "states.layers"),
        (changed("states", stored_width=2048), "states.stored_width"),
        (changed("states", pooled_size=1024), "states.stored_width"),
        (changed("logits", top_k=64), "logits.top_k"),
        (changed("logits", encoding="topk"), "logits.top_k"),
        (of_sources({"rows": 20}), "data.sources[0].rows"),
        (of_sources({}, {"pairs": 21}), "data.sources[1].rows"),
        (of_sources(), "data.sources"),
    ],
)
def test_contradictions_are_refused(manifest: Manifest, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(manifest.to_json(), "x")
    assert [text.split(":")[0] for text in caught.value.problems] == [problem]


def test_all_contradictions_are_listed_at_once() -> None:
    value = llama_7b().to_json()
    value["states"]["layers"] = [40]
    value["logits"]["top_k"] = 3
    value["data"]["sources"][0]["rows"] = 1
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(value, "x")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("manifest", "layer"),
    [
        (llama_7b(), 2),
        (changed("states", layers=(32,)), 0),
        (changed("states", layers=(0, 1)), None),
        (changed("states", pooled_size=8192), 2),
        (changed("states", pooled_size=1024, stored_width=1024), None),
    ],
)
def test_final_state_is_found_only_unpooled(manifest: Manifest, layer: int | None) -> None:
    assert Manifest.from_json(manifest.to_json(), "x").final_state_layer == layer


def test_equal_manifests_do_not_differ() -> None:
    assert differences(llama_7b(), Manifest.from_json(llama_7b().to_json(), "x")) == {}


def test_differences_name_every_field_and_both_values() -> None:
    asked = dataclasses.replace(
        changed("text", max_length=1024),
        states=dataclasses.replace(llama_7b().states, layers=(1, 2), dtype="float32"),
        complete=False,
    )
    assert differences(llama_7b(), asked) == {
        "text.max_length": "stored 512, asked for 1024",
        "states.layers": "stored (1, 16, 32), asked for (1, 2)",
        "states.dtype": "stored 'bfloat16', asked for 'float32'",
        "complete": "stored True, asked for False",
    }


@pytest.mark.parametrize("path", _FIELDS)
def test_no_field_differs_unseen(path: str) -> None:
    value = llama_7b().to_json()
    owner, name = _owner(value, path)
    other: dict[type, Callable[[Any], Any]] = {
        bool: lambda old: not old,
        int: lambda old: old + 1,
        float: lambda old: old + 1,
        str: lambda old: old + "x",
        list: lambda old: old[:1],
        dict: lambda _: {},
        type(None): lambda _: 1,
    }
    owner[name] = other[type(owner[name])](owner[name])
    manifest = _unchecked(Manifest, value)
    if path == "data.sources":
        manifest = of_sources({}, {})
    assert set(differences(llama_7b(), manifest)) == {path}


def _unchecked(cls: type[Any], value: dict[str, Any]) -> Any:
    """Build records from JSON without the checks of `from_json`."""
    fields = {}
    for name, hint in cls.__annotations__.items():
        item: Any = tuple(value[name]) if name in ("layers", "computed_in") else value[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            item = _unchecked(hint, item)
        if name == "sources":
            item = tuple(_unchecked(SourceRecord, source) for source in item)
        fields[name] = item
    return cls(**fields)
