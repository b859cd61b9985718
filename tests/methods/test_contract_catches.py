"""The contract fails methods that break it, one flaw at a time (flaws that published code bases have had)."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import CalibrationData, CompressionReport, Compressor, Requirements, Trainer
from lowrank_bench.methods.contract import CompressorContract
from lowrank_bench.methods.fitted import Factors, Fitted
from lowrank_bench.methods.library.fwsvd import FWSVD
from lowrank_bench.methods.library.joint_rank_k import JointRankK
from lowrank_bench.methods.library.svd import SVD
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.ranks.units import ModelShape
from lowrank_bench.models.matrices import Matrix, get_linear, low_rank_layers, matrices


class Flawed(SVD):
    def after(self, model: Any) -> None: ...

    def compress(
        self, model: nn.Module, fitted: Fitted, budget: Budget, trainer: Trainer | None = None, data: Any = None
    ) -> CompressionReport:
        report = super().compress(model, fitted, budget, trainer, data)
        with torch.no_grad():
            self.after(model)
        return report


class LosesBias(Flawed):
    def after(self, model: Any) -> None:
        for layer in low_rank_layers(model).values():
            if layer.bias is not None:
                layer.bias.zero_()


class Unties(Flawed):
    def after(self, model: Any) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())


class Widens(Flawed):
    def after(self, model: Any) -> None:
        model.float()


class IgnoresEmbeddings(Flawed):
    def shape(self, model: nn.Module, ratio: float | None = None) -> ModelShape:
        whole = super().shape(model)
        return ModelShape(sum(unit.parameters for unit in whole.units), whole.units)


class Random(SVD):
    def decompose(self, weight: Tensor, statistic: Tensor | None = None, rank: int | None = None) -> Factors:
        factors = super().decompose(weight)
        return Factors(factors.left + 1e-6 * torch.randn_like(factors.left), factors.right, factors.spectrum)


class WrongOrder(SVD):
    def decompose(self, weight: Tensor, statistic: Tensor | None = None, rank: int | None = None) -> Factors:
        factors = super().decompose(weight)
        return Factors(factors.left.flip(1), factors.right.flip(0) * 1.001, factors.spectrum)


class HidesNaN(SVD):
    def fit(self, model: nn.Module, data: CalibrationData | None, folder: Path | None = None) -> Fitted:
        clean = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in clean.parameters():
                parameter.nan_to_num_(0.0)
        return super().fit(clean, data)


class MovesTheModel(SVD):
    def fit(self, model: nn.Module, data: CalibrationData | None, folder: Path | None = None) -> Fitted:
        with torch.no_grad():
            get_linear(model, self.targets(model)[0].name).weight.mul_(1.0001)
        return super().fit(model, data)


class UsesUpItsFit(SVD):
    def compress(
        self, model: nn.Module, fitted: Fitted, budget: Budget, trainer: Trainer | None = None, data: Any = None
    ) -> CompressionReport:
        report = super().compress(model, fitted, budget, trainer, data)
        for name in report.ranks:
            fitted.factors(name).left.mul_(0.5)
        return report


class SaysNothing(SVD):
    def compress(
        self, model: nn.Module, fitted: Fitted, budget: Budget, trainer: Trainer | None = None, data: Any = None
    ) -> CompressionReport:
        try:
            return super().compress(model, fitted, budget, trainer, data)
        except UserError as error:
            raise UserError("no") from error


class Freezes(Flawed):
    def after(self, model: Any) -> None:
        for layer in low_rank_layers(model).values():
            layer.lr_a.requires_grad_(False)


class CompressesTied(SVD):
    def targets(self, model: nn.Module) -> list[Matrix]:
        head = get_linear(model, "lm_head")
        tied = Matrix("lm_head", head.out_features, head.in_features, False)
        return [matrix for matrix in matrices(model) if matrix.name != "lm_head"] + [tied]


class ReadsUndeclared(FWSVD):
    requires = Requirements(gradients=True)


class ReadsNothing(SVD):
    requires = Requirements(statistics=True)


class DifferentiatesUndeclared(FWSVD):
    requires = Requirements(statistics=True)


class SharesUndeclared(JointRankK):
    requires = Requirements()


class ForgetsItsPolicy(SVD):
    policy: str = "laser"


def contract(method: type[Compressor]) -> CompressorContract:
    class Checked(CompressorContract):
        def make(self, **changes: Any) -> Compressor:
            return method(**changes)

    return Checked()


Check = Callable[[CompressorContract, Path], None]

FLAWS: Mapping[type[Compressor], Check] = {
    LosesBias: lambda suite, _: suite.test_keeps_biases("qwen2"),
    Unties: lambda suite, _: suite.test_tied_embeddings_stay_tied("gemma", None),
    CompressesTied: lambda suite, _: suite.test_tied_embeddings_stay_tied("llama", True),
    Widens: lambda suite, _: suite.test_keeps_the_dtype(torch.bfloat16),
    IgnoresEmbeddings: lambda suite, _: suite.test_meets_the_ratio_within_one_rank("llama"),
    Random: lambda suite, _: suite.test_is_deterministic(),
    WrongOrder: lambda suite, _: suite.test_error_falls_as_the_rank_grows(),
    MovesTheModel: lambda suite, folder: suite.test_fit_leaves_the_model_and_serves_many_ratios(folder),
    UsesUpItsFit: lambda suite, folder: suite.test_fit_leaves_the_model_and_serves_many_ratios(folder),
    SaysNothing: lambda suite, _: suite.test_infeasible_ratio_names_the_largest(),
    Freezes: lambda suite, _: suite.test_reports_its_training(),
}

UNDECLARED = (ReadsUndeclared, ReadsNothing, DifferentiatesUndeclared, SharesUndeclared, ForgetsItsPolicy)


@pytest.mark.parametrize("flawed", FLAWS, ids=lambda flawed: flawed.__name__)
def test_a_flaw_is_caught(flawed: type[Compressor], tmp_path: Path) -> None:
    FLAWS[flawed](contract(SVD), tmp_path / "sound")
    with pytest.raises((AssertionError, AttributeError)):
        FLAWS[flawed](contract(flawed), tmp_path / "flawed")


def test_hidden_nan_is_caught() -> None:
    contract(SVD).test_nan_weights_are_an_error()
    with pytest.raises(pytest.fail.Exception):
        contract(HidesNaN).test_nan_weights_are_an_error()


@pytest.mark.parametrize("sound", [SVD, FWSVD, JointRankK])
def test_a_true_declaration_passes(sound: type[Compressor]) -> None:
    contract(sound).test_declares_what_it_needs()


@pytest.mark.parametrize("flawed", UNDECLARED, ids=lambda flawed: flawed.__name__)
def test_a_false_declaration_is_caught(flawed: type[Compressor]) -> None:
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        contract(flawed).test_declares_what_it_needs()
