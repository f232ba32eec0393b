"""What vLLM needs to be told to have heads in it."""

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.loading import preview_base
from mav.pipeline.base.pretrained import read_config
from mav.pipeline.base.source import BaseSource, resolve_base
from mav.pipeline.decoding.attach import check_compatible
from mav.pipeline.decoding.options import AttachOptions, Heads
from mav.pipeline.decoding.steering.bounds import bounded_strength
from mav.pipeline.decoding.steering.strengths import Alpha
from mav.pipeline.decoding.steering.trained_heads import TrainedHeads
from mav.pipeline.engine.architectures import check_architecture
from mav.pipeline.engine.installed import installed_version, require_tested
from mav.pipeline.engine.names import PROCESSOR, engine_architecture, processor_class
from mav.pipeline.engine.steering_config import KEY, PlacedHead, SteeringConfig
from mav.pipeline.preferences.prompt_format import prompt_format_of
from mav.pipeline.runtime.choices import Form, PromptFormatName
from mav.pipeline.runtime.known_places import remember

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """A base and heads as vLLM takes them.

    Attributes:
        arguments: Arguments of `vllm.LLM`, and of its server.
        form: Form of chat prompts: the base's chat template, or HH-RLHF's transcript.
        base: Name of the base.
    """

    arguments: Mapping[str, Any]
    form: Form
    base: str

    @property
    def command(self) -> list[str]:
        """The words of a `vllm serve` command."""
        return ["vllm", "serve", *server_words(self.arguments)]

    @property
    def text(self) -> str:
        """The same as a shell reads it."""
        return shlex.join(self.command)


def engine_args(
    head: Heads, base_model: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Return the arguments that give an engine of vLLM its heads.

    Args:
        head: Folder of a head or of a training run, or a hub id; or several by name.
        base_model: Hub id, folder or `.gguf` file; the base the heads were trained on if None.
        **options: Those of `prepare_engine`.

    Raises:
        MAVError: Something is not found, or heads and base do not belong together.

    Example:
        from vllm import LLM, SamplingParams

        llm = LLM(**engine_args("runs/head"), max_model_len=4096)
        llm.generate("Hello", SamplingParams(extra_args={"alpha": 1.5}))
    """
    return dict(prepare_engine(head, base_model, **options).arguments)


def prepare_engine(
    head: Heads,
    base_model: str | Path | None = None,
    *,
    alpha: Alpha = 1.0,
    gguf_file: str | None = None,
    revision: str | None = None,
    gguf_cache: bool = True,
    prompt_form: PromptFormatName = "auto",
    allow_tokenizer_mismatch: bool = False,
    allow_untested_vllm: bool = False,
) -> EngineArguments:
    """Check heads and base as every command does, and return what an engine needs to be told.

    vLLM need not be installed; where it is, its release is checked too.

    Args:
        head: As `engine_args` takes it.
        base_model: Likewise.
        alpha: Strength of requests that name none; of several heads by name.
        gguf_file: File inside the base's folder or repository.
        revision: Branch, tag or commit of a hub repository.
        gguf_cache: Keep GGUF weights as safetensors in the cache folder, from which vLLM reads
            them.
        prompt_form: Form of chat prompts; `auto` is what the heads were trained in.
        allow_tokenizer_mismatch: Accept a base with another tokenizer of the same size.
        allow_untested_vllm: Accept a release of vLLM that was not tested.

    Raises:
        MAVError: Something is not found, or heads and base do not belong together.
    """
    version = installed_version()
    if version is not None:
        require_tested(version, allow_untested=allow_untested_vllm)
    rules = AttachOptions(
        prompt_form=prompt_form, allow_tokenizer_mismatch=allow_tokenizer_mismatch
    )
    trained = TrainedHeads.load(head)
    strength = bounded_strength(alpha, trained.names)
    source = (
        trained.source(revision, gguf_file)
        if base_model is None
        else resolve_base(str(base_model), gguf_file, revision)
    )
    source = with_copy(source, gguf_cache=gguf_cache)
    base = preview_base(source)
    architecture = _architecture(source, base.model)
    check_architecture(source.id, architecture)
    layers, differences = check_compatible(base, trained, rules)
    differences.log()
    remember(source.weights_digest(), source.id)
    config = SteeringConfig(
        heads=tuple(
            PlacedHead(name=name, folder=str(Path(part.folder).resolve()), digest=part.digest)
            for name, part in zip(trained.names or ("",), trained.parts, strict=True)
            if part.folder is not None
        ),
        layers=layers,
        num_hidden_layers=base.num_hidden_layers,
        tokenizer_digest=base.fingerprint().tokenizer_digest,
        alpha=strength.to_json(),
        allow_untested_vllm=allow_untested_vllm,
    )
    form = prompt_format_of(trained.parts[0].template) if prompt_form == "auto" else prompt_form
    arguments = {
        **_model(source),
        "hf_overrides": {"architectures": [engine_architecture(architecture)]},
        "logits_processors": [f"{PROCESSOR}:{processor_class(config.names)}"],
        "logprobs_mode": "processed_logprobs",
        "additional_config": {KEY: config.to_json()},
    }
    return EngineArguments(arguments=arguments, form=form, base=source.name)


def server_words(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments as vLLM's server takes them: the model, then options."""
    words = [str(arguments["model"])]
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if name == "model":
            continue
        if isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return words


def _model(source: BaseSource) -> dict[str, Any]:
    """Return where vLLM finds the base."""
    if source.revision is not None and source.converted is None and source.gguf_file is None:
        return {"model": source.id, "revision": source.revision}
    if source.gguf_file is not None and source.converted is None:
        raise BaseModelError(
            f"{source.id}: vLLM reads the copy of a GGUF file as safetensors, and there is none; "
            f"leave out `gguf_cache=False`, and have room for it in MAV_CACHE_HOME"
        )
    return {"model": str((source.converted or source.folder).resolve())}


def _architecture(source: BaseSource, model: Any) -> str:
    """Return the name by which vLLM knows the base's class."""
    named = getattr(read_config(source), "architectures", None)
    return str(named[0]) if named else type(model).__name__
