"""Whether decoding on the device is right: scores, answers alone, in batches, and as they come.

Of answers that are computed in other types the tokens may differ where two are nearly as probable.
So each token is held against the CPU's logits: what it lies below the largest, in their standard
deviations, is an error like any other.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from benchmarks.gpu.place import Place, Tell
from benchmarks.gpu.small import INNER, POOLED, VOCABULARY, on_device, small_base
from benchmarks.gpu.verdicts import SAME, TOLERANCE, Checks, apart, named
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import ActiveSequence, Request, TokenOutput
from mav.pipeline.runtime.choices import HeadKind

_NEW: Final = 8
_WAYS: Final = ("alone", "static cache", "no cache", "batch", "in flight")
_ALPHAS: Final = (1.0, 0.0, -2.0, 3.0)
_PROMPT_WORDS: Final = (2, 9, 5, 1)
_REGRET: Final = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
_GREEDY: Final = GenerationOptions(max_new_tokens=_NEW)
_DRAWN: Final = GenerationOptions(max_new_tokens=_NEW, temperature=1.0, top_p=0.9, seed=7)


def run(place: Place, tell: Tell) -> None:
    """Compare scores and answers with those of the CPU."""
    checks = Checks(tell)
    for kind in INNER:
        reference = _steered(torch.device("cpu"), torch.float32, kind, None)
        for dtype in place.types:
            _check_kind(place, checks, reference, kind, dtype)
    checks.check("a seed, alone and in company, float32", SAME, lambda: _company(place))
    checks.finish()


def _check_kind(
    place: Place, checks: Checks, reference: MAVInference, kind: HeadKind, dtype: torch.dtype
) -> None:
    """Compare what one kind of head on a base of one type says with its reference."""
    prompts = _prompts()
    answers = [prompt[::-1] for prompt in prompts]
    want = reference.score_batch(prompts, answers, _ALPHAS)
    mav = _steered(place.device, dtype, kind, reference)
    name, tolerance = f"{kind}, {named(dtype)}", TOLERANCE[dtype]

    def scored(field: str) -> float:
        got = mav.score_batch(prompts, answers, _ALPHAS)
        both = [
            torch.tensor([value for one in scores for value in getattr(one, field)])
            for scores in (got, want)
        ]
        return apart(*(values + math.log(VOCABULARY) for values in both))

    checks.check(f"scores, {name}", tolerance, lambda: scored("logprobs"))
    checks.check(
        f"KL of answers, {name}", 2 * tolerance, lambda: _kl_error(reference, mav, prompts)
    )
    # The published kind stands for what does not depend on the head.
    whole = kind == "mlp"
    if whole:
        checks.check(
            f"scores of the base, {named(dtype)}", tolerance, lambda: scored("base_logprobs")
        )
        checks.check(f"alpha 0 is the base, {named(dtype)}", SAME, lambda: _off(mav, prompts))
        checks.check(
            f"a seed gives the same answers, {named(dtype)}",
            SAME,
            lambda: float(_drawn(mav, prompts) != _drawn(mav, prompts)),
        )
    for way in _WAYS if whole else ("batch", "in flight"):
        checks.check(
            f"answers, {way}, {name}",
            _REGRET[dtype],
            lambda way=way: _regret(reference, prompts, _answers(mav, prompts, way)),  # type: ignore[misc]
        )
    mav.close()


def _steered(
    device: torch.device, dtype: torch.dtype, kind: HeadKind, like: MAVInference | None
) -> MAVInference:
    """Return a base with a head that says something, the same as another's if there is one."""
    base = on_device(small_base("groups"), device, dtype)
    torch.manual_seed(1)
    mav = MAVInference.with_new_head(base, head_type=kind, pooled_size=POOLED, **INNER[kind])
    if like is not None:
        mav.head.load_state_dict(like.head.state_dict())
        return mav
    for parameter in mav.head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        parameter.data = parameter.data.bfloat16().float()
    return mav


def _prompts() -> list[str]:
    random = np.random.default_rng(0)
    return [
        " ".join(map(str, random.integers(2, VOCABULARY, count).tolist()))
        for count in _PROMPT_WORDS
    ]


def _answers(mav: MAVInference, prompts: Sequence[str], way: str) -> list[list[int]]:
    """Return the tokens of greedy answers, each at its own strength."""
    if way == "batch":
        return [[*one.tokens] for one in mav.generate_batch(prompts, _ALPHAS, _GREEDY)]
    if way == "in flight":
        return _in_flight(mav, prompts, _GREEDY)
    caches = {"alone": "dynamic", "static cache": "static", "no cache": "none"}
    decoding = GenerationOptions(max_new_tokens=_NEW, cache_implementation=caches[way])  # type: ignore[arg-type]
    found = [
        mav.generate(prompt, alpha, decoding)
        for prompt, alpha in zip(prompts, _ALPHAS, strict=True)
    ]
    return [[*one.tokens] for one in found]


