"""What every compression method must do, as a test suite that a method inherits with one line.

    from lowrank_bench.methods.contract import CompressorContract

    class TestMine(CompressorContract):
        method = "mine"

Run it with pytest, which only this module imports. It compresses random two-layer models of every architecture on the
CPU in a few seconds; methods that train are trained for real, by `contract_parts.PlainTrainer`.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..foundation.errors import UserError
from ..foundation.files import canonical_json
from ..foundation.fork_server import run_apart
from ..models.architectures import ARCHITECTURES, random_model
from ..models.checkpoint import save_checkpoint
from ..models.dtypes import SaveDtypes
from ..models.embedding import TiedHead
from ..models.loading import load_model
from ..models.matrices import get_linear, low_rank_layers, tied_modules
from ..models.shards import save_streamed
from ..models.streamed import open_streamed
from .base import CompressionReport, Compressor, Trainer, create_method
from .contract_parts import VOCABULARY, CountedData, FixedRank, PlainTrainer, RandomData
from .fitted import Fitted
from .ranks.budget import Budget
from .ranks.units import ModelShape

Weights = dict[str, Tensor]


@dataclass
class Case:
    """A dense model, what became of a copy of it, and the report."""

    dense: Any
    model: Any
    report: CompressionReport
    shape: ModelShape


def logits(model: nn.Module) -> Tensor:
    """Return the model's logits on three fixed sequences, shape (3, 12, vocabulary), float32."""
    ids = torch.randint(3, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result.float()


def count(model: nn.Module) -> int:
    """Count parameters by the memory they lie in, so tied ones count once."""
    return sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())


