"""`mav serve --engine vllm`: start vLLM's own server with heads, plain alphas and the page."""

import os
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mav.cache_schema.errors import UsageError
from mav.pipeline.engine.arguments import EngineArguments, prepare_engine, server_words
from mav.pipeline.engine.front_settings import ENVIRONMENT, FrontSettings
from mav.pipeline.engine.installed import require_vllm
from mav.pipeline.serving.options import ServeOptions

FRONT: Final = "mav.pipeline.engine.front.Front"
_SERVER: Final = "vllm.entrypoints.openai.api_server"
_INSTEAD: Final = {
    "device": "CUDA_VISIBLE_DEVICES chooses the cards",
    "device_map": "give --tensor-parallel-size after --",
    "quantize": "give --quantization after --",
    "int8_head": "heads are kept in the base's type",
    "template_date": "vLLM gives chat templates the present day",
    "merge_adapter": "merge it into the base first, or give vLLM's --enable-lora after --",
    "allow_origin": "give --allowed-origins after --",
    "access_log": "vLLM has its own; give --disable-uvicorn-access-log after -- to leave it out",
    "steer_above": "heads in vLLM steer every token",
    "max_rows": "give --max-num-seqs after --",
    "max_queue": "vLLM has no limit of that kind",
    "max_new_tokens": """give --override-generation-config '{"max_new_tokens": N}' after --""",
    "max_prompt_tokens": "give --max-model-len after --",
}
"""Options of MAV's own server -> what takes their place with vLLM."""
_OURS: Final = (
    *("--model", "--hf-overrides", "--logits-processors", "--additional-config", "--middleware"),
    *("--host", "--port", "--api-key", "--chat-template"),
)
"""Options of vLLM that are set here."""
_TRANSCRIPT: Final = (
    "{%- for message in messages -%}"
    "{{ '\\n\\n' + {'user': 'Human', 'assistant': 'Assistant'}.get(message['role'], 'System') }}"
    "{{ ': ' + message['content'] | trim }}"
    "{%- endfor -%}"
    "{{ '\\n\\nAssistant:' }}"
)
"""HH-RLHF's transcript as a chat template."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A program to become.

    Attributes:
        words: Its command line.
        environment: Its environment.
    """

    words: Sequence[str]
    environment: Mapping[str, str]


def serve_with_vllm(
    options: ServeOptions,
    given: Collection[str],
    vllm_options: Sequence[str],
    *,
    allow_untested_vllm: bool = False,
) -> None:
    """Become vLLM's server; this does not return.

    Args:
        options: Those of `mav serve`.
        given: Names of the options that the user set.
        vllm_options: Further options of vLLM's own.
        allow_untested_vllm: Accept a release of vLLM that was not tested.

    Raises:
        MAVError: vLLM is not installed, an option is not for it, or heads and base do not belong
            together.
    """
    require_vllm()
    launch = prepare_launch(options, given, vllm_options, allow_untested_vllm=allow_untested_vllm)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [*launch.words], launch.environment)  # noqa: S606


def prepare_launch(
    options: ServeOptions,
    given: Collection[str],
    vllm_options: Sequence[str],
    *,
    allow_untested_vllm: bool = False,
) -> Launch:
    """Return the program that `serve_with_vllm` becomes."""
    refused = [
        f"{name}: is an option of MAV's own server; {_INSTEAD[name]}"
        for name in _INSTEAD
        if name in given
    ]
    refused += [
        f"{word.partition('=')[0]}: is set by `mav serve`; leave it out after --"
        for word in vllm_options
        if word.partition("=")[0].replace("_", "-") in _OURS
    ]
    if len(options.bases) > 1:
        refused.append(
            f"base_model: got {len(options.bases)}, expected one with vLLM, which loads one base; "
            f"start a server for each"
        )
    if refused:
        raise UsageError("\n".join(refused))
    prepared = prepare_engine(
        options.head,
        options.bases[0] if options.bases else None,
        alpha=options.alpha,
        gguf_file=options.gguf_file,
        revision=options.revision,
        gguf_cache=options.gguf_cache,
        prompt_form=options.prompt_form,
        allow_tokenizer_mismatch=options.allow_tokenizer_mismatch,
        allow_untested_vllm=allow_untested_vllm,
    )
    settings = FrontSettings(
        names=options.head_names,
        alpha=options.alpha,
        max_tokens=options.max_new_tokens,
        transcript=prepared.form == "hh",
        local_only=options.api_key is None,
    )
    environment = {**os.environ, ENVIRONMENT: settings.to_text()}
    if options.api_key is not None:
        # Not as a word of the command, which every user of the machine can read.
        environment["VLLM_API_KEY"] = options.api_key
    words = [sys.executable, "-m", _SERVER, *_words(options, prepared), *vllm_options]
    return Launch(words=words, environment=environment)


def _words(options: ServeOptions, prepared: EngineArguments) -> list[str]:
    model, *words = server_words(prepared.arguments)
    words = [
        "--model",
        model,
        *words,
        "--served-model-name",
        *(options.served_model_name or (prepared.base,)),
    ]
    words += ["--host", options.host, "--port", str(options.port), "--middleware", FRONT]
    if options.dtype != "auto":
        words += ["--dtype", str(options.dtype)]
    if not options.base_generation_config:
        words += ["--generation-config", "vllm"]
    if prepared.form == "hh":
        words += ["--chat-template", str(_write_template())]
    return words


def _write_template() -> Path:
    """Write HH-RLHF's transcript as a chat template; return the file."""
    folder = Path(tempfile.gettempdir()) / f"mav-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / "transcript.jinja"
    file.write_text(_TRANSCRIPT, encoding="utf-8")
    return file
