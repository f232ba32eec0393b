"""Every objective with every weighted term, against a plain computation token by token."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch
from mav.pipeline.ops.base_logits import (
    BaseLogits,
    DenseLogits,
    FactoredLogits,
    TopKLogits,
    Unembedding,
    encode_topk,
)
from mav.pipeline.runtime.choices import HeadKind, ObjectiveName
from mav.pipeline.training.loss import PreferenceModel
from mav.pipeline.training.objectives import Objective

LENGTHS = (3, 1, 2, 4, 2, 2)
"""Tokens of chosen and rejected of three pairs."""
N, V, H, W = sum(LENGTHS), 9, 4, 4
OF_PAIRS = [name for name in get_args(ObjectiveName) if name != "credit"]
TERMS: Mapping[str, Mapping[str, float]] = {
    "kl": {"lambda_kl": 0.7},
    "sft": {"lambda_sft": 0.4},
    "ld": {"ld_alpha": 0.3},
    "all": {"lambda_kl": 0.7, "lambda_sft": 0.4, "ld_alpha": 0.3},
}


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def preference(name: str, beta: float, pi: list[Any], base: list[Any], n: list[int]) -> Tensor:
    """The loss of a pair by the table of the documentation; of `robust` e is 0.2, gamma is 0.7."""
    g = [pi[0] - base[0], pi[1] - base[1]]
    d = beta * (g[0] - g[1])
    match name:
        case "mav":
            return -torch.log(logistic(beta * (pi[0] - pi[1])))
        case "dpo" | "sigmoid":
            return -torch.log(logistic(d))
        case "sigmoid_norm":
            return -torch.log(logistic(beta * (g[0] / n[0] - g[1] / n[1])))
        case "simpo":
            return -torch.log(logistic(beta * (pi[0] / n[0] - pi[1] / n[1]) - 0.7))
        case "ipo":
            found: Tensor = (g[0] / n[0] - g[1] / n[1] - 1 / (2 * beta)) ** 2
            return found
        case "hinge":
            return torch.clamp(1 - d, min=0)
        case "robust":
            right, wrong = -torch.log(logistic(d)), -torch.log(logistic(-d))
            return (0.8 * right - 0.2 * wrong) / 0.6
        case "apo_zero":
            return 1 - logistic(beta * g[0]) + logistic(beta * g[1])
        case "apo_down":
            return logistic(beta * g[0]) + 1 - logistic(d)
    raise AssertionError(name)


def plain_loss(
    vectors: Tensor, logits: Tensor, labels: list[int], lengths: Any, objective: Objective
) -> Tensor:
    """The sum over pairs; vectors [N, V] are what is added to the base's logits [N, V]."""
    total, at = torch.zeros((), dtype=torch.float64), 0
    for n in zip(lengths[0::2], lengths[1::2], strict=True):
        pi: list[Any] = [0.0, 0.0]
        base: list[Any] = [0.0, 0.0]
        whole_chosen, norms, kls = torch.zeros((), dtype=torch.float64), [], []
        for side in range(2):
            for position in range(n[side]):
                q = logits[at].log_softmax(-1)
                p = (logits[at] + vectors[at]).log_softmax(-1)
                alone = position >= min(n)
                weight = objective.ld_alpha if alone and objective.ld_alpha is not None else 1.0
                pi[side] = pi[side] + weight * p[labels[at]]
                base[side] = base[side] + weight * float(q[labels[at]])
                if side == 0:
                    whole_chosen = whole_chosen + p[labels[at]]
                norms.append((vectors[at] ** 2).sum())
                kls.append(sum(torch.exp(p[v]) * (p[v] - q[v]) for v in range(len(p))))
                at += 1
        total = total + preference(objective.name, objective.beta, pi, base, list(n))
        total = total + objective.lambda_l2 * sum(norms) / len(norms)
        total = total + objective.lambda_kl * sum(kls) / len(kls)
        total = total - objective.lambda_sft * whole_chosen / n[0]
    return total


