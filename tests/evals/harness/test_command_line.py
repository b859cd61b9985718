"""`lm_eval:TASK` gives what lm-evaluation-harness's own command line gives on the same folder, item by item.

The command line gets the published tasks' data from a hub on this machine, and loads the factorised folder with
``--model hf`` alone: torch's entry point brings this package in.
"""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from harness_tasks import CHOICE, GROUP, SECOND, STARTS, lines_of, write_tasks
from loopback_hub import running
from served_models import factorise

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer

LIMIT = 5
MMLU = Path(lm_eval.tasks.__file__).parent / "mmlu"
DATASETS = {("allenai/ai2_arc", "ARC-Easy"): "arc_easy", ("openai/gsm8k", "main"): "gsm8k"}
GROUPS = {"local_sized": ["local_choice", "local_other"], "local_apart": ["local_third", "local_fourth"]}
TASKS = ["arc_easy", "gsm8k", "mmlu", "local_generated", "local_last_word", "local_texts", *sorted(GROUPS)]


def write_mmlu(folder):
    """Write questions in the form of MMLU's dataset for each of its subjects, one to five; returns the folder."""
    draw = random.Random(0)
    words = [word for text, *answers in STARTS for word in " ".join([text, *answers]).split()]
    subjects = [path.stem.removeprefix("mmlu_") for path in MMLU.glob("default/mmlu_*.yaml")]
    for position, subject in enumerate(sorted(subjects)):
        rows = [
            {
                "question": f"{' '.join(draw.sample(words, 6))}?",
                "subject": subject,
                "choices": draw.sample(sorted(set(words)), 4),
                "answer": draw.randrange(4),
            }
            for _ in range(1 + position % LIMIT + 1)
        ]
        path = folder / "cais" / "mmlu" / subject
        path.mkdir(parents=True)
        (path / "dev.jsonl").write_text(lines_of(rows[:1]))
        (path / "test.jsonl").write_text(lines_of(rows[1:]))
    return folder


def fill(hub, data_dir, mmlu_dir):
    """Serve the local files of the published tasks' datasets."""
    root = mmlu_dir / "cais" / "mmlu"
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jsonl")}
    configs = [
        {"config_name": folder.name}
        | {"data_files": [{"split": split, "path": f"{folder.name}/{split}.jsonl"} for split in ("dev", "test")]}
        for folder in sorted(root.iterdir())
    ]
    readme = f"---\nconfigs: {json.dumps(configs)}\n---\n"
    hub.repository("datasets", "cais/mmlu").add({**files, "README.md": readme.encode()})
    for (name, config), folder in DATASETS.items():
        texts = {
            path.name.removesuffix(".jsonl.gz"): gzip.decompress(path.read_bytes())
            for path in (data_dir / folder).glob("*.jsonl.gz")
        }
        texts.setdefault("train", next(iter(texts.values())))  # named by the task, not used without examples
        splits = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in texts]
        readme = f"---\nconfigs: {json.dumps([{'config_name': config, 'data_files': splits}])}\n---\n"
        files = {f"{config}/{split}.jsonl": text for split, text in texts.items()}
        hub.repository("datasets", name).add({**files, "README.md": readme.encode()})


@pytest.fixture(scope="module")
def include_path(tmp_path_factory):
    """Return the shared tasks, and a group of others: the command line takes no task twice."""
    folder = write_tasks(tmp_path_factory.mktemp("own"))
    others = {"local_choice": ("local_third", CHOICE), "local_other": ("local_fourth", SECOND)}
    for name, (other, text) in others.items():
        (folder / f"{other}.yaml").write_text(text.replace(name, other).replace("FOLDER", str(folder)))
    group = GROUP.format(name="apart", by_size="false")
    for name, (other, _) in others.items():
        group = group.replace(name, other)
    (folder / "apart.yaml").write_text(group)
    return folder


@pytest.fixture(scope="module")
def mmlu_dir(tmp_path_factory):
    """Return a data folder with questions in MMLU's form."""
    return write_mmlu(tmp_path_factory.mktemp("mmlu"))


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    """Return stories260K with factors in place of its matrices."""
    source, folder = data_dir / "models" / "stories260K", tmp_path_factory.mktemp("factorised") / "model"
    torch.set_num_threads(1)
    save_checkpoint(factorise(load_model(source)), load_tokenizer(source), folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder, include_path, data_dir, mmlu_dir, tmp_path_factory):
    """Return the results file of the command line, and its samples by task."""
    home = tmp_path_factory.mktemp("home")
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={folder}",
        "--tasks", ",".join(TASKS), "--include_path", include_path, "--limit", str(LIMIT), "--device", "cpu",
        "--batch_size", "4", "--log_samples", "--output_path", home / "out",
    ]  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LOWRANK"))}
    quiet = dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
    with running() as hub:
        fill(hub, data_dir, mmlu_dir)
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=inherited | quiet | own, cwd=home, capture_output=True, text=True, timeout=1800, check=False
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (report,) = (home / "out").rglob("results_*.json")
    samples = {}
    for path in report.parent.glob("samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        samples[path.name.removeprefix("samples_").rsplit("_", 1)[0]] = lines
    return json.loads(report.read_text()), samples


@pytest.mark.parametrize("task", TASKS)
def test_values_and_items_are_those_of_the_command_line(task, folder, theirs, include_path, data_dir, mmlu_dir):
    report, samples = theirs
    settings = EvalSettings(mmlu_dir if task == "mmlu" else data_dir, limit=LIMIT, include_path=include_path)
    outcome = benchmarks.get(f"lm_eval:{task}")().evaluate(TransformersEngine(folder, dtype="float32"), settings)
    for metric in outcome.metrics:
        name, _, member = metric.name.partition("/")
        value = report["results"][member or task][f"{name},{metric.scorer or 'none'}"]
        assert metric.value == pytest.approx(value, rel=1e-5), metric
    lines = {line["problem"]: line for line in outcome.samples}
    members = list(outcome.details["tasks"])
    assert task == "mmlu" or members == GROUPS.get(task, [task])
    compared = set()
    for member in members:
        for sample in samples[member]:
            problem = f"{member}/{sample['doc_id']}" if len(members) > 1 else str(sample["doc_id"])
            line = lines[problem]
            assert line["problem_sha256"] == sample["doc_hash"]
            answers = [replies[0] for replies in sample["resps"]]
            if line["finish_reason"] != "scored":
                assert line["completion"] == answers[0]
                assert line["answers"][sample["filter"]] == sample["filtered_resps"][0]
            elif task == "local_texts":
                assert line["loglikelihoods"] == pytest.approx(list(map(float, answers)), rel=1e-5)
            else:
                assert line["loglikelihoods"] == pytest.approx([float(value) for value, _ in answers], rel=1e-5)
                assert line["greedy"] == [str(greedy) == "True" for _, greedy in answers]
            for metric in sample["metrics"]:
                verdict = line["verdicts"].get(metric if sample["filter"] == "none" else sample["filter"])
                if verdict is not None:
                    assert (verdict == "correct") == (sample[metric] == 1)
            compared.add(problem)
    assert compared == lines.keys()
