"""The heads of the frontier: what each is trained with, and what it does to a base."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.frontier.heads import HEADS, VARIANTS, HeadChoice
from benchmarks.frontier.measure import run_method
from benchmarks.frontier.methods import METHODS, SEARCHED, methods_named
from benchmarks.frontier.results import Results
from benchmarks.frontier.sampling import answer_logprobs
from benchmarks.frontier.settings import Place, Sizes
from benchmarks.frontier.stages import World
from benchmarks.frontier.summary import chosen_setting, rows_of
from benchmarks.frontier.trained import ensure_trained, open_head, train_mav
from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.preferences.prompt_format import PromptFormat
from tests.support.models.chat_templates import TEMPLATE_TEXT
from tests.support.models.tiny import make_cache, tiny_base

SIZES = Sizes(
    base="tiny",
    tuning_prompts=2,
    held_out_prompts=3,
    kl_prompts=2,
    ranking_prompts=3,
    of_n_prompts=2,
    new_tokens=4,
    expansion_size=24,
    epochs=2,
)
RATE = 0.01
PROMPT, ANSWER = "How is it?", [17, 40, 200, 0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Caches of a tiny base, where the experiment looks for its own."""
    work = tmp_path_factory.mktemp("work")
    base = tiny_base()
    base.tokenizer.chat_template = TEMPLATE_TEXT
    for part in ("training", "tuning"):
        make_cache(work / part, base, pairs=16).rename(work / f"{part}.cache")
        (work / f"{part}.done").touch()
    found = World(SIZES, Place(work=work), "tiny")
    form = PromptFormat(name="hh", tokenizer=base.tokenizer)
    found.__dict__.update(base=base, wide=base, form=form, reward=lambda text: len(text) / 100)
    return found


def trained(world: World, head: HeadChoice) -> tuple[Path, dict[str, Any]]:
    return ensure_trained(world, head.name, functools.partial(train_mav, head), RATE, 0)


@pytest.mark.parametrize("head", [*HEADS, *VARIANTS], ids=lambda head: str(head.name))
def test_a_head_is_trained_with_what_its_entry_says(world: World, head: HeadChoice) -> None:
    folder, took = trained(world, head)
    file = max(folder.glob("checkpoints/*/state.json"))
    used = json.loads(file.read_text(encoding="utf-8"))["state"]["trajectory"]
    assert (used["head_type"], used["rank"]) == (head.kind, head.rank)
    assert used["expansion_size"] == (24 if head.kind == "mlp" else None)
    assert (used["objective"], used["lambda_l2"]) == (head.objective, head.lambda_l2 or 0.0)
    assert used["num_epochs"] == (head.epochs or 2)
    assert used["learning_rate"] == RATE
    if head.dropout is not None:
        assert used["dropout"] == head.dropout
    assert took["steps"] == (head.epochs or 2)


def test_variants_differ_in_one_option() -> None:
    names = [head.name for head in (*HEADS, *VARIANTS)]
    assert len(set(names)) == len(names)
    for variant in VARIANTS:
        origin = max((h for h in HEADS if variant.name.startswith(h.name)), key=lambda h: h.name)
        differing = {
            name for name, value in vars(variant).items() if value != getattr(origin, name)
        } - {"name", "label", "alphas"}
        assert len(differing) == 1


@pytest.mark.parametrize("head", HEADS, ids=lambda head: str(head.name))
def test_a_head_shifts_a_base_by_alpha_times_what_it_returns(
    world: World, head: HeadChoice
) -> None:
    folder, _ = trained(world, head)
    base, prompt = world.base, world.form.tokens(world.form.render(PROMPT))
    own = AlignmentHead.from_pretrained(str(folder / "last"))
    layers = CacheReader(world.cache("training")).manifest.states.layers
    ids = torch.tensor([prompt + ANSWER])
    places = slice(len(prompt) - 1, -1)
    with torch.inference_mode(), base.hidden_state_hooks(layers) as hooks:
        output = base.model(ids, use_cache=False)
        states = torch.stack([hooks.states[layer][0, places] for layer in layers], dim=1)
        added = own(states)
    assert added.abs().max() > 0
    if head.kind == "unembedding":
        added = base.unembedding()(added)
    expected = (output.logits[0, places] + 3 * added).log_softmax(-1)
    total = expected[range(len(ANSWER)), ANSWER].double().sum()
    with open_head("last", world, base, folder) as at:
        found = answer_logprobs(at(3.0), [PROMPT], [ANSWER])
        plain = answer_logprobs(at(0.0), [PROMPT], [ANSWER])
    torch.testing.assert_close(found[0], total, rtol=1e-4, atol=1e-4)
    assert abs(float(plain[0] - total)) > 1e-3


def test_a_search_leaves_held_out_prompts_alone(world: World, tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    (method,) = methods_named(f"{VARIANTS[0].name}-last")
    assert method in SEARCHED and method not in METHODS
    (best_of_n,) = methods_named("best-of-n")
    run_method(world, results, best_of_n, 0, tune=True, report=False)
    run_method(world, results, method, 0, tune=True, report=False)
    found = [run for run, _ in results.of(SIZES, "correlation")]
    assert {(run.part, run.setting) for run in found} == {("tuning", method.rates[0])}
    assert not [*results.of(SIZES, "curve")]
    assert not [*results.of(SIZES, "time")] and not rows_of(results, SIZES)
    assert chosen_setting(results, SIZES, method) == method.rates[0]
    # It has a row once it was reported.
    reported = dataclasses.replace(found[0], kind="curve", part="held-out")
    results.add(reported, {"reward": [0.1] * 3, "kl": [1.0] * 2})
    assert [row["method"] for row in rows_of(results, SIZES)] == [method.name]
