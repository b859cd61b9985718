"""The command line as a user meets it: real processes."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import commands
import pytest

from lowrank_bench.evals.tasks.base import all_tasks
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import low_rank_layers
from lowrank_bench.results.samples.stored import sample_file


def bench(*arguments, cwd=None, **environment):
    return commands.bench(*arguments, cwd=cwd, without="LOWRANK_BENCH_DATA", **environment)


def refused(done, *words):
    """Exit code 2, one sentence on stderr, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr
    return True


def test_help_and_listings_import_no_torch():
    code = (
        "import sys; sys.argv = ['bench', '--help']\n"
        "from lowrank_bench.cli import app\n"
        "for words in ('--help', 'methods', 'methods --policies', 'models', 'benchmarks', 'run --help'):\n"
        "    app(words.split(), standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "svd" in done.stdout
    assert "uniform" in done.stdout
    assert "gsm8k" in done.stdout


def test_tasks_are_listed():
    done = bench("tasks")
    assert done.returncode == 0
    assert all(name in done.stdout for name in all_tasks())


RUN = ("run", "--model", "tiny", "--task", "toy-math", "--methods", "svd")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run",), ("'model' is missing", "--model")),
        ((*RUN, "--ratios", "two"), ("the ratio 'two' is not a number",)),
        ((*RUN, "--bytes", "None"), ("the share of the bytes 'None' is not a number",)),
        ((*RUN, "--ratios", "0.5"), ("above 1",)),
        ((*RUN, "--ratios", "2,2"), ("ratio 2 is given twice",)),
        ((*RUN, "--ratios", "99"), ("out of reach", "ask for at most")),
        ((*RUN, "--config", "none.yaml"), ("none.yaml", "cannot be read")),
        (("run", "--model", "tiny", "--task", "toy-math", "--methods", "sdv"), ("unknown method 'sdv'", "'svd'")),
        (("run", "--model", "tyni", "--task", "toy-math", "--methods", "svd"), ("unknown model 'tyni'", "'tiny'")),
        (("run", "--model", "tiny", "--task", "toymath", "--methods", "svd"), ("unknown task", "'toy-math'")),
        ((*RUN, "--benchmarks", "gsm9k"), ("unknown benchmark 'gsm9k'", "'gsm8k'")),
        ((*RUN, "--data", "nowhere"), ("nowhere does not exist",)),
        (("eval", "tiny", "--benchmarks", "gsm9k"), ("unknown benchmark",)),
        (("eval", "tiny", "--benchmarks", "toy-math", "--stage", "raw"), ("unknown stage 'raw'",)),
        (("compress", "tiny", "--method", "svd", "--ratio", "2,3", "--out", "x"), ("one number",)),
        (("compress", "tiny", "--method", "fwsvd", "--ratio", "2", "--out", "x"), ("--task",)),
        (("eval", "tiny", "--benchmarks", ","), ("the list ',' is empty",)),
        ((*RUN, "--benchmarks", " , "), ("the list ' , ' is empty",)),
        ((*RUN, "--seeds", ""), ("the list '' is empty",)),
        (("table", "nowhere"), ("nowhere",)),
        (("table", ".", "--format", "word"), ("unknown format 'word'", "markdown")),
        (("plot", "nowhere"), ("nowhere",)),
        (("plot", ".", "--x", "byte"), ("unknown x-axis 'byte'", "'bytes'")),
        (("export", "nowhere", "--dense", "--out", "x"), ("nowhere does not exist",)),
        (("export", "nowhere", "--out", "x"), ("--dense",)),
        (("export", "nowhere:svd@2", "--dense", "--out", "x"), ("nowhere",)),
        (("speed", "nowhere"), ("nowhere does not exist",)),
        (("speed", "tiny", "--engine", "vlm"), ("unknown engine 'vlm'", "'vllm'")),
        (("speed", "tiny", "--engine", "transformers", "--batch-sizes", "1,two"), ("'two' is not a number",)),
        (("speed", "tiny", "--engine", "transformers", "--new-tokens", "1"), ("--new-tokens",)),
    ],
)
def test_wrong_input_ends_in_one_sentence_and_writes_nothing(tmp_path, arguments, words):
    assert refused(bench(*arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_unknown_yaml_key_is_refused(tmp_path):
    (tmp_path / "sweep.yaml").write_text("model: tiny\ntask: toy-math\nmethods: svd\nratioss: [2]\n")
    assert refused(bench("run", "--config", "sweep.yaml", cwd=tmp_path), "unknown key 'ratioss'", "'ratios'")


def test_model_without_linear_layers_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32)).save_pretrained(tmp_path / "gpt2")
    done = bench("run", "--model", "gpt2", "--task", "toy-math", "--methods", "svd", cwd=tmp_path)
    assert refused(done, "no nn.Linear layer")


