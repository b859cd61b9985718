"""Task files: data as people have it, the same examples in every form, splits, hashes, and what is kept in memory."""

import csv
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.tasks import base
from lowrank_bench.evals.tasks.base import get_task
from lowrank_bench.evals.tasks.files.opening import add_definition, open_task, read_task_file
from lowrank_bench.evals.tasks.files.task import FileTask, survey_file
from lowrank_bench.evals.tasks.files.template import template
from lowrank_bench.evals.tasks.lookup import benchmark_names
from lowrank_bench.evals.tasks.prompts import IGNORED
from lowrank_bench.foundation.errors import UserError

PAIRS = [(f"What is {n} and {n}?", f"It is {2 * n}.") for n in range(40)]
HELD_OUT = {"name": "exact", "kind": "exact"}


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
    """Tasks that a test adds are gone after it."""
    monkeypatch.setattr(base, "_added", {})


@pytest.fixture(scope="module")
def tokenizer(data_dir):
    return AutoTokenizer.from_pretrained(data_dir / "models" / "stories260K")


def write(folder: Path, **changes: Any) -> Path:
    """Write a task file over ``train.jsonl``; fields as keywords, of `train` and others."""
    values: dict[str, Any] = {
        "name": "sums",
        "train": {"data": "train.jsonl"},
        "prompt": "question",
        "benchmarks": [HELD_OUT],
    }
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def opened(folder: Path, **changes: Any) -> FileTask:
    task = open_task(str(write(folder, **changes)))
    assert isinstance(task, FileTask)
    return task