def encoded(name: str, labels: Tensor) -> BaseLogits:
    torch.manual_seed(3)
    # Rounded, so that products and their parts are exact in float32.
    state, weight = (torch.randn(size, H).mul(4).round() / 4 for size in (N, V))
    logits = state @ weight.t()
    if name == "factored":
        return FactoredLogits(final_state=state, unembedding=Unembedding(weight=weight))
    if name == "dense":
        return DenseLogits(logits=logits)
    top = encode_topk(logits, 4)
    return TopKLogits(
        logits=top["topk_logits"],
        ids=top["topk_ids"].long(),
        rest=top["rest_logsumexp"],
        vocab_size=V,
        labels=labels,
        label_logprobs=logits.log_softmax(-1)[torch.arange(N), labels],
    )


def head_of(kind: HeadKind) -> AlignmentHead:
    torch.manual_seed(1)
    inner: dict[str, Any] = {
        "mlp": {"expansion_size": 6},
        "bottleneck": {"rank": 3},
        "unembedding": {"hidden_size": H},
    }[kind]
    config = HeadConfig(kind=kind, num_layers=3, pooled_size=W, vocab_size=V, dropout=0.0, **inner)
    head = AlignmentHead(config).double()
    for parameter in head.project.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def check(kind: HeadKind, encoding: str, objective: Objective) -> None:
    torch.manual_seed(2)
    head, labels = head_of(kind), torch.randint(V, (N,))
    base = encoded(encoding, labels)
    logits = base.chunk(0, N).double()
    rows = {
        "hidden_states": torch.randn(N, 3, W, dtype=torch.float64),
        "labels": labels.int(),
    }
    batch = Batch(rows=rows, offsets=torch.tensor([0, *LENGTHS]).cumsum(0), step_pairs=3)
    model = PreferenceModel(head, bf16=False, wants_kl=objective.lambda_kl > 0)
    found = model(batch, base).pair_sum_loss(objective, batch)
    vectors = head(batch.states)
    if isinstance(base, FactoredLogits) and kind == "unembedding":
        vectors = vectors @ base.unembedding.weight.double().t()
    expected = plain_loss(vectors, logits, labels.tolist(), LENGTHS, objective)
    # The base's output embedding is float32 where it is part of the head's product.
    near = 1e-5 if kind == "unembedding" else 1e-9
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=0)
    parameters = list(head.parameters())
    for got, wanted in zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(got, wanted, rtol=0, atol=max(near * scale, 1e-12))


@pytest.mark.parametrize("term", [None, *TERMS])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_every_objective_with_every_term(name: ObjectiveName, term: str | None) -> None:
    more: dict[str, Any] = {} if term is None else dict(TERMS[term])
    objective = Objective(
        name=name, beta=0.6, lambda_l2=0.05, label_smoothing=0.2, simpo_gamma=0.7, **more
    )
    check("mlp", "dense", objective)


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [
        *((kind, encoding) for kind in ("mlp", "bottleneck") for encoding in ("factored", "topk")),
        ("bottleneck", "dense"),
        ("unembedding", "factored"),
    ],
)
def test_every_kind_and_encoding(kind: HeadKind, encoding: str) -> None:
    check(kind, encoding, Objective(name="dpo", beta=0.6, lambda_l2=0.05, **TERMS["all"]))


def test_the_divergence_is_computed_where_it_is_of_use() -> None:
    head, labels = head_of("mlp"), torch.randint(V, (N,))
    rows = {"hidden_states": torch.randn(N, 3, W, dtype=torch.float64), "labels": labels.int()}
    batch = Batch(rows=rows, offsets=torch.tensor([0, *LENGTHS]).cumsum(0), step_pairs=3)
    base = encoded("dense", labels)
    model = PreferenceModel(head, bf16=False)
    assert model(batch, base).kl is None
    evaluated = model.eval()(batch, base).kl
    assert evaluated is not None and bool((evaluated > 0).all())
    wanted = PreferenceModel(head, bf16=False, wants_kl=True)(batch, base).kl
    assert torch.equal(wanted, evaluated)


def test_a_whole_weight_of_lengths_changes_nothing() -> None:
    check("mlp", "dense", Objective(name="dpo", beta=0.6, lambda_l2=0.0, ld_alpha=1.0))
