"""lm-eval with a head: alpha 0 is its own HFLM, other alphas are base and head."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.pipeline.base.loading import load_base
from mav.pipeline.decoding.inference import MAVInference
from tests.support.running.commands import done, mav
from tests.support.running.lm_eval_tasks import CHOICE, ROLLING, WRITING
from tests.support.steering.steered import whole_text_logits

# Installed with the extra `eval` only.
lm_eval = pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("quick_lm_eval")]

NAMES = [CHOICE, ROLLING, WRITING]


def answers(model: Any, tasks: Path, **options: Any) -> dict[str, Any]:
    """Every answer and metric of all tasks, by lm-eval's own entry point."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks))
    found = lm_eval.simple_evaluate(
        model=model, tasks=[*NAMES], task_manager=manager, bootstrap_iters=0, **options
    )
    responses = {
        task: [sample["resps"] for sample in samples] for task, samples in found["samples"].items()
    }
    return {"results": found["results"], "responses": responses}


def steered_lm(head: str, base: str, alpha: float, **options: Any) -> Any:
    from mav.pipeline.harness.language_model import SteeredLM

    return SteeredLM(head, alpha, base, dtype="float32", device="cpu", **options)


def arguments(head: str, base: str, tasks: Path, *more: object) -> list[object]:
    return [
        *["harness", "--head", head, "--base-model", base, "--include-path", tasks],
        *["--dtype", "float32", "--device", "cpu", *more],
    ]


def test_at_alpha_0_everything_is_as_hflm_has_it(head: str, base: str, tasks: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(base, device="cpu", dtype="float32", batch_size=4)
    ours = answers(steered_lm(head, base, 0.0, batch_size=4), tasks, num_fewshot=1)
    assert ours == answers(plain, tasks, num_fewshot=1)
    steered = answers(steered_lm(head, base, 1.0, batch_size=4), tasks, num_fewshot=1)
    for task in NAMES:
        assert steered["responses"][task] != ours["responses"][task]


@pytest.mark.parametrize("alpha", [-0.5, 1.0, 2.0])
def test_a_log_likelihood_is_that_of_base_and_head(head: str, base: str, alpha: float) -> None:
    from lm_eval.api.instance import Instance

    both = MAVInference(head, base, dtype="float32", device="cpu")
    untouched = load_base(base, dtype="float32", device="cpu")
    context, continuation = "How do I mend a kite?", " First look at it."
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    ((found, greedy),) = steered_lm(head, base, alpha).loglikelihood([request], disable_tqdm=True)
    before = untouched.tokenizer(context, add_special_tokens=False)["input_ids"]
    whole = untouched.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] == before
    text = torch.tensor([whole])
    logits = whole_text_logits(both, untouched, text[:, :-1], torch.tensor(alpha))
    own = logits.log_softmax(-1)[len(before) - 1 :]
    expected = own.gather(-1, text[0, len(before) :, None]).sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert greedy == bool((own.argmax(-1) == text[0, len(before) :]).all())
    # Nothing is left on the base when no pass runs.
    plain = whole_text_logits(both, untouched, text, torch.tensor(0.0))
    assert torch.equal(both.base.model(text).logits[0], plain)


def test_the_command_gives_what_lm_eval_gives_at_each_alpha(
    head: str, base: str, tasks: Path, tmp_path: Path
) -> None:
    args = arguments(head, base, tasks, "--tasks", ",".join(NAMES), "--alphas", "1,0,2")
    output = tmp_path / "found.json"
    more = ("--batch-size", 4, "--num-fewshot", 1, "--limit", 8, "--output", output, "--json")
    found = json.loads(done(*args, *more))
    assert json.loads(output.read_text(encoding="utf-8")) == found
    assert found["limit"] == 8
    assert [figure["alpha"] for figure in found["figures"][:3]] == [1, 0, 2]
    assert {figure["documents"] for figure in found["figures"]} == {8}
    assert {figure["task"] for figure in found["figures"]} == {*NAMES}
    for alpha in (0.0, 1.0, 2.0):
        model = steered_lm(head, base, alpha, batch_size=4)
        expected = answers(model, tasks, num_fewshot=1, limit=8)["results"]
        for figure in found["figures"]:
            if figure["alpha"] == alpha:
                name = f"{figure['metric']},{figure['filter']}"
                assert figure["value"] == pytest.approx(expected[figure["task"]][name], rel=1e-12)


def test_differences_are_those_between_the_documents(head: str, base: str, tasks: Path) -> None:
    args = arguments(head, base, tasks, "--tasks", f"{CHOICE},{ROLLING}", "--alphas", "0,9")
    found = json.loads(done(*args, "--batch-size", 4, "--json"))["figures"]
    by_metric = {(figure["metric"], figure["alpha"]): figure for figure in found}
    before, after = by_metric["acc", 0], by_metric["acc", 9]
    assert before["difference"] is before["difference_stderr"] is None
    assert after["difference"] == pytest.approx(after["value"] - before["value"])
    assert after["difference_stderr"] > 0
    # Not a mean over documents.
    assert by_metric["byte_perplexity", 9]["difference"] is None


def test_a_group_has_its_own_line(head: str, base: str, tasks: Path) -> None:
    said = done(*arguments(head, base, tasks, "--tasks", "mav_both", "--alphas", "0"))
    assert "mav_both: acc (24 documents)" in said
    assert f"{WRITING}: exact_match" in said


def test_the_plain_command_line_of_lm_eval_knows_the_model(
    head: str, base: str, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mav.pipeline.harness.__main__ import main

    model = f"head={head},base_model={base},alpha=2,dtype=float32"
    args = ["--model", "mav", "--model_args", model, "--tasks", CHOICE, "--include_path", tasks]
    monkeypatch.setattr("sys.argv", ["lm_eval", *map(str, args)])
    main()
    expected = answers(steered_lm(head, base, 2.0), tasks)["results"][CHOICE]["acc,none"]
    assert f"|{expected:.4f}|" in capsys.readouterr().out.replace(" ", "")


def test_wrong_arguments_get_one_clear_line(
    head: str, base: str, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    result = mav(*arguments(head, base, tasks, "--tasks", "mav_choise"))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "Error: --tasks: got mav_choise, expected a task of lm-eval, or of a folder given as "
        "--include-path; there is mav_choice"
    ]
    from mav.pipeline.harness.__main__ import main

    wrong = ["lm_eval", "--model", "mav", "--tasks", CHOICE, "--include_path", str(tasks)]
    for given, told in (
        (f"head={head},pretrained=x", "model_args: got pretrained, expected head, alpha"),
        ("alpha=1", "model_args: got no head, expected head="),
        (f"head={head},base_model={base},alpha=nan", "alpha: got nan, expected a finite number"),
        (f"head={head},base_model={base},alpha=0:2", "alpha: got '0:2', expected a finite number"),
    ):
        monkeypatch.setattr("sys.argv", [*wrong, "--model_args", given])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert f"Error: {told}" in capsys.readouterr().err
