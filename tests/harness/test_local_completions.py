"""lm-eval's `local-completions` asks a server of `mav serve` and gets what `mav` gives."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.running.lm_eval_tasks import CHOICE, ROLLING, WRITING
from tests.support.running.server import running

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")
pytestmark = pytest.mark.filterwarnings("default")


def evaluated(model: Any, tasks: Path) -> dict[str, list[Any]]:
    """The answer to every request, by task."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = evaluate(model, manager.load([CHOICE, ROLLING, WRITING]), bootstrap_iters=0)
    return {
        task: [response for sample in samples for (response,) in sample["resps"]]
        for task, samples in found["samples"].items()
    }


@pytest.mark.parametrize(("alpha", "batch_size"), [(0.0, 1), (2.0, 4)])
def test_it_gives_the_numbers_that_base_and_head_give_in_process(
    head: str, base: str, tasks: Path, alpha: float, batch_size: int
) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from mav.pipeline.harness.language_model import SteeredLM

    with running(head=head, bases=(base,), alpha=alpha) as server:
        asked = evaluated(
            LocalCompletionsAPI(
                base_url=f"{server.url}/v1/completions",
                model="base",
                tokenizer=base,
                tokenizer_backend="huggingface",
                batch_size=batch_size,
                max_length=128,
            ),
            tasks,
        )
    model = SteeredLM(head, alpha, base, dtype="float32", device="cpu", max_length=127)
    expected = evaluated(model, tasks)
    for (value, greedy), (want, want_greedy) in zip(asked[CHOICE], expected[CHOICE], strict=True):
        assert float(value) == pytest.approx(float(want), abs=1e-3)
        assert greedy == want_greedy
    assert [float(one) for one in asked[ROLLING]] == pytest.approx(
        [float(one) for one in expected[ROLLING]], abs=1e-2
    )
    assert asked[WRITING] == expected[WRITING]
