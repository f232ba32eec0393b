"""Trains what a method needs, once for each setting and seed, and opens it on a base."""

import contextlib
import copy
import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any, Final

from benchmarks.baselines.dpo import DPO, train_dpo
from benchmarks.baselines.genarm import GENARM, train_genarm
from benchmarks.baselines.lora import LoraSettings, Trained, merged
from benchmarks.frontier.heads import HeadChoice
from benchmarks.frontier.policies import Policy, plain, set_adapter_scale, steered
from benchmarks.frontier.stages import World
from benchmarks.frontier.vectors import load_vector
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.attach import attach_head
from mav.pipeline.decoding.options import AttachOptions
from mav.pipeline.decoding.trained_head import load_trained
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train

_PARTS: Final = "parts.json"
Train = Callable[[World, float | None, int, Path], dict[str, float]]
"""Trains with a setting and a seed into a folder; returns `cpu_seconds` and `parameters`."""
AtStrength = Callable[[float], Policy]
"""The policy of each strength."""


def ensure_trained(
    world: World, name: str, train_it: Train, setting: float | None, seed: int
) -> tuple[Path, dict[str, Any]]:
    """Train unless that was done, or go on; return the folder and what training took."""
    folder = world.place.model(name, setting, seed)
    done = folder / "trained.json"
    if not done.is_file():
        begun = folder.is_dir()
        took = train_it(world, setting, seed, folder)
        if begun:
            del took["cpu_seconds"]  # those of a part of it
        done.write_text(json.dumps(took) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return folder, found


def train_mav(
    head: HeadChoice, world: World, rate: float | None, seed: int, folder: Path
) -> dict[str, float]:
    """Train a head as `mav train` does, `best` by its loss on the tuning prompts' pairs."""
    assert rate is not None
    caches = world.cache("training"), world.cache("tuning")
    started = process_time()
    report = train(
        TrainOptions(
            cache=caches[0],
            eval_cache=caches[1],
            output_dir=folder,
            head_type=head.kind,
            expansion_size=world.sizes.expansion_size if head.kind == "mlp" else None,
            rank=head.rank,
            dropout=head.dropout,
            objective=head.objective,
            lambda_l2=head.lambda_l2,
            num_epochs=head.epochs or world.sizes.epochs,
            learning_rate=rate,
            report_to="none",
            seed=seed,
            resume=True,
        )
    )
    found = {"cpu_seconds": process_time() - started, "parameters": report.total_parameters}
    return {**found, "steps": report.steps}


def train_dpo_lora(world: World, rate: float | None, seed: int, folder: Path) -> dict[str, float]:
    """Train adapters by DPO, as `benchmarks.alignment` does."""
    reference = world.reference()
    return _took(
        train_dpo(
            _copy(world.base),
            world.split("training"),
            reference,
            _settings(DPO, rate, world),
            seed,
            folder,
        )
    )


def train_head_and_sibling(
    head: HeadChoice, dpo_rate: float, world: World, rate: float | None, seed: int, folder: Path
) -> dict[str, float]:
    """Train a head on the base, and DPO's adapters that make another base of it.

    Args:
        head: The head.
        dpo_rate: Rate of the adapters.
        world: Base and pairs.
        rate: Rate of the head.
        seed: Of both.
        folder: Where it is written which folders these are.
    """
    train_it = functools.partial(train_mav, head)
    of_head, took = ensure_trained(world, head.name, train_it, rate, seed)
    of_dpo, _ = ensure_trained(world, "dpo-lora", train_dpo_lora, dpo_rate, seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"head": of_head.name, "adapters": of_dpo.name}
    (folder / _PARTS).write_text(json.dumps(parts) + "\n", encoding="utf-8")
    return {name: value for name, value in took.items() if name != "cpu_seconds"}


def train_genarm_lora(
    world: World, rate: float | None, seed: int, folder: Path
) -> dict[str, float]:
    """Train an autoregressive reward model, as `benchmarks.alignment` does."""
    return _took(
        train_genarm(
            _copy(world.base),
            world.split("training"),
            _settings(GENARM, rate, world),
            seed,
            folder,
        )
    )


def _settings(settings: LoraSettings, rate: float | None, world: World) -> LoraSettings:
    assert rate is not None
    return dataclasses.replace(settings, learning_rate=rate, epochs=world.sizes.lora_epochs)


def _took(trained: Trained) -> dict[str, float]:
    return {
        "cpu_seconds": trained.cpu_seconds,
        "parameters": trained.parameters,
        "steps": trained.steps,
    }


def _copy(base: BaseModel) -> BaseModel:
    return BaseModel(model=copy.deepcopy(base.model), tokenizer=base.tokenizer)


@contextlib.contextmanager
def open_head(which: str, world: World, base: BaseModel, folder: Path) -> Iterator[AtStrength]:
    """Attach a head; its strength is alpha.

    Args:
        which: `best` or `last`.
        world: For the form of prompts.
        base: The base, in the type to compute in.
        folder: Output folder of the training.
    """
    trained = load_trained(str(folder / which), dtype=base.dtype)
    rules = AttachOptions(prompt_form="chat")
    attached = attach_head(base, trained, rules)
    try:
        yield lambda alpha: Policy(
            models=[(base.model, 1.0)],
            form=world.form,
            active=lambda: attached.aligned.steering(alpha),
        )
    finally:
        attached.close()


@contextlib.contextmanager
def open_adapters(world: World, base: BaseModel, folder: Path) -> Iterator[AtStrength]:
    """Load DPO's adapters beside the weights; their strength is a factor on what they add."""
    tuned = _with_adapters(base, folder)

    @contextlib.contextmanager
    def scaled(strength: float) -> Iterator[None]:
        set_adapter_scale(tuned, strength)
        yield

    yield lambda strength: Policy(
        models=[(tuned, 1.0)], form=world.form, active=lambda: scaled(strength)
    )


@contextlib.contextmanager
def open_merged(world: World, base: BaseModel, folder: Path) -> Iterator[AtStrength]:
    """Add DPO's adapters into the weights at strength 1, as they are decoded with."""
    tuned = merged(base, folder, base.dtype)
    yield lambda _: plain(tuned, world.form)


@contextlib.contextmanager
def open_head_on_sibling(world: World, base: BaseModel, folder: Path) -> Iterator[AtStrength]:
    """Attach a head of the base to what DPO made of the base; its strength is alpha."""
    parts = json.loads((folder / _PARTS).read_text(encoding="utf-8"))
    tuned = merged(base, folder.with_name(parts["adapters"]), base.dtype)
    with open_head("last", world, tuned, folder.with_name(parts["head"])) as at:
        yield at


@contextlib.contextmanager
def open_beside(world: World, base: BaseModel, folder: Path) -> Iterator[AtStrength]:
    """Decode with GenARM's reward model beside the base; the strength is 1 / beta."""
    reward = _with_adapters(base, folder)
    yield lambda strength: Policy(models=[(base.model, 1.0), (reward, strength)], form=world.form)


@contextlib.contextmanager
def open_mixed(world: World, base: BaseModel, folder: Path) -> Iterator[AtStrength]:
    """Mix log-probabilities of base and DPO's model, (1 - s) log pi_base + s log pi_dpo.

    Source: Liu et al. 2024, "Decoding-time Realignment of Language Models": s times DPO's strength
    of 1 / beta, at the price of two models.
    """
    tuned = _with_adapters(base, folder)
    yield lambda strength: Policy(
        models=[(base.model, 1.0 - strength), (tuned, strength)], form=world.form
    )


@contextlib.contextmanager
def open_vector(world: World, base: BaseModel, folder: Path) -> Iterator[AtStrength]:
    """Add a vector to the middle layer; the strength is its multiplier."""
    vector = load_vector(folder)
    layer, _ = world.middle_layer("training")
    yield lambda strength: steered(base, world.form, layer, strength * vector)


def _with_adapters(base: BaseModel, folder: Path) -> Any:
    peft: Any = importlib.import_module("peft")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder))
    return model.eval().requires_grad_(requires_grad=False)
