"""What is hashed follows from the nesting of the configuration, field by field; the fields are read from the models."""

import math
import os
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from sweeps import changed, small_sweep

from lowrank_bench.runners.config import TrainOverrides
from lowrank_bench.runners.estimates.machine import assume_machine
from lowrank_bench.runners.plan import make_plan

ACCELERATE = Path(__file__).parents[2] / "docs" / "accelerate" / "ddp.yaml"
GIVEN = {
    "accelerate": [ACCELERATE],
    "address": ["auto"],
    "checkpoint_minutes": [0.0, math.inf],
    "data": ["data"],
    "include_path": ["data"],
    "device": ["cpu"],
    "out": ["elsewhere"],
    "report_to": [("tensorboard",)],
    "storage": ["file://{}/shared"],
    "context": [(64,)],
    "bos": [("never",), ("never", "always")],
    "engine": ["transformers"],
    "recipe": ["quick"],
    "train_set": ["gsm8k"],
    "micro_batch_size": [1],
    "recovery": ["lora", "none", "full,lora"],
    "tune": ["lr=1e-4,1e-3"],
    "schedule": ["linear"],
    "optimizer": ["adafactor"],
    "recover.steps": [5, (4, 5)],
}
"""Values of fields whose type does not say which there are; they differ from those of the sweep."""
SMALL = {"methods": ["svd"], "ratios": [2]}
PERPLEXITY = {"task": "commonsense", "benchmarks": ["wikitext2"], "training_free": True}
PERPLEXITY |= {"finetune": {}, "recover": {}}
TOGETHER = {
    "address": {"executor": "ray"},
    "extra_pruning_steps": {"methods": ["bs:prunings=3"]},
    "training_free": {"finetune": {}, "recover": {}},
    "train_set": {"task": "math", "benchmarks": ["toy-math"]},
    "context": PERPLEXITY,
    "bos": PERPLEXITY,
    "samples": {"temperature": 0.5},
    "top_p": {"temperature": 0.5},
    "epochs": {"finetune": {}, "recover": {}},
}
"""What the sweep needs for a field to matter."""
READS_DATA = ("train_set", "context", "bos")
ON_GPUS = ("placement", "engine")
"""Fields whose choices differ only on a machine with GPUs."""
NO_KEY = {
    "placement=device": "what auto takes for so small a model",
    "placement=fsdp2": "a placement that leaves the numbers as they are",
    "placement=host-moments": "a placement that leaves the numbers as they are",
    "chat_template=never": "what a tokenizer without a chat template gets anyway",
    "finetune.precision=float32": "what the recipe has anyway",
    "recover.precision=float32": "what the recipe has anyway",
    "dtype=float32": "what the recipe has anyway",
}
"""Values that mean what the sweep has anyway, and why."""


def other_values(name, field, value):
    """Return values of a field that differ from the one it has."""
    if name in GIVEN:
        return GIVEN[name]
    kinds = [field.annotation, *get_args(field.annotation)]
    kinds += [inner for kind in kinds for inner in get_args(kind)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return [choice for choice in get_args(kind) if choice != value]
    if bool in kinds:
        return [not value]
    if int in kinds:
        return [(value or 10) + 1]
    assert float in kinds, f"{name} is new: name another value of it in GIVEN"
    return [(value or 1.0) / 2]


def cases(*groups):
    """Return name and value of each field of some groups, those of the trainings as ``finetune.NAME``."""
    config = small_sweep(Path("out"))
    for group in groups:
        section = getattr(config, group)
        for name, field in type(section).model_fields.items():
            if issubclass(type(getattr(section, name)), TrainOverrides):
                for inner, part in TrainOverrides.model_fields.items():
                    title = f"{name}.{inner}" if f"{name}.{inner}" in GIVEN else inner
                    for value in other_values(title, part, getattr(getattr(section, name), inner)):
                        yield pytest.param(inner, {name: {inner: value}}, id=f"{name}.{inner}={value}")
            else:
                for value in other_values(name, field, getattr(section, name)):
                    yield pytest.param(name, {name: value}, id=f"{name}={value}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder that has the folder of data which the values name."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "data").mkdir()
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def two_plans(folder):
    """Plan a sweep, once, and the same one with a change."""
    known = {}

    def plans(name, change, **more):
        machine = assume_machine("h100:2") if name in ON_GPUS else None
        first = small_sweep(folder / "out", **SMALL | TOGETHER.get(name, {}) | more)
        asked = first.model_dump_json(), machine is None
        if asked not in known:
            known[asked] = make_plan(first, machine, dry=machine is not None)
        return known[asked], make_plan(changed(first, **change), machine, dry=machine is not None)

    return plans


@pytest.mark.parametrize(("name", "change"), cases("execution"))
def test_nothing_of_execution_changes_a_key_or_what_was_asked(folder, two_plans, name, change):
    change = {key: value.format(folder) if isinstance(value, str) else value for key, value in change.items()}
    first, second = two_plans(name, change)
    assert first.config.execution != second.config.execution
    assert list(first.stages) == list(second.stages)
    assert first.name == second.name
    assert asked(first) == asked(second)


@pytest.mark.parametrize(("name", "change"), cases("training", "evaluation"))
def test_everything_else_changes_keys(request, two_plans, data_dir, name, change):
    more = {"data": data_dir} if name in READS_DATA else {}
    first, second = two_plans(name, change, **more)
    assert asked(first) != asked(second)
    (shown,) = re.findall(r"\[(.*)\]", request.node.name)
    assert (set(first.stages) == set(second.stages)) == (shown in NO_KEY)


def asked(plan):
    return plan.config.model_dump(exclude={"execution"})
