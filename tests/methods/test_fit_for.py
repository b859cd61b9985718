"""A fit for one budget: the same model, and only the parts that it keeps are computed."""

import copy
from typing import ClassVar

import pytest
import torch

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract import random_model
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.matrixwise import MatrixCompressor
from lowrank_bench.methods.ranks.budget import Budget


@pytest.mark.parametrize("name", ["svd", "fwsvd", "joint-rank-k", "svd-llm", "svd:energy", "laser", "bs"])
def test_small_models_come_out_the_same_in_every_digit(name: str) -> None:
    dense = random_model("llama")
    name, _, policy = name.partition(":")
    method = create_method(name, {"policy": policy} if policy else {})
    budget = Budget(2.0, method.guard)
    models = [copy.deepcopy(dense) for _ in range(2)]
    for fit, model in zip((method.fit, lambda *rest: method.fit_for(budget, *rest)), models, strict=True):
        method.compress(model, fit(model, RandomData()), budget, None, RandomData())
    whole, known = (model.state_dict() for model in models)
    assert whole.keys() == known.keys()
    assert all(torch.equal(whole[key], known[key]) for key in whole)


def test_only_the_kept_parts_are_there() -> None:
    method, model, budget = create_method("svd"), random_model("llama"), Budget(3.0)
    fitted = method.fit_for(budget, model, None)
    report = method.compress(copy.deepcopy(model), fitted, budget, None)
    ranks = {name: len(fitted.spectrum(name)) for name in report.ranks}
    assert ranks == report.ranks
    assert not any(fitted.has(f"{name}.left") for name in report.dense)
    assert method.fit_for(budget, model, None).meta == method.fit(model, None).meta


def test_a_policy_that_looks_at_spectra_gets_all_of_them() -> None:
    method, model = create_method("svd", {"policy": "energy"}), random_model("llama")
    fitted = method.fit_for(Budget(3.0), model, None)
    name = method.targets(model)[0].name
    assert len(fitted.spectrum(name)) == min(model.get_submodule(name).weight.shape)


class IgnoresTheRank(MatrixCompressor):
    """Always gives all parts."""

    ranks: ClassVar[list[int | None]] = []

    def decompose(self, weight: torch.Tensor, statistic: object = None, rank: int | None = None) -> Factors:
        self.ranks.append(rank)
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        return Factors(u * s, vt, s)


def test_the_rank_is_always_passed_and_may_be_ignored() -> None:
    IgnoresTheRank.name = "ignores-the-rank"
    method, model = IgnoresTheRank(), random_model("llama")
    report = method.compress(copy.deepcopy(model), method.fit_for(Budget(2.0), model, None), Budget(2.0))
    assert report.ratio == pytest.approx(2.0, rel=0.05)
    assert sorted(method.ranks) == sorted(report.ranks.values())
    method.ranks.clear()
    method.fit(model, None)
    assert set(method.ranks) == {None}