def test_corrupt_checkpoint_is_refused(tmp_path):
    from lowrank_bench.models.presets import PRESETS

    shutil.copytree(PRESETS["tiny"].source, tmp_path / "cut", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    done = bench("compress", "cut", "--method", "svd", "--ratio", "2", "--out", "small", cwd=tmp_path)
    assert refused(done, "model.safetensors", "corrupt")
    assert not (tmp_path / "small").exists()


def fill_the_disk():
    shutil.disk_usage = lambda path: namedtuple("usage", "total used free")(10**6, 10**6, 10**3)


def test_no_disk_space_is_said_before_work_starts(tmp_path):
    done = bench(*RUN, "--out", "runs", cwd=tmp_path, prepare=fill_the_disk)
    assert refused(done, "free some", "--out")
    assert not list(tmp_path.iterdir())


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    done = bench(*RUN[:-1], "svd,bs", "--ratios", "2,4", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("finetune", "resolved ranks", "svd", "bs", "2x", "by energy"):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


def test_compress_and_eval_a_checkpoint(tmp_path):
    done = bench("compress", "tiny", "--method", "svd", "--ratio", "2", "--out", "small", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "parameters: 2.000x" in done.stdout
    assert next(line for line in done.stderr.splitlines() if "started" in line).startswith("fit ")
    assert "Traceback" not in done.stderr
    assert len(low_rank_layers(load_model(tmp_path / "small"))) == 28
    report = json.loads((tmp_path / "small" / "compression.json").read_text())
    assert report["ratio"] == pytest.approx(2, rel=1e-3)
    assert report["method"]["policy"] == "uniform"
    again = bench("compress", "tiny", "--method", "svd", "--ratio", "2", "--out", "small", cwd=tmp_path)
    assert refused(again, "exists already")

    words = ("eval", "small", "--benchmarks", "toy-math", "--limit", "3", "--max-new-tokens", "4", "--out", "scores")
    done = bench(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "toy-math" in done.stdout
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["benchmarks"]["toy-math"]["metrics"][0]["n"] == 3
    assert len((tmp_path / "scores" / "samples-toy-math.jsonl").read_text().splitlines()) == 3


def test_table_and_plot_of_a_run(finished, tmp_path):
    folder = finished.execution.out / "tiny-toy-math"
    done = bench("table", folder)
    assert done.returncode == 0, done.stderr
    assert "svd" in done.stdout
    for format, mark in (("markdown", "|"), ("csv", ","), ("latex", "\\toprule")):
        assert mark in bench("table", folder, "--format", format).stdout
    done = bench("plot", folder / "results.csv", "--out", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == {".png", ".svg"}


def test_what_stays_dense_is_said_and_a_cell_is_exported_and_timed(finished, tmp_path):
    done = bench("compress", "tiny", "--method", "svd", "--ratio", "3", "--out", "small", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("stays dense", "embeddings and tied output head", "55,168", "20.4 %", "embeddings=true"):
        assert word in done.stdout
    cell = f"{finished.execution.out / 'tiny-toy-math'}:svd@4"
    done = bench("export", cell, "--dense", "--out", "dense", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "809,984 parameters" in done.stdout
    assert low_rank_layers(load_model(tmp_path / "dense")) == {}
    assert refused(bench("export", "dense", "--dense", "--out", "again", cwd=tmp_path), "not factorised")
    words = ("--engine", "transformers", "--batch-sizes", "2", "--new-tokens", "3", "--repeats", "1", "--out", "speed")
    done = bench("speed", cell, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("first", "[ms]", "decode", "[tokens/s]", "peak", "[MB]", "tiny dense", "0.25×"):  # headings are folded
        assert word in done.stdout
    draw = ("plot", finished.execution.out / "tiny-toy-math", "--out", tmp_path / "pictures")
    for axis in ("bytes", "tokens_per_second"):
        done = bench(*draw, "--x", axis, "--speed", tmp_path / "speed")
        assert done.returncode == 0, done.stderr
        assert any(
            f"-by-{'bytes' if axis == 'bytes' else 'speed'}" in p.name for p in (tmp_path / "pictures").iterdir()
        )


def test_evaluation_names_a_sample_of_a_dataset_and_the_context(data_dir, tmp_path):
    words = ("eval", data_dir / "models" / "stories260K", "--data", data_dir, "--limit", "2")
    done = bench(*words, "--benchmarks", "hellaswag,wikitext2", "--context", "32,64", "--out", tmp_path / "scores")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "scores" / "metrics.json").read_text())["benchmarks"]
    assert {name: result["variant"] for name, result in results.items()} == {
        "hellaswag": "hellaswag-1000of10042-local-0shot",
        "wikitext2@32": "wikitext2-test-32-bos",
        "wikitext2@32-no-bos": "wikitext2-test-32",
        "wikitext2@64": "wikitext2-test-64-bos",
        "wikitext2@64-no-bos": "wikitext2-test-64",
    }
    assert "perplexityoftheuncompressedmodelis" in "".join(done.stdout.split())
    # A factorised checkpoint is no uncompressed model: it is measured as its tokenizer does, once.
    small = tmp_path / "small"
    model = ("compress", data_dir / "models" / "stories260K", "--method", "svd", "--ratio", "1.5", "--out", small)
    assert bench(*model).returncode == 0
    scores = ("--benchmarks", "wikitext2", "--context", "32", "--limit", "2", "--data", data_dir)
    factorised = bench("eval", small, *scores, "--out", tmp_path / "of-factors")
    assert factorised.returncode == 0, factorised.stderr
    (result,) = json.loads((tmp_path / "of-factors" / "metrics.json").read_text())["benchmarks"].values()
    assert result["variant"] == "wikitext2-test-32-bos"
    assert "uncompressed" not in factorised.stdout
    shown = "".join(done.stdout.split())
    assert "1000of10042" in shown
    assert refused(bench(*words, "--benchmarks", "hellaswag", "--context", "32"), "--context is for perplexities")


def test_doctor_reports_this_machine(data_dir):
    done = bench("doctor", "--data", data_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("cpu", "gpu", "engine transformers", "isolation", "gsm8k"):
        assert word in done.stdout
    missing = bench("doctor", "--data", Path("nowhere"))
    assert missing.returncode == 1
    assert "does not exist" in missing.stdout


def test_samples_are_compared_rescored_and_shown(finished, tmp_path):
    folder = finished.execution.out / "tiny-toy-math"
    done = bench("compare", f"{folder}:svd@2", f"{folder}:finetuned@1")
    assert done.returncode == 0, done.stderr
    assert "4 problems" in done.stdout
    done = bench("rescore", folder, "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert "changed" not in done.stdout
    done = bench("show", f"{folder}:svd@2", "--limit", "2")
    assert done.returncode == 0, done.stderr
    for word in ("4 samples, the first 2", "Question:", "verdicts"):
        assert word in done.stdout
    assert refused(bench("compare", f"{folder}:svd@9", f"{folder}:svd@2"), "its cells")
    assert refused(bench("show", f"{folder}:svd@2", "--verdict", "nice"), "no sample has the verdict")
    assert refused(
        bench("show", f"{folder}:svd@2", "--limit", "-1"), "invalid value for '--limit'", "greater than or equal to 0"
    )
    source = sample_file(f"{folder}:svd@2")
    (tmp_path / "samples.jsonl").write_text(
        "".join(
            json.dumps(json.loads(line) | {"completion": "\x1b]0;title\x07\x9b31m\u202etxet"}) + "\n"
            for line in source.read_text().splitlines()
        )
    )
    done = bench("show", tmp_path / "samples.jsonl", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "\\x1b]0;title\\x07\\x9b31m\\u202etxet" in done.stdout


def test_several_samples_give_pass_at_k(tmp_path):
    words = ("eval", "tiny", "--benchmarks", "toy-math", "--limit", "2", "--max-new-tokens", "4")
    done = bench(*words, "--samples", "5", "--temperature", "0.8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pass@5" in done.stdout
    assert refused(bench(*words, "--samples", "5", cwd=tmp_path), "temperature")
