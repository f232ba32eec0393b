"""Heads from folders, by name: what steers together, and what is refused in words of both."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import AttachOptions
from mav.pipeline.decoding.steering.trained_heads import TrainedHeads
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.runtime.named_values import heads_of
from tests.support.models.tiny import HIDDEN, make_cache, save_base, tiny_base
from tests.support.steering.heads import save_random_head
from tests.support.steering.several import made_head

MADE = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("cache"), tiny_base(), pairs=6)


def both(cache: Path, folder: Path, kind: HeadKind = "mlp", **second: Any) -> dict[str, str]:
    """Two heads of a cache, the second with another record of its base."""
    return {
        "helpful": save_random_head(cache, folder / "first"),
        "harmless": save_random_head(cache, folder / "second", kind=kind, **second),
    }


def test_two_folders_steer_together_and_are_told_apart(cache: Path, tmp_path: Path) -> None:
    heads = both(cache, tmp_path, "unembedding")
    base = save_base(tiny_base(), tmp_path / "base")
    mav = MAVInference(heads, base, **MADE)  # type: ignore[arg-type]
    assert mav.head_names == ("helpful", "harmless")
    assert [head.config.kind for head in mav.heads.values()] == ["mlp", "unembedding"]
    swapped = MAVInference(dict(reversed(heads.items())), mav.base, **MADE)  # type: ignore[arg-type]
    assert mav.head_digest != swapped.head_digest
    assert not mav.int8_head
    mav.switch_base_model(tiny_base(seed=3))
    assert mav.generate("Hi", "helpful=2,harmless=1", mav.decoding(max_new_tokens=2)).tokens


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"vocab_size": 301},
            r"head .*first was made for a vocabulary of 300 .* head .*second has",
        ),
        ({"tokenizer_digest": "0" * 64}, r"head .*first and the head .*second both have 300"),
        ({"weights_digest": "0" * 64}, r"first was trained on .* head .*second on .* `base_model`"),
    ],
    ids=["vocabulary", "tokenizer", "base"],
)
def test_two_that_need_different_bases_name_each_other(
    cache: Path, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(MismatchError, match=told):
        MAVInference(both(cache, tmp_path, **changed), **MADE)  # type: ignore[arg-type]


def test_two_of_different_bases_go_on_one_that_is_named(cache: Path, tmp_path: Path) -> None:
    heads = both(cache, tmp_path, weights_digest="0" * 64)
    assert MAVInference(heads, tiny_base()).head_names == ("helpful", "harmless")


def test_two_that_read_different_layers_name_each_other(cache: Path, tmp_path: Path) -> None:
    other = make_cache(tmp_path, tiny_base(), pairs=6, layer_selection="1,3,4")
    heads = both(cache, tmp_path) | {"harmless": save_random_head(other, tmp_path / "third")}
    told = r"head .*first needs the layers \[1, 2, 4\] and the head .*third \["
    with pytest.raises(MismatchError, match=told):
        MAVInference(heads, tiny_base())


def test_two_of_different_last_states_name_each_other() -> None:
    wide = tiny_base(hidden_size=2 * HIDDEN, intermediate_size=64)
    parts = tuple(
        dataclasses.replace(made_head(base, "unembedding", 1), name=f"The head {name}")
        for name, base in (("a", tiny_base()), ("b", wide))
    )
    trained = TrainedHeads(parts=parts, names=("a", "b"))
    with pytest.raises(MismatchError, match=r"head a needs last states of 32 and the head b 64"):
        trained.require_together(AttachOptions())


def test_two_of_different_forms_need_a_choice(cache: Path, tmp_path: Path) -> None:
    mav = MAVInference(both(cache, tmp_path), tiny_base())
    first, second = mav._model.trained.parts
    changed = dataclasses.replace(second, template="chat_template")
    trained = dataclasses.replace(mav._model.trained, parts=(first, changed))
    with pytest.raises(UsageError, match=r"first was trained in hh and .*second in chat"):
        trained.require_together(mav._model._rules)
    trained.require_together(dataclasses.replace(mav._model._rules, prompt_form="hh"))


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["runs/a"], "runs/a"),
        (["a=runs/a"], {"a": "runs/a"}),
        (["a=runs/a", "b=org/name"], {"a": "runs/a", "b": "org/name"}),
    ],
)
def test_heads_are_named_before_the_place(texts: list[str], found: Any) -> None:
    assert heads_of(texts) == found


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["runs/a", "runs/b"], r"got 2, of which runs/a has no name, expected NAME=DIR of each"),
        (["a=runs/a", "runs/b"], r"of which runs/b has no name"),
        (["a=runs/a", "a=runs/b"], r"two with the name a"),
        (["a="], r"a has no place"),
    ],
)
def test_heads_without_names_are_refused(texts: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        heads_of(texts)


def test_a_path_with_a_sign_of_equality_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beta=0.1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert heads_of(["beta=0.1"]) == "beta=0.1"
    assert heads_of(["a=beta=0.1"]) == {"a": "beta=0.1"}


@pytest.mark.parametrize("names", [{}, {"a b": "x"}, {"": "x"}])
def test_names_are_checked_in_python_too(names: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="head: got"):
        MAVInference(names)
