"""Heads on the base in use, which can be exchanged for another one."""

from pathlib import Path
from typing import Self

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.gguf_copy import with_copy
from mav.pipeline.base.given.wrap import require_as_loaded
from mav.pipeline.base.loading import load_source, preview_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.source import BaseSource, resolve_base
from mav.pipeline.decoding.attach import (
    AttachedModel,
    attach_head,
    check_compatible,
    load_compatible_base,
)
from mav.pipeline.decoding.options import AttachOptions, Heads, InferenceOptions
from mav.pipeline.decoding.steering.trained_heads import TrainedHeads
from mav.pipeline.decoding.trained_head import TrainedHead
from mav.pipeline.runtime.compute_dtype import plain_name, resolve_dtype
from mav.pipeline.runtime.known_places import remember
from mav.pipeline.runtime.load_options import LoadOptions
from mav.pipeline.runtime.memory import free_memory


class SwitchableModel:
    """A head, or several, attached to one base at a time; not thread-safe.

    Attributes:
        trained: The heads.
    """

    def __init__(
        self,
        base: BaseModel,
        trained: TrainedHead | TrainedHeads,
        rules: AttachOptions,
        placement: LoadOptions,
    ) -> None:
        """Attach the heads to a first base.

        Args:
            base: The base.
            trained: The heads.
            rules: What the user allows and wants, of all bases.
            placement: In what type and where other bases are loaded.

        Raises:
            MAVError: Heads and base do not belong together.
        """
        self.trained, self._rules, self._placement = TrainedHeads.of(trained), rules, placement
        self._attached: AttachedModel | None = attach_head(base, self.trained, rules)
        self._attached.differences.log()

    @classmethod
    def load(
        cls, heads: Heads, base: str | Path | BaseModel | None, options: InferenceOptions
    ) -> Self:
        """Load heads and base, and attach them.

        Args:
            heads: Where a head is, or where several are, by name.
            base: Hub id, folder, `.gguf` file or loaded base; the one the heads were trained on if
                None.
            options: How they are loaded and attached.

        Raises:
            MAVError: One cannot be loaded, or they do not belong together.
        """
        if isinstance(base, BaseModel):
            require_as_loaded(options, base)
            placement = LoadOptions(
                dtype=base.dtype, device=str(base.device), gguf_cache=options.gguf_cache
            )
        else:
            placement = options.in_one_dtype()
        dtype = resolve_dtype(placement.dtype, placement.device)
        trained = TrainedHeads.load(heads, dtype, int8=options.int8_head)
        trained.require_together(options)
        if not isinstance(base, BaseModel):
            source = (
                trained.source(options.revision, options.gguf_file)
                if base is None
                else resolve_base(str(base), options.gguf_file, options.revision)
            )
            base = load_compatible_base(source, trained, options, placement)
            remember(source.weights_digest(), source.id)
        return cls(base, trained, options, placement)

    @property
    def is_open(self) -> bool:
        """Whether a base is in use."""
        return self._attached is not None

    @property
    def attached(self) -> AttachedModel:
        """The base in use and the head in it.

        Raises:
            BaseModelError: There is none: the last switch failed, and the base before it could not
                be loaded again.
        """
        if self._attached is None:
            raise BaseModelError("No base is loaded; switch to one first.")
        return self._attached

    def switch(self, base: BaseModel | BaseSource) -> None:
        """Attach the head to another base; one that is loaded here takes the former's memory.

        Args:
            base: A loaded base, or the files of one.

        Raises:
            MAVError: It cannot be loaded or does not belong to the head; the base before it is in
                use again.
        """
        if isinstance(base, BaseModel):
            attached = attach_head(base, self.trained, self._rules)
        else:
            attached = self._load(base)
        attached.differences.log()
        self.close()
        self._attached = attached

    def close(self) -> None:
        """Detach the head; the base is as it was before."""
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    def _load(self, source: BaseSource) -> AttachedModel:
        source = with_copy(source, gguf_cache=self._placement.gguf_cache)
        check_compatible(preview_base(source), self.trained, self._rules)
        former = None if self._attached is None else self._attached.base.source
        # A base built in memory could not be loaded again, so it is kept until the switch has
        # succeeded.
        if former is not None:
            self.close()
            free_memory()
        try:
            return attach_head(load_source(source, self._placement), self.trained, self._rules)
        except BaseException:
            if former is not None:
                base = load_source(former, self._placement)
                self._attached = attach_head(base, self.trained, self._rules)
            raise


def described(model: SwitchableModel) -> str:
    """Return what base and heads there are, in a line."""
    if not model.is_open:
        return "closed"
    joined, names = model.attached, model.trained.names
    heads = [
        (f"{name}: " if name else "")
        + f"{head.config.kind} of {head.config.total_parameters:,} parameters"
        + (f" in {part.folder}" if part.folder else "")
        for name, head, part in zip(
            names or ("",), joined.aligned.heads, model.trained.parts, strict=True
        )
    ]
    base = joined.base
    return (
        f"base={base.id!r}, dtype={plain_name(base.dtype)!r}, device={str(base.device)!r}, "
        f"prompt_form={joined.form.name!r}, layers={list(joined.aligned.layers)}, "
        f"head=<{'; '.join(heads)}>"
    )
