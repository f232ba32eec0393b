"""Tasks of lm-eval with documents of their own: one of each kind of request."""

import json
from pathlib import Path
from typing import Final

from tests.support.models.tiny import rows

CHOICE, ROLLING, WRITING = "mav_choice", "mav_rolling", "mav_writing"
TASKS: Final = {
    CHOICE: """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{answers}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    ROLLING: """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}{{answers[0]}}"
metric_list:
  - {metric: byte_perplexity}
""",
    WRITING: """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answers[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


def write_tasks(folder: Path, documents: int = 12) -> Path:
    """Write the tasks, their documents, and a group of two of them; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows(documents)):
        question, _, chosen = row["chosen"].rpartition("Assistant:")
        answers = [chosen, row["rejected"].rpartition("Assistant:")[2]]
        label = number % 2
        lines.append(
            {
                "question": f"{question}Assistant:",
                "answers": answers[::-1] if label else answers,
                "label": label,
            }
        )
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, text in TASKS.items():
        shared = f"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
fewshot_split: test
"""
        (folder / f"{name}.yaml").write_text(shared + text.lstrip(), encoding="utf-8")
    (folder / "group.yaml").write_text(
        f"""group: mav_both
task: [{CHOICE}, {WRITING}]
aggregate_metric_list:
  - {{metric: acc, weight_by_size: true}}
""",
        encoding="utf-8",
    )
    return folder
