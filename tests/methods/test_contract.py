"""Every built-in method under the contract that third parties run on theirs."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lowrank_bench.methods.base import methods
from lowrank_bench.methods.calibration.driver import MomentCompressor
from lowrank_bench.methods.calibration.row_statistic import RowStatistic, shrunk
from lowrank_bench.methods.contract import CompressorContract
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.library.fwsvd import FWSVD, fisher_scale
from lowrank_bench.methods.library.svd_llm import Whitened as WhitenedMethod
from lowrank_bench.models.architectures import random_model


class TestSVD(CompressorContract):
    method = "svd"


class TestSVDWithEmbeddings(CompressorContract):
    method = "svd"
    options: ClassVar[dict[str, Any]] = {"embeddings": True}


class TestFWSVD(CompressorContract):
    method = "fwsvd"

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        if not hasattr(self, "fisher"):
            method = self.make()
            assert isinstance(method, FWSVD)
            self.fisher = {g.name: f for g, f in method.collect(model, RandomData(), method.groups(model))}
        scale = fisher_scale(self.fisher[name])
        return error * (scale[:, None] if isinstance(model.get_submodule(name), nn.Embedding) else scale)


class TestFWSVDWithEmbeddings(TestFWSVD):
    options: ClassVar[dict[str, Any]] = {"embeddings": True}


class Whitened(CompressorContract):
    """Methods that minimise the error of the outputs over the calibration inputs."""

    __test__ = False

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        if not hasattr(self, "grams"):
            method = self.make()
            assert isinstance(method, MomentCompressor)
            statistics = method.collect(model, RandomData(), method.groups(model))
            self.grams = {m.name: self.gram(statistic) for group, statistic in statistics for m in group.members}
        values, vectors = torch.linalg.eigh(self.grams[name])
        return error @ (vectors * values.clamp_min(0).sqrt())

    def gram(self, statistic: Any) -> Tensor:
        gram: Tensor = statistic[0].gram
        return gram


class TestSVDLLM(Whitened):
    __test__ = True
    method = "svd-llm"


class TestSVDLLMWithEmbeddings(Whitened):
    __test__ = True
    method = "svd-llm"
    options: ClassVar[dict[str, Any]] = {"embeddings": True}

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        if name not in self.rows(model):
            return super().weigh(model, name, error)
        statistic = self.rows(model)[name]
        rows = statistic.weights.sqrt()[:, None] * error
        if statistic.inputs is None:
            return rows
        values, vectors = torch.linalg.eigh(statistic.inputs.gram)
        return rows @ (vectors * values.clamp_min(0).sqrt())

    def rows(self, model: nn.Module) -> dict[str, RowStatistic]:
        method = self.make()
        assert isinstance(method, MomentCompressor)
        statistics = method.collect(model, RandomData(), method.groups(model))
        return {group.name: statistic for group, statistic in statistics if group.embedding}

    def gram(self, statistic: Any) -> Tensor:
        return torch.empty(0, 0) if isinstance(statistic, RowStatistic) else super().gram(statistic)


class TestAA(Whitened):
    __test__ = True
    method = "aa"
    plain: ClassVar[dict[str, Any]] = {"stream": "dense"}


class TestAAWithEmbeddings(TestSVDLLMWithEmbeddings):
    method = "aa"
    plain: ClassVar[dict[str, Any]] = {"stream": "dense"}


class TestAAWithRefinement(Whitened):
    __test__ = True
    method = "aa"
    options: ClassVar[dict[str, Any]] = {"beta": 0.5, "refine_passes": 1}
    plain: ClassVar[dict[str, Any]] = {"stream": "dense", "refine_passes": 0}

    @pytest.mark.parametrize("architecture", ["qwen2", "opt", "gpt-neox"])
    def test_keeps_biases(self, architecture: str) -> None:
        """The refinement trains them, so that only their shapes stay."""
        case = self.run(random_model(architecture), lr=0.0)
        after = dict(case.model.named_parameters())
        biases = {name: value for name, value in case.dense.named_parameters() if name.endswith("bias")}
        assert biases
        assert all(after[name].shape == value.shape for name, value in biases.items())

    def test_reports_its_training(self) -> None:
        """Tokens of the refinement are counted, its steps are none of the task's training."""
        case = self.run(random_model("llama"))
        assert case.report.steps == 0
        assert case.report.tokens == 2 * int(RandomData().mask.sum())
        assert case.report.details["refine_steps"] == 2
        assert all(parameter.requires_grad and parameter.grad is None for parameter in case.model.parameters())


class TestZSSVD(Whitened):
    __test__ = True
    method = "zs-svd"


