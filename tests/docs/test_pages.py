"""Every command and snippet of the documentation is run, and prints what the page shows."""

import contextlib
import inspect
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from mav.pipeline.decoding.trained_head import new_head
from tests.docs.pages import LANGUAGES, RUN, Block, blocks_of, differs
from tests.docs.world import ROOT, World, free_port

# Page -> the fixture that is the world as it is before the page begins.
WORLDS: Final = {
    "docs/index.md": "world",
    "docs/tutorial.md": "world",
    "docs/extracting.md": "world",
    "docs/training.md": "extracted",
    "docs/decoding.md": "trained",
    "docs/several-heads.md": "trained",
    "docs/compare.md": "trained",
    "docs/rounds.md": "trained",
    "docs/serving.md": "trained",
    "docs/serving-at-scale.md": "trained",
    "docs/harness.md": "trained",
    "docs/python.md": "trained",
    "README.md": "world",
}
# What the README runs has the sizes of LLaMA-7B; here it gets sizes that tests can bear.
DEFAULTS: Final = {
    "README.md": {
        "extract": {"pooled_size": 32, "device": "cpu"},
        "train": {"expansion_size": 32, "batch_size": 4},
        "generate": {"max_new_tokens": 8},
    }
}
MEASURED: Final = {"gpu.md", "results.md", "trust.md"}
"""Pages whose commands made the figures on them, with real models and hours of time."""
NEEDS_VLLM: Final = "needs vllm"
"""Notes blocks that only an environment with vLLM can run; tests/vllm has what they do."""


@pytest.mark.parametrize("page", WORLDS)
def test_a_page_is_true(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    for program in _programs(page):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, which is not installed")
    if page == "docs/harness.md":
        pytest.importorskip("lm_eval", reason="needs the extra eval")
    before: World = request.getfixturevalue(WORLDS[page])
    world = before.copy(tmp_path / "docs")
    monkeypatch.chdir(world.folder)
    if page == "README.md":
        sizes = inspect.unwrap(new_head).__kwdefaults__
        assert sizes is not None
        for name in ("pooled_size", "expansion_size"):
            monkeypatch.setitem(sizes, name, 32)
    namespace: dict[str, Any] = {"__name__": "page"}
    ports = {named: str(free_port()) for named in ("8000", "8001")}
    with contextlib.ExitStack() as beside:
        for block in blocks_of(ROOT / page):
            place = f"{page}, line {block.line}"
            _check(place, _with_ports(block, ports), world, namespace, beside, page)


def _programs(page: str) -> list[str]:
    """Return the programs that a page's commands take from the system."""
    commands = "\n".join(block.text for block in blocks_of(ROOT / page) if block.language == "bash")
    return [name for name in ("curl", "jq") if re.search(rf"(^|\| ){name} ", commands, re.M)]


def _check(
    place: str,
    block: Block,
    world: World,
    namespace: dict[str, Any],
    beside: contextlib.ExitStack,
    page: str,
) -> None:
    if block.note == NEEDS_VLLM:
        return
    if block.language == "json":
        for line in [block.text] if block.text.startswith("[") else _values(block.text):
            json.loads(line)
        return
    if block.language == "python":
        out, err = _exec(block.text, place, namespace), ""
    elif block.background_until is not None:
        beside.enter_context(world.running(block.text, block.background_until))
        return
    elif block.language == "bash":
        defaults = DEFAULTS.get(page, {"extract": {"device": "cpu"}})
        ran = world.run(block.text, MAV_TEST_DEFAULTS=json.dumps(defaults))
        assert ran.code == block.exit_code, f"{place}: {ran.code}\n{ran.out}\n{ran.err[-3000:]}"
        out, err = ran.out, ran.err
    else:
        return
    if block.output is not None:
        wrong = differs(block.output, out, err)
        assert wrong is None, f"{place}:\n{wrong}"


def _exec(text: str, place: str, namespace: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, place, "exec"), namespace)
    return printed.getvalue()


def _values(text: str) -> list[str]:
    """Split a block into JSON values: one, or one per line."""
    lines = text.strip().splitlines()
    return lines if all(line.startswith("{") and line.endswith("}") for line in lines) else [text]


def _with_ports(block: Block, ports: dict[str, str]) -> Block:
    """Return a block with free ports in place of those it names."""

    def changed(text: str) -> str:
        for named, free in ports.items():
            text = text.replace(named, free)
        return text

    return Block(
        language=block.language,
        text=changed(block.text),
        line=block.line,
        note=changed(block.note),
        output=block.output and changed(block.output),
    )


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_blocks_say_what_they_are(page: str) -> None:
    """So none is left out for the want of a language."""
    for block in blocks_of(ROOT / "docs" / page):
        bare = block.language == "" and page == "format.md"  # the objects of a cache
        assert bare or block.language in LANGUAGES, f"{page}, line {block.line}"
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)


def test_no_page_is_forgotten() -> None:
    pages = {
        path.name
        for path in (ROOT / "docs").rglob("*.md")
        if any(block.language in RUN for block in blocks_of(path))
    }
    assert pages - MEASURED == {Path(page).name for page in WORLDS} - {"README.md"}


def test_notes_on_blocks_are_understood() -> None:
    for block in (block for page in WORLDS for block in blocks_of(ROOT / page)):
        known = ("exits with ", "in the background until ", NEEDS_VLLM, "Written by", "End of")
        assert not block.note or block.note.startswith(known), block.note


@pytest.mark.parametrize(
    ("shown", "out", "err", "same"),
    [
        ("a\nb\n", "a\nb\n", "", True),
        ("a\n", "a\nb\n", "", False),
        ("a\n…\n", "a\nb\nc\n", "", True),
        ("…\nc\n", "a\nb\nc\n", "", True),
        ("a … c\n", "a 17 c\n", "", True),
        ("a … c\n", "a 17 d\n", "", False),
        ("told\na\n", "a\n", "noise\ntold\nmore\n", True),
        ("told\na\n", "a\n", "noise\n", False),
        ("b\na\n", "a\nb\n", "", False),
        ("a\nb\n", "a\n", "", False),
    ],
)
def test_output_is_compared(shown: str, out: str, err: str, same: bool) -> None:
    assert (differs(shown, out, err) is None) == same


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n<!-- exits with 2 -->\n\n```bash\nfalse\n```\n\n```text\nno\n```\n\n"
        "Words.\n\n```text\nnot output\n```\n\n"
        "<!-- in the background until up -->\n```python\n1\n```\n"
    )
    first, second, third = blocks_of(page)
    assert (first.language, first.text, first.output) == ("bash", "false\n", "no\n")
    assert (first.exit_code, first.line, first.background_until) == (2, 5, None)
    assert (second.language, second.output) == ("text", None)
    assert (third.background_until, third.exit_code) == ("up", 0)
