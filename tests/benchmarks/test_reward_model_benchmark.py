"""The pairs a reward model is trained on, and how often it ranks those held out right."""

import subprocess
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.baselines.split import DataSettings, load_split
from benchmarks.reward_model import accuracy, freeze_all_but, read_split
from mav.pipeline.comparison.reward import RewardModel
from mav.pipeline.evaluation.statistics import wilson
from tests.support.models.tiny import ARCHITECTURES, tiny_base, tiny_tokenizer, write_rows
from tests.support.running.limits import PROCESS

FRACTION = 0.3


def classifier() -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(**{**ARCHITECTURES["llama"], "num_labels": 1})
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def test_the_same_pairs_are_held_out_as_from_other_methods(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "pairs.jsonl", 60))
    training, held_out, counts = read_split(path, FRACTION)
    settings = DataSettings(base_model="tiny", dataset=path, eval_fraction=FRACTION)
    split = load_split(settings, tiny_base().tokenizer)
    for own, places in ((training, split.training), (held_out, split.held_out)):
        ids = split.pairs.pair_id[places].tolist()
        assert sorted(pair.pair_id for pair in own) == sorted(ids)
    assert (len(training) + len(held_out), counts.rows) == (60, 60)
    assert min(len(training), len(held_out)) > 5


def test_a_pair_is_ranked_right_where_its_chosen_answer_scores_more(tmp_path: Path) -> None:
    model = classifier().eval()
    model.save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    _, pairs, _ = read_split(str(write_rows(tmp_path / "pairs.jsonl", 60)), FRACTION)
    scorer = RewardModel.load(
        str(tmp_path / "reward"), device="cpu", dtype="float32", max_length=128
    )
    found = accuracy(scorer, pairs)

    @torch.no_grad()
    def reward(text: str) -> float:
        ids = tiny_tokenizer()(text)["input_ids"][-128:]
        return float(model(input_ids=torch.tensor([ids])).logits)

    margins = [reward(p.prompt + p.chosen) - reward(p.prompt + p.rejected) for p in pairs]
    right = sum(margin > 0 for margin in margins)
    assert 0 < right < len(pairs)
    assert found["accuracy"] == right / len(pairs)
    assert found["accuracy_interval"] == wilson(right, len(pairs))
    assert found["margin"] == pytest.approx(sum(margins) / len(pairs), abs=1e-3)


def test_the_last_layers_are_trained_alone() -> None:
    model = classifier()
    freeze_all_but(model, 1)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    last = len(model.get_decoder().layers) - 1
    assert {"score.weight", "model.norm.weight"} < trained
    assert all(
        name.startswith(("score.", "model.norm.", f"model.layers.{last}.")) for name in trained
    )


def test_a_folder_that_exists_is_refused(tmp_path: Path, warm_programs: Path) -> None:
    found = subprocess.run(
        [
            *(warm_programs / "python", "-m", "benchmarks.reward_model"),
            *("--pairs", tmp_path / "pairs.jsonl", "--output", tmp_path),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PROCESS,
    )
    assert found.returncode == 1
    assert found.stderr.endswith("exists already; remove it, or name another\n")
