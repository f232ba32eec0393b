"""What a continuous-batching decoder says, collected by request."""

from dataclasses import dataclass, field

from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.request import ActiveSequence, Request, TokenOutput


@dataclass
class Heard:
    """What one request was answered."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    base: list[float] = field(default_factory=list)
    aligned: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    steered: list[bool] = field(default_factory=list)


class Listener:
    """Collects what a decoder says, by request."""

    def __init__(self, decoder: ContinuousBatchDecoder) -> None:
        self.decoder = decoder
        self.heard: dict[int, Heard] = {}
        self.sequences: dict[int, ActiveSequence] = {}

    def add(self, *requests: Request) -> None:
        self._take(self.decoder.add(requests))

    def step(self) -> None:
        self._take(self.decoder.step())

    def until_done(self) -> None:
        while self.decoder.sequences:
            self.step()

    def of(self, request: Request) -> Heard:
        return self.heard[id(request)]

    def _take(self, news: list[TokenOutput]) -> None:
        for new in news:
            key = id(new.sequence.request)
            self.sequences[key] = new.sequence
            heard = self.heard.setdefault(key, Heard())
            assert heard.finish is None, "a sequence that had ended was answered"
            heard.tokens.append(new.token)
            heard.text += new.text
            heard.steered.append(new.steered)
            heard.finish = new.finish
            if new.logprobs is not None:
                heard.base.append(new.logprobs.base)
                heard.aligned.append(new.logprobs.aligned)
                heard.top.append(new.logprobs.top)
                if new.logprobs.kl is not None:
                    heard.kl.append(new.logprobs.kl)


def decoder_of(mav: MAVInference) -> ContinuousBatchDecoder:
    return ContinuousBatchDecoder(mav.joined)


def alone(mav: MAVInference, request: Request) -> Heard:
    listener = Listener(decoder_of(mav))
    listener.add(request)
    listener.until_done()
    return listener.of(request)
