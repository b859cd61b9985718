"""Lists of names in the docs agree with the code: keys of YAML files, policies, datasets, folders of the layers."""

import re

import pytest
from code_blocks import ROOT

from lowrank_bench.evals.data.datasets import specs
from lowrank_bench.methods.registry import policies
from lowrank_bench.runners.config import SweepConfig
from lowrank_bench.runners.config.sentences import nested_model

GROUPS = ("training", "evaluation", "execution")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("group", ["top", *GROUPS])
def test_every_key_of_a_yaml_file_is_listed(group: str) -> None:
    fields = SweepConfig.model_fields
    model = SweepConfig if group == "top" else nested_model(fields[group])
    assert model is not None
    (row,) = re.findall(rf"^\| (?:`{group}`|{group}) \| (`.*) \|$", page("cli.md"), re.M)
    assert set(re.findall(r"`(\w+)`", row)) == set(model.model_fields) - set(GROUPS)


def test_every_key_of_a_training_is_listed() -> None:
    training = nested_model(SweepConfig.model_fields["training"])
    assert training is not None
    for name in ("finetune", "recover"):
        overrides = nested_model(training.model_fields[name])
        assert overrides is not None
        (listed,) = re.findall(r"^`finetune` and `recover` each take (.*?)\.$", page("cli.md"), re.M | re.S)
        assert set(re.findall(r"`(\w+)`", listed)) == set(overrides.model_fields)


def test_every_policy_has_a_row() -> None:
    listed = re.findall(r"^\| `([\w-]+)` \| .* \| .* \| .* \|$", page("policies.md"), re.M)
    assert sorted(listed) == sorted(row.name for row in policies.listings() if row.origin == "built in")


def test_every_dataset_of_a_task_or_benchmark_is_named() -> None:
    assert not [name for name in specs if not re.search(f"`{name}[`/]", page("data.md"))]


def test_every_folder_of_a_layer_is_in_the_table() -> None:
    rows = dict(re.findall(r"^\| `(\w+)/` \| .* \| (.*) \|$", page("architecture.md"), re.M))
    for layer, listed in rows.items():
        folders = {path.parent.name for path in (ROOT / layer).glob("*/__init__.py")}
        assert folders == set(re.findall(r"`(\w+)/`", re.sub(r"\([^()]*\)", "", listed))), layer
