"""How the task's loss changes to first order when a component of a matrix is dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...foundation.progress import track
from ..calibration.statistics import example_losses
from ..fitted import Factors, Fitted
from ..groups import Group

Batch = Mapping[str, Tensor]


def weight_gradients(model: nn.Module, groups: Sequence[Group], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return ∂L/∂W (Σm, n) of each group's stacked weight, in the model's dtype and on its device, by name.

    L is the mean over examples of each one's mean cross-entropy over its target tokens. The model is evaluated with
    its own weights and left as it was. The gradients take as much memory as the weights that they belong to.

    Args:
        model: a model in memory.
        groups: whose weights count.
        batches: ``input_ids``, ``attention_mask``, ``labels`` (b, t), see `CalibrationData`.
    """
    trained = {
        matrix.name: model.get_parameter(f"{matrix.name}.weight") for group in groups for matrix in group.members
    }
    required = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    training, examples = model.training, sum(len(batch["input_ids"]) for batch in batches)
    model.eval()
    try:
        for parameter, _, _ in required:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in trained.values():
            parameter.requires_grad_(True)
        for batch in track(batches, unit="batches"):
            with torch.enable_grad():
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
                (example_losses(logits, batch["labels"]).sum() / examples).backward()
        gradients = {name: _or_zero(parameter) for name, parameter in trained.items()}
        return {group.name: torch.cat([gradients[matrix.name] for matrix in group.members]) for group in groups}
    finally:
        for parameter, requires, gradient in required:
            parameter.requires_grad_(requires)
            parameter.grad = gradient
        model.train(training)


def slopes(factors: Factors, gradient: Tensor) -> Tensor:
    """Return Δ_i = -⟨∂L/∂W, b_i a_i⟩, the first-order change of the loss when part i is dropped, shape (k,), float64.

    With W L = U S Vᵀ, B = U S^½ and A = S^½ Vᵀ L⁻¹ this is ZS-SVD's -s_i u_iᵀ (∂L/∂W L⁻ᵀ) v_i: the whitening cancels,
    so that it holds for the factors of any method. An added bias is not counted.

    Args:
        factors: k parts of W (m, n).
        gradient: ∂L/∂W (m, n).
    """
    left = factors.left.to(gradient.device, torch.float64)
    return -((left.T @ gradient.double()) * factors.right.to(left)).sum(1)


def fitted_slopes(
    model: nn.Module, groups: Sequence[Group], fitted: Fitted, batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Return `slopes` of every group, by name, on the CPU; see `weight_gradients`."""
    gradients = weight_gradients(model, groups, batches)
    return {group.name: slopes(fitted.factors(group.name), gradients.pop(group.name)).cpu() for group in groups}


def _or_zero(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
