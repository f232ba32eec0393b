"""What vLLM can do beside: equal to the reference, or refused when the engine starts."""

import json
import math
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.engine.jobs import Run
from tests.support.engine.quantized import SCHEMES

CLOSE: Final = 1e-4
PROMPT: Final = [*range(30, 90)]
RANK: Final = 4


def expected(
    run: Run, world: Path, kind: str, *requests: dict[str, Any], base: str = "base"
) -> Any:
    job = {"heads": str(world / kind), "base": str(world / base), "requests": [*requests]}
    return run("engine.reference", job)


def engine(world: Path, kind: str, *requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    head, base = str(world / kind), str(world / "base")
    return {"head": head, "base": base, "rounds": [[*requests]], **more}


def furthest(ours: list[list[float]], theirs: list[list[float]]) -> float:
    return max(
        abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_several_answers_prompt_logprobs_and_grammars(run: Run, world: Path, kind: str) -> None:
    one = {"prompt": PROMPT, "alpha": 1.5, "max_tokens": 6}
    several = {**one, "sampling": {"n": 3, "temperature": 1.0, "top_k": 1, "logprobs": 1}}
    prompts = {**one, "sampling": {"prompt_logprobs": -1}}
    grammar = {**one, "regex": "[a-z ]{12,40}"}
    answered = run("engine.run", engine(world, kind, several, prompts, grammar))
    (of_several, (with_prompt,), (by_grammar,)) = answered["rounds"][0]
    plain = {"prompt": PROMPT[:1], "alpha": 0, "max_tokens": 1, "forced": PROMPT[1:]}
    forced = {**one, "forced": by_grammar["tokens"]}
    wanted, of_prompt, of_grammar = expected(run, world, kind, one, plain, forced)
    assert [answer["tokens"] for answer in of_several] == [wanted["tokens"]] * 3
    assert furthest(with_prompt["logprobs"], wanted["logprobs"]) < CLOSE
    # The prompt's are the base's, whatever alpha is.
    assert furthest(with_prompt["prompt_logprobs"], of_prompt["logprobs"]) < CLOSE
    assert by_grammar["text"].replace(" ", "").isalpha()
    for token, ours, theirs in zip(
        by_grammar["tokens"], by_grammar["logprobs"], of_grammar["logprobs"], strict=True
    ):
        allowed = [number for number, value in enumerate(ours) if math.isfinite(value)]
        assert 1 < len(allowed) < len(ours)
        assert token == max(allowed, key=theirs.__getitem__)
        for number in allowed:
            gap = theirs[number] - theirs[token]
            assert abs(ours[number] - ours[token] - gap) < CLOSE


def write_adapter(world: Path, folder: Path) -> None:
    """Write a random adapter as `adapter`, and the base with it merged in as `merged`."""
    torch.manual_seed(4)
    merged = folder / "merged"
    merged.mkdir()
    for file in (world / "base").iterdir():
        (merged / file.name).write_bytes(file.read_bytes())
    weights = load_file(merged / "model.safetensors")
    adapter = {}
    for layer in range(4):
        for name in ("q_proj", "v_proj"):
            place = f"model.layers.{layer}.self_attn.{name}"
            weight = weights[f"{place}.weight"]
            down, up = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)
            up *= 0.1
            adapter[f"base_model.model.{place}.lora_A.weight"] = down
            adapter[f"base_model.model.{place}.lora_B.weight"] = up
            weights[f"{place}.weight"] = weight + up @ down
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config |= {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def test_an_adapter_of_lora(run: Run, world: Path, tmp_path: Path) -> None:
    write_adapter(world, tmp_path)
    asked = [{"prompt": PROMPT, "alpha": alpha, "max_tokens": 8} for alpha in (0, 1.5)]
    adapted = [{**request, "adapter": str(tmp_path / "adapter")} for request in asked]
    job = engine(world, "mlp", engine={"enable_lora": True, "max_lora_rank": 8})
    # Apart: in a batch with adapted requests, vLLM 0.32 on a CPU answers others wrongly, without
    # heads too.
    answered = run("engine.run", {**job, "rounds": [asked, adapted]})
    own = expected(run, world, "mlp", *asked)
    merged = run(
        "engine.reference",
        {"heads": str(world / "mlp"), "base": str(tmp_path / "merged"), "requests": asked},
    )
    assert own != merged
    for answers, references in zip(answered["rounds"], (own, merged), strict=True):
        for (got,), reference in zip(answers, references, strict=True):
            assert got["tokens"] == reference["tokens"]
            assert furthest(got["logprobs"], reference["logprobs"]) < CLOSE


def test_beams_have_the_alpha_of_the_engine(run: Run, world: Path) -> None:
    """Each step of vLLM's search is a request of its own, so that a schedule stays at its start."""
    base, width, length = str(world / "base"), 3, 5
    searched = {"prompt": PROMPT, "width": width, "max_tokens": length}
    engines = [("mlp", 1.5), ("unembedding", 1.5), ("mlp", "0:1.5,1:0")]
    answered = run(
        "engine.run",
        [
            {
                "head": str(world / kind),
                "base": base,
                "options": {"alpha": alpha},
                "beams": searched,
            }
            for kind, alpha in engines
        ],
    )
    one = {"prompt": PROMPT, "alpha": 1.5, "max_tokens": length}
    wanted = run(
        "engine.reference",
        [
            {
                "heads": str(world / kind),
                "base": base,
                "requests": [
                    {**one, "num_beams": width},
                    *({**one, "forced": beam["tokens"]} for beam in answer["beams"]),
                ],
            }
            for (kind, _), answer in zip(engines, answered, strict=True)
        ],
    )
    for answer, (best, *forced) in zip(answered, wanted, strict=True):
        beams = answer["beams"]
        assert len(beams) == width
        assert beams[0]["tokens"] == best["tokens"]
        for beam, reference in zip(beams, forced, strict=True):
            steps = zip(reference["logprobs"], beam["tokens"], strict=True)
            total = sum(values[token] for values, token in steps)
            assert abs(beam["logprob"] - total) < length * CLOSE
    assert len({tuple(answer["beams"][0]["tokens"]) for answer in answered}) == 2


# Of speculation vLLM itself says so, before heads are looked at.
REFUSED: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "ngram": (
        "mlp",
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        "ogits processors",
    ),
    "a draft model": (
        "mlp",
        {"speculative_config": {"model": "BASE", "num_speculative_tokens": 2}},
        "ogits processors",
    ),
    "adapters": (
        "unembedding",
        {"enable_lora": True},
        "the rows of its shift belong to no adapter",
    ),
    "a quantized output embedding": (
        "unembedding",
        {"quantization": "gptq", "dtype": "float16"},
        "got a quantized output embedding",
    ),
}


def with_quantized_output(base: Path, folder: Path) -> Path:
    """A base whose configuration says that its output embedding is quantized too."""
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**SCHEMES["gptq"].config, "lm_head": True}
    config["intermediate_size"] = 64  # a multiple of 32, for which there is a kernel
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_at_the_start(
    run: Run, world: Path, tmp_path: Path, case: str
) -> None:
    kind, asked, reason = REFUSED[case]
    base = with_quantized_output(world / "base", tmp_path) if "quantization" in asked else None
    told: Any = json.loads(json.dumps(asked).replace("BASE", str(world / "base")))
    job = engine(world, kind, engine=told, refused=True)
    answered = run("engine.run", {**job, "base": str(base or world / "base")})
    assert reason in answered["refused"]
