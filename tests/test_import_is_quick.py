"""`import mav` and help load neither torch nor transformers; all names are there when used."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import mav

ROOT = Path(__file__).parents[1]
HEAVY = (
    "sorted({'torch', 'transformers', 'numpy', 'zarr', 'datasets', 'accelerate'} & {*sys.modules})"
)


@pytest.mark.parametrize(
    "code",
    [
        "import mav",
        "import mav; dir(mav)",
        "import mav.pipeline",
        "import mav.cli",
        "from mav import cli; cli.main(['--help'], standalone_mode=False)",
        "from mav import cli; cli.main(['extract', '--help'], standalone_mode=False)",
        "from mav import cli; cli.main(['generate', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint({HEAVY})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_cache_or_a_head_is_described_without_torch() -> None:
    code = "import sys, mav.pipeline.reporting.inspect; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


def test_every_name_is_what_type_checkers_see() -> None:
    """The names are written twice: as imports for type checkers, and as what is imported."""
    tree = ast.parse((ROOT / "mav" / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in typed.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert sorted(seen) == sorted(mav._FROM) == mav.__all__
    for name, (module, original) in seen.items():
        assert mav._FROM[name] == module
        assert getattr(mav, name) is getattr(sys.modules[str(module)], original)


def test_it_is_a_module_like_others() -> None:
    everything: dict[str, object] = {}
    exec("from mav import *", everything)
    assert set(mav.__all__) <= everything.keys()
    assert set(mav.__all__) <= set(dir(mav))
    with pytest.raises(AttributeError, match="module 'mav' has no attribute 'nothing'"):
        mav.nothing  # noqa: B018
    for kind in (mav.HeadConfig, mav.MAVInference, mav.FeatureCache):
        assert pickle.loads(pickle.dumps(kind)) is kind
