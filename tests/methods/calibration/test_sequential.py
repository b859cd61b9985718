"""Statistics gathered block by block from a model on disk are those of the whole model, bit by bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration import offload_cache, sequential, sequential_statistics
from lowrank_bench.methods.calibration.collection import gradient_grams, input_fisher, input_moments
from lowrank_bench.methods.calibration.offload_cache import OffloadCache
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.models.architectures import CLASSIC, IN_PLACE, MIXTURES, TODAY, random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import embedding_matrix, matrices
from lowrank_bench.models.streamed import NotStreamable, open_streamed, weights_of


def moments(model: nn.Module, names: list[str], batch_size: int) -> dict[str, list[Tensor]]:
    """Return all sums by name, as they come."""
    statistics = input_moments(model, names, RandomData(7), None, batch_size)
    return {name: [m.gram, m.total, m.absolute, torch.tensor(m.tokens)] for name, m in statistics}


def gradients(model: nn.Module, names: list[str], batch_size: int) -> dict[str, list[Tensor]]:
    """Return the Gram matrices of the output gradients by name; of a tied head's logits the diagonal."""
    embedding = embedding_matrix(model)
    heads = [embedding.head] if embedding.head else []
    names = [*names, embedding.name, *heads]
    return {
        name: [gram] for name, gram in gradient_grams(model, names, RandomData(7), None, batch_size, diagonal=heads)
    }


def fisher(model: nn.Module, names: list[str], batch_size: int) -> dict[str, list[Tensor]]:
    """Return the Fisher information summed both ways, by name."""
    names = [*names, embedding_matrix(model).name]  # last, as `matrices` has it
    both = [input_fisher(model, names, RandomData(7), None, batch_size, axis) for axis in ("in", "out")]
    return {name: [part[name] for part in both] for name in names}


GATHER = [moments, gradients, fisher]


def pair(folder: Path, architecture: str, tied: bool | None = None) -> tuple[Any, Any, list[str]]:
    """Return a model in memory, the same on disk, and the names of its matrices."""
    save_checkpoint(random_model(architecture, tied), None, folder)
    whole = load_model(folder)
    return whole, open_streamed(folder, scratch=folder / "scratch"), [matrix.name for matrix in matrices(whole)]


def assert_same(first: dict[str, list[Tensor]], second: dict[str, list[Tensor]]) -> None:
    """Compare names, their order, and every bit."""
    assert list(first) == list(second)
    for name, tensors in first.items():
        assert any(tensor.count_nonzero() for tensor in tensors), name
        for a, b in zip(tensors, second[name], strict=True):
            assert a.dtype == b.dtype, name
            assert torch.equal(a, b), name


@pytest.mark.parametrize("architecture", MIXTURES)
def test_mixtures_are_loaded_whole(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(NotStreamable, match="its tensors are merged or cut while loading"):
        pair(tmp_path, architecture, None)


@pytest.mark.parametrize("gather", GATHER)
@pytest.mark.parametrize("architecture", [*CLASSIC, *TODAY, *IN_PLACE, "tied llama"])
def test_equals_the_whole_model(architecture: str, gather: Callable[..., Any], tmp_path: Path) -> None:
    """Grouped-query attention, biases, tied and untied heads, parallel residuals, flattened inputs; unequal batches."""
    whole, streamed, names = pair(tmp_path, architecture.split()[-1], "tied" in architecture or None)
    assert_same(gather(whole, names, 3), gather(streamed, names, 3))
    assert all(parameter.is_meta for parameter in streamed.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in streamed.modules())


@pytest.mark.parametrize(
    ("gather", "tied"), [*((gather, None) for gather in GATHER), (gradients, True), (fisher, True)]
)
def test_does_not_depend_on_where_states_wait(
    gather: Callable[..., Any], tied: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All on disk, and one batch at a time on the way back: the same bits, and no file is left."""
    whole, streamed, names = pair(tmp_path, "mistral", tied)
    monkeypatch.setattr(offload_cache.OffloadCache.__init__, "__defaults__", (None, 0))
    monkeypatch.setattr(sequential_statistics, "INPUTS_BYTES", 1)
    assert_same(gather(whole, names, 2), gather(streamed, names, 2))
    assert (tmp_path / "scratch").is_dir(), "nothing waited on disk"
    assert not list((tmp_path / "scratch").iterdir())


def test_names_may_come_in_any_order(tmp_path: Path) -> None:
    """Methods that share factors across layers ask for layers alternately, and may stop early."""
    whole, streamed, names = pair(tmp_path, "llama")
    mixed = names[::2][::-1] + names[1::2]
    assert_same(moments(whole, mixed, 4), moments(streamed, mixed, 4))
    statistics = input_moments(streamed, names, RandomData(7), None, 4)
    first, _ = next(statistics)
    statistics.close()
    assert first == names[0]
    assert all(parameter.is_meta for parameter in streamed.parameters())


def test_only_one_block_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a block runs, no parameter of another one is loaded."""
    _, streamed, names = pair(tmp_path, "qwen2")
    seen: list[set[str]] = []
    run = sequential.SequentialCalibration.run

    def watched(self: sequential.SequentialCalibration, name: str, index: int, hidden: Tensor) -> Tensor:
        seen.append({key.rpartition(".layers.")[2][:1] for key, p in self.model.named_parameters() if not p.is_meta})
        return run(self, name, index, hidden)

    monkeypatch.setattr(sequential.SequentialCalibration, "run", watched)
    gradients(streamed, names, 4)
    assert seen
    assert all(len(blocks) == 1 for blocks in seen)


def test_a_broken_model_is_refused_before_the_work(tmp_path: Path) -> None:
    """A NaN in a weight is an error of the fit, as with a model in memory."""
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")
    save_checkpoint(model, None, tmp_path)
    with pytest.raises(Exception, match=r"layers\.1\.mlp\.up_proj holds NaN"):
        create_method("svd").fit(open_streamed(tmp_path), None)


@pytest.mark.parametrize("limit", [0, 100, 10_000])
def test_waiting_states_come_back_as_they_were_written(limit: int, tmp_path: Path) -> None:
    """In memory or on disk: values, shapes and dtypes; the files go with their tensors."""
    tensors = {
        "a": torch.randn(2, 3),
        "expanded": torch.randn(3, 1, 2).expand(3, 4, 2),
        "mask": torch.rand(5) > 0.5,
        "half": torch.randn(4).bfloat16(),
        "one": torch.tensor(3),
    }
    with OffloadCache(tmp_path / "new", limit) as waiting:
        for key, tensor in tensors.items():
            waiting.put(key, torch.zeros(1))
            waiting.put(key, tensor)
        for key, tensor in tensors.items():
            for value in (waiting.get(key), waiting.take(key)):
                assert value.dtype == tensor.dtype
                assert torch.equal(value, tensor), key
            assert not waiting.has(key)
        assert waiting.memory_bytes == 0
        assert not [file for folder in tmp_path.glob("new/*") for file in folder.iterdir()]
        waiting.put("left", torch.ones(100))
    assert not list(tmp_path.glob("new/*"))


def test_a_streamed_model_is_recognised(tmp_path: Path) -> None:
    """Only a streamed model can be calibrated layer by layer."""
    whole, _, _ = pair(tmp_path, "llama")
    assert weights_of(whole) is None
    with pytest.raises(ValueError, match="streamed"):
        sequential.SequentialCalibration(whole, [], OffloadCache())
