"""Results of an evaluation as a table and as a plot."""

import sys
from pathlib import Path

import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.evaluation.evaluate import AlphaResult, Evaluation
from mav.pipeline.reporting import tables as report


def evaluation(*results: AlphaResult) -> Evaluation:
    return Evaluation(
        head="h",
        cache="c",
        which="held-out",
        pairs=50,
        tokens=1234,
        computed_in="float32",
        steps=12,
        results=results,
        hardly_moved=None,
        length_alpha=None,
        by_length=(),
        by_longer=(),
    )


NOTHING = AlphaResult(
    alpha=0.0,
    reward_accuracy=None,
    reward_accuracy_interval=None,
    logp_accuracy=0.5,
    logp_accuracy_interval=(0.4, 0.6),
    margin=0.0,
    margin_interval=(0.0, 0.0),
    kl_per_token=0.0,
    kl_interval=(0.0, 0.0),
    vector_norm=0.0,
)
SOMETHING = AlphaResult(
    alpha=1.5,
    reward_accuracy=0.625,
    reward_accuracy_interval=(0.5, 0.75),
    logp_accuracy=0.5,
    logp_accuracy_interval=(0.4, 0.6),
    margin=1.25,
    margin_interval=(1.0, 1.5),
    kl_per_token=0.0625,
    kl_interval=(0.05, 0.075),
    vector_norm=3.5,
)


def test_the_table() -> None:
    lines = report.table(evaluation(NOTHING, SOMETHING)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "50 pairs (held-out), 1234 response tokens; 95 % intervals in brackets",
        "alpha reward accuracy logp accuracy margin (nats) KL/token |alpha a|",
        "0 - 50.0% [40.0%, 60.0%] 0.000 [0.000, 0.000] 0.0000 0.000",
        "1.5 62.5% [50.0%, 75.0%] 50.0% [40.0%, 60.0%] 1.250 [1.000, 1.500] 0.0625 3.500",
    ]
    # The columns stand under each other.
    assert len(set(map(len, lines[1:]))) == 1


@pytest.mark.parametrize("results", [(NOTHING,), (NOTHING, SOMETHING), (SOMETHING,)])
@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_the_plot(
    tmp_path: Path, results: tuple[AlphaResult, ...], name: str, magic: bytes
) -> None:
    report.plot(evaluation(*results), tmp_path / name)
    drawn = (tmp_path / name).read_bytes()
    assert drawn.startswith(magic)
    assert len(drawn) > 5000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.xyz", r"plot: got .*a\.xyz, expected an ending such as \.png"),
        ("nowhere/a.png", r"a\.png: No such file or directory\. Name a file for `plot`"),
        ("folder.png", r"folder\.png: not a file\. Name a file for `plot`"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    for draw in (report.require_plot, lambda path: report.plot(evaluation(SOMETHING), path)):
        with pytest.raises(UsageError, match=message):
            draw(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_plot_without_matplotlib_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install matplotlib"):
        report.plot(evaluation(SOMETHING), tmp_path / "a.png")
