"""Every built-in method under the contract that third parties run on theirs."""

from typing import Any, ClassVar

from torch import Tensor, nn

from lowrank_bench.methods.base import methods
from lowrank_bench.methods.contract import CompressorContract, RandomData
from lowrank_bench.methods.library.fwsvd import FWSVD, fisher_scale


class TestSVD(CompressorContract):
    method = "svd"


class TestFWSVD(CompressorContract):
    method = "fwsvd"

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        if not hasattr(self, "fisher"):
            method = self.make()
            assert isinstance(method, FWSVD)
            self.fisher = {g.name: f for g, f in method.collect(model, RandomData(), method.groups(model))}
        return error * fisher_scale(self.fisher[name])


class TestBasisSelection(CompressorContract):
    method = "bs"
    options: ClassVar[dict[str, Any]] = {"prunings": 4, "additional_dimension": 2}
    plain: ClassVar[dict[str, Any]] = {"additional_dimension": 0}


class TestImportanceGuidedBasisSelection(CompressorContract):
    method = "bsi"
    options: ClassVar[dict[str, Any]] = {"prunings": 4, "additional_dimension": 2, "hessian_samples": 8}
    plain: ClassVar[dict[str, Any]] = {"additional_dimension": 0, "criterion": "s"}


def test_every_built_in_method_is_under_contract() -> None:
    tested = {vars(cls).get("method") for cls in CompressorContract.__subclasses__()}
    assert {row.name for row in methods.listings() if row.origin == "built in"} <= tested
