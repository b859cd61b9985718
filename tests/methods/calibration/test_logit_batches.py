"""Passes that make all logits take as many examples as their logits leave room for; sums differ by rounding only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration import logit_batches as module
from lowrank_bench.methods.calibration.logit_batches import LOGIT_BYTES, logit_batches, most_examples
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.models.architectures import random_model


@given(st.integers(1, 64), st.integers(1, 4096), st.integers(1, 300_000))
def test_as_many_examples_as_have_room_and_one_at_least(batch_size, tokens, vocabulary):
    most = most_examples(batch_size, tokens, vocabulary)
    assert 1 <= most <= batch_size
    assert most == 1 or 4 * most * tokens * vocabulary <= LOGIT_BYTES
    assert most == batch_size or 4 * (most + 1) * tokens * vocabulary > LOGIT_BYTES


@given(
    examples=st.integers(1, 9),
    tokens=st.integers(1, 6),
    vocabulary=st.sampled_from([10, LOGIT_BYTES // 20, LOGIT_BYTES]),
)
def test_the_parts_of_a_batch_are_the_batch(examples, tokens, vocabulary):
    ids = torch.arange(examples * tokens).view(examples, tokens)
    batch = {"input_ids": ids, "attention_mask": ids + 1, "labels": ids - 1}
    parts = list(logit_batches([batch, batch], vocabulary))
    for key, value in batch.items():
        assert torch.equal(torch.cat([part[key] for part in parts]), torch.cat([value, value]))
    assert {len(part["labels"]) == len(part["input_ids"]) for part in parts} == {True}


@pytest.mark.parametrize("name", ["fwsvd", "io-svd", "zs-svd", "svd-llm:ilp"])
def test_what_is_measured_does_not_depend_on_it(name, monkeypatch):
    model, data = random_model("llama"), RandomData()
    method = create_method(*(("svd-llm", {"policy": "ilp"}) if ":" in name else (name,)))
    whole = method.fit(model, data)
    monkeypatch.setattr(module, "LOGIT_BYTES", 1)
    assert {len(part["input_ids"]) for part in logit_batches(data.batches(None, 8), 90)} == {1}
    parts = method.fit(model, data)
    for group in method.groups(model):
        factors, other = whole.factors(group.name), parts.factors(group.name)
        product = factors.left @ factors.right
        torch.testing.assert_close(other.left @ other.right, product, rtol=1e-4, atol=1e-4 * float(product.abs().max()))
