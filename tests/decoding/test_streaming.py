"""Answers piece by piece, in a thread: the same text, and nothing left behind."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.steering.strengths import Alpha
from mav.pipeline.decoding.text_stream import Abandoned
from tests.support.models.tiny import tiny_base
from tests.support.running.limits import EVENT, wait_until
from tests.support.steering.steered import steered

FALLING = AlphaSchedule(((0, 18.0), (6, -9.0)))


@pytest.fixture
def mav() -> Iterator[MAVInference]:
    made = steered()
    yield made
    made.close()


def generating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "generate"]


def assert_untouched(mav: MAVInference) -> None:
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(mav.base.model(ids).logits, tiny_base().model(ids).logits)


@pytest.mark.parametrize("alpha", [0.0, 6.0, -8.0, FALLING], ids=str)
@pytest.mark.parametrize(
    "decoding",
    [
        {},
        {"temperature": 1.3, "top_p": 0.9, "seed": 5},
        {"cache_implementation": "static"},
        {"cache_implementation": "none"},
        {"stop": ("e", "a")},
    ],
    ids=str,
)
def test_pieces_are_the_whole(mav: MAVInference, alpha: Alpha, decoding: dict[str, Any]) -> None:
    whole = mav.generate_response("Hi", alpha, max_new_tokens=14, **decoding)
    pieces = list(mav.stream_response("Hi", alpha, max_new_tokens=14, **decoding))
    assert "".join(pieces).rstrip() == whole
    assert all(pieces)
    assert len(pieces) > 3 or "stop" in decoding
    assert generating() == []
    assert_untouched(mav)


@pytest.mark.parametrize("heard", [1, 3])
def test_who_stops_listening_ends_the_answer(
    mav: MAVInference, heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mav.generate("Hi", 12.0, GenerationOptions(max_new_tokens=150)).tokens
    assert len(whole) > 30, "it would end by itself, so this test shows nothing"
    passes: list[int] = []
    abandoned: list[threading.Event] = []

    class Noted(Abandoned):
        def __init__(self, event: threading.Event) -> None:
            abandoned.append(event)
            super().__init__(event)

    def wait_for_the_listener(*_: Any) -> None:
        passes.append(1)
        if len(passes) >= len(whole) // 3:
            abandoned[-1].wait(EVENT)

    monkeypatch.setattr("mav.pipeline.decoding.text_stream.Abandoned", Noted)
    hook = mav.base.decoder.register_forward_hook(wait_for_the_listener)
    stream = mav.stream_response("Hi", 12.0, max_new_tokens=150)
    for _ in range(heard):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert generating() == []
    assert len(passes) < len(whole) // 2
    hook.remove()
    assert_untouched(mav)
    assert mav.generate_response("Hi", 12.0, max_new_tokens=5)


def test_an_error_of_the_listener_ends_the_answer(mav: MAVInference) -> None:
    with pytest.raises(KeyError):
        for piece in mav.stream_response("Hi", 6.0, max_new_tokens=100):
            raise KeyError(piece)
    assert generating() == []
    assert_untouched(mav)


def test_beams_cannot_be_streamed(mav: MAVInference) -> None:
    with pytest.raises(UsageError, match="num_beams"):
        mav.stream_response("Hi", 1.0, num_beams=2)  # at once, not when it is first listened to


def test_threads_that_decode_at_once_keep_their_own_strength(mav: MAVInference) -> None:
    alphas = (0.0, 6.0, -8.0, 18.0)
    want = {alpha: mav.generate_response("Hi", alpha, max_new_tokens=12) for alpha in alphas}
    assert len(set(want.values())) == len(alphas)
    found: list[tuple[float, str]] = []
    begin = threading.Barrier(2 * len(alphas))

    def run(alpha: float, streams: bool) -> None:
        begin.wait()
        for _ in range(3):
            if streams:
                text = "".join(mav.stream_response("Hi", alpha, max_new_tokens=12)).rstrip()
            else:
                text = mav.generate_response("Hi", alpha, max_new_tokens=12)
            found.append((alpha, text))

    threads = [
        threading.Thread(target=run, args=(alpha, streams))
        for alpha in alphas
        for streams in (True, False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 * len(alphas)
    assert all(text == want[alpha] for alpha, text in found)


def test_a_stream_that_waits_while_the_base_is_switched_is_steered_all_the_same(
    mav: MAVInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the answer of the one base or the other, under the head, but not without it."""
    other = steered(tiny_base(seed=3))
    wanted = {one.generate_response("Hi", 18.0, max_new_tokens=8) for one in (mav, other)}
    found: list[str] = []
    listener = threading.Thread(
        target=lambda: found.append("".join(mav.stream_response("Hi", 18.0, max_new_tokens=8)))
    )

    def listen_amid(_: str) -> None:
        """Begin to listen while the switch, which logs the other base, is under way."""
        listener.start()
        wait_until(generating)

    log = logging.getLogger("mav.pipeline.decoding.attach")
    monkeypatch.setattr(log, "info", listen_amid)
    mav.switch_base_model(tiny_base(seed=3))
    listener.join()
    assert found[0].rstrip() in wanted


def test_who_has_borrowed_base_and_head_decodes_with_those(mav: MAVInference) -> None:
    """Anything else would wait for itself for ever, or end what was borrowed."""
    ids = torch.tensor([[5, 6, 7]])
    for borrow in (lambda: mav.steering(2.0), mav.exclusive):
        begun = mav.stream_response("x", 1.0, max_new_tokens=3)
        uses: list[Callable[[], object]] = [
            lambda: mav.stream_response("x", 1.0, max_new_tokens=3),
            lambda: mav.generate_response("x", 1.0, max_new_tokens=3),
            lambda: mav.steering(1.0).__enter__(),
            lambda: mav.switch_base_model(tiny_base(seed=3)),
            mav.close,
            begun.__next__,
        ]
        with borrow():
            for use in uses:
                with pytest.raises(UsageError, match="in use by"):
                    use()
    with mav.steering(2.0) as model:
        before = model(ids).logits
        for use in (lambda: mav.generate_response("x"), mav.close):
            with pytest.raises(UsageError):
                use()
        assert torch.equal(model(ids).logits, before)
    assert mav.generate_response("x", max_new_tokens=3)
    assert_untouched(mav)
