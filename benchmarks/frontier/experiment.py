"""Runs the methods that were asked for, one after the other."""

from collections.abc import Sequence

from benchmarks.frontier.expressed import share_expressed
from benchmarks.frontier.measure import run_method
from benchmarks.frontier.methods import Method, methods_named
from benchmarks.frontier.results import Results, Run
from benchmarks.frontier.settings import Place, Sizes
from benchmarks.frontier.stages import World
from benchmarks.frontier.summary import chosen_setting
from benchmarks.frontier.trained import ensure_trained
from benchmarks.synthetic import say


def run_all(
    sizes: Sizes,
    place: Place,
    base_model: str,
    results: Results,
    methods: Sequence[Method],
    seeds: Sequence[int],
    *,
    tune: bool,
    report: bool,
    share: bool,
) -> None:
    """Run what is missing in a file of results.

    Args:
        sizes: Sizes of the experiment.
        place: Where pairs, caches and models are.
        base_model: The base.
        results: The file.
        methods: What to run.
        seeds: Seeds; a whole comparison with the first of them comes first.
        tune: Whether to run grids on the tuning prompts.
        report: Whether to run anything on the held-out prompts.
        share: Whether to measure what a head expresses of LoRA-DPO's shift.
    """
    world = World(sizes, place, base_model)
    for seed in seeds:
        for number, method in enumerate(methods):
            say(f"[{number + 1}/{len(methods)}] {method.name}, seed {seed}")
            tunes = tune and seed == seeds[0]
            run_method(world, results, method, seed, tune=tunes, report=report)
    if share:
        _run_share(world, results, seeds[0])


def _run_share(world: World, results: Results, seed: int) -> None:
    (dpo,) = methods_named("dpo-lora")
    setting = chosen_setting(results, world.sizes, dpo)
    run = Run(
        kind="share",
        method=dpo.name,
        setting=setting,
        strength=1.0,
        seed=seed,
        sizes=world.sizes,
    )
    if results.get(run) is None:
        assert dpo.train is not None and dpo.trained is not None
        folder, _ = ensure_trained(world, dpo.trained, dpo.train, setting, seed)
        results.add(run, share_expressed(world, folder, seed))
