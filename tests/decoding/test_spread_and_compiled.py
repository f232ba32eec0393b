"""A base spread over devices, a compiled one, and a head in bytes: the answers stay the same."""

import builtins
import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from transformers.generation.configuration_utils import CompileConfig

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.head.model import is_quantized, quantize_head
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.device_maps import MAPS, MODULES, placed
from tests.support.models.tiny import save_base, tiny_base
from tests.support.steering.heads import KINDS
from tests.support.steering.live import relative
from tests.support.steering.several import steered_by
from tests.support.steering.steered import plain_generate, steered
from tests.support.steering.uncertain import entropies, limit_between
from tests.support.sweeps import sweep

NEW = 10
ALPHA = 6.0

INDUCTOR = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
"""What torch says of itself when it first generates code."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tiny_base(), tmp_path_factory.mktemp("spread") / "base"))


def answers(mav: MAVInference, decoding: GenerationOptions) -> list[tuple[int, ...]]:
    """At several strengths, the head at work or not, in both orders."""
    return [mav.generate("Hi there", alpha, decoding).tokens for alpha in (ALPHA, 0.0, -3.0, ALPHA)]


@cache
def in_one_place(kind: HeadKind, above: float | None = None) -> list[tuple[int, ...]]:
    """What a base that is not spread answers."""
    return answers(steered(kind=kind), GenerationOptions(max_new_tokens=NEW, steer_above=above))


@sweep(
    {
        "name": MAPS,
        "cache_implementation": ["dynamic", "static"],
        "kind": ["mlp", "unembedding"],
    }
)
def test_a_spread_base_answers_as_one_in_one_place(
    folder: str, name: str, cache_implementation: Any, kind: HeadKind
) -> None:
    decoding = GenerationOptions(max_new_tokens=NEW, cache_implementation=cache_implementation)
    base = load_base(folder, dtype=torch.float32, device_map=MAPS[name])
    assert answers(steered(base, kind), decoding) == in_one_place(kind)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_a_spread_base_is_steered_where_it_is_uncertain(
    folder: str, name: str, cache_implementation: Any, kind: HeadKind
) -> None:
    mav = steered(load_base(folder, dtype=torch.float32, device_map=MAPS[name]), kind)
    above = limit_between(entropies(tiny_base(), torch.arange(2, 40)[None]))
    decoding = GenerationOptions(
        max_new_tokens=NEW, cache_implementation=cache_implementation, steer_above=above
    )
    want = in_one_place(kind, above)
    assert answers(mav, decoding) == want
    assert want != in_one_place(kind)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "device_map", [placed("cuda:0", *MODULES[:4]), placed("cuda:0", *MODULES[4:])]
)
def test_a_base_on_gpu_and_cpu(folder: str, device_map: dict[str, str]) -> None:
    decoding = GenerationOptions(max_new_tokens=NEW)
    base = load_base(folder, dtype=torch.float32, device_map=device_map)
    assert answers(steered(base), decoding) == answers(steered(tiny_base()), decoding)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def without_code_generation(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Traces graphs and guards on what changes, but runs them as they are; counts graphs."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    plain = CompileConfig.__init__

    def without(self: CompileConfig, **settings: Any) -> None:
        plain(self, **{**settings, "backend": backend, "mode": None})

    monkeypatch.setattr(CompileConfig, "__init__", without)
    return graphs


COMPILED = GenerationOptions(max_new_tokens=NEW, cache_implementation="static", compile=True)
STATIC = GenerationOptions(max_new_tokens=NEW, cache_implementation="static")


def small_base() -> BaseModel:
    """A base of two layers, each of which the compiler traces for a second."""
    return tiny_base(num_hidden_layers=2)


def check_compiled(kind: HeadKind) -> None:
    mav, eager = steered(small_base(), kind), steered(small_base(), kind)
    for alpha in (20.0, 0.0, -3.0, 20.0):
        compiled = mav.generate("Hi there", alpha, COMPILED).tokens
        assert compiled == eager.generate("Hi there", alpha, STATIC).tokens, alpha
    assert (
        len({eager.generate("Hi there", alpha, STATIC).tokens for alpha in (20.0, 0.0, -3.0)}) == 3
    )
    prompt = mav.joined.form.tokens("Hi there")
    model = mav.base
    mav.close()
    for settings in ({}, {"cache_implementation": "static", "disable_compile": True}):
        got = plain_generate(model, prompt, max_new_tokens=NEW, **settings)
        assert got == plain_generate(small_base(), prompt, max_new_tokens=NEW)
    config = CompileConfig()
    config._compile_all_devices = True
    again = plain_generate(
        model, prompt, max_new_tokens=NEW, cache_implementation="static", compile_config=config
    )
    assert again == plain_generate(small_base(), prompt, max_new_tokens=NEW)


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_a_traced_base_answers_as_a_plain_one(
    fresh_compiler: None, without_code_generation: list[int], kind: HeadKind
) -> None:
    check_compiled(kind)
    assert without_code_generation, "nothing was compiled, so this test shows nothing"


@pytest.mark.slow
@INDUCTOR
@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_a_compiled_base_answers_as_a_plain_one(fresh_compiler: None, kind: HeadKind) -> None:
    check_compiled(kind)


def test_a_traced_base_under_several_heads(
    fresh_compiler: None, without_code_generation: list[int]
) -> None:
    mav, eager = (steered_by(small_base(), "mlp", "unembedding") for _ in range(2))
    alphas: list[Any] = [{"a": 9, "b": -6}, 0, {"a": "0:9,4:0", "b": 2}, {"a": 0, "b": 5}]
    for alpha in alphas:
        want = eager.generate("Hi there", alpha, STATIC).tokens
        assert mav.generate("Hi there", alpha, COMPILED).tokens == want, alpha
    assert without_code_generation, "nothing was compiled, so this test shows nothing"


@pytest.mark.parametrize("name", MAPS)
def test_a_spread_base_under_several_heads(folder: str, name: str) -> None:
    base = load_base(folder, dtype=torch.float32, device_map=MAPS[name])
    spread, whole = (
        steered_by(one, "mlp", "unembedding", "bottleneck") for one in (base, tiny_base())
    )
    alpha = {"a": 6.0, "b": -3.0, "c": 2.0}
    decoding = GenerationOptions(max_new_tokens=NEW)
    want = whole.generate("Hi there", alpha, decoding).tokens
    assert spread.generate("Hi there", alpha, decoding).tokens == want


def test_another_head_in_a_base_that_was_traced_before(
    fresh_compiler: None, without_code_generation: list[int]
) -> None:
    first = steered(small_base())
    first.generate("Hi there", ALPHA, COMPILED)
    base = first.base
    first.close()
    second = MAVInference.with_new_head(base, pooled_size=16, expansion_size=8)
    torch.nn.init.normal_(second.head.project.weight, std=0.5)
    traced = second.generate("Hi there", ALPHA, COMPILED).tokens
    assert traced == second.generate("Hi there", ALPHA, STATIC).tokens


@pytest.mark.slow
@INDUCTOR
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_in_bytes_is_nearly_the_same(kind: HeadKind) -> None:
    mav = steered(kind=kind)
    torch.manual_seed(3)
    states = torch.randn(400, 3, 32)
    small = copy.deepcopy(mav.head)
    quantize_head(small)
    with torch.no_grad():
        want, got = mav.head(states), small(states)
    assert 0 < relative(got, want) < 0.02
    assert (got.argmax(-1) == want.argmax(-1)).float().mean() > 0.95
    assert is_quantized(small) and not is_quantized(mav.head)


@pytest.mark.slow
@INDUCTOR
def test_several_heads_in_bytes_are_nearly_the_same() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    mav = steered_by(tiny_base(), "mlp", "unembedding", "bottleneck")
    with torch.no_grad(), mav.steering({"a": 1.0, "b": -2.0, "c": 0.5}) as model:
        want = model(ids).logits
        for head in mav.heads.values():
            quantize_head(head)
        got = model(ids).logits
    assert 0 < relative(got, want) < 0.02


def test_a_head_in_bytes_needs_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"`int8_head` needs torchao: pip install"):
        quantize_head(steered().head)
