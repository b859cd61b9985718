"""Fits keep the ranks that a sweep's ratios can use, and are made again where another sweep needs more."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from sweeps import small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract import random_model
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.fitted import Factors, Fitted
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store.folders import StageStore

NAME = "model.layers.0.mlp.down_proj"


def asked(out: Path, ratios: list[float], *methods: str, **more: Any) -> Any:
    """Return a sweep without training and without many problems."""
    return small_sweep(
        out,
        methods=list(methods or ("svd",)),
        ratios=ratios,
        training_free=True,
        limit=1,
        finetune={},
        recover={},
        **more,
    )


def shapes(out: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one matrix's tensors in the only fit of a folder."""
    (folder,) = (out / "stages").glob("fit-*")
    sizes = {}
    for file in folder.glob("factors*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            sizes |= {k.rpartition(".")[2]: tensors.get_tensor(k).shape for k in tensors.keys() if NAME in k}  # noqa: SIM118
    return {key: tuple(shape) for key, shape in sizes.items()}


def kinds(config: Any) -> list[str]:
    """Return the kinds of the stages that a sweep has yet to run."""
    plan = make_plan(config)
    return sorted(plan.stages[key].kind for key in plan.pending())


def test_larger_ratios_read_the_fit_and_smaller_ones_make_it_again(tmp_path: Path) -> None:
    first = run_sweep(asked(tmp_path, [3]))
    few = shapes(tmp_path)
    assert few["right"][0] == few["left"][1] < few["spectrum"][0]
    key = next((tmp_path / "stages").glob("fit-*")).name
    assert kinds(asked(tmp_path, [3, 4])) == kinds(asked(tmp_path, [4])) == ["compress", "evaluate"]
    smaller = asked(tmp_path, [2])
    assert kinds(smaller) == ["compress", "evaluate", "fit"]
    run_sweep(smaller)
    many = shapes(tmp_path)
    assert few["right"][0] < many["right"][0] < many["spectrum"][0]
    assert [path.name for path in (tmp_path / "stages").glob("fit-*")] == [key]
    StageStore(tmp_path / "stages").verify(key)
    assert kinds(asked(tmp_path, [3])) == []  # nothing that was made of the smaller fit runs again
    assert run_sweep(asked(tmp_path, [3])).csv.read_bytes() == first.csv.read_bytes()
    assert "fit" in kinds(asked(tmp_path, [3], "svd:policy=energy"))  # which looks at spectra and gets all parts


def test_numbers_do_not_depend_on_what_is_kept(tmp_path: Path) -> None:
    """The same checkpoints, from a fit that keeps all parts for another method and from one that does not."""
    sums = []
    for out, methods in ((tmp_path / "a", ("svd",)), (tmp_path / "b", ("svd", "svd:policy=threshold"))):
        run_sweep(asked(out, [2], *methods))
        records = [json.loads(file.read_text()) for file in (out / "stages").glob("compress-*/stage.json")]
        sums.append(next(r["sha256"] for r in records if r["config"]["options"]["policy"] == "uniform"))
    weights = [
        {name: value for name, value in checksums.items() if name.endswith(".safetensors")} for checksums in sums
    ]
    assert weights[0] == weights[1] != {}
    assert shapes(tmp_path / "a")["right"] < shapes(tmp_path / "b")["right"]


def test_a_storage_gets_a_fit_with_more_ranks_in_place_of_one_with_fewer(tmp_path: Path) -> None:
    """What a sweep without storage brought there serves the ratios it was made for, and others after one more fit."""
    url = f"file://{tmp_path}/storage"
    run_sweep(asked(tmp_path / "first", [3]))
    assert run_sweep(asked(tmp_path / "first", [3], storage=url)).stages_run == 0
    second = asked(tmp_path / "second", [2], storage=url)
    assert kinds(second) == ["compress", "evaluate", "fit"]
    run_sweep(second)
    assert shapes(tmp_path / "second")["right"][0] == shapes(tmp_path / "second")["spectrum"][0]
    assert kinds(asked(tmp_path / "third", [1.5], storage=url)) == ["compress", "evaluate"]
    run_sweep(asked(tmp_path / "first", [2, 3], storage=url))


@pytest.mark.parametrize(
    "name", ["svd", "svd:embeddings", "svd-llm", "svd-llm:embeddings", "afm", "basis-sharing", "random"]
)
@pytest.mark.parametrize("guard", [True, False])
def test_every_larger_ratio_finds_the_parts_it_reads(name: str, guard: bool) -> None:
    """Also of matrices that stay dense at the smallest ratio; ratios close to each other differ by rounding."""
    model, (name, _, embeddings) = random_model("llama", tied=True), name.partition(":")
    method = create_method(name, {"guard": guard} | ({"embeddings": True} if embeddings else {}))
    for multiple in (1, 4):
        ranks = method.kept_ranks(model, [Budget(1.1, guard, multiple)])
        assert ranks is not None
        for ratio in (1.1, 1.101, 1.15, 1.2, 1.3):
            allocation = Budget(ratio, guard, multiple).allocate(method.shape(model, ratio), uniform())
            assert all(rank <= ranks[unit] for unit, rank in allocation.ranks.items())
    fitted = method.fit_to(dict.fromkeys(ranks, 3), model, RandomData())
    for group in method.groups(model):
        factors = fitted.factors(group.name)
        assert fitted.parts(group.name) == factors.left.shape[1] == len(factors.right) == 3 < len(factors.spectrum)
    with pytest.raises(UserError, match=r"keeps 3 of \d+ parts of a matrix and rank \d+ is asked for; run the same"):
        method.compress(model, fitted, Budget(1.2, guard))


def uniform() -> Any:
    """Return the default policy."""
    from lowrank_bench.methods.ranks.policies.base import parse_policy

    return parse_policy("uniform")


@pytest.mark.parametrize(
    "name", ["bs", "laser", "swsd", "svd:energy", "svd:greedy", "svd:lagrangian", "svd:loss", "svd:threshold"]
)
def test_all_parts_are_kept_where_ranks_depend_on_more_than_shapes(name: str) -> None:
    name, _, policy = name.partition(":")
    method = create_method(name, {"policy": policy} if policy else {})
    assert method.kept_ranks(random_model("llama"), [Budget(2.0)]) is None


def test_a_copy_of_the_first_parts_is_all_that_is_held(tmp_path: Path) -> None:
    whole = Factors(torch.randn(6, 4), torch.randn(4, 5), torch.ones(4), torch.ones(6), torch.ones(4))
    first = whole.first(2)
    assert [value.untyped_storage().nbytes() // 4 for value in (first.left, first.right)] == [12, 10]
    fitted = Fitted(folder=tmp_path)
    fitted.add("x", first)
    assert fitted.parts("x") == 2
    fitted.save(tmp_path)
    again = Fitted.load(tmp_path)
    assert again.parts("x") == 2
    assert torch.equal(again.factors("x").offset(2), whole.offset(2))  # type: ignore[arg-type]
