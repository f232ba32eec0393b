"""The decoders set side by side are what they are called, and the floor is what is read."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decode
from benchmarks.baselines.decoding import weight_bytes
from benchmarks.decoders import Task, Timing, copied, latency, latency_ratio
from benchmarks.shapes import BaseShape, EndlessBase, HeadShape, read_bytes
from mav.pipeline.base.model import BaseModel
from mav.pipeline.runtime.compute_dtype import native_dtype
from tests.support.models.tiny import HIDDEN, LAYERS, VOCAB, save_base, tiny_base

RATIOS = (
    "mav_over_base_latency",
    "mav_over_base_memory",
    "two_model_over_base_latency",
    "two_model_over_base_memory",
    "in_flight_over_generate_latency",
)
SMALL = ("--device", "cpu", "--prompt-tokens", "5", "--new-tokens", "3", "--repeats", "2")
POOLED, EXPANSION = 24, 40
HEADS = f"{POOLED}x{EXPANSION},32x48,unembedding-24,unembedding-24x8,bottleneck-24x8"
HEAD = HeadShape(pooled_size=POOLED, expansion_size=EXPANSION)
PARAMETERS = (3 * POOLED + 1) * POOLED + (POOLED + 1) * EXPANSION + (EXPANSION + 1) * VOCAB


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tiny_base(), tmp_path_factory.mktemp("base"))


def here(work: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """In place of a process of its own, which takes seconds to begin."""
    return work(*given, **named)


def run(*options: str) -> None:
    grad = torch.is_grad_enabled()
    try:
        decode.main(options)
    finally:
        torch.set_grad_enabled(grad)


def endless(base: BaseModel) -> EndlessBase:
    return EndlessBase(model=base.model, tokenizer=base.tokenizer)


@pytest.fixture(scope="module")
def figures(base_folder: Path) -> dict[str, Any]:
    """What one run prints as JSON."""
    sizes = ("--heads", HEADS, "--batch-size", "2", "--steered-shares", "0.5")
    arguments = (*SMALL, "--base-model", str(base_folder), *sizes)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(decode, "in_fresh_process", here)
        run(*arguments, "--json")
    read: dict[str, Any] = json.loads(printed.getvalue(), parse_constant=pytest.fail)
    return read


def test_figures(figures: dict[str, Any]) -> None:
    assert [row["head"] for row in figures["heads"]] == HEADS.split(",")
    for row in (figures, *figures["heads"]):
        assert all(0 < row[name] < 1e3 for name in RATIOS)
    first = figures["heads"][0]
    for name in (*RATIOS, "floor_latency"):
        assert figures[name] == first[name]
    assert 0 < figures["off_over_base_latency"] < 1e3
    assert first["parameters"] == PARAMETERS
    assert figures["two_model_over_base_weights"] == 2
    assert first["mav_over_base_weights"] == pytest.approx(
        1
        + native_dtype(torch.device("cpu")).itemsize * PARAMETERS / figures["base"]["weight_bytes"]
    )
    assert first["mav_over_base_weights"] < first["floor_latency"]
    assert {len(taken) for taken in figures["rounds"].values()} == {2}
    assert figures["settings"]["new_tokens"] == 3
    assert first["head_seconds"] > 0 and first["first_token_seconds"] > 0


def test_table(figures: dict[str, Any]) -> None:
    table = decode.table(figures)
    assert f"MAV {POOLED}x{EXPANSION}" in table
    (limited,) = figures["heads"][0]["limited"]
    assert f"above {limited['limit_nats']:.2f} nats" in table


def test_a_limit_is_one_that_a_share_of_the_bases_tokens_exceed(figures: dict[str, Any]) -> None:
    for row in figures["heads"]:
        (limited,) = row["limited"]
        assert limited["asked_share"] == 0.5
        assert 0 <= limited["steered_share"] <= 1
        assert limited["over_mav"] > 0 and limited["over_base"] > 0
    base = endless(tiny_base())
    task, aligned = Task.random(base, 2, 5, 8), HEAD.joined(base)
    limit = task.limit_for(base, 0.5)
    # A head that changes no token leaves the answer, and so the share, as it was.
    torch.nn.init.zeros_(aligned.head.project.weight)
    torch.nn.init.zeros_(aligned.head.project.bias)
    assert task.steered_share(aligned, limit) == pytest.approx(0.5, abs=1 / 16)
    assert task.steered_share(aligned, 0.0) == 1
    assert task.steered_share(aligned, 100.0) == 0


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(base_folder: Path) -> None:
    asked = decode.parse([*SMALL, "--base-model", str(base_folder), "--heads", "4096x8192"])
    base = decode.in_fresh_process(decode.memory_of, asked)
    size = native_dtype(torch.device("cpu")).itemsize
    head = HeadShape(pooled_size=4096, expansion_size=8192)
    mav = decode.in_fresh_process(decode.memory_of, asked, head)
    assert mav["weight_bytes"] - base["weight_bytes"] == size * head.parameters(tiny_base())
    difference = mav["peak_bytes"] - base["peak_bytes"]
    assert difference == pytest.approx(size * head.parameters(tiny_base()), rel=0.3)


@pytest.mark.parametrize("tied", [True, False])
def test_floor(tied: bool) -> None:
    base = tiny_base(tie_word_embeddings=tied, dtype=torch.bfloat16)
    config = base.config
    width = config.intermediate_size
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    keys = config.hidden_size // heads * groups
    layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * keys + 3 * HIDDEN * width + 2 * HIDDEN
    read = 2 * (LAYERS * layer + HIDDEN + VOCAB * HIDDEN)
    assert read_bytes(base) == read
    aligned = HEAD.joined(base)
    assert read_bytes(base, aligned.head) == read + 2 * PARAMETERS
    assert weight_bytes(base.model) == read + (0 if tied else 2 * VOCAB * HIDDEN)
    assert HEAD.parameters(base) == PARAMETERS


def test_the_full_head_at_7b() -> None:
    base = BaseShape(name=None, layers=32).preview()
    assert sum(p.numel() for p in base.model.parameters()) == 6_738_415_616
    head = HeadShape(pooled_size=4096, expansion_size=16384).parameters(base)
    assert head == 641_780_992


def test_two_models_are_a_product_of_experts() -> None:
    base, other = endless(tiny_base()), tiny_base(seed=1)
    task = Task.random(base, batch_size=2, prompt_tokens=6, new_tokens=5)
    with torch.no_grad():
        found = task.generate(base, reward=other)
        expected = task.prompts
        for _ in range(task.new_tokens):
            both = [
                model.model(input_ids=expected).logits[:, -1].softmax(-1) for model in (base, other)
            ]
            expected = torch.cat([expected, (both[0] * both[1]).argmax(-1, keepdim=True)], dim=1)
        alone = task.generate(base)
    assert torch.equal(found, expected)
    assert not torch.equal(found, alone)


def test_equal_models_decode_as_one() -> None:
    base = endless(tiny_base())
    task = Task.random(base, batch_size=1, prompt_tokens=6, new_tokens=5)
    reward = copied(base)
    addresses = [{p.data_ptr() for p in model.model.parameters()} for model in (base, reward)]
    assert addresses[0].isdisjoint(addresses[1])
    with torch.no_grad():
        assert torch.equal(task.generate(base, reward=reward), task.generate(base))


def test_a_head_steers_while_it_is_timed_and_no_longer() -> None:
    base = endless(tiny_base())
    aligned = HEAD.joined(base)
    with torch.no_grad():
        for parameter in aligned.head.parameters():
            parameter.normal_()
        task = Task.random(base, batch_size=1, prompt_tokens=6, new_tokens=5)
        alone = task.generate(base)
        with aligned:
            steered = task.generate(base, aligned.steering(1.0))
            assert torch.equal(task.generate(base, aligned.steering(0.0)), alone)
        assert not torch.equal(steered, alone)
        for timing in (
            task.timed(base),
            task.timed(base, aligned),
            task.timed_in_flight(aligned),
        ):
            assert len(timing.tokens) == task.new_tokens - 1
            assert timing.first > 0
        assert torch.equal(task.generate(base), alone)


def test_ratios_are_taken_round_by_round() -> None:
    below = [Timing(first=9, tokens=[1, 1, 50]), Timing(first=9, tokens=[10, 10, 10])]
    above = [Timing(first=9, tokens=[3, 3, 3]), Timing(first=9, tokens=[10, 10, 90])]
    assert latency_ratio(above, below) == 2
    assert latency(below) == 5.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--repeats", "0"), "--repeats: got 0, expected more than 0"),
        (("--new-tokens", "1"), "--new-tokens: got 1, expected at least 2"),
        (("--layers", "3"), "--layers: got 3, expected at least 4"),
        (("--heads", "576"), "--heads: got '576', expected such as"),
        (("--heads", "0x4"), "--heads: got '0x4'"),
        (("--shapes", "7b", "--base-model", "x"), "not allowed with argument"),
    ],
)
def test_bad_options(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        decode.main(options)
    assert message in capsys.readouterr().err


def test_too_large_for_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def few() -> Any:
        return type("Memory", (), {"available": 8 << 30})

    monkeypatch.setattr("psutil.virtual_memory", few)
    monkeypatch.setattr(decode, "native_dtype", lambda _: torch.bfloat16)
    with pytest.raises(SystemExit, match=r"take 29\.3 GB on cpu, where 8\.6 GB are free"):
        decode.main(["--shapes", "7b", "--device", "cpu"])


def test_shapes_follow_the_machine() -> None:
    on_cpu = decode.parse(["--device", "cpu"])
    assert (on_cpu.shapes, on_cpu.heads) == ("installed", "576x1024,4096x16384")
    assert decode.parse(["--shapes", "7b"]).heads == "4096x16384"
    asked = decode.parse(["--base-model", "x", "--heads", "8x9", "--int8"])
    base, heads = decode.shapes(asked)
    assert base.name == "x"
    assert [head.name for head in heads] == ["8x9", "8x9 int8"]
