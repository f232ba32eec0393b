"""The rooms of the project: what may import what, and what must not be imported at all."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
MAY_IMPORT: Final[dict[str, str]] = {
    "mav": "cache_schema base comparison decoding engine evaluation extraction head preferences "
    "rounds training verification",
    "cli_commands": "cache_schema base comparison decoding demo engine evaluation extraction "
    "harness head preferences reporting rounds runtime serving training verification",
    "comparison": "cache_schema base decoding evaluation head ops preferences runtime",
    "demo": "cache_schema base decoding evaluation extraction head preferences reporting training",
    "engine": "cache_schema base decoding head preferences runtime serving",
    "harness": "cache_schema decoding runtime",
    "rounds": "cache_schema base comparison decoding preferences runtime",
    "serving": "cache_schema base decoding preferences runtime",
    "reporting": "cache_schema comparison evaluation head preferences runtime training",
    "verification": "cache_schema base extraction loader ops preferences runtime",
    "training": "cache_schema evaluation head loader ops runtime",
    "decoding": "cache_schema base head preferences runtime",
    "evaluation": "cache_schema head loader ops runtime",
    "extraction": "cache_schema base head ops preferences runtime",
    "head": "cache_schema base ops runtime",
    "base": "cache_schema ops runtime",
    "loader": "cache_schema ops runtime",
    "preferences": "cache_schema runtime",
    "ops": "cache_schema runtime",
    "runtime": "cache_schema",
    "cache_schema": "",
}
MOST_MODULES: Final = 20
MOST_LINES: Final = 300
"""Of a product file; a test file may have `MOST_TEST_LINES`."""
MOST_TEST_LINES: Final = 400
LONGER: Final = {
    "cache_schema/manifest.py": "every record of the manifest, and how they fit together",
    "pipeline/comparison/reward.py": "one reward model from its files to its scores",
}
"""Product files over the limit -> the one purpose that a split would tear apart."""


def modules() -> dict[str, Path]:
    """Every module that is installed, by its dotted name."""
    found = {}
    for top in ("cache_schema", "cli_commands", "pipeline"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(["mav", *parts]).removesuffix(".__init__")] = path
    for name in ("mav.__init__", "mav.vllm"):
        found[name.removesuffix(".__init__")] = ROOT / f"{name.replace('.', '/')}.py"
    return found | {"mav.cli": ROOT / "cli.py"}


MODULES: Final = modules()


def imported(path: Path) -> set[str]:
    """The modules of this project that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            # A package itself is imported where something is that is not a module of its own.
            names |= whole if whole <= MODULES.keys() else {node.module, *whole}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & MODULES.keys()


def room(module: str) -> str:
    """The room a module is in."""
    parts = module.split(".")
    if len(parts) < 3 or parts[1] != "pipeline":
        return parts[1] if len(parts) > 2 or parts[-1] == "cache_schema" else "mav"
    return parts[2]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"mav.cli", "mav.pipeline"}))
def test_a_room_imports_only_rooms_it_may(module: str) -> None:
    own = room(module)
    rooms = {room(other) for other in imported(MODULES[module]) - {"mav.pipeline"}}
    assert rooms <= {own, *MAY_IMPORT[own].split()}


def test_imports_run_one_way() -> None:
    graph = {module: imported(path) - {module} for module, path in MODULES.items()}
    # Every import of a module imports the packages it is in; those import little.
    order = [*TopologicalSorter(graph).static_order()]
    assert len(order) == len(MODULES)
    floors = {name: set(lower.split()) for name, lower in MAY_IMPORT.items()}
    assert [*TopologicalSorter(floors).static_order()]


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in MODULES.values()} - {ROOT}), ids=lambda f: f.name
)
def test_a_folder_can_be_taken_in_at_a_glance(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


def test_the_rooms_of_what_tests_share_are_small_too() -> None:
    folders = {path.parent for path in (ROOT / "tests" / "support").rglob("*.py")}
    assert not {f for f in folders if len([*f.glob("*.py")]) > MOST_MODULES + 1}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_are_short() -> None:
    product = {str(path.relative_to(ROOT)): lines(path) for path in MODULES.values()}
    assert {name for name, count in product.items() if count > MOST_LINES} == LONGER.keys()
    tests = {str(path.relative_to(ROOT)): lines(path) for path in (ROOT / "tests").rglob("*.py")}
    assert not {name for name, count in tests.items() if count > MOST_TEST_LINES}


def test_no_test_file_is_imported() -> None:
    importing = set()
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            if any(re.search(r"(^|\.)(test_|conftest$)", name) for name in names):
                importing.add(str(path.relative_to(ROOT)))
    assert not importing


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mav.cache_schema", "torch"),
        ("mav.cache_schema", "transformers"),
        ("mav.pipeline.training.train", "transformers"),
        ("mav.pipeline.evaluation.evaluate", "transformers"),
    ],
)
def test_what_is_not_needed_is_not_loaded(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_tests_of_the_format_load_neither_torch_nor_transformers() -> None:
    files = sorted((ROOT / "tests" / "cache_schema").rglob("*.py"))
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    code = (
        "import importlib, sys\n"
        f"for module in ['tests.conftest', *{modules!r}]: importlib.import_module(module)\n"
        "loaded = {'torch', 'transformers'} & sys.modules.keys()\n"
        "sys.exit(f'{sorted(loaded)} loaded' if loaded else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_tree_of_the_design_has_every_room_on_a_floor_above_those_it_imports() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = page[page.index("pipeline/    ") : page.index("cache_schema/    ")].splitlines()[1:]
    floors = {
        name: int(line.split()[-1]) for line in tree for name in re.findall(r"([a-z_]+)/ ", line)
    }
    outside = {"mav", "cli_commands", "cache_schema"}
    assert floors.keys() == MAY_IMPORT.keys() - outside
    for name, floor in floors.items():
        lower = MAY_IMPORT[name].split()
        assert all(floors[other] < floor for other in lower if other not in outside), name


def test_the_way_of_a_pair_has_names_that_exist() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+){2})`", page[page.index("One pair's way") :])
    assert len(named) > 20
    for name in named:
        module, _, member = name.rpartition(".")
        path = module.replace(".", "/")
        top = "" if path.startswith("cache_schema/") else "pipeline/"
        tree = ast.parse((ROOT / f"{top}{path}.py").read_text(encoding="utf-8"))
        assert member in {getattr(node, "name", None) for node in tree.body}, name
