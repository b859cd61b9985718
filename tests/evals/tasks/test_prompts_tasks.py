"""Prompts and tasks: one BOS, one boundary, answers in one form, training and test apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.evals.grading import extract
from lowrank_bench.evals.tasks import base
from lowrank_bench.evals.tasks.base import Task, add_task, all_tasks, get_task
from lowrank_bench.evals.tasks.library.math import gsm8k_answer, math_answer
from lowrank_bench.evals.tasks.prompts import (
    IGNORED,
    TEMPLATES,
    encode_documents,
    encode_example,
    encode_joined,
    encode_prompt,
    finetuning_prompt,
)
from lowrank_bench.foundation.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(data_dir):
    return AutoTokenizer.from_pretrained(data_dir / "models" / "stories260K")


def test_exactly_one_bos(tokenizer):
    for text in ("", "Hello.", "<s>Hello.", "<s><s>Hello."):
        ids = encode_prompt(tokenizer, text)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


@given(st.text(max_size=40), st.text(max_size=40))
def test_training_and_generation_start_from_the_same_ids(tokenizer, instruction, answer):
    prompt = finetuning_prompt(instruction)
    encoded = encode_example(tokenizer, prompt, answer, 4096)
    assert encoded is not None
    head = encode_prompt(tokenizer, prompt)
    assert encoded.input_ids[: len(head)] == head
    assert encoded.labels[: len(head)] == [IGNORED] * len(head)
    assert encoded.labels[len(head) :] == encoded.input_ids[len(head) :]
    assert encoded.input_ids[-1] == tokenizer.eos_token_id


def test_too_long_example_is_dropped_and_counted(tokenizer):
    prompt, answer = finetuning_prompt("Add 1 and 1."), "2"
    encoded = encode_example(tokenizer, prompt, answer, 4096)
    assert encode_example(tokenizer, prompt, answer, len(encoded.input_ids)) == encoded
    assert encode_example(tokenizer, prompt, answer, len(encoded.input_ids) - 1) is None
    task = get_task("toy-math")
    examples = task.train_examples(None, None, 1).examples[:5]
    assert task.encode(tokenizer, examples, 8).dropped == 5
    assert len(task.encode(tokenizer, examples, 4096).items) == 5


def test_language_examples_learn_all_but_bos(tokenizer):
    (short, long) = encode_documents(tokenizer, ["Once upon a time.", "She ran. " * 500], 64)
    assert short.labels == [IGNORED, *short.input_ids[1:]]
    assert short.input_ids[-1] == tokenizer.eos_token_id
    assert len(long.input_ids) == 64
    blocks = encode_joined(tokenizer, ["She ran."] * 100, 32)
    whole = encode_prompt(tokenizer, "\n\n".join(["She ran."] * 100))
    assert [token for block in blocks for token in block.input_ids] == whole[: len(whole) // 32 * 32]
    assert blocks[0].labels[0] == IGNORED
    assert IGNORED not in blocks[1].labels


def test_templates_end_where_no_tokenizer_merges():
    assert all(text.endswith("\n") for name, text in TEMPLATES.items() if name != "plain")
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        finetuning_prompt("x", "alpacca")


def test_every_task_names_existing_benchmarks():
    for task in all_tasks().values():
        assert set(task.benchmarks) <= set(benchmarks.names())
        assert task.default_source(None) in task.sources
    with pytest.raises(UserError, match="did you mean 'toy-math'"):
        get_task("toymath")
    with pytest.raises(UserError, match="training set 'metamath' of task 'math'; did you mean 'metamathqa'"):
        get_task("math").train_examples("metamath", None, 1)


def test_math_answers_all_end_in_the_form_that_the_headline_reads(data_dir):
    for row in load_rows("gsm8k", "train", data_dir).rows:
        answer = gsm8k_answer(row["answer"])
        assert "<<" not in answer
        assert extract.same_number(extract.answer_is(answer), extract.strict(row["answer"]))
    for row in load_rows("math500", "test", data_dir).rows:
        assert math_answer(row["solution"]).endswith(f"\nThe answer is: {row['answer']}")


def test_local_defaults_load(data_dir):
    sizes = {"math": 7473 + 7500, "code": 374, "language": 2276, "toy-math": 1000, "toy-code": 1000}
    for name, size in sizes.items():
        data = get_task(name).train_examples(None, data_dir, 7)
        assert len(data.examples) == size
        assert all(example.answer.strip() for example in data.examples)
    with pytest.raises(UserError, match=r"no file 'wikitext2/train.jsonl.gz'"):
        get_task("language-wikitext2").train_examples(None, data_dir, 7)


def test_stories_for_training_and_for_the_benchmark_are_apart(data_dir):
    held_out = benchmarks.get("tinystories")().data(EvalSettings(data_dir)).rows
    train = {example.answer for example in get_task("language").train_examples(None, data_dir, 1).examples}
    assert len(held_out) == 40
    assert not train & {row["text"] for row in held_out}


def test_built_in_tasks_are_one_file_each_and_an_added_one_cannot_take_their_name(monkeypatch):
    monkeypatch.setattr(base, "_added", {})
    for name in base.built_in_tasks():
        assert get_task(name).name == name
    assert {"math", "toy-math", "language-c4"} <= set(base.built_in_tasks())
    mine = Task("mine", "", "language", ("toy-math",), 8, {})
    assert add_task(mine) is get_task("mine") is all_tasks()["mine"]
    with pytest.raises(UserError, match="'math' is that of a built-in task"):
        add_task(Task("math", "", "language", (), 8, {}))
