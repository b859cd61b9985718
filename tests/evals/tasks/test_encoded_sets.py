"""A training set is encoded once a process for equal tokenizers, and again for whatever differs."""

import shutil
from dataclasses import fields

import pytest

from lowrank_bench.evals.tasks import encoded_sets
from lowrank_bench.evals.tasks.base import Task, get_task
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import PRESETS


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(encoded_sets, "_remembered", {})


def encode(tokenizer, seed=0, length=256, cut=False, task="toy-math"):
    loaded_task = get_task(task)
    encoded = loaded_task.read_encoded(tokenizer, None, None, seed, length, cut)
    expected = loaded_task.encode(tokenizer, loaded_task.train_examples(None, None, seed).examples, length, cut)
    assert (encoded.items, encoded.dropped) == (expected.items, expected.dropped)
    return encoded


def test_the_same_set_with_an_equal_tokenizer_of_another_folder_is_encoded_once(tmp_path):
    shutil.copytree(PRESETS["tiny"].source, tmp_path / "copy")
    first, second = encode(load_tokenizer(PRESETS["tiny"].source)), encode(load_tokenizer(tmp_path / "copy"))
    assert second is first


def test_whatever_differs_is_encoded_again(tmp_path, data_dir):
    tokenizer = load_tokenizer(PRESETS["tiny"].source)
    other_end = load_tokenizer(PRESETS["tiny"].source)
    other_end.eos_token = other_end.convert_ids_to_tokens(5)
    other_template = load_tokenizer(PRESETS["tiny"].source)
    other_template.chat_template = "{{ messages }}"
    assert encoded_sets.tokenizer_identity(other_template) != encoded_sets.tokenizer_identity(tokenizer)
    other = load_tokenizer(data_dir / "models" / "stories260K")
    sets = [
        encode(tokenizer),
        encode(tokenizer, seed=1),
        encode(tokenizer, length=90),
        encode(tokenizer, length=90, cut=True),
        encode(tokenizer, task="toy-code"),
        encode(other_end),
        encode(other),
    ]
    assert len({str(encoded) for encoded in sets}) == len(sets)


def test_a_task_of_another_class_encodes_for_itself():
    class Reversed(Task):
        def encode(self, tokenizer, examples, max_length, cut=False, chat=False):
            return super().encode(tokenizer, examples[::-1], max_length, cut, chat)

    tokenizer, task = load_tokenizer(PRESETS["tiny"].source), get_task("toy-math")
    other = Reversed(**{field.name: getattr(task, field.name) for field in fields(task)})
    assert other.read_encoded(tokenizer, None, None, 0, 256).items == encode(tokenizer).items[::-1]


def test_no_more_is_remembered_than_is_said(monkeypatch):
    tokenizer = load_tokenizer(PRESETS["tiny"].source)
    first, second = encode(tokenizer), encode(tokenizer, seed=1)
    assert encode(tokenizer) is first
    assert encode(tokenizer, seed=1) is second
    monkeypatch.setattr(encoded_sets, "MOST_TOKENS", sum(len(item.input_ids) for item in second.items))
    assert encode(tokenizer, seed=1) is second
    assert encode(tokenizer) is not first, "the older one had to go"
    monkeypatch.setattr(encoded_sets, "MOST_TOKENS", 10)
    assert encode(tokenizer) is not encode(tokenizer)
