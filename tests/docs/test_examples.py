"""Every example runs, and prints what it says it does."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from tests.docs.world import BASES, OF_ANOTHER_VOCABULARY, ROOT, Ran, World, free_port

HEAD: Final = "runs/head 'Name a tree.' --max-new-tokens 6"


@pytest.fixture
def run(trained: World, tmp_path: Path) -> Callable[[str], Ran]:
    """Run an example that must succeed; return what it prints."""
    world = trained.copy(tmp_path / "docs")

    def run_example(line: str) -> Ran:
        found = world.run(f"python examples/{line}")
        assert found.code == 0, found.err
        return found

    return run_example


def test_training_from_python(run: Callable[[str], Ran]) -> None:
    ran = run(f"train_from_python.py --base {BASES[0]} --pooled-size 32 --expansion-size 32")
    assert "30 rows, 30 pairs kept" in ran.err
    assert [f"alpha {alpha}: reward accuracy" in ran.out for alpha in (0.5, 1.0, 2.0)] == [True] * 3


def test_comparing_alphas(run: Callable[[str], Ran]) -> None:
    first, line, *answers = run(f"compare_alphas.py {HEAD} --alphas 0 1 2").out.splitlines()
    assert first.split("   ")[0] == "alpha 0"
    assert first.split()[1::2] == ["0", "1", "2"]
    assert set(line) == {"-", " "}
    assert answers


def test_drawing_answers(run: Callable[[str], Ran], tmp_path: Path) -> None:
    picture = tmp_path / "answers.svg"
    out = run(f"draw_answers.py {HEAD} --alphas 0 2 --output {picture}").out
    assert out.splitlines()[-1] == f"Written to {picture}"
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "Name a tree."
    base, steered = texts.index("alpha 0"), texts.index("alpha 2")
    assert base < steered < len(texts) - 1


def test_beams_and_samples(run: Callable[[str], Ran]) -> None:
    out = run(f"beams_and_samples.py {HEAD}").out
    assert [f"{name}:" in out for name in ("beam 1", "beam 2", "sample 1", "sample 2")] == [
        True
    ] * 4


def test_a_schedule(run: Callable[[str], Ran]) -> None:
    out = run(f"schedule.py {HEAD} --schedule 0:2,32:0.5").out
    assert "token 16: alpha 1.25\n" in out
    assert "\nalpha 1.0:\n" in out
    assert "\nalpha 0:2,32:0.5:\n" in out


def test_switching_bases(run: Callable[[str], Ran]) -> None:
    out = run(f"switch_bases.py {HEAD} --bases {BASES[0]} {OF_ANOTHER_VOCABULARY} {BASES[1]}").out
    assert f"--- {BASES[0]}, alpha 1\n" in out
    assert f"--- {OF_ANOTHER_VOCABULARY} is refused: " in out
    assert f"--- {BASES[1]}, alpha 1\n" in out


@pytest.fixture
def address(trained: World, tmp_path: Path) -> Iterator[str]:
    """A running server."""
    world = trained.copy(tmp_path / "server")
    port = free_port()
    health = f"http://127.0.0.1:{port}/health"
    with world.running(f"mav serve --head runs/head --port {port}", health):
        yield f"http://127.0.0.1:{port}/v1"


def test_asking_a_server(run: Callable[[str], Ran], address: str) -> None:
    out = run(f"ask_a_server.py 'Name a tree.' --url {address} --alpha 0:2,4:0 --max-tokens 6").out
    answer, tokens = out.rsplit("\n\n", 1)
    assert answer.strip()
    assert 1 <= len(tokens.splitlines()) <= 6
    assert all(line.split()[-1][0] in "+-" for line in tokens.splitlines())


def test_every_example_is_tested_and_listed() -> None:
    names = {
        path.name for kind in ("py", "ipynb") for path in (ROOT / "examples").glob(f"*.{kind}")
    }
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    tested = Path(__file__).read_text(encoding="utf-8")
    assert names
    for name in names:
        assert f"`{name}`" in listed
        assert re.search(rf"{re.escape(name)}\b", tested), name


def test_the_notebook(trained: World, tmp_path: Path) -> None:
    """Its cells in their order, as a script; with fewer pairs, as they take their time."""
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"code", "markdown"}
    sources = ["".join(cell["source"]) for cell in cells]
    assert "rows = [" in sources[1]
    sources.insert(2, "rows = rows[::8]")
    world = trained.copy(tmp_path / "docs")
    (world.folder / "cells.py").write_text("\n".join(sources), encoding="utf-8")
    ran = world.run("python cells.py")
    assert ran.code == 0, ran.err
    for said in ("240 pairs\n", "30 pairs, ", " steps\n", "alpha 2: ", "nats over the base\n"):
        assert said in ran.out, said
