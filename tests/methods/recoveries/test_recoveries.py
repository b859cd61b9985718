from typing import ClassVar

import pytest
import torch

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.contract import same, weights
from lowrank_bench.methods.contract_parts import PlainTrainer
from lowrank_bench.methods.recoveries.base import create_recovery, recoveries
from lowrank_bench.methods.recovery_contract import RecoveryContract, compressed
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.matrices import low_rank_layers


class TestFull(RecoveryContract):
    recovery = "full"


class TestNone(RecoveryContract):
    recovery = "none"


class TestLora(RecoveryContract):
    recovery = "lora"
    options: ClassVar[dict[str, float]] = {"r": 2, "lora_dropout": 0.0}


class TestLoraOfTheAuthors(RecoveryContract):
    recovery = "lora"
    draws = True


def factors(model, part):
    return {name: getattr(layer, part).detach().clone() for name, layer in low_rank_layers(model).items()}


def test_lora_trains_b_with_a_frozen_and_then_a_from_the_merged_b():
    model, seen = compressed("llama"), []

    class Watching(PlainTrainer):
        def train(self, model, steps, lr_scale=1.0, **more):
            def pair(name):
                return next(m for n, m in model.named_modules() if n == name)

            now = {name: (pair(name).factor_a, pair(name).factor_b) for name in names}
            seen.append({name: tuple(part.weight.detach().clone() for part in parts) for name, parts in now.items()})
            return super().train(model, steps, lr_scale, **more)

    names = list(low_rank_layers(model))
    a, b = factors(model, "lr_a"), factors(model, "lr_b")
    create_recovery("lora", {"r": 2}).recover(model, Watching(), 6, 1.0, 0)
    first, second = seen
    after_a, after_b = factors(model, "lr_a"), factors(model, "lr_b")
    for name in names:
        assert torch.equal(first[name][0], a[name])
        assert torch.equal(first[name][1], b[name])
        assert torch.equal(second[name][0], a[name])  # phase 1 left A bit for bit
        assert torch.equal(second[name][1], after_b[name])  # and phase 2 the merged B
        assert not torch.equal(after_a[name], a[name])
        assert not torch.equal(after_b[name], b[name])


def test_lora_changes_a_factor_by_no_more_than_its_rank_and_nothing_else():
    model = compressed("llama")
    before, a, b = weights(model), factors(model, "lr_a"), factors(model, "lr_b")
    create_recovery("lora", {"r": 2, "lr_scale": 10.0}).recover(model, PlainTrainer(), 6, 1.0, 0)
    for old, part in ((a, "lr_a"), (b, "lr_b")):
        for name, new in factors(model, part).items():
            s = torch.linalg.svdvals((new - old[name]).double())
            assert s[2:].max() < 1e-5 * s[0], name
    rest = {name: value for name, value in weights(model).items() if ".lr_" not in name}
    assert rest
    assert same(rest, {name: before[name] for name in rest})


def test_lora_keeps_a_shared_factor_one_tensor():
    model = compressed("llama", "basis-sharing")
    layers = low_rank_layers(model)
    shared = {name: layer for name, layer in layers.items() if layer.source is not None}
    assert shared
    create_recovery("lora", {"r": 2}).recover(model, PlainTrainer(), 4, 1.0, 0)
    assert all(layer.lr_a is layer.source.lr_a for layer in shared.values())


def test_lora_needs_factors():
    with pytest.raises(UserError, match="trains the factors of linear layers"):
        create_recovery("lora").recover(random_model("llama"), PlainTrainer(), 4, 1.0, 0)


def test_an_error_in_a_phase_leaves_the_model_whole():
    class Failing(PlainTrainer):
        def train(self, *args, **more):
            raise UserError("the loss became nan")

    model = compressed("llama")
    before = weights(model)
    with pytest.raises(UserError, match="nan"):
        create_recovery("lora").recover(model, Failing(), 4, 1.0, 0)
    assert same(before, weights(model))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loar", {}, "did you mean 'lora'"),
        ("lora", {"rank": 4}, "no option 'rank'"),
        ("lora", {"r": 0}, "r=0 is not usable"),
        ("lora", {"lora_dropout": 1.0}, "lora_dropout=1.0 is not usable"),
        ("full", {"r": 4}, "allowed: none"),
    ],
)
def test_wrong_words_are_answered_with_what_is_allowed(name, options, message):
    with pytest.raises(UserError, match=message):
        create_recovery(name, options)


def test_listing_knows_the_built_in_ones():
    assert recoveries.names() == ["full", "lora", "none"]