class TestZSSVDWithCorrections(Whitened):
    __test__ = True
    method = "zs-svd"
    options: ClassVar[dict[str, Any]] = {"corrections": 1, "correction_samples": 4}
    plain: ClassVar[dict[str, Any]] = {"corrections": 0}


class TestSVDLLMV2(Whitened):
    __test__ = True
    method = "svd-llm-v2"


class TestDrone(Whitened):
    __test__ = True
    method = "drone"


class TestIOSVD(CompressorContract):
    method = "io-svd"

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        if not hasattr(self, "statistics"):
            method = self.make()
            assert isinstance(method, WhitenedMethod)
            self.statistics = {g.name: s for g, s in method.collect(model, RandomData(), method.groups(model))}
        moments, gradients = self.statistics[name]
        roots = []
        for gram, share in ((gradients, 0.3), (moments.gram, 0.1)):
            values, vectors = torch.linalg.eigh(shrunk(gram, share))
            roots.append(vectors * values.clamp_min(0).sqrt())
        return roots[0].T @ error @ roots[1]


class TestIOSVDWithEmbeddings(TestIOSVD):
    options: ClassVar[dict[str, Any]] = {"embeddings": True}

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        if not isinstance(model.get_submodule(name), nn.Embedding):
            return super().weigh(model, name, error)
        method = self.make()
        assert isinstance(method, WhitenedMethod)
        for group, statistic in method.collect(model, RandomData(), method.groups(model)):
            if group.name == name:
                rows, columns = statistic.quadratic(0.1, 0.3)
        values, vectors = torch.linalg.eigh(columns)
        return rows.sqrt()[:, None] * error @ (vectors * values.clamp_min(0).sqrt())


class TestIOSVDClipped(TestIOSVD):
    options: ClassVar[dict[str, Any]] = {"clip": 10.0, "trim": 0.125}


class TestASVD(CompressorContract):
    method = "asvd"

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        if not hasattr(self, "scales"):
            method = self.make()
            assert isinstance(method, MomentCompressor)
            statistics = method.collect(model, RandomData(), method.groups(model))
            self.scales = {g.name: (m.absolute / m.tokens) ** 0.5 + 1e-6 for g, m in statistics}
        return error * self.scales[name]


class TestAFM(Whitened):
    __test__ = True
    method = "afm"

    def gram(self, statistic: Any) -> Tensor:
        mean = statistic.total / statistic.tokens
        centred: Tensor = statistic.gram - statistic.tokens * torch.outer(mean, mean)
        return centred


class TestSFSD(TestAFM):
    method = "sfsd"


class TestSWSD(CompressorContract):
    method = "swsd"


class TestLASER(CompressorContract):
    method = "laser"


class TestJointRankK(CompressorContract):
    method = "joint-rank-k"


class TestBasisSharing(Whitened):
    __test__ = True
    method = "basis-sharing"

    def gram(self, statistic: Any) -> Tensor:
        gram: Tensor = statistic.gram
        return gram


class TestRandom(CompressorContract):
    method = "random"


class TestRandomWithEmbeddings(CompressorContract):
    method = "random"
    options: ClassVar[dict[str, Any]] = {"embeddings": True}


class TestMagnitude(CompressorContract):
    method = "magnitude"


class TestMagnitudeWithEmbeddings(CompressorContract):
    method = "magnitude"
    options: ClassVar[dict[str, Any]] = {"embeddings": True}


class TestBasisSelection(CompressorContract):
    method = "bs"
    options: ClassVar[dict[str, Any]] = {"prunings": 4, "additional_dimension": 2}
    plain: ClassVar[dict[str, Any]] = {"additional_dimension": 0}


class TestBasisSelectionWithEmbeddings(CompressorContract):
    method = "bs"
    options: ClassVar[dict[str, Any]] = {"prunings": 4, "additional_dimension": 2, "embeddings": True}
    plain: ClassVar[dict[str, Any]] = {"additional_dimension": 0}


class TestImportanceGuidedBasisSelection(CompressorContract):
    method = "bsi"
    options: ClassVar[dict[str, Any]] = {"prunings": 4, "additional_dimension": 2, "hessian_samples": 8}
    plain: ClassVar[dict[str, Any]] = {"additional_dimension": 0, "criterion": "s"}


class TestImportanceGuidedBasisSelectionWithEmbeddings(TestImportanceGuidedBasisSelection):
    options: ClassVar[dict[str, Any]] = TestImportanceGuidedBasisSelection.options | {"embeddings": True}


def test_every_built_in_method_is_under_contract() -> None:
    tested = {
        value.method for value in globals().values() if getattr(value, "__test__", True) and hasattr(value, "method")
    }
    assert {row.name for row in methods.listings() if row.origin == "built in"} <= tested