def _in_flight(
    mav: MAVInference, prompts: Sequence[str], decoding: GenerationOptions
) -> list[list[int]]:
    """Return the answers of requests that come one after the other, while others are decoded."""
    return [[one.token for one in answer] for answer in _decoded(mav, prompts, decoding)]


def _decoded(
    mav: MAVInference, prompts: Sequence[str], decoding: GenerationOptions
) -> list[list[TokenOutput]]:
    """Return each token of such answers, with its KL to the base."""
    form = mav.joined.form
    requests = [
        Request(
            prompt=tuple(form.tokens(form.render(prompt))),
            alpha=AlphaSchedule(((0, alpha),)),
            decoding=decoding,
            top_logprobs=0,
            kl=True,
        )
        for prompt, alpha in zip(prompts, _ALPHAS, strict=False)
    ]
    rows: dict[ActiveSequence, list[TokenOutput]] = {}

    def keep(outputs: Sequence[TokenOutput]) -> None:
        for one in outputs:
            rows.setdefault(one.sequence, []).append(one)

    with mav.exclusive():
        decoder = ContinuousBatchDecoder(mav.joined)
        for request in requests:
            keep(decoder.add([request]))
            keep(decoder.step())
        while decoder.sequences:
            keep(decoder.step())
    return [*rows.values()]


@torch.inference_mode()
def _kl_error(reference: MAVInference, mav: MAVInference, prompts: Sequence[str]) -> float:
    """Return the relative error of the KL at every token that is decoded, as `mav compare` has it.

    The reference reads the very tokens on the CPU, with the head and without.
    """
    got, want = [], []
    form = reference.joined.form
    for prompt, alpha, answer in zip(prompts, _ALPHAS, _decoded(mav, prompts, _DRAWN), strict=True):
        begun = form.tokens(form.render(prompt))
        ids = torch.tensor([[*begun, *(one.token for one in answer[:-1])]])
        logs = []
        for strength in (alpha, 0.0):
            with reference.steering(strength) as model:
                logs.append(model(ids).logits[0, len(begun) - 1 :].double().log_softmax(-1))
        want.append((logs[0].exp() * (logs[0] - logs[1])).sum(-1))
        for one in answer:
            assert one.logprobs is not None and one.logprobs.kl is not None, "it was asked for"
            got.append(one.logprobs.kl)
    return apart(torch.tensor(got, dtype=torch.float64), torch.cat(want))


@torch.inference_mode()
def _regret(
    reference: MAVInference, prompts: Sequence[str], answers: Sequence[Sequence[int]]
) -> float:
    """Return by how much the worst token lies below the largest logit, in standard deviations."""
    worst = 0.0
    form = reference.joined.form
    for prompt, alpha, answer in zip(prompts, _ALPHAS, answers, strict=True):
        begun = form.tokens(form.render(prompt))
        with reference.steering(alpha) as model:
            logits_TV = model(torch.tensor([[*begun, *answer[:-1]]])).logits[0, len(begun) - 1 :]
        chosen = logits_TV.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        below = (logits_TV.amax(-1) - chosen) / logits_TV.std(-1)
        worst = max(worst, float(below.max()))
    return worst


def _off(mav: MAVInference, prompts: Sequence[str]) -> float:
    """Return how many answers at alpha 0 are not those of the base without hooks' part."""
    steered = [mav.generate(prompt, 0.0, _GREEDY).tokens for prompt in prompts]
    base, form = mav.base, mav.joined.form
    ids = [
        torch.tensor([form.tokens(form.render(prompt))], device=base.device) for prompt in prompts
    ]
    plain = [
        base.model.generate(
            one,
            attention_mask=torch.ones_like(one),
            max_new_tokens=_NEW,
            do_sample=False,
            eos_token_id=sorted(base.end_tokens),
            pad_token_id=base.pad_token,
        )[0, one.shape[1] :].tolist()
        for one in ids
    ]
    return float(sum([*a] != b for a, b in zip(steered, plain, strict=True)))


def _drawn(mav: MAVInference, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return answers that are drawn."""
    return [one.tokens for one in mav.generate_batch(prompts, _ALPHAS, _DRAWN)]


def _company(place: Place) -> float:
    """Return how many drawn answers depend on what is decoded beside them."""
    mav = _steered(place.device, torch.float32, "mlp", None)
    prompts = [_prompts()[0]] * len(_ALPHAS)
    together = _in_flight(mav, prompts, _DRAWN)
    alone = _in_flight(mav, prompts[:1], _DRAWN)
    return float(together[0] != alone[0])
