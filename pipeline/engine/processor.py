"""The logits processor that adds what heads give, for both of vLLM's runners.

Its classes are made by name: requests are checked in processes that know nothing of an engine but
the name of its processor, so that the names of the heads are in it. What comes before and after
differs between the runners: the first applies penalties to steered logits, as MAV does, the second
to the base's.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstRunners
from vllm.v1.sample.logits_processor import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SecondRunners

from mav.cache_schema.errors import MAVError
from mav.pipeline.engine.admission import FIELD, checked_strength, strength_of
from mav.pipeline.engine.names import heads_in
from mav.pipeline.engine.shared_state import SharedState
from mav.pipeline.engine.slots import (
    Answering,
    PermanentSlots,
    SteeredRows,
    is_steering,
    rows_by_slot,
)
from mav.pipeline.engine.steering_config import SteeringConfig


def __getattr__(name: str) -> type:
    names = heads_in(name)
    if names is None:
        raise AttributeError(name)
    return _named(names)


@cache
def _named(names: tuple[str, ...]) -> type:
    return type("HeadProcessor", (HeadProcessorOfAnyNames,), {"names": names})


class HeadProcessorOfAnyNames(FirstRunners, SecondRunners):  # type: ignore[misc]
    """Adds alpha times what heads give to the logits of each request.

    Attributes:
        names: Of the heads; none of one head without a name.
    """

    names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request whose alpha is not a strength.

        Raises:
            ValueError: It is not.
        """
        given = (sampling_params.extra_args or {}).get(FIELD)
        if given is None:
            return
        try:
            checked_strength(given, cls.names)
        except MAVError as error:
            raise ValueError(str(error)) from error

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        """Prepare for an engine.

        Args:
            vllm_config: Its configuration.
            rest: Of the first runner the device and whether memory is pinned; of the second the
                states of requests.
        """
        config = SteeringConfig.of(vllm_config.additional_config)
        assert config.names == self.names, "the processor and the heads are named together"
        self._default = config.strength
        self._shared = SharedState.of(vllm_config)
        if len(rest) == 1:
            self._requests = rest[0]
            self._permanent = PermanentSlots()
            return
        self._answering: dict[int, Answering] = {}
        self._batch_size = 0
        self._shared.plan = lambda: (rows_by_slot(self._answering), self._batch_size)

    def is_argmax_invariant(self) -> bool:
        """Heads change which token is the most probable one."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests of the first runner from slot to slot."""
        if batch_update is not None:
            self._batch_size = batch_update.batch_size
        process_dict_updates(self._answering, batch_update, self._new)

    def _new(self, params: Any, _: Sequence[int] | None, response: list[int]) -> Answering | None:
        strength = strength_of(params.extra_args, self.names, self._default)
        return Answering(strength, response) if is_steering(strength) else None

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take a request into a slot of the second runner; return whether it is steered."""
        strength = strength_of(sampling_params.extra_args, self.names, self._default)
        return self._permanent.add(req_idx, strength)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Add what heads give to the logits of this step.

        Args:
            logits: Float32 [R, V].
            ctx: The rows of the step, of the second runner.
        """
        if ctx is None:
            return self._add(logits, rows_by_slot(self._answering))
        return self._add(logits, self._permanent.rows(ctx, self._requests.prompt_len.np))

    def _add(self, logits: Tensor, steered: SteeredRows) -> Tensor:
        if not steered.rows:
            return logits
        added = self._shared.model.added_logits(steered)
        if added is not None:
            rows = torch.tensor(steered.rows, device=logits.device)
            logits.index_add_(0, rows, added)
        return logits
