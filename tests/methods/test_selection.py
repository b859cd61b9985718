"""What became of the bases, from Basis Selection itself and from ranks."""

import pytest
import torch

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.library.bs.run import STATES, PruningRun
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.selection import trained_fates, truncated_fates
from lowrank_bench.models.architectures import random_model


def compressed(name, ratio=2.0, trainer=None, **options):
    method, model = create_method(name, options), random_model("llama")
    fitted = method.fit(model, RandomData())
    return method, fitted, method.compress(model, fitted, Budget(ratio, method.guard), trainer, RandomData())


@pytest.mark.parametrize("name", ["bs", "bsi"])
@pytest.mark.parametrize("new_vectors", ["zero", "top"])
def test_every_basis_is_kept_died_or_freed_and_the_kept_make_the_rank(name, new_vectors):
    options = {"prunings": 4, "additional_dimension": 2, "additional_share": 0.5, "new_vectors": new_vectors}
    _, fitted, report = compressed(name, trainer=PlainTrainer(), **options)
    fates = trained_fates(report.tensors)
    assert set(fates) == set(report.ranks) | set(report.dense)
    for matrix, fate in fates.items():
        count = {state: fate.states.count(state) for state in ("kept", "grew", "died", "freed")}
        new = report.details["additional_dimension"][matrix]
        assert sum(count.values()) == len(fitted.spectrum(matrix))
        assert count["freed"] == (new if new_vectors == "top" else 0)
        assert len(fate.new) == new
        if matrix in report.ranks:
            assert count["kept"] + count["grew"] + new == report.ranks[matrix]
        assert torch.equal(fate.before, fitted.spectrum(matrix))
        gone = torch.tensor([state in ("died", "freed") for state in fate.states])
        assert torch.equal(fate.after.isnan(), gone)
        grew = torch.tensor([state == "grew" for state in fate.states])
        assert (fate.after[grew] > 1.01 * fate.before[grew]).all()
        assert (fate.after[~gone & ~grew] <= 1.01 * fate.before[~gone & ~grew]).all()
    assert new_vectors == "zero" or any(fate.new.numel() for fate in fates.values())


def test_without_training_nothing_changes_but_what_died():
    _, fitted, report = compressed("bs", prunings=4, additional_dimension=0)
    for matrix, fate in trained_fates(report.tensors).items():
        survivors = fate.states.count("kept")
        assert survivors == report.ranks.get(matrix, len(fate.states))
        assert fate.states == ("kept",) * survivors + ("died",) * (len(fate.states) - survivors)
        assert torch.allclose(fate.after[:survivors], fitted.spectrum(matrix)[:survivors], rtol=1e-5)


def test_the_account_is_what_the_layers_hold_at_each_ratio_of_a_trajectory(monkeypatch):
    """At every ratio that one run hands out: kept bases, their s, and the new vectors' product, layer by layer."""
    seen = []
    bases = PruningRun.bases

    def watched(run):
        tensors = bases(run)
        for name, layer in run.layers.items():
            after = torch.zeros(len(tensors[f"{name}.before"]))
            after[layer.kept] = layer.singular_values()
            assert torch.equal(tensors[f"{name}.after"], after)
            assert tensors[f"{name}.state"].eq(STATES.index("kept")).nonzero()[:, 0].tolist() == layer.kept.tolist()
            product = (layer.extra_left @ layer.extra_right).detach()
            assert torch.allclose(tensors[f"{name}.new"], torch.linalg.svdvals(product)[: layer.extra], atol=1e-6)
        seen.append(tensors)
        return tensors

    monkeypatch.setattr(PruningRun, "bases", watched)
    method, model = create_method("bs", {"prunings": 6, "additional_dimension": 2}), random_model("llama")
    budgets = [Budget(2.0, True), Budget(3.0, True)]
    method.compress_path(model, method.fit(model, None), budgets, PlainTrainer(), lambda *_: None)
    counts = [sum(int(t.sum()) for key, t in tensors.items() if key.endswith(".state")) for tensors in seen]
    assert len(counts) == 2
    assert counts[0] > counts[1]


@pytest.mark.parametrize("name", ["svd", "fwsvd"])
def test_methods_that_truncate_keep_their_rank(name):
    _, fitted, report = compressed(name, 1.3)
    for matrix, fate in truncated_fates(fitted, report.ranks, report.dense).items():
        assert fate.after is None
        assert fate.states.count("kept") == report.ranks.get(matrix, len(fate.before))
        assert fate.states.count("kept") + fate.states.count("died") == len(fitted.spectrum(matrix))


def test_matrices_that_share_factors_have_no_bases_of_their_own():
    _, fitted, report = compressed("basis-sharing")
    with pytest.raises(UserError, match="together"):
        truncated_fates(fitted, report.ranks, report.dense)
