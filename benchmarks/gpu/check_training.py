"""Whether training and evaluation on the device are right."""

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.gpu.check_cache import make_cache
from benchmarks.gpu.place import Place, Tell
from benchmarks.gpu.small import FEW_PAIRS, INNER, on_device, small_base, small_rows
from benchmarks.gpu.verdicts import TOLERANCE, Checks, apart, named
from mav.cache_schema.reader import CacheReader
from mav.pipeline.evaluation.evaluate import AlphaResult, evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.head.config import head_config
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.loader.dataset import CachedPreferenceDataset
from mav.pipeline.loader.sampler import StepLayout, order_epoch
from mav.pipeline.ops.aligned_logprobs import aligned_logprobs
from mav.pipeline.ops.tiling import Tiling
from mav.pipeline.runtime.choices import HeadKind, ObjectiveName
from mav.pipeline.training.loss import PreferenceModel, last_layer
from mav.pipeline.training.metrics import MetricAccumulator
from mav.pipeline.training.objectives import Objective
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import train
from mav.pipeline.training.trainer import Trainer

_CPU: Final = torch.device("cpu")
_PAIRS_OF_CREDIT: Final = 40
"""Enough that credit can be read off those that are not held out."""
_RATE: Final = 1e-3
_STEPS: Final = 3
_ALPHAS: Final = (0.0, 0.5, 1.0)
_TILES: Final = (Tiling(tokens=7, columns=64), Tiling(tokens=1000, columns=1000, kept_elements=0))


def run(place: Place, tell: Tell) -> None:
    """Compare losses, gradients, steps, checkpoints, a whole run and its evaluation."""
    checks = Checks(tell)
    folder = place.folder("training")
    reader = make_cache(small_base("groups"), small_rows(folder), folder / "float32")
    batches = list(_stream(reader))[:_STEPS]
    want = _gradients(reader, batches[0], _CPU, bf16=False)
    steps = _plain_steps(reader, batches)
    for dtype in place.types:
        bf16 = dtype != torch.float32
        tolerance = TOLERANCE[torch.bfloat16 if bf16 else dtype]
        products = "bfloat16" if bf16 else "float32"
        for number, tiling in enumerate((None, *_TILES)):
            tiles = "tiles as they fit" if tiling is None else f"tiling {number}"
            checks.check(
                f"loss and gradients, {tiles}, {products}",
                tolerance,
                lambda bf16=bf16, tiling=tiling: _worst(  # type: ignore[misc]
                    _gradients(reader, batches[0], place.device, bf16=bf16, tiling=tiling), want
                ),
            )
        trained = partial(_trainer_steps, reader, batches, folder, bf16=bf16)
        checks.check(
            f"{_STEPS} steps, {products}",
            tolerance,
            lambda trained=trained: apart(trained()[0], steps),  # type: ignore[misc]
        )
        checks.check(
            f"a step after a checkpoint, {products}",
            TOLERANCE[torch.float32],
            lambda trained=trained: apart(*trained()[1]),  # type: ignore[misc]
        )
        for kind in INNER:
            if kind != "mlp":
                like = partial(_gradients, reader, batches[0], kind=kind)
                # Back through the output embedding, one narrow product more than of an mlp.
                checks.check(
                    f"loss and gradients, {kind}, {products}",
                    2 * tolerance,
                    lambda like=like, bf16=bf16: _worst(  # type: ignore[misc]
                        like(place.device, bf16=bf16), like(_CPU, bf16=False)
                    ),
                )
            checks.check(
                f"a run and its evaluation, {kind}, {named(dtype)}",
                tolerance,
                partial(_run_and_evaluation, place, folder, dtype, kind, "dpo"),
            )
        checks.check(
            f"a run with credit and its evaluation, {named(dtype)}",
            tolerance,
            partial(_run_and_evaluation, place, folder, dtype, "unembedding", "credit"),
        )
    checks.finish()


def _stream(reader: CacheReader) -> CachedPreferenceDataset:
    layout = StepLayout(batch_size=4, grad_accum=1)
    return CachedPreferenceDataset(reader, order_epoch(reader.plan, None, layout, seed=0, epoch=0))


def _head(reader: CacheReader, kind: HeadKind = "mlp") -> AlignmentHead:
    """Return a head that says something, and drops nothing."""
    torch.manual_seed(0)
    manifest = reader.manifest
    head = AlignmentHead(
        head_config(
            manifest.base,
            kind,
            num_layers=len(manifest.states.layers),
            pooled_size=manifest.states.pooled_size,
            dropout=0.0,
            **INNER[kind],
        )
    )
    for parameter in head.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return head


