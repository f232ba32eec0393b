"""The documentation as a whole: it builds, leaves nothing out, and says what is so."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml  # type: ignore[import-untyped]

import mav
from mav import cli
from tests.docs.world import ROOT

DOCS: Final = ROOT / "docs"
# Command -> the page that is its own.
PAGES: Final = {
    "extract": "extracting",
    "verify": "extracting",
    "train": "training",
    "evaluate": "training",
    "compare": "compare",
    "generate": "decoding",
    "chat": "decoding",
    "serve": "serving",
    "engine-args": "serving-at-scale",
    "harness": "harness",
    "merge": "several-heads",
    "pairs": "rounds",
    "sample": "rounds",
    "push": "hub",
    "inspect": "index",
    "demo": "index",
    "completion": "index",
}
_ROW: Final = re.compile(r"^\| (?P<options>`--[^|]*) \|(?P<default>[^|]*)\| [^|]+ \|$", re.M)
PROJECT: Final[dict[str, Any]] = tomllib.loads(
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)["project"]


def read(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a page left out, a link or an anchor that leads nowhere is an error."""
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    reference = (tmp_path / "python.html").read_text(encoding="utf-8")
    for name in mav.__all__:
        assert f'id="mav.{name}"' in reference, name
    # Readers without a network see it whole.
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="?(https?:[^">]+)', page.read_text("utf-8")
        )
        assert not fetched, page


def test_every_command_has_a_page() -> None:
    assert set(PAGES) == set(cli.main.commands)
    for name, page in PAGES.items():
        assert f"`mav {name}`" in read(page)


def section(command: str) -> str:
    """Return the section with all options of a command, or the page where it has none."""
    page = read(PAGES[command])
    title = f"\n## All options of `mav {command}`\n"
    return page.split(title)[1].split("\n## ")[0] if title in page else page


@pytest.mark.parametrize("command", sorted(PAGES))
def test_every_option_is_told(command: str) -> None:
    text = section(command)
    for option in options_of(command):
        for name in (*option.opts, *option.secondary_opts):
            assert f"`{name}`" in text, name


@pytest.mark.parametrize("command", sorted(set(PAGES) - {"chat", "inspect", "demo", "completion"}))
def test_tables_of_options_have_the_defaults(command: str) -> None:
    rows = {
        row["options"].split("`")[1]: row["default"].strip()
        for row in _ROW.finditer(section(command))
    }
    options = {option.opts[0]: option for option in options_of(command)}
    assert set(rows) == set(options)
    for name, shown in rows.items():
        assert shown == default_of(options[name]), name


def options_of(command: str) -> list[click.Option]:
    found = cli.main.commands[command].params
    return [option for option in found if isinstance(option, click.Option)]


def default_of(option: click.Option) -> str:
    """Return what the table shows."""
    if option.required:
        return "required"
    if option.secondary_opts:
        return option.opts[0].removeprefix("--")
    default = option.to_info_dict()["default"]
    if default is None or default is False or default == () or option.multiple:
        return ""
    return str(default)


def test_every_public_name_is_on_the_page_on_python() -> None:
    referenced = re.findall(r"^::: mav\.(\w+)$", read("python"), re.M)
    assert sorted(referenced) == sorted(mav.__all__)


def test_every_extra_is_told() -> None:
    for extra in set(PROJECT["optional-dependencies"]) - {"dev", "bench"}:
        assert f"| `{extra}` |" in read("index")


def test_the_citation_is_sound() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # What the schema of version 1.2.0 requires.
    for key in ("cff-version", "message", "title", "authors"):
        assert found[key], key
    assert found["cff-version"] == "1.2.0"
    assert found["type"] == "software"
    assert str(found["version"]) == PROJECT["version"]
    assert found["license"] == PROJECT["license"] == "MIT"
    assert [author["name"] for author in found["authors"]] == ["The MAV authors"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_licence_is_there() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.findall(r"^## \[([^\]]+)\] - (\S+)$", text, re.M)[0]
    assert first[0] == PROJECT["version"]
    assert re.fullmatch(r"Unreleased|\d{4}-\d{2}-\d{2}", first[1])
    for kind in re.findall(r"^### (.+)$", text, re.M):
        assert kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_changelog_counts_the_architectures() -> None:
    from tests.support.models.architectures import CATALOGUE

    count = len({variant.model_type for variant in CATALOGUE.values()})
    assert f"Support for {count} architectures" in (ROOT / "CHANGELOG.md").read_text("utf-8")
