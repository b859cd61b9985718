"""AdamW whose moments wait in the host's memory: the same update, 8 bytes of GPU memory a parameter less."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_MOMENTS = ("exp_avg", "exp_avg_sq")


class HostMomentsAdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW`, one parameter at a time, with both moments in (pinned) host memory between updates.

    The arithmetic is torch's own (`torch.optim.adamw.adamw`): on a CPU bit by bit that of
    ``AdamW(foreach=False, fused=fused)``. For the update of one parameter its moments are copied to the parameter's
    device and back, in the order of the device's stream. torch has no such optimizer; torchao's
    ``CPUOffloadOptimizer`` computes the update on the CPU, and its state cannot be shrunk while it trains
    (`methods.shrinking`). Not run on a GPU yet.

    Args:
        params: parameters or groups, in float32.
        lr, betas, eps, weight_decay: as in AdamW.
        fused: torch's fused kernel.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        fused: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.fused = fused

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter)
        return loss

    def _update(self, group: dict[str, Any], parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state |= {name: torch.zeros(parameter.shape, dtype=parameter.dtype) for name in _MOMENTS}
        for name in _MOMENTS:  # new ones, and those that a method has shrunk
            state[name] = _on_host(state[name], parameter.is_cuda)
        moments = [state[name].to(parameter.device, non_blocking=True) for name in _MOMENTS]
        step = state["step"].to(parameter.device) if self.fused else state["step"]
        adamw(
            [parameter],
            [parameter.grad],
            [moments[0]],
            [moments[1]],
            [],
            [step],
            foreach=False,
            fused=self.fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if step is not state["step"]:
            state["step"] += 1
        for name, moment in zip(_MOMENTS, moments, strict=True):
            if moment is not state[name]:
                state[name].copy_(moment, non_blocking=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state as `state_dict` gave it; moments stay on the host, where torch's own would move them all."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in state_dict["state"]:
                saved = state_dict["state"][number]
                self.state[parameter] = {"step": saved["step"].clone().cpu()} | {
                    name: _on_host(saved[name].clone().cpu(), parameter.is_cuda) for name in _MOMENTS
                }


def _on_host(tensor: Tensor, pinned: bool) -> Tensor:
    return tensor.pin_memory() if pinned and not tensor.is_pinned() else tensor
