"""`lm_eval --model vllm` takes a factorised folder, with nothing but this package installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from served_models import factorise, widen_heads

from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer

QUESTIONS = [("Once upon a", " time", " xylophone"), ("The little girl was very", " happy", " theorem")]
TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_factorised_folder(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "models" / "stories260K"
    save_checkpoint(factorise(widen_heads(load_model(source))), load_tokenizer(source), tmp_path / "model")
    rows = [{"question": text, "choices": [right, wrong], "label": 0} for text, right, wrong in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local_choice.yaml").write_text(TASK.replace("FILE", str(tmp_path / "rows.jsonl")))
    options = {
        "pretrained": tmp_path / "model", "dtype": "float32", "kv_cache_memory_bytes": 32 << 20, "max_model_len": 128,
        "enforce_eager": True,
    }  # fmt: skip
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "vllm",
            "--model_args", ",".join(f"{key}={value}" for key, value in options.items()),
            "--tasks", "local_choice", "--include_path", tmp_path, "--output_path", tmp_path / "out.json",
        ],
        env=os.environ | settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (report,) = tmp_path.glob("out*.json")
    assert json.loads(report.read_text())["results"]["local_choice"]["acc,none"] == 1.0
