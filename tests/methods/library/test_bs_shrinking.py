"""Pruned bases leave the computation: parameters and optimizer states shrink, and nothing else changes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowrank_bench.evals.tasks.prompts import Encoded
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.library.bs import run
from lowrank_bench.methods.library.bs.curvature import Curvature
from lowrank_bench.methods.library.bs.fusing import blocks, fused
from lowrank_bench.methods.library.bs.layer import BasisLinear, Start
from lowrank_bench.methods.library.bs.run import PruningRun
from lowrank_bench.methods.library.bs.selected import SelectedLinear
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.shrinking import shrink_parameter
from lowrank_bench.models.architectures import random_model
from lowrank_bench.runners.training.data import TaskData
from lowrank_bench.runners.training.settings import TrainSettings
from lowrank_bench.runners.training.trainer import TaskTrainer

M, N, K, EXTRA, TOKENS = 24, 20, 17, 3, 7
"""All distinct, so that a shape says what a tensor is."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.0005, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


class Same:
    """Asserts that two tensors are equal in every bit, or but for rounding."""

    def __init__(self, rounds: bool) -> None:
        self.rounds = rounds

    def __call__(self, tensor: Tensor, other: Tensor) -> None:
        if self.rounds:
            torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(tensor, other)


def layer(bases_dtype: torch.dtype | None = None, start: Start = "zero") -> BasisLinear:
    generator = torch.Generator().manual_seed(4)
    left, right = torch.randn(M, K, generator=generator) / 5, torch.randn(K, N, generator=generator) / 5
    spectrum = torch.rand(K, generator=generator).sort(descending=True).values + 0.1
    return BasisLinear(Factors(left, right, spectrum), torch.zeros(M), EXTRA, start, 0, torch.float32, bases_dtype)


def batch(step: int) -> Tensor:
    return torch.randn(TOKENS, N, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("start", ["zero", "top"])
def test_bases_to_be_sharded_are_pruned_without_being_cut(start: Start) -> None:
    """Frozen parameters in whole shapes compute what cut buffers do, pruned ones nothing, and are cut at the end."""
    plain, shared = layer(start=start), layer(start=start)
    shared.share()
    frozen = {name for name, parameter in shared.named_parameters() if not parameter.requires_grad}
    assert frozen == {"left", "right"}
    assert set(shared.state_dict()) == {name for name, _ in shared.named_parameters()}
    bases = shared.left.clone(), shared.right.clone()
    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.02) for module in (plain, shared)]
    generator = torch.Generator().manual_seed(8)
    for step in range(9):
        for module, optimizer in zip((plain, shared), optimizers, strict=True):
            optimizer.zero_grad()
            (module(batch(step)) - 1).square().sum().backward()
        if step % 2:
            mask = torch.rand(len(plain.kept), generator=generator) > 0.2
            for module in (plain, shared):
                module.prune(mask)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(shared(batch(99)), plain(batch(99)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shared.singular_values(), plain.singular_values(), rtol=1e-4, atol=1e-6)
    gone = torch.ones(K, dtype=torch.bool)
    gone[plain.slots] = False
    shared.weight_root.grad = None
    shared(batch(3)).sum().backward()
    gradient: Any = shared.weight_root.grad
    assert not gradient[gone].any()
    assert gradient[~gone].all()
    assert torch.equal(bases[0], shared.left)
    assert torch.equal(bases[1], shared.right)
    whole = shared(batch(99))
    with torch.no_grad():
        shared.left[:, gone[shared.freed :]] = 1e6
    torch.testing.assert_close(shared(batch(99)), whole, rtol=0, atol=0)
    shared.cut()
    torch.testing.assert_close(shared(batch(99)), whole, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in shared.named_buffers()} == {name for name, _ in plain.named_buffers()}
    assert set(shared.state_dict()) == set(plain.state_dict())
    assert torch.equal(shared.left, plain.left)
    assert torch.equal(shared.right, plain.right)
    assert torch.equal(shared.kept, plain.kept)
    assert 0 < len(shared.kept) < K - shared.freed


def test_a_step_makes_no_product_with_bases_that_are_pruned_and_still_there() -> None:
    module = layer()
    module.share()
    module.prune(torch.arange(K) % 3 != 0)
    bases = len(module.kept)
    with Shapes() as shapes:
        module(batch(0).requires_grad_()).square().sum().backward()
    assert {(TOKENS, bases), (TOKENS, M), (TOKENS, N)} <= shapes.seen
    assert (TOKENS, K) not in shapes.seen
    assert not {(M, N), (N, M)} & shapes.seen


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_selected_product_is_the_product_with_the_part(dimension: int, dtype: torch.dtype | None) -> None:
    """Value and gradient, under autocast too; nothing but the weight itself is kept from forward to backward."""
    weight, index = torch.randn(M, N), torch.tensor([7, 0, 3, 19][: 4 - dimension])
    part = weight.index_select(dimension, index)
    xs = [torch.randn(2, TOKENS, part.shape[1], requires_grad=True)]
    xs.append(xs[0].detach().clone().requires_grad_())
    saved: list[Tensor] = []
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
        ):
            output: Any = SelectedLinear.apply(xs[0], weight, index, dimension)
        expected = nn.functional.linear(xs[1], part)
    assert torch.equal(output, expected)
    assert {tensor.data_ptr() for tensor in saved} == {weight.data_ptr(), index.data_ptr()}
    for result in (output, expected):
        result.square().sum().backward()
    assert xs[0].grad is not None
    torch.testing.assert_close(xs[0].grad, xs[1].grad)


