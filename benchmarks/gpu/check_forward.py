"""Whether the base's passes on the device are right: attention, hooks, pooling, copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.place import Place, Tell
from benchmarks.gpu.small import KINDS, MAX_LENGTH, POOLED, on_device, small_base, small_pairs
from benchmarks.gpu.verdicts import SAME, TOLERANCE, Checks, apart, named
from mav.pipeline.base.layer_selection import select_layers
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.varlen_kernel import varlen_attention
from mav.pipeline.extraction.model_checks import (
    check_layers,
    check_unembedding,
    predicting_states,
    window_fits,
)
from mav.pipeline.extraction.packing import PACKINGS, Packing, pack, pack_alone
from mav.pipeline.ops.tensor_storage import HostCopies, pool_states, to_stored
from mav.pipeline.preferences.tokenization import TokenizedPairs

_PAIRS = 6


def run(place: Place, tell: Tell) -> None:
    """Compare every way of packing and attending, what hooks take, pooling, and copies."""
    checks = Checks(tell)
    pairs = small_pairs(place.folder("forward"))
    for kind in KINDS:
        _check_kind(place, checks, kind, pairs)
    _check_varlen(place, checks, pairs)
    _check_pooling(place, checks)
    _check_copies(place, checks)
    checks.finish()


@torch.inference_mode()
def _check_kind(place: Place, checks: Checks, kind: str, pairs: TokenizedPairs) -> None:
    base = small_base(kind)
    layers = select_layers("auto", 3, base.num_hidden_layers)
    attentions = KINDS[kind].attentions
    want = _alone(base, layers, pairs)
    for dtype in place.types:
        here = on_device(base, place.device, dtype)
        for packing in PACKINGS:
            if packing == "shared_prompt" and not window_fits(base, MAX_LENGTH):
                continue
            # Packed pairs have an attention of their own, whatever the model's is.
            for attention in attentions[:1] if packing == "packed" else attentions:
                here.model.set_attn_implementation(attention)
                way = packing if packing == "packed" else f"{packing}, {attention}"

                def error(packing: Packing = packing, here: BaseModel = here) -> float:
                    batch = pack(pairs, range(_PAIRS), packing, here.dtype)
                    found = predicting_states(here, layers, batch)
                    return max(apart(found[layer], want[layer]) for layer in layers)

                checks.check(f"{kind}, {way}, {named(dtype)}", TOLERANCE[dtype], error)
        here.model.set_attn_implementation(attentions[0])
        batch = pack_alone(pairs, 0)[0].to(place.device)
        checks.check(
            f"hooks, {kind}, {named(dtype)}",
            TOLERANCE[dtype],
            lambda here=here, batch=batch: check_layers(here, layers, batch),  # type: ignore[misc]
        )
        checks.check(
            f"unembedding, {kind}, {named(dtype)}",
            TOLERANCE[dtype],
            lambda here=here, batch=batch: check_unembedding(  # type: ignore[misc]
                here, here.unembedding(), batch
            ),
        )


def _alone(base: BaseModel, layers: tuple[int, ...], pairs: TokenizedPairs) -> dict[int, Tensor]:
    """Return the states of each answer run by itself."""
    answers = [
        predicting_states(base, layers, batch)
        for pair in range(_PAIRS)
        for batch in pack_alone(pairs, pair)
    ]
    return {layer: torch.cat([answer[layer] for answer in answers]) for layer in layers}


def _check_varlen(place: Place, checks: Checks, pairs: TokenizedPairs) -> None:
    """Check that the kernel for texts of many lengths is used where there is one."""
    base = small_base("groups")
    for dtype in place.types:
        wanted = place.dtype == dtype and dtype != torch.float32

        def error(dtype: torch.dtype = dtype, wanted: bool = wanted) -> float:
            with torch.inference_mode(), _counted() as calls:
                here = on_device(base, place.device, dtype)
                predicting_states(here, (1,), pack(pairs, range(_PAIRS), "packed", dtype))
            return float(bool(calls) != wanted)

        used = "is used" if wanted else "is not used"
        checks.check(f"kernel for many lengths {used}, {named(dtype)}", SAME, error)


@contextmanager
def _counted() -> Iterator[list[int]]:
    calls: list[int] = []

    def counted(*given: object, **named_: object) -> Tensor:
        calls.append(1)
        return varlen_attention(*given, **named_)  # type: ignore[arg-type]

    with mock.patch("mav.pipeline.base.packed_attention.varlen_attention", counted):
        yield calls


def _check_pooling(place: Place, checks: Checks) -> None:
    torch.manual_seed(0)
    states = torch.randn(7, 3, 64).bfloat16().float()
    for dtype in place.types:
        for size in (16, POOLED, 100):
            checks.check(
                f"pooling to {size}, {named(dtype)}",
                TOLERANCE[dtype],
                lambda dtype=dtype, size=size: apart(  # type: ignore[misc]
                    pool_states(states.to(place.device, dtype), size), pool_states(states, size)
                ),
            )


def _check_copies(place: Place, checks: Checks) -> None:
    for dtype in place.types:

        def error(dtype: torch.dtype = dtype) -> float:
            made = torch.randn(512, 3, 64, device=place.device).to(dtype)
            flag = torch.tensor(True, device=place.device)
            copies = HostCopies({"states": made, "flag": flag})
            # The device has other things to do meanwhile.
            wide = torch.randn(512, 512, device=place.device)
            for _ in range(8):
                wide = wide @ wide / 512
            found = copies.arrays()
            same = (found["states"] == to_stored(made)).all() and bool(found["flag"])
            return float(not same)

        checks.check(f"copies to the host, {named(dtype)}", SAME, error)
