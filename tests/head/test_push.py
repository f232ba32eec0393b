"""Heads that go to the hub and come back, with a card that says what they are."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import HeadError, UsageError
from mav.pipeline.evaluation.evaluate import curve_of, evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.head.card import card
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.head.push import push_folder
from mav.pipeline.head.storage import CurvePoint, MergedPart, Recommendation
from mav.pipeline.runtime import hub as hub_client
from tests.support.hub.commands import run
from tests.support.hub.server import TOKEN, hub_server
from tests.support.hub.uploads import READ_ONLY
from tests.support.models.tiny import make_cache
from tests.support.running.limits import SCRIPT
from tests.support.steering.heads import origin_of, same_weights, seeded_head, sizes_of, write_head

CURVE = (
    CurvePoint(alpha=0.0, reward_accuracy=None, logp_accuracy=0.5, margin=0.0, kl_per_token=0.0),
    CurvePoint(alpha=1.0, reward_accuracy=0.625, logp_accuracy=0.55, margin=0.2, kl_per_token=0.01),
)
FOUND = Recommendation(alpha=1.75, target_kl=0.03, kl_per_token=0.0299, pairs=20, curve=CURVE)
SCRIPT_TEXT = """
import json, sys
from mav import AlignmentHead, HeadError
head = AlignmentHead.from_pretrained(sys.argv[1])
first = head.push_to_hub("tester/python", private=True)
head.project.weight.data.zero_()
second = head.push_to_hub("tester/python", revision="zeros", commit_message="Zeros")
main = AlignmentHead.from_pretrained("tester/python", dtype="float32")
zeros = AlignmentHead.from_pretrained("tester/python", revision="zeros")
old = AlignmentHead.from_pretrained("tester/python", revision=first.rpartition("/")[2])
told = []
for wrong in ("readonly/taken", "not an id/x/y"):
    try:
        head.push_to_hub(wrong)
    except HeadError as error:
        told.append(str(error))
