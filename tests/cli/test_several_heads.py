"""Several heads at the command line: names before places, strengths by name."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mav.cli import main
from mav.pipeline.decoding.inference import MAVInference
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.steering.heads import save_random_head


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    cache = make_cache(folder, tiny_base(), pairs=10)
    save_base(tiny_base(), folder / "base")
    save_random_head(cache, folder / "a")
    save_random_head(cache, folder / "b", kind="unembedding")
    (folder / "prompts.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "What is bread?"}\n')
    return folder


def run(made: Path, command: str, *more: str, heads: str = "kind=a careful=b") -> Result:
    """Run a command on heads, by name and folder."""
    given = [part.replace("=", f"={made}/") if "=" in part else f"{made}/{part}"
             for part in heads.split()]  # fmt: skip
    named = [text for head in given for text in ("--head", head)]
    return CliRunner().invoke(main, [command, *named, *more])


LIVE = ("--dtype", "float32", "--device", "cpu", "--max-new-tokens", "6")


def test_generate_adds_both(made: Path) -> None:
    alpha = "kind=2,careful=0:3,4:-1"
    base = ("--base-model", str(made / "base"))
    found = run(made, "generate", *base, *LIVE, "--prompt", "Hi", "--alpha", alpha, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["alpha"] == {"kind": 2.0, "careful": "0:3,4:-1"}
    places = {"kind": made / "a", "careful": made / "b"}
    mav = MAVInference(places, made / "base", dtype="float32", device="cpu")
    assert told["tokens"] == [*mav.generate("Hi", alpha, mav.decoding(max_new_tokens=6)).tokens]


def test_chat_takes_and_changes_them(made: Path) -> None:
    named = ["--head", f"kind={made / 'a'}", "--head", f"careful={made / 'b'}"]
    more = ["--base-model", str(made / "base"), "--alpha", "kind=1,careful=1", *LIVE]
    found = CliRunner().invoke(main, ["chat", *named, *more], input="Hi\n/alpha careful=0\nHi\n")
    assert found.exit_code == 0, found.output
    assert "alpha kind=1,careful=0" in found.stderr


@pytest.mark.parametrize(
    ("heads", "more", "told"),
    [
        ("a b", ("--alpha", "1"), "--head: got 2, of which"),
        ("kind=a careful=b", (), "--alpha: got 1, expected a strength for each head, as in kind=1"),
        ("kind=a careful=b", ("--alpha", "kind=1"), "careful is missing. 0 leaves a head out"),
        ("kind=a careful=b", ("--alphas", "0,1"), "--alphas and --demo-switching take one head"),
        ("a", ("--alpha", "kind=1"), "as the one head has no name; give it one, as in --head"),
        ("a", ("--alpha", "kind=1,"), "got '1,', expected a finite number"),
    ],
)
def test_what_is_not_said_is_refused_before_anything_is_loaded(
    made: Path, heads: str, more: tuple[str, ...], told: str
) -> None:
    found = run(made, "generate", "--prompt", "Hi", *more, heads=heads)
    assert found.exit_code == 2
    assert told in found.output.replace("\n", " ")


def test_evaluate_multiplies_the_strengths(made: Path) -> None:
    more = ("--cache", str(made / "cache"), "--pairs", "all", "--device", "cpu")
    alpha = ("--alpha", "kind=1,careful=0.5")
    found = run(made, "evaluate", *more, *alpha, "--alphas", "0,1", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["alpha"] == {"kind": 1.0, "careful": 0.5}
    assert [row["alpha"] for row in told["results"]] == [0.0, 1.0]
    table = run(made, "evaluate", *more, *alpha, "--alphas", "0,1")
    assert "alpha multiplies kind=1,careful=0.5" in table.output
    refused = run(made, "evaluate", *more)
    assert refused.exit_code == 2
    assert "--alpha: got none, expected a number for each of the heads" in refused.output
    page = run(made, "evaluate", *more, *alpha, "--report", str(made / "page.html"))
    assert page.exit_code == 2
    assert "--report shows the training of one head" in page.output


def test_compare_answers_with_both_beside_the_base(made: Path, tmp_path: Path) -> None:
    alpha = ("--alpha", "kind=1,careful=0.5", "--alpha", "careful=2,kind=0:1,3:0")
    asked = ("--prompts", str(made / "prompts.jsonl"), "--output", str(tmp_path / "out"))
    base = ("--base-model", str(made / "base"))
    found = run(made, "compare", *base, *LIVE, *asked, *alpha, "--json")
    assert found.exit_code == 0, found.output
    systems = json.loads(found.stdout)["systems"]
    assert [(one["name"], one["alpha"]) for one in systems] == [
        ("alpha=0", 0.0),
        ("kind=1,careful=0.5", {"kind": 1.0, "careful": 0.5}),
        ("careful=2,kind=0:1,3:0", {"careful": 2.0, "kind": "0:1,3:0"}),
    ]
    assert systems[0]["kl"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert all(one["kl"]["value"] > 0.01 and one["head"] is None for one in systems[1:])
    again = run(made, "compare", *base, *LIVE, *asked, *alpha, "--json")
    assert json.loads(again.stdout)["systems"] == systems
    assert "kind=1,careful=0.5" in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    unknown = run(made, "compare", *base, *LIVE, *asked, "--alpha", "sharp=1")
    assert unknown.exit_code == 2
    assert "no head is called sharp; expected some of kind, careful" in unknown.output
