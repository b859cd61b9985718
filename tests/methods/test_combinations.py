"""Any per-matrix method with any policy: the whole model meets its ratio, as counted in the module tree."""

import copy

import pytest
import torch

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract import count, logits
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.fitted import Fitted
from lowrank_bench.methods.groups import singles
from lowrank_bench.methods.matrixwise import MatrixCompressor
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.ranks.policies.base import parse_policy, policies
from lowrank_bench.methods.ranks.probe import Probe, example_errors
from lowrank_bench.models.architectures import random_model

OPTIONS = {
    "sensitivity": "(step=0.3)",
    "surgical": "(rounds=2)",
    "modules": "(q_proj=0.5;down_proj=2)",
    "ilp": "(trials=2)",
}
SPECS = [
    *(row.name + OPTIONS.get(row.name, "") for row in policies.listings() if row.origin == "built in"),
    *(
        "greedy(normalise=loss)",
        "greedy(normalise=none)",
        "surgical(metric=accuracy;rounds=2)",
        "lagrangian(score=tail)",
    ),
]


# Of every kind one: no statistic, a diagonal one, whitened, with an added bias, with a shared factor.
@pytest.mark.parametrize("method", ["svd", "fwsvd", "svd-llm", "afm", "joint-rank-k"])
@pytest.mark.parametrize("spec", SPECS)
def test_any_method_with_any_policy(method: str, spec: str) -> None:
    compressor = create_method(method, {"policy": spec, "probe_samples": 4})
    assert isinstance(compressor, MatrixCompressor)
    dense, data = random_model("llama"), RandomData()
    fitted = compressor.fit(dense, data)
    policy = parse_policy(spec)
    assert bool(fitted.evidence()) == policy.measures
    assert compressor.requirements.data_in_fit == (policy.measures or method in ("fwsvd", "svd-llm", "afm"))
    assert compressor.requirements.searches == policy.needs_loss
    for ratio in (1.3, 2.5, 4.0):
        model = copy.deepcopy(dense)
        report = compressor.compress(model, fitted, Budget(ratio), None, data)
        assert 0 <= count(dense) / ratio - count(model) < max(unit.cost for unit in compressor.shape(dense).units)
        assert report.parameters == count(model)
        assert torch.isfinite(logits(model)).all()


def test_measured_evidence_survives_the_disk(tmp_path: object) -> None:
    svd, model = create_method("svd", {"policy": "sensitivity(step=0.3)", "probe_samples": 4}), random_model("llama")
    fitted = svd.fit(model, RandomData())
    fitted.save(tmp_path)  # type: ignore[arg-type]
    again = Fitted.load(tmp_path)  # type: ignore[arg-type]
    first, second = (svd.compress(copy.deepcopy(model), fit, Budget(2.0), None) for fit in (fitted, again))
    assert first.ranks == second.ranks


def test_what_a_policy_lacks_is_said_before_the_work() -> None:
    model = random_model("llama")
    message = "asks for the model's loss; add --task"
    for spec in ("sensitivity", "greedy(normalise=loss)"):
        method = create_method("svd", {"policy": spec})
        with pytest.raises(UserError, match=message):
            method.fit(model, None)
    method = create_method("svd", {"policy": "surgical"})
    fitted = method.fit(model, None)
    with pytest.raises(UserError, match=message):
        method.compress(model, fitted, Budget(2.0), None)
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    with pytest.raises(UserError, match="no matrix of this model is called 'wq'; there are down_proj"):
        create_method("svd", {"policy": "modules(wq=2)"}).shape(skeleton)


def test_policies_that_measure_share_no_fit_with_others() -> None:
    plain, measured, other, searched = (
        create_method("svd", {"policy": spec}).fit_key()
        for spec in ("uniform", "sensitivity", "sensitivity(least=0.4)", "surgical")
    )
    assert plain == searched
    assert plain != measured != other


def test_error_rate_counts_target_tokens_whose_first_choice_is_another() -> None:
    logit = torch.full((2, 4, 5), -1.0)
    for row, tokens in enumerate(([1, 2, 3, 0], [4, 4, 4, 0])):
        for position, token in enumerate(tokens):
            logit[row, position, token] = 1.0
    labels = torch.tensor([[-100, 1, 2, 0], [-100, -100, 4, 4]])  # the choice at position t is compared with label t+1
    assert example_errors(logit, labels).tolist() == pytest.approx([1 / 3, 0.0])
    assert example_errors(logit, torch.full_like(labels, -100)).tolist() == [0.0, 0.0]


def test_the_probe_reports_the_accuracy_of_the_truncated_model() -> None:
    model, data, method = random_model("llama"), RandomData(6), create_method("svd")
    fitted, groups = method.fit(model, None), singles(method.targets(model))
    probe = Probe(model, groups, fitted, data, None, metric="accuracy")
    batch = next(data.batches(None, 6))
    for ranks in ({}, {group.name: 1 for group in groups}):
        with probe.truncated(ranks), torch.no_grad():
            chosen = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
        targets = batch["labels"][:, 1:]
        right = [
            float((row[target != -100] == target[target != -100]).float().mean())
            for row, target in zip(chosen[:, :-1], targets, strict=True)
        ]
        assert probe.loss(ranks) == pytest.approx(1 - sum(right) / len(right))