def ids_and_labels(task: FileTask, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    return [tuple(item) for item in task.read_encoded(tokenizer, None, None, 0, 512).items]


def test_one_dataset_in_seven_forms_is_the_same_examples(tmp_path, tokenizer):
    prompts = [{"prompt": p, "completion": c} for p, c in PAIRS]
    turns = [{"role": "user"}, {"role": "assistant"}]
    messages = [
        {"messages": [turn | {"content": text} for turn, text in zip(turns, pair, strict=True)]} for pair in PAIRS
    ]
    split = [{"prompt": [row["messages"][0]], "completion": [row["messages"][1]]} for row in messages]
    jsonl(tmp_path / "a.jsonl", prompts)
    jsonl(tmp_path / "b.jsonl", messages)
    jsonl(tmp_path / "c.jsonl", split)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    with open(tmp_path / "e.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, lineterminator="\r\n").writerows([["prompt", "completion"], *PAIRS])
    with open(tmp_path / "f.tsv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([["more", "completion", "prompt"], *([1, c, p] for p, c in PAIRS)])
    pq.write_table(pa.Table.from_pylist(prompts), tmp_path / "g.parquet")
    seen = [
        ids_and_labels(opened(tmp_path, train={"data": file.name}), tokenizer)
        for file in sorted(tmp_path.glob("*.*"))
        if file.suffix != ".yaml"
    ]
    assert len(seen) == 7
    assert all(encoded == seen[0] for encoded in seen)
    ids, labels = seen[0][0]
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    held_out = {row["messages"][0]["content"] for row in benchmarks.get("sums-exact")().data(EvalSettings()).rows}  # type: ignore[attr-defined]
    first = next(answer for prompt, answer in PAIRS if prompt not in held_out)
    assert tokenizer.decode(learnt[:-1]).strip() == first
    assert learnt[-1] == tokenizer.eos_token_id


def test_loss_on_all_learns_all_but_the_bos(tmp_path, tokenizer):
    jsonl(tmp_path / "train.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS])
    (ids, labels), *_ = ids_and_labels(opened(tmp_path, loss="all"), tokenizer)
    assert labels == [IGNORED, *ids[1:]]


def test_texts_are_a_language_task_and_are_cut(tmp_path, tokenizer):
    jsonl(tmp_path / "train.jsonl", [{"text": "Once upon a time. " * n} for n in range(60)])
    part = {"name": "stories", "kind": "perplexity", "window": 64}
    task = opened(tmp_path, benchmarks=[part])
    encoded = task.read_encoded(tokenizer, None, None, 0, 32)
    assert task.kind == "language"
    assert task.benchmarks == ("sums-stories",)
    assert encoded.card.empty == 1
    assert encoded.card.cut_to_length > 40
    assert encoded.dropped == 0
    assert max(map(len, (item.input_ids for item in encoded.items))) == 32
    assert benchmarks.get("sums-stories")().variant(EvalSettings()) == "sums-stories-bos-64"


def test_odd_cells_are_read_counted_or_left_out(tmp_path, tokenizer):
    rows = [
        {"q": 7, "a": True, "more": {"x": 1}},
        {"q": "007", "a": "NA"},
        {"q": "empty", "a": "   "},
        {"q": "none", "a": None},
        {"q": "list", "a": ["x", 1]},
        {"q": "007", "a": "NA"},
        {"q": "long", "a": "word " * 600},
    ]
    jsonl(tmp_path / "train.jsonl", rows)
    task = opened(
        tmp_path,
        train={"data": "train.jsonl", "columns": {"prompt": "q", "completion": "a"}},
        benchmarks=[{"name": "b", "kind": "exact", "data": "train.jsonl", "columns": {"answer": "a"}}],
    )
    encoded = task.read_encoded(tokenizer, None, None, 0, 128)
    assert [getattr(encoded.card, name) for name in ("rows", "empty", "duplicates", "converted", "used")] == [
        7,
        2,
        1,
        2,
        5,
    ]
    assert encoded.card.dropped_too_long == encoded.dropped == 1
    answers = [example.answer for example in task.train_examples(None, None, 0).examples]
    assert answers[:3] == ["true", "NA", '["x", 1]']


def test_the_split_is_by_hash_of_the_prompt_whatever_the_order(tmp_path):
    rows = [{"prompt": f"question {n % 300}", "completion": str(n)} for n in range(600)]

    def sides() -> tuple[set[str], set[str]]:
        task = opened(tmp_path, test_share=0.2)
        train = {json.loads(str(e.prompt))[0]["content"] for e in task.train_examples(None, None, 0).examples}
        rows_held = benchmarks.get("sums-exact")().data(EvalSettings()).rows  # type: ignore[attr-defined]
        return train, {row["messages"][0]["content"] for row in rows_held}

    jsonl(tmp_path / "train.jsonl", rows)
    train, test = sides()
    jsonl(tmp_path / "train.jsonl", rows[::-1])
    assert (train, test) == sides()
    assert not train & test
    assert 0.1 < len(test) / 300 < 0.3


def test_identities_take_content_and_not_paths(tmp_path):
    def identity(folder: str, name: str, more: str = "", **changes: Any) -> tuple[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        rows = [{"prompt": p, "completion": c + more} for p, c in PAIRS]
        jsonl(tmp_path / folder / name, rows)
        task = opened(tmp_path / folder, train={"data": name}, **changes)
        return task.survey(None, None, 0, 8).sha256, benchmarks.get("sums-exact")().identity(EvalSettings())

    first = identity("one", "train.jsonl")
    assert identity("two", "other.jsonl") == first
    assert identity("one", "train.jsonl", more="!") != first
    assert identity("two", "other.jsonl", system="Be brief.")[0] != first[0]
    assert identity("two", "other.jsonl", loss="all")[0] != first[0]
    assert identity("two", "other.jsonl", summary="other words") == first


def test_a_definition_is_enough_to_make_the_task_again(tmp_path, monkeypatch):
    jsonl(tmp_path / "train.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS])
    task = opened(tmp_path)
    text = task.file.model_dump_json(by_alias=True)
    (tmp_path / "task.yaml").unlink()
    monkeypatch.setattr(base, "_added", {})
    assert add_definition(text).survey(None, None, 0, 8) == task.survey(None, None, 0, 8)
    assert get_task("sums").benchmarks == ("sums-exact",)


def test_benchmarks_of_a_task_file_are_chosen_by_the_file_or_by_name(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS])
    assert benchmark_names([str(write(tmp_path)), "toy-math"]) == ("sums-exact", "toy-math")
    assert benchmark_names(["sums-exact", "sums"]) == ("sums-exact",)
    with pytest.raises(UserError, match="'toy-math' is that of a built-in task"):
        open_task(str(write(tmp_path, name="toy-math")))
    with pytest.raises(UserError, match="benchmark name 'toy-math' is that of another benchmark"):
        open_task(str(write(tmp_path, name="toy", benchmarks=[HELD_OUT | {"name": "math"}])))


def test_a_large_file_is_never_whole_in_memory(tmp_path, tokenizer):
    line = json.dumps({"prompt": "p" * 4000, "completion": "a"})
    with open(tmp_path / "train.jsonl", "w", encoding="utf-8") as file:
        for number in range(5000):
            file.write(line.replace("ppp", f"{number:05} ", 1) + "\n")
    task = opened(tmp_path, max_length=64)
    tracemalloc.start()
    survey, card = survey_file(task.file, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "train.jsonl").stat().st_size
    assert size > 20e6
    assert peak < size / 10
    assert card["rows"] == 5000
    assert survey.count == card["used"]
    assert len(survey.sample) == 8


def test_a_stored_example_is_the_example(tmp_path, tokenizer):
    jsonl(tmp_path / "train.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS])
    task = opened(tmp_path)
    stored = task.read_encoded(tokenizer, None, None, 0, 512).items
    plain = task.encode(tokenizer, task.train_examples(None, None, 0).examples, 512).items
    assert list(stored) == list(plain) == stored[:]
    assert stored[-1] == plain[-1]
    with pytest.raises(IndexError):
        stored[len(stored)]


def test_the_template_is_a_task_file_that_runs(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"prompt": p, "completion": c} for p, c in PAIRS])
    (tmp_path / "task.yaml").write_text(template(), encoding="utf-8")
    assert read_task_file(tmp_path / "task.yaml").name == "my-task"
    # With all comments of one part uncommented it is still one: names and places of the fields are right.
    text = template().replace("  # columns:\n    # Column with a whole", "  columns:\n    # Column with a whole")
    text = text.replace("    # prompt:\n", "    prompt: prompt\n", 1).replace("# loss: answer", "loss: all")
    (tmp_path / "task.yaml").write_text(text, encoding="utf-8")
    definition = read_task_file(tmp_path / "task.yaml")
    assert definition.loss == "all"
    assert definition.train.columns.prompt == "prompt"