def weights(model: nn.Module) -> Weights:
    """Return copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first: Weights, second: Weights) -> bool:
    """Whether two sets of weights agree in every bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class CompressorContract:
    """Derive a class named ``Test…`` from this one and set ``method``.

    Attributes:
        method: registered name.
        options: options to test it with; make pruning runs and searches short here.
        plain: further options under which the method, without training, only decomposes: at full rank it changes
            nothing, and its error falls as the rank grows.
        ratio: the ratio of most tests.
    """

    method: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    plain: ClassVar[Mapping[str, Any]] = {}
    ratio: ClassVar[float] = 2.0
    _cases: ClassVar[dict[tuple[Any, ...], Case]] = {}

    def make(self, **changes: Any) -> Compressor:
        """Build the method with the suite's options and some more."""
        return create_method(self.method, {**self.options, **changes})

    def weigh(self, model: nn.Module, name: str, error: Tensor) -> Tensor:
        """Return the error (m, n) of one matrix in the metric that the method minimises; the plain error by default."""
        return error

    def trainer(self, **settings: Any) -> Trainer | None:
        """Return a trainer for methods that train."""
        return PlainTrainer(**settings) if self.make().requirements.trains else None

    def fit(self, model: nn.Module, **changes: Any) -> Fitted:
        """Fit the method on random data."""
        return self.make(**changes).fit(model, RandomData())

    def run(self, dense: nn.Module, budget: Budget | None = None, fitted: Fitted | None = None, **changes: Any) -> Case:
        """Compress a copy of a model; with ``lr=0`` among the changes training is without effect."""
        settings = {"lr": changes.pop("lr")} if "lr" in changes else {}
        method, model = self.make(**changes), copy.deepcopy(dense)
        budget = budget or Budget(self.ratio, method.guard)
        fitted = fitted or method.fit(dense, RandomData())
        report = method.compress(model, fitted, budget, self.trainer(**settings), RandomData())
        return Case(dense, model, report, method.shape(dense))

    def case(self, architecture: str, dtype: torch.dtype = torch.float32, tied: bool | None = None) -> Case:
        """Return a model compressed at the suite's ratio; made once per class."""
        key = (type(self), architecture, dtype, tied)
        if key not in self._cases:
            self._cases[key] = self.run(random_model(architecture, tied, dtype))
        return self._cases[key]

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_meets_the_ratio_within_one_rank(self, architecture: str) -> None:
        """Never above the budget, less than one rank below it, and reported as counted."""
        case = self.case(architecture)
        before, after = count(case.dense), count(case.model)
        allowed = before / self.ratio
        step = max(unit.cost for unit in case.shape.units)
        assert after <= allowed, f"{after} parameters are more than the {allowed:.0f} of the ratio {self.ratio}"
        assert allowed - after < step, f"{allowed - after:.0f} parameters are unused, one rank costs at most {step}"
        assert (case.report.parameters_before, case.report.parameters) == (before, after), "the report miscounts"
        touched = sum(unit.parameters for unit in case.shape.units)
        assert case.report.matrices_before == touched, "matrices_before is not the size of the matrices"
        assert case.report.matrices_after == touched - (before - after), "matrices_after is not what is left of them"

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_keeps_shapes_and_computes(self, architecture: str) -> None:
        """Every matrix keeps its widths (keys and values of grouped-query attention are narrower than queries)."""
        case = self.case(architecture)
        for matrix in self.make().targets(case.dense):
            layer = case.model.get_submodule(matrix.name)
            dense = isinstance(layer, nn.Embedding)  # one that the policy leaves as it is
            widths = (layer.num_embeddings, layer.embedding_dim) if dense else (layer.out_features, layer.in_features)
            assert widths == (matrix.out_features, matrix.in_features), matrix.name
            assert (getattr(layer, "bias", None) is not None) == matrix.bias, f"{matrix.name} lost or gained a bias"
            added = getattr(layer, "lr_bias", None) is not None
            assert added <= self.make().requirements.affine, (
                f"{matrix.name} gained a bias, but the method is not affine"
            )
            assert (matrix.name in case.report.ranks) != (matrix.name in case.report.dense), f"report on {matrix.name}"
            # A factor that narrow matrices share may have more rows than any of them has outputs.
            shares = self.make().requirements.shares
            limit = matrix.in_features if shares else min(matrix.out_features, matrix.in_features)
            assert 1 <= case.report.ranks.get(matrix.name, 1) <= limit, f"rank of {matrix.name}"
        assert torch.isfinite(logits(case.model)).all(), "logits are not finite"

    @pytest.mark.parametrize("architecture", ["qwen2", "opt", "gpt-neox"])
    def test_keeps_biases(self, architecture: str) -> None:
        """Biases are the same bits as before when training changes nothing."""
        case = self.run(random_model(architecture), lr=0.0)
        biases = {name: value for name, value in weights(case.dense).items() if name.endswith("bias")}
        assert biases
        after = weights(case.model)
        if self.make().requirements.affine:
            assert all(after[name].shape == value.shape for name, value in biases.items()), "a bias is gone"
        else:
            assert same(biases, {name: after.get(name, torch.empty(0)) for name in biases}), "a bias changed"

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_full_rank_changes_nothing(self, architecture: str) -> None:
        """At full rank the logits are those of the dense model to float32 rounding."""
        case = self.run(random_model(architecture), FixedRank(), lr=0.0, guard=False, **self.plain)
        assert case.report.ranks, "no matrix was factorised"
        before, after = logits(case.dense), logits(case.model)
        assert (after - before).abs().max() <= 2e-4 * before.abs().max(), "full rank is not lossless"

    def test_error_falls_as_the_rank_grows(self) -> None:
        """The summed squared error of the matrices, in the method's own metric, never grows with the rank."""
        dense = random_model("llama")
        fitted = self.fit(dense, guard=False, **self.plain)
        errors = []
        for rank in (1, 2, 5, 11, 16, 27, 32):
            case = self.run(dense, FixedRank(rank=rank), fitted, lr=0.0, guard=False, **self.plain)
            total = 0.0
            for matrix in self.make().targets(dense):
                layer = case.model.get_submodule(matrix.name)
                approximation = layer.dense_weight() if hasattr(layer, "dense_weight") else layer.weight
                error = (dense.get_submodule(matrix.name).weight - approximation).detach().double()
                total += float(self.weigh(dense, matrix.name, error).square().sum())
            errors.append(total)
        assert all(b <= a * (1 + 1e-6) + 1e-6 for a, b in pairwise(errors)), f"errors {errors}"
        assert errors[-1] <= 1e-6 * errors[0], f"error at full rank {errors[-1]:g}, at rank 1 {errors[0]:g}"

    @pytest.mark.parametrize(("architecture", "tied"), [("gemma", None), ("opt", None), ("llama", True)])
    def test_tied_embeddings_stay_tied(self, architecture: str, tied: bool | None) -> None:
        """A tied output head stays one tensor with the embedding."""
        case = self.case(architecture, tied=tied)
        head, embedding = case.model.get_output_embeddings(), case.model.get_input_embeddings()
        assert tied_modules(case.dense), "the fixture is not tied"
        tie = head.embedding is embedding if isinstance(head, TiedHead) else head.weight is embedding.weight
        assert tie, "the head was untied"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_keeps_the_dtype(self, dtype: torch.dtype) -> None:
        """All parameters stay in the model's dtype, the budget is met, and the logits are finite."""
        case = self.case("llama", dtype)
        assert {parameter.dtype for parameter in case.model.parameters()} == {dtype}
        assert case.report.ratio >= self.ratio
        assert torch.isfinite(logits(case.model)).all()

    def test_loads_in_a_new_process(self, tmp_path: Path) -> None:
        """A saved model gives the same logits in a process that only knows the folder."""
        cases = {name: self.case(name) for name in ARCHITECTURES}
        cases |= {"tied": self.case("llama", tied=True), "bfloat16": self.case("llama", torch.bfloat16)}
        for name, case in cases.items():
            save_checkpoint(case.model, None, tmp_path / name)
        folders = [str(tmp_path / name) for name in cases]
        code, printed = run_apart(_reload, folders)
        assert code == 0, printed
        for name, case in cases.items():
            again = load_file(tmp_path / f"{name}.safetensors")
            assert int(again["parameters"]) == count(case.model), f"{name}: not the same number of parameters"
            torch.testing.assert_close(again["logits"], logits(case.model), msg=f"{name}: other logits when loaded")

    def test_is_deterministic(self) -> None:
        """Two runs agree in every bit, whatever the global random state."""
        runs = []
        for seed in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                runs.append(weights(self.run(random_model("llama")).model))
        assert same(*runs), "two runs differ"

    def test_fit_leaves_the_model_and_serves_many_ratios(self, tmp_path: Path) -> None:
        """One fit, kept in memory or on disk, gives at any ratio and in any order what a fresh one gives."""
        dense = random_model("qwen2")
        before = weights(dense)
        fitted = self.fit(dense)
        assert same(before, weights(dense)), "fit changed the model"
        assert all(p.requires_grad and p.grad is None for p in dense.parameters()), "fit left gradients"
        self.run(dense, Budget(3.0, self.make().guard), fitted)
        fitted.save(tmp_path)
        fresh = weights(self.run(dense).model)
        assert same(fresh, weights(self.run(dense, fitted=fitted).model)), "compress changed what fit gave"
        assert same(fresh, weights(self.run(dense, fitted=Fitted.load(tmp_path)).model)), "the fit on disk differs"

    @pytest.mark.parametrize("architecture", ["qwen2", "gemma"])
    def test_a_streamed_model_gives_the_same(self, architecture: str, tmp_path: Path) -> None:
        """Fitting and compressing a model that stays on disk give the same factors, report and checkpoint, bit by bit.

        A method that reads weights or runs the model otherwise than the driver does declares ``layer_by_layer=False``.
        """
        method, dense = self.make(), random_model(architecture)
        save_checkpoint(dense, None, tmp_path / "dense")
        if method.requirements.fit_layer_by_layer:
            streamed = open_streamed(tmp_path / "dense")
            method.fit(dense, RandomData()).save(tmp_path / "whole")
            method.fit(streamed, RandomData()).save(tmp_path / "streamed")
            pair = [load_file(tmp_path / name / "factors-00000.safetensors") for name in ("whole", "streamed")]
            assert same(*pair), "the factors of a streamed model differ"
        if method.requirements.compress_layer_by_layer:
            streamed, budget = open_streamed(tmp_path / "dense"), Budget(self.ratio, method.guard)
            case = self.run(dense)
            fitted = method.fit(dense, RandomData())
            assert method.compress(streamed, fitted, budget, None).summary() == case.report.summary()
            save_streamed(streamed, None, tmp_path / "small", SaveDtypes(torch.float32))
            assert same(weights(load_model(tmp_path / "small")), weights(case.model)), "another checkpoint is written"

    def test_declares_what_it_needs(self) -> None:
        """What the class declares holds for its default options, and what `requirements` says is what happens."""
        method, dense, fit_data, data = self.make(), random_model("llama"), CountedData(), CountedData()
        assert type(method)().requirements == method.requires, "requires differs from what the default options need"
        needs = method.requirements
        with torch.set_grad_enabled(needs.gradients):
            fitted = method.fit(dense, fit_data if needs.data_in_fit else None)
        assert (fit_data.reads > 0) == needs.data_in_fit, f"fit reads task data {fit_data.reads} times"
        model = copy.deepcopy(dense)
        method.compress(model, fitted, Budget(self.ratio, method.guard), self.trainer(), data)
        assert (data.reads > 0) == needs.searches, f"compress reads task data {data.reads} times"
        layers = low_rank_layers(model).values()
        factors = {id(layer.lr_a) for layer in layers}
        assert (len(factors) < len(layers)) <= bool(needs.shares), "matrices share a factor, see Requirements.shares"
        assert any(layer.lr_bias is not None for layer in layers) <= needs.affine, "a layer gained a bias"

    def test_size_is_known_before_loading(self) -> None:
        """The shape of a model without weights is the shape of the model; the fit key is plain data."""
        for architecture in ARCHITECTURES:
            model = random_model(architecture)
            with torch.device("meta"):
                skeleton = type(model)(model.config)
            assert self.make().shape(skeleton, self.ratio) == self.make().shape(model, self.ratio), architecture
        assert canonical_json(self.make().fit_key()) == canonical_json(self.make().fit_key())

    def test_reports_its_training(self) -> None:
        """Steps and tokens are those of the trainer, and the compressed model trains on, all of it."""
        case = self.run(random_model("llama"))
        if self.make().requirements.trains:
            assert 0 < case.report.steps <= PlainTrainer().total_steps
            assert case.report.tokens > 0
        else:
            assert (case.report.steps, case.report.tokens) == (0, 0)
        before = weights(case.model)
        assert all(parameter.requires_grad for parameter in case.model.parameters())
        PlainTrainer(2).train(case.model, 2)
        still = [name for name, value in weights(case.model).items() if torch.equal(value, before[name])]
        assert not still, f"the recovery does not train {still}"

    def test_nan_weights_are_an_error(self) -> None:
        """A NaN in a weight stops the method instead of giving noise."""
        dense = random_model("llama")
        with torch.no_grad():
            get_linear(dense, "model.layers.1.mlp.up_proj").weight[2, 3] = float("nan")
        with pytest.raises((UserError, ValueError)):
            self.run(dense)

    def test_infeasible_ratio_names_the_largest(self) -> None:
        """A ratio out of reach is a `UserError` that names a ratio that is not."""
        dense = random_model("llama")
        fitted, guard = self.fit(dense), self.make().guard
        with pytest.raises(UserError) as caught:
            self.run(dense, Budget(1000.0, guard), fitted)
        named = re.search(r"at most ([\d.]+)", str(caught.value))
        assert named, f"no largest ratio in: {caught.value}"
        largest = float(named[1].rstrip("."))
        assert self.run(dense, Budget(largest, guard), fitted).report.ratio >= largest
        with pytest.raises(UserError):
            self.run(dense, Budget(largest + 0.02, guard), fitted)

    def test_degenerate_weights_stay_finite(self) -> None:
        """A zero matrix, a rank-one matrix and an input that is always zero give finite factors."""
        dense = random_model("llama")
        with torch.no_grad():
            get_linear(dense, "model.layers.0.mlp.down_proj").weight.zero_()
            get_linear(dense, "model.layers.1.mlp.up_proj").weight[1:] = 0
            dense.model.layers[0].input_layernorm.weight[3] = 0
        case = self.run(dense)
        assert all(torch.isfinite(parameter).all() for parameter in case.model.parameters())
        assert torch.isfinite(logits(case.model)).all()


def _reload(folders: list[str]) -> None:
    for folder in folders:
        model = load_model(folder, dtype="auto")
        tensors = {"logits": logits(model), "parameters": torch.tensor(count(model))}
        save_file(tensors, f"{folder}.safetensors")