sums = [float(each.project.weight.detach().abs().sum()) for each in (main, zeros, old)]
json.dump({"commits": [first, second], "sums": sums, "told": told}, sys.stdout)
"""


def test_there_and_back(warm_programs: Path, tmp_path: Path) -> None:
    cache = make_cache(tmp_path, pairs=12)
    head = write_head(tmp_path / "head", cache)
    with hub_server() as hub:
        environment = hub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN}
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT_TEXT, head],
            env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), **environment},
            capture_output=True,
            text=True,
            timeout=SCRIPT,
        )
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        pushed = ["push", "--head", head, "tester/line"]
        ((plain, measured, refused, there),) = run(
            warm_programs / "early-python",
            [
                [
                    pushed,
                    [*pushed, "--cache", cache, "--alphas", "0,1", "--json"],
                    ["push", "--head", head, READ_ONLY],
                    ["inspect", "tester/line"],
                ]
            ],
            tmp_path,
            environment,
        )
        repository = hub.repositories["models", "tester/line"]
        python = hub.repositories["models", "tester/python"]
        made = dict(hub.private)
    main, zeros, old = found["sums"]
    assert main == old > 0 == zeros
    assert made == {"tester/python": True, "tester/line": None}
    assert set(python.refs) == {"main", "zeros"}
    assert "readonly/taken: the hub did not take the head: " in found["told"][0]
    assert len(found["told"]) == 2
    files = repository.commits[repository.refs["main"]]
    assert set(files) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    assert files["model.safetensors"] == (Path(head) / "model.safetensors").read_bytes()
    assert (plain.code, measured.code, refused.code, there.code) == (0, 0, 1, 0), measured.err
    commit = json.loads(measured.out)["commit"].rpartition("/")[2]
    assert commit == repository.refs["main"] != plain.out.strip().rpartition("/")[2]
    assert "the hub did not take the head" in refused.error
    rows = curve_of(evaluate(EvaluateOptions(head=head, cache=cache, alphas=[0.0, 1.0])))
    text = files["README.md"].decode()
    assert f"| 1 | {rows[1].reward_accuracy:.1%} | {rows[1].logp_accuracy:.1%} |" in text
    assert not (Path(head) / "README.md").exists()


def manifest(tmp_path: Path) -> Any:
    return CacheReader(make_cache(tmp_path, pairs=8)).manifest


def test_a_card_says_what_a_head_is(tmp_path: Path) -> None:
    own = manifest(tmp_path)
    hub_base = dataclasses.replace(own.base, id="meta-llama/Llama-2-7b-hf", revision="c" * 40)
    source = dataclasses.replace(own.data.sources[0], id="Anthropic/hh-rlhf")
    data = dataclasses.replace(own.data, sources=(source,))
    parts = (
        MergedPart(name="kind", alpha=0.5, digest="d", objective="dpo", beta=0.1, steps=3),
        MergedPart(name="safe", alpha=2.0, digest="e", objective="dpo", beta=0.1, steps=3),
    )
    origin = dataclasses.replace(
        origin_of(dataclasses.replace(own, base=hub_base, data=data)),
        recommended=FOUND,
        merged=parts,
    )
    text = card(sizes_of("mlp"), origin, name="me/polite")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head) == {
        "library_name": "mav-align",
        "tags": ["mav", "alignment", "test-time"],
        "base_model": "meta-llama/Llama-2-7b-hf",
        "datasets": ["Anthropic/hh-rlhf"],
    }
    for part in (
        "# me/polite",
        f"| data | `Anthropic/hh-rlhf`: {own.data.pairs} pairs |",
        "| objective | `mav`, beta 0.3, 12 steps; 5% of the prompts held out |",
        "| merged from | 0.5 of kind, 2 of safe |",
        "| recommended alpha | 1.75, where the KL to the base is 0.0299 nats a token (0.03 were",
        "| 0 |  | 50.0% | 0 | 0 |",
        "| 1 | 62.5% | 55.0% | 0.2 | 0.01 |",
        'with MAVInference("me/polite", "meta-llama/Llama-2-7b-hf") as mav:',
        "alpha=1.75))",
    ):
        assert part in body
    bare = card(sizes_of("mlp"), origin_of(own), name="x")
    assert "base_model" not in bare and "datasets:" not in bare and "Nothing yet" in bare


def test_a_folder_keeps_everything_and_the_card_that_is_there(tmp_path: Path) -> None:
    head = seeded_head(config=sizes_of("mlp"))
    with pytest.raises(HeadError, match="does not say what it was trained from"):
        head.save_pretrained(tmp_path / "out")
    head.origin = dataclasses.replace(origin_of(manifest(tmp_path)), recommended=FOUND)
    head.save_pretrained(tmp_path / "out")
    again = AlignmentHead.from_pretrained(str(tmp_path / "out"))
    assert again.origin is not None and again.origin.recommended == FOUND
    assert same_weights(head, again)
    (tmp_path / "out" / "README.md").write_text("mine")
    head.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    assert load_head(str(tmp_path / "out")).origin.recommended == FOUND


def test_a_card_of_ones_own_is_sent_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def upload(folder: Path, *_: object, **__: object) -> str:
        sent.append((folder / "README.md").read_text())
        return "address"

    monkeypatch.setattr(hub_client, "upload", upload)
    head = Path(write_head(tmp_path / "head", make_cache(tmp_path, pairs=8)))
    (head / "README.md").write_text("mine")
    push_folder(head, "me/x")
    push_folder(head, "me/x", curve=CURVE)
    assert sent[0] == "mine" and "62.5%" in sent[1]
    assert (head / "README.md").read_text() == "mine"


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"revision: got 'v2', but .* is here and has no rev"):
        AlignmentHead.from_pretrained(str(tmp_path), revision="v2")
