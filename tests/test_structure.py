"""The rooms of the project: what may import what, and what must not be imported at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGE_ONE = {"extract", "extract_options", "block_forward", "packing", "tokenizing", "preferences"}
STAGE_TWO = {
    "aligned_logprobs",
    "checkpoint",
    "evaluate",
    "evaluation_set",
    "html_report",
    "objective",
    "optimizer",
    "order",
    "projection",
    "schedule",
    "stream",
    "tally",
    "trackers",
    "train",
    "train_step",
    "wrapping",
}
ONLINE = {"generate", "aligned_lm", "decoding"}
NEEDS_THE_BASE = {"base_model", "base_checks", "base_source"}


def imported(path: Path) -> set[str]:
    """Names of the modules of this project that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def modules_of_pipeline(name: str) -> set[str]:
    found = imported(ROOT / "pipeline" / f"{name}.py")
    return {module.split(".")[1] for module in found if module.startswith("pipeline.")}


@pytest.mark.parametrize("path", sorted((ROOT / "cache_schema").glob("*.py")), ids=lambda p: p.stem)
def test_the_format_imports_no_model_code(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported(path)}
    assert not roots & {"torch", "transformers", "pipeline", "cli", "mav"}


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").glob("*.py")), ids=lambda p: p.stem)
def test_the_pipeline_imports_neither_cli_nor_api(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported(path)}
    assert not roots & {"cli", "mav", "click"}


@pytest.mark.parametrize("name", sorted(STAGE_ONE | STAGE_TWO | ONLINE))
def test_stages_do_not_import_each_other(name: str) -> None:
    own = next(stage for stage in (STAGE_ONE, STAGE_TWO, ONLINE) if name in stage)
    assert not modules_of_pipeline(name) & ((STAGE_ONE | STAGE_TWO | ONLINE) - own)


@pytest.mark.parametrize("name", sorted(STAGE_TWO))
def test_training_knows_no_base_model(name: str) -> None:
    assert not modules_of_pipeline(name) & NEEDS_THE_BASE


@pytest.mark.parametrize("module", ["cache_schema", "pipeline.train", "pipeline.evaluate"])
def test_transformers_is_not_imported(module: str) -> None:
    code = f"import sys, {module}; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_format_does_not_load_torch() -> None:
    code = "import sys, cache_schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
