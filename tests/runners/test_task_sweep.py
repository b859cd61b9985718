"""A sweep over a task file: the whole line, killed, resumed and moved; and chat models with their template."""

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_models import CHATML, save_chat_model
from commands import bench, start
from sweeps import small_sweep
from transformers import LlamaConfig, LlamaForCausalLM

from lowrank_bench.evals.base import benchmarks
from lowrank_bench.evals.kinds.likelihood import encode_pair
from lowrank_bench.evals.tasks import base
from lowrank_bench.evals.tasks.chat import encode_turns, end_of_turn_ids
from lowrank_bench.evals.tasks.files.opening import open_task
from lowrank_bench.evals.tasks.prompts import IGNORED
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.records.files import read_records
from lowrank_bench.results.samples.stored import compare_samples, load_samples, problem_text, rescore_run
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.evaluating import default_settings, evaluate
from lowrank_bench.runners.finetuned_as import TEXT_NOTE
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.task_check import check_task
from lowrank_bench.runners.task_files import check_results_folder

INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
VARYING = ("evaluated_at", "peak_memory_bytes", "threads")
"""Columns, besides seconds, that two runs of the same sweep need not share."""


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
    """Tasks that a test adds are gone after it."""
    monkeypatch.setattr(base, "_added", {})


def task_file(folder: Path, data: str = "train.jsonl", **changes: Any) -> Path:
    """Write data and a task file of two benchmarks."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(60)]
    (folder / data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "name": "parity",
        "train": {"data": data},
        "max_length": 128,
        "benchmarks": [
            {"name": "exact", "kind": "exact", "max_new_tokens": 4},
            {"name": "choice", "kind": "choice", "choices": ["yes", "no"]},
        ],
    }
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The built-in model with ChatML's template and its two special tokens."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_chat_model(folder)
    return folder


def test_a_tuned_sweep_names_the_task_file_as_it_was_given_and_its_file_runs_again(tmp_path):
    """The plan is made again once the learning rates are chosen."""
    asked: dict[str, Any] = {"methods": ["svd"], "ratios": [2], "limit": 2, "tune": "lr=1e-5,1e-3"}
    file, rows = task_file(tmp_path / "t"), tmp_path / "t" / "train.jsonl"
    rows.write_text(
        "".join(rows.read_text().replace("Is ", f"{number}: is ") for number in range(4))
    )  # enough for --tune
    asked |= {"finetune": {"steps": 1}, "recover": {"steps": 2}, "task": str(file)}
    done = run_sweep(small_sweep(tmp_path / "runs", **asked))
    written = (done.folder / "sweep.yaml").read_text()
    assert yaml.safe_load(written)["task"] == asked["task"]
    again = run_sweep(done.folder / "sweep.yaml", out=tmp_path / "runs", workers=1)
    assert again.stages_run == 0
    assert (again.folder / "sweep.yaml").read_text() == written


def test_the_whole_line_of_a_chat_model_from_a_file_resumes_and_moves(tmp_path, chat_model):
    file = task_file(tmp_path / "here")
    common: dict[str, Any] = {"model": str(chat_model), "methods": ["svd-llm:samples=8"], "ratios": [2], "name": "run"}
    config = small_sweep(tmp_path / "runs", **common, task=str(file))
    done = run_sweep(config)
    frame = done.records
    assert set(frame.task) == {"parity"}
    assert set(frame.benchmark) == {"parity-exact", "parity-choice"}
    assert done.folder.name == "run"
    assert done.stages_run == 8
    assert yaml.safe_load((done.folder / "sweep.yaml").read_text())["task"] == str(file)
    assert set(frame.variant) == {"parity-exact-0shot-chat", "parity-choice-0shot-chat"}
    tuned = next(iter((tmp_path / "runs/stages").glob("recover-*/model")))
    assert load_tokenizer(str(tuned)).chat_template == CHATML
    assert not make_plan(config).pending()
    records = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "runs/stages").glob("*/stage.json")}
    cards = {
        record["kind"]: record["result"]["data_card"]
        for record in records.values()
        if record["kind"] != "evaluate" and "data_card" in record["result"]
    }
    assert set(cards) == {"finetune", "fit", "recover"}
    assert cards["finetune"]["rows"] == 60
    assert cards["finetune"]["held_out"] > 0
    assert cards["finetune"]["tokens"]["max"] > 10
    details = [r["result"]["details"]["data"] for r in records.values() if r["kind"] == "evaluate"]
    assert all(detail["problems"] == cards["finetune"]["held_out"] for detail in details)
    # Another folder, another file name: the very same stages.
    elsewhere = task_file(tmp_path / "there", "other.jsonl")
    moved = small_sweep(tmp_path / "runs", **common, task=str(elsewhere))
    assert not make_plan(moved).pending()
    assert check_results_folder(make_plan(moved)) == ""
    # Another version of the file replaces the results; another file of that name does not.
    changed = make_plan(small_sweep(tmp_path / "runs", **common, task=str(task_file(tmp_path / "here", max_length=96))))
    assert "the task file has changed" in check_results_folder(changed)
    other = task_file(tmp_path / "other", "other.jsonl", max_length=96, system="Be brief.")
    with pytest.raises(
        UserError, match=r"runs/run holds results of another task file with the name 'parity', .*--name"
    ):
        run_sweep(small_sweep(tmp_path / "runs", **common, task=str(other)))
    assert len(read_records(done.folder)) == len(frame)
    file = task_file(tmp_path / "here")
    # A single evaluation keeps the task file, too.
    for name in ("a", "b"):
        evaluate(str(tuned), [str(file)], default_settings(), engine="transformers", out=tmp_path / name)
    # The task file may go; what stages recorded is enough to score again and to show prompts.
    shutil.rmtree(tmp_path / "there")
    file.unlink()
    base._added.clear()
    changes, _ = rescore_run(done.folder, None, tmp_path / "again")
    assert changes
    assert all(change.before == change.after for change in changes)
    base._added.clear()
    for name in [name for name in benchmarks._classes if name.startswith("parity-")]:
        del benchmarks._classes[name]
    assert compare_samples(str(tmp_path / "a"), str(tmp_path / "b"), "parity-exact", None, None).problems > 0
    assert "even?" in problem_text(load_samples(tmp_path / "a/samples-parity-exact.jsonl")[0], None)
    stage = next(key for key, record in records.items() if record["config"].get("benchmark") == "parity-exact")
    line = load_samples(tmp_path / "runs/stages" / stage / "samples.jsonl")[0]
    assert "even?" in problem_text(line, None)


def test_turns_are_learnt_up_to_their_end(chat_model):
    tokenizer = load_tokenizer(str(chat_model))
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn_ids(tokenizer) == (end,) != (tokenizer.eos_token_id,)
    ids, labels = encode_turns(tokenizer, messages, IGNORED)
    turn = "<|im_start|>{}\n{}<|im_end|>"
    expected = [turn.format(message["role"], message["content"]) for message in messages]
    assert tokenizer.decode(ids) == "\n".join(expected), "without BOS, which this template has not"
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(learnt) == "two<|im_end|>four<|im_end|>"
    # As Mistral's: a BOS by the template, and turns that end with the end of a sequence.
    tokenizer.chat_template = INSTRUCT
    ids, labels = encode_turns(tokenizer, messages, IGNORED)
    assert end_of_turn_ids(tokenizer) == (tokenizer.eos_token_id,)
    assert tokenizer.decode(ids) == "<s>[user]one\n[assistant]two</s>\n[user]three\n[assistant]four</s>"
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(learnt) == "two</s>four</s>"
    assert ids.count(tokenizer.bos_token_id) == 1


def test_choices_are_scored_behind_what_the_template_writes(tmp_path, chat_model):
    tokenizer, file = load_tokenizer(str(chat_model)), task_file(tmp_path / "t")
    task = base.get_task(open_task(str(file)).name)
    benchmark = benchmarks.get(task.benchmarks[1])()
    settings = default_settings(chat=True)
    rows = benchmark.data(settings).rows
    for row, pairs in zip(rows, benchmark.requests(rows, settings), strict=True):
        for choice, pair in zip(("yes", "no"), pairs, strict=True):
            context, answer = encode_pair(tokenizer, *pair)
            question = row["messages"][0]["content"]
            assert tokenizer.decode(context) == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            assert tokenizer.decode(answer) == choice
    longest = benchmark.longest_sequence(tokenizer, settings, 1024)
    lengths = [sum(map(len, encode_pair(tokenizer, *pair))) for p in benchmark.requests(rows, settings) for pair in p]
    assert longest == max(lengths)


def test_chat_is_the_default_of_instructions_and_in_the_variant(tmp_path, chat_model):
    def variants(**changes: Any) -> tuple[set[str], set[bool]]:
        config = small_sweep(tmp_path, model=str(chat_model), methods=["svd"], ratios=[2], **changes)
        stages = make_plan(config).stages.values()
        data = {stage.data.chat for stage in stages if stage.data}
        return {stage.spec.variant for stage in stages if stage.kind == "evaluate"}, data  # type: ignore[attr-defined]

    assert variants() == ({"toy-math-250-0shot-chat"}, {True})
    assert variants(chat_template="never") == ({"toy-math-250-0shot"}, {False})
    file = str(task_file(tmp_path / "t"))
    assert variants(task=file) == ({"parity-exact-0shot-chat", "parity-choice-0shot-chat"}, {True})
    file = str(task_file(tmp_path / "t", prompt="alpaca"))
    assert variants(task=file) == ({"parity-exact-0shot-alpaca", "parity-choice-0shot-alpaca"}, {False})
    with pytest.raises(UserError, match="'prompt: chat' and this model's tokenizer has no chat template"):
        make_plan(small_sweep(tmp_path, task=str(task_file(tmp_path / "t", prompt="chat"))))


def test_the_check_renders_with_the_template(tmp_path, chat_model):
    checked = check_task(task_file(tmp_path / "t"), str(chat_model))
    assert checked.prompt == "chat template"
    number = int(checked.examples[0].title.split()[1]) - 1  # of the line, which begin at 1
    answer = "no" if number % 2 else "yes"
    asked = f"<|im_start|>user\nIs {number} even?<|im_end|>\n<|im_start|>assistant\n"
    assert checked.examples[0].parts == ((asked, False), (f"{answer}<|im_end|>", True))


def test_the_check_shows_masks_lengths_overlap_and_cost(tmp_path):
    file = task_file(
        tmp_path / "t",
        benchmarks=[
            {"name": "seen", "kind": "exact", "data": "test.jsonl", "columns": {"answer": "a"}},
        ],
        max_length=32,
    )
    prompts = ["Is 4 even?", "is 5 EVEN", "Is one hundred even at all?", "What else?"]
    (tmp_path / "t/test.jsonl").write_text("".join(json.dumps({"prompt": p, "a": "x"}) + "\n" for p in prompts))
    with open(tmp_path / "t/train.jsonl", "a") as data:
        data.write(json.dumps({"prompt": "Tell me: Is one hundred even at all?", "completion": "yes " * 40}) + "\n")
    before = {path: path.read_bytes() for path in (tmp_path / "t").iterdir()}
    checked = check_task(file, "tiny")
    assert {path: path.read_bytes() for path in (tmp_path / "t").iterdir()} == before
    example = checked.examples[0]
    assert len(checked.examples) == 3
    assert example.title == "line 1 of 'train.jsonl'"
    assert [learnt for _, learnt in example.parts] == [False, True]
    assert example.parts[0][0].endswith("### Response:\n")
    assert example.parts[1][0] == "yes</s>"
    assert checked.card.rows == checked.tokenised == 61
    assert checked.too_long == 61
    assert "not one example fits 32 tokens" in " ".join(checked.notes)
    overlap = checked.overlaps["parity-seen"]
    assert (overlap.problems, overlap.exact, overlap.near) == (4, 2, 1)
    assert {kind for kind, _, _ in checked.cost} >= {"finetune", "fit", "evaluate"}
    assert all(seconds >= 0 for _, _, seconds in checked.cost)


@pytest.mark.parametrize("tied", [True, False])
def test_the_cost_is_that_of_a_ratio_within_reach(tmp_path, tied):
    """Where embeddings are most of the model, ratios end below 2."""
    sizes = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=2, tie_word_embeddings=tied, max_position_embeddings=256)
    save_checkpoint(LlamaForCausalLM(config), load_tokenizer(PRESETS["tiny"].source), tmp_path / "model")
    checked = check_task(task_file(tmp_path / "t"), str(tmp_path / "model"))
    assert {kind for kind, _, _ in checked.cost} >= {"compress", "evaluate"}
    common: dict[str, Any] = {"model": str(tmp_path / "model"), "methods": ["svd"]}
    assert make_plan(small_sweep(tmp_path / "runs", **common, ratios=[checked.ratio])).allocations
    with pytest.raises(UserError, match=f"out of reach .* at most {checked.ratio:g}"):
        make_plan(small_sweep(tmp_path / "runs", **common, ratios=[checked.ratio * 1.1]))


def test_a_model_that_was_finetuned_without_its_template_is_evaluated_without(tmp_path, chat_model):
    """By the record beside it, also where a compression without data lies between."""
    file, steps = task_file(tmp_path / "t"), {"finetune": {"steps": 1}, "recover": {"steps": 0}, "limit": 2}
    common: dict[str, Any] = {"model": str(chat_model), "methods": ["svd"], "ratios": [2], **steps}
    run_sweep(small_sweep(tmp_path / "runs", **common, task=str(file), chat_template="never"))
    benchmark = f"{file}"
    for model in (*(tmp_path / "runs/stages").glob("*/model"), *(tmp_path / "runs/stages").glob("compress-*/*/model")):
        done = evaluate(str(model), [benchmark], default_settings(limit=2), engine="transformers")
        assert TEXT_NOTE in done.note
        assert done.outcomes["parity-exact"].samples[0]["variant"] == "parity-exact-0shot-alpaca"
    done = evaluate(str(chat_model), [benchmark], default_settings(limit=2), engine="transformers")
    assert TEXT_NOTE not in done.note
    assert done.outcomes["parity-exact"].samples[0]["variant"] == "parity-exact-0shot-chat"


def test_a_sweep_that_is_killed_ends_with_the_same_results(tmp_path):
    """Killed while it works, three times, and started again; seconds and dates apart."""
    file = task_file(tmp_path / "t")
    words = ["run", "--task", str(file), "--model", "tiny", "--methods", "svd", "--ratios", "2", "--engine"]
    words += ["transformers", "--finetune-steps", "6", "--recover-steps", "4", "--workers", "1", "--out"]
    run_sweep(
        small_sweep(tmp_path / "whole", task=str(file), methods=["svd"], ratios=[2], limit=None, max_new_tokens=None,
                    finetune={"steps": 6}, recover={"steps": 4}, engine="transformers", workers=1)
    )  # fmt: skip
    killed = 0
    for stage in ("finetune", "compress", "recover"):  # until its work has begun
        running = start(*words, tmp_path / "killed")
        stages = tmp_path / "killed/stages"
        while running.poll() is None and not any(stages.glob(f".part-{stage}-*")):
            time.sleep(0.01)
        killed += running.poll() is None
        running.kill()
        running.wait()
    assert killed == 3, "each was still running"
    done = bench(*words, tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    frames = [read_records(tmp_path / name / "tiny-parity") for name in ("whole", "killed")]
    measured = [name for name in frames[0] if not name.startswith("seconds_") and name not in VARYING]
    assert frames[0][measured].to_csv() == frames[1][measured].to_csv()


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_the_check_of_large_data_says_how_far_it_is_and_can_be_interrupted(tmp_path, name):
    file = task_file(tmp_path, name)
    lines = (f'"How many is {n}?",{n}\n' for n in range(100_000))
    if name.endswith("jsonl"):
        lines = (json.dumps({"prompt": f"How many is {n}?", "completion": str(n)}) + "\n" for n in range(100_000))
    header = "" if name.endswith("jsonl") else "prompt,completion\n"
    (tmp_path / name).write_text(header + "".join(lines) * (100 << 20 >> 21))
    before = {path.name for path in tmp_path.iterdir()}
    running = start("task", "check", file, "--model", "tiny")
    while running.poll() is None and "MB of" not in running.errors():
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert re.search(rf"reading data: running \d+ s, \d+ of \d+ MB of '{name}' read", running.errors())
    assert "Traceback" not in running.errors()
    assert not running.output()
    assert {path.name for path in tmp_path.iterdir()} == before
