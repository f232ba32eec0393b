"""Log-probabilities of prompts, read in pieces and in batches of several lengths."""

import pytest
import torch

from mav.pipeline.decoding import continuous_batching
from mav.pipeline.decoding.alpha import as_schedule
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request, TokenOutput
from tests.support.models.tiny import VOCAB
from tests.support.steering.steered import steered, varied_base, whole_text_logits

LENGTHS = (1, 2, 9, 23, 23, 40)
ALPHAS = (1.0, 0.0, -3.0, 2.0, 0.0, 5.0)


def requests(**changes: object) -> list[Request]:
    torch.manual_seed(4)
    return [
        Request(
            prompt=tuple(torch.randint(2, VOCAB, (length,)).tolist()),
            alpha=as_schedule(alpha),
            decoding=GenerationOptions(max_new_tokens=4),
            is_turn=False,
            **{"top_logprobs": 2, "prompt_logprobs": True, **changes},  # type: ignore[arg-type]
        )
        for length, alpha in zip(LENGTHS, ALPHAS, strict=True)
    ]


def by_request(outputs: list[TokenOutput]) -> dict[tuple[int, ...], TokenOutput]:
    return {output.sequence.request.prompt: output for output in outputs}


@pytest.mark.parametrize("logits", [1, 7 * 6 * VOCAB, 1 << 25])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_they_are_those_of_a_plain_pass_however_they_are_read(
    architecture: str, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous_batching, "PROMPT_LOGITS", logits)
    untouched, mav = varied_base(architecture), steered(varied_base(architecture))
    wanted = requests()
    found = by_request(ContinuousBatchDecoder(mav.joined).add(wanted))
    for request in wanted:
        row = found[request.prompt].sequence
        assert len(row.prompt_logprobs) == len(request.prompt) - 1
        text = torch.tensor([request.prompt])
        alpha = torch.tensor(request.alpha.at(0))
        aligned = whole_text_logits(mav, untouched, text, alpha).log_softmax(-1)
        base = whole_text_logits(mav, untouched, text, torch.tensor(0.0)).log_softmax(-1)
        for at, one in enumerate(row.prompt_logprobs):
            token = request.prompt[at + 1]
            assert one.aligned == pytest.approx(float(aligned[at, token]), abs=2e-4)
            assert one.base == pytest.approx(float(base[at, token]), abs=2e-4)
            best = aligned[at].topk(2).values.tolist()
            assert [value for _, value in one.top] == pytest.approx(best, abs=2e-4)
        assert row.tokens[0] == int(aligned[-1].argmax())


def test_answers_go_on_as_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose prompts are read in pieces, and rows beside them."""
    monkeypatch.setattr(continuous_batching, "PROMPT_LOGITS", 5 * 3 * VOCAB)
    mav = steered(varied_base("llama"))
    mixed = [
        *requests()[::2],
        *requests(prompt_logprobs=False, top_logprobs=None)[1::2],
    ]
    written = []
    for batch in (mixed, requests(prompt_logprobs=False)):
        decoder = ContinuousBatchDecoder(mav.joined)
        outputs = decoder.add(batch)
        while decoder.sequences:
            outputs += decoder.step()
        written.append({each.sequence.request.prompt: each.sequence.tokens for each in outputs})
    assert written[0] == written[1]
