"""What `mav serve` is asked for."""

import ipaddress
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.base.quantization import Quantize
from mav.pipeline.preferences.prompt_format import PromptFormatName
from mav.pipeline.runtime.compute_dtype import AUTO, DtypeName

MAX_ALPHA: Final = 100.0
"""Largest strength, either way: beyond it logits leave the range in which they mean anything."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """All settings of a server.

    Attributes:
        head: Folder of a head or of a training run, or a hub id.
        bases: Hub ids, folders or `.gguf` files; the first is loaded at the start, requests switch
            to the others. None for the base the head was trained on.
        gguf_file: File inside the folder or repository of the one base.
        revision: Branch, tag or commit of the hub repository of the one base.
        dtype: Element type bases and head compute in; `auto` is what the device has natively.
        device: `auto` or a torch device.
        device_map: How a base is spread over several devices, in place of `device`.
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
        alpha: Strength of requests that name none.
        max_rows: Most answers decoded at once.
        max_queue: Most requests that wait; more are refused with a time to retry.
        max_new_tokens: Most tokens of an answer.
        max_prompt_tokens: Most tokens of a prompt, however many the base could read.
    """

    head: str
    bases: tuple[str, ...] = ()
    gguf_file: str | None = None
    revision: str | None = None
    dtype: DtypeName = AUTO
    device: str = "auto"
    device_map: str | None = None
    quantize: Quantize | None = None
    prompt_form: PromptFormatName = "auto"
    template_date: str | None = None
    allow_tokenizer_mismatch: bool = False
    int8_head: bool = False
    base_generation_config: bool = False
    gguf_cache: bool = True
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    alpha: float = 1.0
    max_rows: int = 16
    max_queue: int = 64
    max_new_tokens: int = 1024
    max_prompt_tokens: int = 8192

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise UsageError("\n".join(problems))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def _problems(self) -> Iterator[str]:
        if self.dtype not in get_args(DtypeName):
            known = ", ".join(get_args(DtypeName))
            yield f"--dtype: got {self.dtype!r}, expected one of {known}"
        if self.prompt_form not in get_args(PromptFormatName):
            forms = ", ".join(get_args(PromptFormatName))
            yield f"--prompt-form: got {self.prompt_form!r}, expected one of {forms}"
        if not (math.isfinite(self.alpha) and abs(self.alpha) <= MAX_ALPHA):
            yield f"--alpha: got {self.alpha}, expected {-MAX_ALPHA:g} to {MAX_ALPHA:g}"
        if not 0 <= self.port <= 65535:
            yield f"--port: got {self.port}, expected 0 to 65535"
        for name in ("max_rows", "max_queue", "max_new_tokens", "max_prompt_tokens"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                yield f"--{option}: got {getattr(self, name)}, expected at least 1"
        if len(self.bases) > 1 and (self.gguf_file or self.revision):
            option = "--gguf-file" if self.gguf_file else "--revision"
            yield (
                f"{option}: got {len(self.bases)} bases, expected one; give the paths of .gguf "
                f"files, or of folders, as bases instead"
            )
        if self.api_key is not None and not (
            self.api_key and self.api_key.isascii() and self.api_key.isprintable()
        ):
            yield "--api-key: got an empty one or signs a header cannot carry, expected plain ASCII"
        elif self.api_key is None and not self.loopback:
            yield (
                f"--host: got {self.host!r}, which others can reach, and no --api-key; set a key, "
                f"or listen on 127.0.0.1"
            )
