"""What `mav serve` is asked for."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.options import InferenceOptions
from mav.pipeline.decoding.steering.bounds import MAX_ALPHA
from mav.pipeline.decoding.steering.strengths import Strength, as_strength
from mav.pipeline.runtime.named_values import names_of
from mav.pipeline.runtime.options import known, option

AccessLogForm = Literal["off", "text", "json"]
"""Whether there is an access log, and in which form."""
ACCESS_LOGGER: Final = "mav.access"
"""Name of its logger."""
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
"""What browsers send as `Origin`: in lower case, without a path."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(InferenceOptions):
    """All settings of a server.

    Attributes:
        head: Folder of a head or of a training run, or a hub id; or several by name.
        bases: Hub ids, folders or `.gguf` files; the first is loaded at the start, requests switch
            to the others. None for the base the head was trained on.
        gguf_file: File inside the folder or repository of the one base.
        revision: Branch, tag or commit of the hub repository of the one base.
        dtype: Element type bases and head compute in; `auto` is what the device has natively.
        device: `auto` or a torch device.
        device_map: How a base is spread over several devices, instead of `device`.
        quantize: How a base's weights are quantized when it is loaded.
        prompt_form: Form of chat prompts; `auto` is what the head was trained in.
        template_date: Date given to a chat template that asks for it; see `MAVInference`.
        allow_tokenizer_mismatch: Take bases whose tokenizer is another one of the same size.
        int8_head: Keep the head's weights in a byte each; needs torchao.
        base_generation_config: Take what requests leave open from the base's generation_config.
        gguf_cache: Keep GGUF weights as safetensors in the cache folder, and use them.
        host: Address to listen on; one that others can reach needs an API key.
        port: Port to listen on; 0 for any that is free.
        api_key: What clients have to send as `Authorization: Bearer …`.
        served_model_name: Names by which requests choose the bases, one for each in their order, in
            place of those made of their paths.
        allow_origin: Origins whose web pages may read responses, such as `https://my.example`, or
            `*` for any; none by default.
        access_log: Form of the lines that the logger `mav.access` gets, one a request; or `off`.
        alpha: Strength of requests that name none; of several heads by name. If None, that with
            which the head is recommended, or 1.
        steer_above: Entropy of the base in nats; of requests that name none, only tokens at which
            it is above that are steered. None steers every token.
        max_rows: Most answers decoded at once.
        max_queue: Most requests that wait; more are refused with a time to retry.
        max_new_tokens: Most tokens of an answer.
        max_prompt_tokens: Most tokens of a prompt, however many the base could read.
    """

    head: str | Mapping[str, str] = field(
        metadata=known(
            help="Folder or hub id of a head; of several NAME=HEAD, given again.",
            metavar="[NAME=]HEAD",
        )
    )
    bases: tuple[str, ...] = option(
        (),
        default_text="the one it was trained on",
        help="Base to serve; may be repeated, requests choose one.",
    )
    host: str = option("127.0.0.1", help="Address to listen on.")
    port: int = option(
        8000, whole=True, at_least=0, at_most=65535, help="Port to listen on; 0 takes a free one."
    )
    api_key: str | None = option(
        None, help="Key that clients must send; required to listen beyond this machine."
    )
    served_model_name: tuple[str, ...] = option(
        (),
        metavar="NAME",
        default_text="the end of its path",
        help="Name of the base in requests; of several bases one for each, in their order.",
    )
    allow_origin: tuple[str, ...] = option(
        (),
        metavar="ORIGIN",
        default_text="none",
        help="Origin whose web pages may use the server, or * for any; may be repeated.",
    )
    access_log: AccessLogForm = option(
        "text",
        choices=get_args(AccessLogForm),
        help="A line a request on standard output; json for programs.",
    )
    alpha: float | Mapping[str, float] = option(
        None,
        default_text="what the head is recommended with, or 1.0",
        help="Strength of requests that set none; of several heads NAME=ALPHA,…",
    )
    steer_above: float | None = option(
        None,
        number=True,
        at_least=0,
        metavar="NATS",
        default_text="everywhere",
        help="Steer only tokens at which the base's entropy is above this; requests may set it.",
    )
    max_rows: int = option(16, whole=True, at_least=1, help="Answers decoded at once.")
    max_queue: int = option(64, whole=True, at_least=1, help="Requests that may wait.")
    max_new_tokens: int = option(
        1024, whole=True, at_least=1, help="Most tokens a request may ask for."
    )
    max_prompt_tokens: int = option(8192, whole=True, at_least=1, help="Most tokens of a prompt.")

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.alpha
        if given is None:
            object.__setattr__(self, "alpha", self._starting_alpha())
        problems = list(self._problems())
        if problems:
            raise UsageError("\n".join(problems))
        object.__setattr__(self, "alpha", self.strength.to_json())

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads; none of one head without a name."""
        return names_of(self.head)

    @property
    def strength(self) -> Strength:
        """Strength of requests that name none."""
        return as_strength(self.alpha, self.head_names)

    def _starting_alpha(self) -> float:
        from mav.pipeline.decoding.trained_head import starting_alpha

        return starting_alpha(self.head) if isinstance(self.head, str) else 1.0

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def _naming_problems(self) -> Iterator[str]:
        names, bases = self.served_model_name, max(1, len(self.bases))
        if not names:
            return
        if len(names) != bases:
            yield f"served_model_name: got {len(names)} for {bases} bases, expected one for each"
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            yield f"served_model_name: got {', '.join(map(repr, names))}, expected different names"

    def _problems(self) -> Iterator[str]:
        try:
            strength = self.strength
        except UsageError as error:
            yield str(error)
        else:
            if not strength.is_constant or any(abs(one) > MAX_ALPHA for _, one in strength.points):
                yield (
                    f"alpha: got {strength}, expected numbers from {-MAX_ALPHA:g} to {MAX_ALPHA:g}"
                )
        if len(self.bases) > 1 and (self.gguf_file or self.revision):
            name = "gguf_file" if self.gguf_file else "revision"
            yield (
                f"{name}: got {len(self.bases)} bases, expected one; give the paths of .gguf "
                f"files, or of folders, as bases instead"
            )
        yield from self._naming_problems()
        for origin in self.allow_origin:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                yield (
                    f"allow_origin: got {origin!r}, expected scheme and host, with a port if it is "
                    f"not the scheme's own, such as https://my.example or http://localhost:3000, "
                    f"or *"
                )
        if self.api_key is not None and not (
            self.api_key and self.api_key.isascii() and self.api_key.isprintable()
        ):
            yield "api_key: got an empty one or signs a header cannot carry, expected plain ASCII"
        elif self.api_key is None and not self.loopback:
            yield (
                f"host: got {self.host!r}, which others can reach, and no `api_key`; set a key, "
                f"or listen on 127.0.0.1"
            )
