"""A search for the smallest model that takes seconds: nothing is trained, likelihoods alone are read."""

import json
from pathlib import Path
from typing import Any

from sweeps import small_sweep

from lowrank_bench.runners.config import SweepConfig

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/sums.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_sums(folder: Path) -> Path:
    """Write a task whose answers the built-in model finds likelier than letters in disorder; returns the folder."""
    texts = [
        "Tom has 12 apples and buys 3 more.",
        "She reads 5 pages a day.",
        "A box holds 8 pens.",
        "The shop sells tea.",
    ]
    rows = [
        {"question": text[: len(text) - cut], "choices": [" " + text[-cut - 1 :][:cut], " zqxjkvzq"], "label": 0}
        for text in texts
        for cut in (4, 5, 6, 7)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    return folder


def likelihood_sweep(include_path: Path, out: Path, **changes: Any) -> SweepConfig:
    """Return a sweep of seconds: nothing is trained, likelihoods alone are read."""
    values = {
        "methods": ["random", "svd"], "benchmarks": ["lm_eval:sums"], "include_path": include_path, "out": out,
        "training_free": True, "finetune": {}, "recover": {}, "limit": 16, "workers": 1,
    }  # fmt: skip
    return small_sweep(**values | changes)