def test_a_run_that_needs_the_whole_model_refuses_a_trainer_that_shards() -> None:
    model, bs, trainer = random_model("llama"), create_method("bs", {"trajectory": True}), PlainTrainer()
    trainer.shards = True
    with pytest.raises(UserError, match=r"needs the whole model while it trains; use DDP"):
        bs.compress(model, bs.fit(model, None), Budget(2.0), trainer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_happened(name: str) -> None:
    """Step by step what a layer trains that only leaves pruned bases out, momenta included; bit by bit, but for kernels
    that round the last entries of a vector in another way than those before."""
    same = Same(rounds=name in ("adamw fused", "sgd"))
    short, masked = layer(), layer()
    optimizers = [OPTIMIZERS[name](module.parameters()) for module in (short, masked)]
    generator = torch.Generator().manual_seed(8)
    for step in range(9):
        for module, optimizer in zip((short, masked), optimizers, strict=True):
            optimizer.zero_grad()
            (module(batch(step)) - 1).square().sum().backward()
        if step % 2:
            mask = torch.rand(len(short.kept), generator=generator) < 0.8
            for module in (short, masked):
                module.prune(mask)
            short.shrink(lambda parameter, index: shrink_parameter(parameter, index, optimizers[0]))
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(short.kept, masked.kept)
        assert len(short.weight_root) == len(short.kept) <= len(masked.weight_root) == K
        same(short.weight_root, masked.weight_root[masked.kept])
        for vectors, other in ((short.extra_left, masked.extra_left), (short.extra_right, masked.extra_right)):
            same(vectors, other)
        states = [
            optimizer.state[module.weight_root] for optimizer, module in zip(optimizers, (short, masked), strict=True)
        ]
        for key, value in states[1].items():
            if isinstance(value, Tensor) and value.numel() > 1:
                same(states[0][key], value[masked.kept])
    assert 0 < len(short.kept) < K
    same(short(batch(99)), masked(batch(99)))


def test_gradient_and_states_take_no_more_than_the_kept_bases() -> None:
    module = layer()
    weight = module.weight_root
    optimizer = torch.optim.AdamW(module.parameters())
    module(batch(0)).sum().backward()
    optimizer.step()
    module.prune(torch.arange(K) % 3 == 0)
    module.shrink(lambda parameter, index: shrink_parameter(parameter, index, optimizer))
    assert module.weight_root is weight
    assert weight.grad is not None
    tensors = [weight, weight.grad, *(v for v in optimizer.state[weight].values() if v.numel() > 1)]
    assert len(tensors) == 4
    assert {tensor.untyped_storage().nbytes() for tensor in tensors} == {len(module.kept) * 4}
    assert module.left.untyped_storage().nbytes() == M * len(module.kept) * 4


@pytest.mark.parametrize("make", ["blocks", "list", "8 bit"])
def test_what_cannot_shrink_is_left_alone_and_stays_right(make: str) -> None:
    """The second way: w keeps its length and pruned entries are never read again."""
    module = layer()
    optimizer = torch.optim.AdamW(module.parameters())
    foreign = {"blocks": torch.ones(2), "list": [1.0], "8 bit": torch.ones(K, dtype=torch.uint8)}[make]
    optimizer.state[module.weight_root] = {"step": torch.ones(()), "exp_avg": torch.ones(K), "foreign": foreign}
    module.prune(torch.arange(K) % 3 == 0)
    expected = module(batch(0)).detach()
    before = module.weight_root.detach().clone()
    module.shrink(lambda parameter, index: shrink_parameter(parameter, index, optimizer))
    assert torch.equal(module.weight_root, before)
    assert optimizer.state[module.weight_root]["exp_avg"].shape == (K,)
    assert torch.equal(module(batch(0)), expected)
    optimizer.state.clear()
    module.shrink(lambda parameter, index: shrink_parameter(parameter, index, optimizer))
    assert len(module.weight_root) == len(module.kept)
    assert torch.equal(module(batch(0)), expected)


class Shapes(TorchDispatchMode):
    """Collects the shape of whatever any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


def test_no_step_builds_the_dense_weight() -> None:
    """Forward, backward, update and pruning; what merges the layer at the end is what the check can catch."""
    module = layer()
    optimizer = torch.optim.AdamW(module.parameters())
    with Shapes() as shapes:
        for step in range(3):
            module(batch(step).requires_grad_()).square().sum().backward()
            module.prune(torch.arange(len(module.kept)) % 5 != 0)
            module.shrink(lambda parameter, index: shrink_parameter(parameter, index, optimizer))
            optimizer.step()
            optimizer.zero_grad()
    dense = {(M, N), (N, M)}
    assert {(TOKENS, M), (TOKENS, K), (TOKENS, N)} <= shapes.seen
    assert not dense & shapes.seen
    with Shapes() as shapes:
        module.dense_weight()
    assert dense & shapes.seen


def compressed(monkeypatch: pytest.MonkeyPatch, shortest: int, trainer: Any, **options: Any) -> dict[str, Tensor]:
    monkeypatch.setattr(run, "SHRINK_FROM", shortest)
    method = create_method("bs", {"prunings": 4, "additional_dimension": 2, **options})
    model = random_model("llama")
    method.compress(model, method.fit(model, RandomData()), Budget(2.5), trainer, RandomData(20))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"criterion": "taylor", "scope": "global"},
        {"criterion": "hessian", "new_vectors": "top", "additional_share": 0.5},
        {"final_policy": "surgical", "final_samples": 4},
    ],
    ids=["s", "taylor", "hessian", "final policy"],
)
def test_the_compressed_model_is_the_same(monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    short, long = (compressed(monkeypatch, k, PlainTrainer(12), **options) for k in (1, 10**9))
    assert short.keys() == long.keys()
    assert all(torch.equal(value, long[name]) for name, value in short.items())


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor"])
def test_under_the_real_trainer(monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """With transformers' Trainer and its wrapped optimizer; nothing is clipped, so no norm is summed again."""
    items = [Encoded([1, 5, 6 + i, 7, 2], [-100, -100, 6 + i, 7, 2]) for i in range(8)]
    settings = TrainSettings(
        steps=12,
        learning_rate=1e-3,
        batch_size=4,
        micro_batch_size=2,
        gradient_checkpointing=False,
        precision="float32",
        max_grad_norm=1e9,
        optimizer=optimizer,
    )
    lengths: list[tuple[int, set[int]]] = []

    class Watched(TaskTrainer):
        def shrink(self, parameter: nn.Parameter, index: Tensor) -> bool:
            done = super().shrink(parameter, index)
            assert self._running is not None
            state = self._running.optimizer.state[parameter]
            sizes = {v.numel() for v in state.values() if isinstance(v, Tensor) and v.numel() > 1}
            lengths.append((len(index), sizes if done else set()))
            return done

    short, long = (compressed(monkeypatch, k, Watched(TaskData(items, 0, 0, 42), settings)) for k in (1, 10**9))
    assert lengths
    assert all(sizes == {length} for length, sizes in lengths)
    if optimizer == "adafactor":  # it scales an update by the root mean square over all entries, pruned ones too
        assert any(not torch.equal(value, long[name]) for name, value in short.items())
        assert all(torch.isfinite(value).all() for value in short.values())
    else:
        same = Same(rounds=optimizer == "adamw_torch_fused")
        for name, value in short.items():
            same(value, long[name])


def test_a_graph_that_is_still_held_forbids_it() -> None:
    module = layer()
    optimizer = torch.optim.AdamW(module.parameters())

    def shrink() -> int:
        module.shrink(lambda parameter, index: shrink_parameter(parameter, index, optimizer))
        return len(module.weight_root)

    loss = module(batch(0)).sum()
    loss.backward()
    module.prune(torch.arange(K) < 9)
    assert shrink() == K
    assert module.weight_root.grad is not None
    assert module.weight_root.grad.shape == (K,)
    module(batch(1)).sum().backward()
    del loss
    assert shrink() == 9
    module(batch(1)).sum().backward()


def test_narrow_bases_are_the_same_under_autocast_and_nearly_so_without() -> None:
    wide, narrow = layer(), layer(torch.bfloat16)
    assert narrow.left.untyped_storage().nbytes() * 2 == wide.left.untyped_storage().nbytes()
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
    for cast in (True, False):
        results = []
        for module in (wide, narrow):
            x = batch(0).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                y = module(x)
            results.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()])])
        for tensor, other in zip(*results, strict=True):
            assert tensor.dtype == other.dtype
            assert torch.equal(tensor, other) or not cast
            torch.testing.assert_close(tensor, other, rtol=0.05, atol=0.05 * float(other.detach().abs().max()))
    torch.testing.assert_close(wide.dense_weight(), narrow.dense_weight(), rtol=0.02, atol=0.02)
    assert not torch.equal(wide.dense_weight(), narrow.dense_weight())
    assert all(part.dtype == torch.float64 for part in narrow.merged(K))


