"""A sweep over a task file: the whole line, resumed and moved; and chat models with their template."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import small_sweep

from lowrank_bench.evals.tasks import base
from lowrank_bench.evals.tasks.chat import encode_turns, end_of_turn_ids
from lowrank_bench.evals.tasks.prompts import IGNORED
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.results.samples.stored import load_samples, problem_text, rescore_run
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.task_check import check_task

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


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
    """The built-in model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(resolve_model("tiny").location, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


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
    assert load_tokenizer(str(tuned)).chat_template == TEMPLATE
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
    # The task file may go; what stages recorded is enough to score again and to show prompts.
    shutil.rmtree(tmp_path / "there")
    file.unlink()
    base._added.clear()
    changes, _ = rescore_run(done.folder, None, tmp_path / "again")
    assert changes
    assert all(change.before == change.after for change in changes)
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
    ids, labels = encode_turns(tokenizer, messages, IGNORED)
    assert end_of_turn_ids(tokenizer) == (tokenizer.eos_token_id,)
    assert tokenizer.decode(ids) == "<s>[user]one\n[assistant]two</s>\n[user]three\n[assistant]four</s>"
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(learnt) == "two</s>four</s>"
    assert ids.count(tokenizer.bos_token_id) == 1


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
    asked = f"<s>[user]Is {number} even?\n[assistant]"
    assert checked.examples[0].parts == ((asked, False), (f"{answer}</s>", True))


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
    assert checked.card["rows"] == checked.tokenised == 61
    assert checked.too_long == 61
    assert "not one example fits 32 tokens" in " ".join(checked.notes)
    overlap = checked.overlaps["parity-seen"]
    assert (overlap.problems, overlap.exact, overlap.near) == (4, 2, 1)
    assert {kind for kind, _, _ in checked.cost} >= {"finetune", "fit", "evaluate"}
    assert all(seconds >= 0 for _, _, seconds in checked.cost)
