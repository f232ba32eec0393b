"""Runs tasks of lm-eval at several alphas, base and head loaded once."""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]
from tqdm import tqdm

from mav.cache_schema.errors import DataError, MAVError, UsageError
from mav.pipeline.harness.installed import require_lm_eval
from mav.pipeline.harness.library_log import LibraryLog, library_log
from mav.pipeline.harness.options import HarnessOptions
from mav.pipeline.harness.report import HarnessReport, figures_of
from mav.pipeline.runtime.hub_errors import one_line, why_no_table
from mav.pipeline.runtime.memory import is_out_of_memory

_log = logging.getLogger(__name__)
_SEED: Final = 1234
"""lm-eval's own seed, for the choice of examples and for sampled answers."""


def run_harness(options: HarnessOptions) -> HarnessReport:
    """Run tasks at each alpha.

    Raises:
        UsageError: lm-eval is not installed, or there is no such task.
        DataError: A task's file or its documents cannot be read, or it cannot be run here.
        MAVError: Base or head cannot be loaded, or they do not belong together.
    """
    require_lm_eval()
    import torch
    from lm_eval.evaluator import evaluate

    from mav.pipeline.decoding.inference import MAVInference
    from mav.pipeline.harness.language_model import SteeredLM

    with library_log() as said:
        # Before loading the base, which may take long.
        manager, names, loaded = _find(options.tasks, options.include_path, said)
        mav = MAVInference(options.head, options.base_model, **options.loading)
        model = SteeredLM(mav, batch_size=options.batch_size)
        by_alpha: dict[float, Any] = {}
        for number, alpha in enumerate(options.alphas, 1):
            _log.info(f"alpha {alpha:g} ({number} of {len(options.alphas)})")
            model.alpha = alpha
            _prepare(loaded["tasks"], options.num_fewshot)
            torch.manual_seed(_SEED)
            said.forget()
            try:
                with _ended_bars():
                    by_alpha[alpha] = evaluate(model, loaded, limit=options.limit)
            except MAVError:
                raise
            except Exception as error:
                raise _not_run(names, error) from error
            said.tell()
            # Requests and answers stay in the tasks, so each alpha has tasks of its own.
            loaded = _load(manager, names, said) if number < len(options.alphas) else loaded
    return HarnessReport(
        head=options.head,
        base=mav.base.id,
        lm_eval=version("lm_eval"),
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        tasks={name: str(task.VERSION) for name, task in loaded["tasks"].items()},
        figures=figures_of(by_alpha),
    )


def _find(
    tasks: Sequence[str], folders: Sequence[Path], said: LibraryLog
) -> tuple[Any, list[str], Any]:
    """Return a task manager, the names that tasks stand for in it, and these tasks loaded.

    Raises:
        UsageError: A name is unknown.
        DataError: A task cannot be loaded.
    """
    if folders:
        # Reading the thousands of files that lm-eval brings takes longer than many a task.
        with contextlib.suppress(UsageError, DataError):
            own = _task_manager(folders, include_defaults=False)
            names = _known(tasks, own, folders)
            said.tell()  # of two tasks of one name, for instance
            return own, names, _load(own, names, said)
    manager = _task_manager(folders, include_defaults=True)
    names = _known(tasks, manager, folders)
    return manager, names, _load(manager, names, said)


def _task_manager(folders: Sequence[Path], *, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=[*folders], include_defaults=include_defaults)
    except Exception as error:
        where = ", ".join(map(str, folders))
        raise DataError(f"include_path: {where} has invalid task files: {error}") from error


def _known(tasks: Sequence[str], manager: Any, folders: Sequence[Path]) -> list[str]:
    """Return the names that tasks stand for.

    Raises:
        UsageError: A name is unknown.
    """
    known: dict[str, None] = {}
    for task in tasks:
        names = [task] if Path(task).is_file() else manager.match_tasks([task])
        if not names:
            near = difflib.get_close_matches(task, manager.all_tasks, n=1)
            like = f"; there is {near[0]}" if near else ""
            raise UsageError(
                f"tasks: got {task}, expected a task of lm-eval, or of a folder given as "
                f"`include_path`{like}{_left_out(folders)}"
            )
        known |= dict.fromkeys(names)
    return [*known]


def _left_out(folders: Sequence[Path]) -> str:
    """Return which file of tasks lm-eval leaves out without a word, or nothing."""
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        try:
            sound = isinstance(yaml.compose(path.read_bytes()), yaml.MappingNode)
        except (OSError, yaml.YAMLError) as error:
            return f"; {path} cannot be read: {one_line(error)}"
        if not sound:
            return f"; {path} describes no task"
    return ""


def _load(manager: Any, names: Sequence[str], said: LibraryLog) -> Any:
    """Return tasks with their documents.

    Raises:
        DataError: A task cannot be loaded.
    """
    said.forget()
    try:
        return manager.load([*names])
    except Exception as error:
        # Tasks read files and data sets, and run code of their own: anything may be raised.
        why = said.last_error or _told(error)
        raise DataError(
            f"{', '.join(names)}: the task or its documents cannot be read: {why}"
        ) from error


@contextlib.contextmanager
def _ended_bars() -> Iterator[None]:
    """End the progress bars that an error has left, or it is told at the end of their line."""
    before = {*tqdm._instances}
    try:
        yield
    except BaseException:
        for bar in {*tqdm._instances} - before:
            bar.close()
        raise


def _not_run(names: Sequence[str], error: Exception) -> DataError:
    """Return what to raise where tasks that were loaded end with an error.

    They are templates, metrics and code of others, so it may be any.
    """
    if is_out_of_memory(error):
        return DataError(
            f"{', '.join(names)}: out of memory. Use a smaller `batch_size`, or `quantize`."
        )
    return DataError(f"{', '.join(names)}: cannot be run: {_told(error)}")


def _told(error: Exception) -> str:
    """Return an error in one line; most types' texts say little without the type."""
    if isinstance(error, StopIteration):
        return "there are no documents"
    return f"{type(error).__name__}: {why_no_table(error)}"


def _prepare(tasks: dict[str, Any], num_fewshot: int | None) -> None:
    """Set the examples of each task, as lm-eval's `simple_evaluate` does before it runs them.

    A task that sets their number to 0 keeps it, as its prompts have no room for any.
    """
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if num_fewshot is not None and own == 0 and num_fewshot:
            _log.warning(f"{name} takes no examples: it runs with none, not {num_fewshot}")
        if own is None or (own and num_fewshot is not None):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=_SEED)