def test_a_model_with_narrow_bases_keeps_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = (compressed(monkeypatch, 1, PlainTrainer(8), bases_dtype=d) for d in ("model", "bfloat16"))
    assert {value.dtype for value in narrow.values()} == {torch.float32}
    assert any(not torch.equal(value, wide[name]) for name, value in narrow.items() if value.shape == wide[name].shape)


def test_compiled_blocks_compile_a_handful_of_times_and_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks change before every step; left to itself, torch.compile would give up after eight of them."""
    monkeypatch.setattr(run, "SHRINK_FROM", 1)
    counters.clear()
    models = [random_model("llama"), random_model("llama")]
    bs = create_method("bs", {"prunings": 12, "additional_dimension": 2, "keep_epochs": 0, "post_epochs": 0})
    for model, compiles in zip(models, (False, True), strict=True):
        trainer, ranks = PlainTrainer(12), set()
        pruning = PruningRun(
            bs, model, bs.fit(model, RandomData()), [Budget(3.0)], lambda *_: None, None, trainer.shrink
        )

        def on_gradients(*_: int, pruning: PruningRun = pruning, ranks: set[int] = ranks) -> None:
            pruning.prune()
            ranks.add(len(pruning.layers["model.layers.0.mlp.up_proj"].weight_root))

        with fused(model, "eager") if compiles else nullcontext():
            trainer.train(model, 12, on_gradients=on_gradients)
        assert len(ranks) > 8
        assert all(block._compiled_call_impl is None for block in blocks(model))
    assert len(blocks(models[0])) == 2
    assert 1 < counters["frames"]["ok"] == counters["frames"]["total"] <= 6
    for parameter, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(parameter, other)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    bs, model = create_method("bs", {"prunings": 1, "compile": True}), random_model("llama")
    with pytest.raises(UserError, match=r"install g\+\+ or set compile=false"):
        bs.compress(model, bs.fit(model, None), Budget(2.0), PlainTrainer(4))


def test_probes_of_the_curvature_do_not_depend_on_the_length() -> None:
    short, long = {"a": layer()}, {"a": layer()}
    importances = []
    for layers, shrinks in ((short, True), (long, False)):
        module = layers["a"]
        curvature = Curvature(layers, seed=3)
        for step in range(3):
            curvature.observe(lambda x=batch(step), module=module: module(x).pow(4).sum())
            module.prune(torch.arange(len(module.kept)) % 4 != 1)
            if shrinks:
                module.shrink(shrink_parameter)
        importances.append(curvature.importance("a"))
    assert len(short["a"].weight_root) < len(long["a"].weight_root)
    assert torch.equal(*importances)
