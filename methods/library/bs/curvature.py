"""What dropping a basis would cost, to second order: the criterion of Importance-Guided Basis Selection (BSI)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....foundation.errors import UserError
from ...base import CalibrationData
from ...calibration.statistics import example_losses
from ...ranks.probe import PROBE_BATCH, Examples
from .layer import BasisLinear
from .options import BasisSelectionOptions


class Curvature:
    """Running estimates of s_i·g_i and s_i²·H_ii, g and H the gradient and Hessian of the loss in the singular values.

    BSI (arXiv 2605.01627; we know the abstract only): ΔL_i ≈ -g_i s_i + ½ H_ii s_i² when s_i goes to 0, with H_ii from
    a Hutchinson-type estimator under symmetric perturbations of the parameters: H_ii = E[z_i (g_i(s + d) -
    g_i(s - d)) / (2 d_i)] · z_i² for independent random signs z. Exact on average where the loss is quadratic.

    Left open by what we know of the source and chosen here: d_i = ε·s_i·z_i, relative to s, so that no singular value
    changes its sign and estimates come out as s_i² H_ii without a division; all matrices are perturbed together; g is
    the mean of the two gradients; means forget exponentially, because s and the other parameters go on training.

    Args:
        layers: basis layers by name.
        seed: of the signs.
        step: ε; never below the square root of the dtype's precision.
        memory: weight of the past relative to the newest probe, 1 for a plain mean.
    """

    def __init__(self, layers: Mapping[str, BasisLinear], seed: int, step: float = 0.01, memory: float = 0.9) -> None:
        self.layers, self.step, self.memory = layers, step, memory
        self.slope = {name: torch.zeros(layer.bases, device=layer.weight_root.device) for name, layer in layers.items()}
        self.bend = {name: value.clone() for name, value in self.slope.items()}
        self.weight = 0.0
        self._generator = torch.Generator().manual_seed(seed)

    def observe(self, loss: Callable[[], Tensor]) -> None:
        """Do one probe: two gradients of the loss, at s·(1 + εz) and s·(1 - εz); parameters and gradients stay.

        Args:
            loss: gives the loss (a scalar with a graph) of the model as it is.
        """
        roots = {name: layer.weight_root for name, layer in self.layers.items()}
        saved = {name: root.data for name, root in roots.items()}
        step = {name: max(self.step, torch.finfo(root.dtype).eps ** 0.5) for name, root in roots.items()}
        signs = {name: self._signs(layer) for name, layer in self.layers.items()}
        scaled_gradients: list[dict[str, Tensor]] = []
        try:
            for direction in (1.0, -1.0):
                # s·(1 ± εz) in terms of w, as s = w²; ε < 1 keeps the root real.
                stretch = {name: (1 + direction * step[name] * signs[name]).sqrt() for name in roots}
                for name, root in roots.items():
                    # A new tensor instead of a change in place: `saved` then brings w back bit for bit.
                    root.data = (saved[name] * stretch[name]).to(saved[name])
                gradients = torch.autograd.grad(loss(), list(roots.values()), allow_unused=True)
                # s = w², so s_i·∂L/∂s_i = w_i² / (2 w'_i) · ∂L/∂w'_i with w' = w·stretch
                scaled_gradients.append(
                    {
                        name: torch.zeros_like(saved[name]).float()
                        if gradient is None
                        else gradient.float() * saved[name].float() / (2 * stretch[name].float())
                        for (name, _), gradient in zip(roots.items(), gradients, strict=True)
                    }
                )
        finally:
            for name, root in roots.items():
                root.data = saved[name]
        up, down = scaled_gradients
        # The weight forgets as the sums do, so that their quotient is a mean from the first probe on.
        self.weight = self.memory * self.weight + 1
        for name, layer in self.layers.items():
            # bend: z_i s_i (g_i⁺ - g_i⁻) / (2ε) ≈ Σ_j s_i H_ij s_j z_i z_j, whose mean over the signs is s_i² H_ii.
            slope, bend = (up[name] + down[name]) / 2, signs[name] * (up[name] - down[name]) / (2 * step[name])
            indices, slots = layer.kept, layer.slots
            self.slope[name][indices] = self.memory * self.slope[name][indices] + slope[slots]
            self.bend[name][indices] = self.memory * self.bend[name][indices] + bend[slots]

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates and where the random signs are."""
        signs = self._generator.get_state()
        return {"slope": dict(self.slope), "bend": dict(self.bend), "weight": self.weight, "signs": signs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        for name, layer in self.layers.items():
            self.slope[name] = state["slope"][name].to(layer.weight_root.device)
            self.bend[name] = state["bend"][name].to(layer.weight_root.device)
        self.weight = state["weight"]
        self._generator.set_state(state["signs"])

    def _signs(self, layer: BasisLinear) -> Tensor:
        """Return signs in the shape of w; as many are drawn as there were bases, so that pruning changes none."""
        drawn = (torch.randint(0, 2, (layer.bases,), generator=self._generator) * 2 - 1).to(layer.kept.device)
        signs = torch.ones_like(layer.weight_root, dtype=drawn.dtype, requires_grad=False)
        signs[layer.slots] = drawn[layer.kept]
        return signs

    def increase(self, name: str) -> Tensor:
        """Return the expected rise of the loss when each basis alone is dropped, shape (k,); may be negative.

        What it says of pruned bases is of the time when they were there.
        """
        return (self.bend[name] / 2 - self.slope[name]) / max(self.weight, 1e-30)

    def importance(self, name: str) -> Tensor:
        """Return scores of the kept bases for pruning, shape (kept,), not negative.

        A negative increase counts as 0; a millionth of the mean increase, shared in proportion to s, orders those.
        """
        layer = self.layers[name]
        positive = self.increase(name)[layer.kept].clamp_min(0)
        s = layer.singular_values().float()
        level = positive.mean() if bool(positive.any()) else torch.ones_like(positive).mean()
        return positive + 1e-6 * level * s / s.mean().clamp_min(1e-30) if len(s) else positive


class CurvatureProbes:
    """Observes the curvature of a model's task loss, one batch of 8 examples after the other.

    Args:
        method: how many probes at a time, on how many examples, and the options of `Curvature`.
        model: the model that holds the layers.
        layers: by name.
        data: task data; never the test split.

    Attributes:
        done: probes so far; each is two forward and backward passes.
        tokens: tokens of all those passes, padding left out.
    """

    def __init__(
        self,
        method: BasisSelectionOptions,
        model: nn.Module,
        layers: Mapping[str, BasisLinear],
        data: CalibrationData | None,
    ) -> None:
        if data is None:
            raise UserError("the criterion 'hessian' asks for the model's loss; add --task, such as --task math")
        self.model, self.number = model, method.hessian_probes
        self.batches = Examples(data, method.hessian_samples, PROBE_BATCH, model).batches
        self.curvature = Curvature(layers, method.seed, method.hessian_step, method.hessian_memory)
        self.done = self.tokens = 0

    def run(self) -> None:
        """Do the probes of one pruning; the model is put into evaluation mode for them and back."""
        training = self.model.training
        self.model.eval()
        for _ in range(self.number):
            batch = self.batches[self.done % len(self.batches)]
            self.curvature.observe(partial(self._loss, batch))
            self.done += 1
            self.tokens += 2 * int(batch["attention_mask"].sum())
        self.model.train(training)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the curvature and the counters."""
        return {"curvature": self.curvature.state_dict(), "done": self.done, "tokens": self.tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.curvature.load_state_dict(state["curvature"])
        self.done, self.tokens = state["done"], state["tokens"]

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return example_losses(self.model(**inputs, use_cache=False).logits, batch["labels"]).mean()