def _options(
    reader: CacheReader,
    output: Path,
    *,
    bf16: bool,
    kind: HeadKind = "mlp",
    objective: ObjectiveName = "dpo",
) -> TrainOptions:
    return TrainOptions(
        cache=reader.location,
        output_dir=output,
        head_type=kind,
        objective=objective,
        dropout=0.0,
        eval_fraction=0.3,
        batch_size=2,
        report_to="none",
        bf16=bf16,
        **INNER[kind],
    )


def _objective(reader: CacheReader) -> Objective:
    return _options(reader, Path(), bf16=False).as_objective()


def _gradients(
    reader: CacheReader,
    batch: Batch,
    device: torch.device,
    *,
    bf16: bool,
    tiling: Tiling | None = None,
    kind: HeadKind = "mlp",
) -> list[Tensor]:
    """Return a batch's loss, and the gradient of all weights one after the other.

    Tilings are those of a head that acts on the logits.
    """
    model = PreferenceModel(_head(reader, kind).to(device), bf16=bf16)
    here, base = batch.to(device), CachedBase(reader, device)
    if tiling is None:
        loss = model(here, base.logits(here)).pair_sum_loss(_objective(reader), here)
    else:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = model.head.features(here.states)
        logp, norm, base_logp, _ = aligned_logprobs(
            features,
            last_layer(model.head, bf16=bf16),
            base.logits(here),
            here.labels,
            tiling=tiling,
        )
        objective = _objective(reader)
        lengths = here.response_lengths
        norms = torch.add(*here.response_sums(norm)) / torch.add(*lengths)
        losses = objective.pair_losses(
            here.response_sums(logp), here.response_sums(base_logp), lengths
        )
        loss = losses.sum() + objective.lambda_l2 * norms.sum()
    loss.backward()
    gradients = []
    for parameter in model.parameters():
        assert parameter.grad is not None, "every weight has a gradient"
        gradients.append(parameter.grad.flatten())
    return [loss.detach(), torch.cat(gradients)]


def _worst(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    return max(apart(a, b) for a, b in zip(got, want, strict=True))


def _plain_steps(reader: CacheReader, batches: Sequence[Batch]) -> Tensor:
    """Return the losses of steps by autograd and PyTorch's AdamW, on the CPU in float32."""
    model, base = PreferenceModel(_head(reader), bf16=False), CachedBase(reader, _CPU)
    objective = _objective(reader)
    options = _options(reader, Path(), bf16=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=options.weight_decay)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch, base.logits(batch)).pair_sum_loss(objective, batch) / batch.step_pairs
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def _trainer_steps(
    reader: CacheReader, batches: Sequence[Batch], folder: Path, *, bf16: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the losses of a trainer's steps, and of one more: at once, and from a checkpoint."""
    options = _options(reader, folder, bf16=bf16)
    accelerator = Accelerator(mixed_precision="no")
    base = CachedBase(reader, accelerator.device)
    first = Trainer(options, accelerator, _head(reader))
    losses = [_loss(first, step, batch, base) for step, batch in enumerate(batches)]
    # Copies, as on a CPU these are the very tensors that are trained on.
    state = copy.deepcopy(first.state())
    second = Trainer(options, accelerator, _head(reader))
    second.restore(state)
    more = [
        torch.tensor([_loss(one, _STEPS + step, batches[0], base) for step in range(2)])
        for one in (first, second)
    ]
    return torch.tensor(losses), (more[1], more[0])


def _loss(trainer: Trainer, step: int, batch: Batch, base: CachedBase) -> float:
    seen = MetricAccumulator()
    trainer.step(step, _RATE, [batch.to(trainer.accelerator.device)], base, seen)
    return seen.reduce(trainer.accelerator)["loss"]


def _run_and_evaluation(
    place: Place, folder: Path, dtype: torch.dtype, kind: HeadKind, objective: ObjectiveName
) -> float:
    """Train a head on the device; return how its evaluation differs there from the CPU's."""
    base = on_device(small_base("groups"), place.device, dtype)
    root = folder / f"run-{kind}-{objective}-{named(dtype)}"
    root.mkdir()
    pairs = _PAIRS_OF_CREDIT if objective == "credit" else FEW_PAIRS
    reader = make_cache(base, small_rows(root, pairs), root / "cache")
    options = _options(
        reader, root / "head", bf16=dtype != torch.float32, kind=kind, objective=objective
    )
    train(dataclasses.replace(options, learning_rate=_RATE, num_epochs=2))
    results = [
        evaluate(
            EvaluateOptions(
                head=str(options.output_dir),
                cache=reader.location,
                alphas=_ALPHAS,
                pairs="all",
                device=device,
            )
        )
        for device in (str(place.device), "cpu")
    ]
    got, want = (torch.tensor([_figures(one) for one in found.results]) for found in results)
    return apart(got, want)


def _figures(result: AlphaResult) -> list[float]:
    return [result.margin, result.kl_per_token, result.vector_norm]
