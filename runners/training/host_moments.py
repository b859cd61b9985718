"""AdamW whose moments lie in the host's memory: the same update with 8 bytes of GPU memory a parameter less."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_MOMENTS = ("exp_avg", "exp_avg_sq")
_Job = tuple[dict[str, Any], Tensor]
"""A parameter with a gradient, behind its group."""


class HostMomentsAdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW`, one parameter at a time, with both moments in host memory, pinned where a GPU trains.

    The arithmetic is torch's own function, so that on a CPU the weights are bit by bit those of
    ``AdamW(foreach=False, fused=fused)``. On a GPU the moments of one parameter are copied there, updated and copied
    back, while those of the next one come on a stream of their own: two buffers as large as the largest parameter's
    moments, given back after each update. When `step` returns, all copies are done: whoever reads or shrinks the
    state (`methods.shrinking`) finds it whole.

    torch has no such optimizer. torchao's ``CPUOffloadOptimizer`` updates on the CPU and cannot shrink a parameter;
    deepspeed's lives in an engine of its own. Not run on a GPU yet.

    Args:
        params: parameters or groups, on one device.
        lr, betas, eps, weight_decay: as in AdamW.
        fused: use torch's fused kernel.
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
        jobs = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for _, parameter in jobs:
            self._prepare(parameter)
        for group, parameter in jobs:
            if not _is_away(parameter):
                self._update(group, parameter, self._moments(parameter))
        if away := [job for job in jobs if _is_away(job[1])]:
            self._update_through_buffers(away)
        return loss

    def _moments(self, parameter: Tensor) -> list[Tensor]:
        return [self.state[parameter][name] for name in _MOMENTS]

    def _prepare(self, parameter: Tensor) -> None:
        """Make the state of a parameter, and pin what is not: moments that a method has shrunk are ordinary ones."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state |= {name: torch.zeros(parameter.shape, dtype=parameter.dtype) for name in _MOMENTS}
        for name in _MOMENTS:
            state[name] = _on_host(state[name], parameter)

    def _update(self, group: dict[str, Any], parameter: Tensor, moments: Sequence[Tensor]) -> None:
        step = self.state[parameter]["step"]
        # The fused kernel wants its count on the device; it comes there by a kernel, for which nobody has to wait.
        counted = torch.full((), step.item(), device=parameter.device) if self.fused and parameter.is_cuda else step
        adamw(
            [parameter],
            [parameter.grad],  # type: ignore[list-item]
            [moments[0]],
            [moments[1]],
            [],
            [counted],
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
        # The kernel has raised the copy on the device alone.
        if counted is not step:
            step += 1

    def _update_through_buffers(self, jobs: Sequence[_Job]) -> None:
        """Update parameters of a GPU: moments come on one stream, go back on another, and are used on the current."""
        device = jobs[0][1].device
        largest = max(jobs, key=lambda job: job[1].numel())[1]
        buffers = [torch.empty(2, largest.numel(), dtype=largest.dtype, device=device) for _ in range(2)]
        loaded, updated, stored = ([torch.cuda.Event(), torch.cuda.Event()] for _ in range(3))
        loading, storing = torch.cuda.Stream(device), torch.cuda.Stream(device)
        computing = torch.cuda.current_stream(device)
        loading.wait_stream(computing)  # which may still use the memory that the buffers were given

        def load(number: int) -> list[Tensor]:
            parameter, slot = jobs[number][1], number % 2
            moments = [part[: parameter.numel()].view(parameter.shape) for part in buffers[slot]]
            with torch.cuda.stream(loading):
                # The slot's last moments have to be copied back before they are overwritten.
                if number >= 2:
                    loading.wait_event(stored[slot])
                for moment, on_host in zip(moments, self._moments(parameter), strict=True):
                    moment.copy_(on_host, non_blocking=True)
                loaded[slot].record(loading)
            return moments

        coming = load(0)
        for number, (group, parameter) in enumerate(jobs):
            moments, slot = coming, number % 2
            if number + 1 < len(jobs):
                # Queued before this update, so that the copies run while it computes.
                coming = load(number + 1)
            computing.wait_event(loaded[slot])
            self._update(group, parameter, moments)
            updated[slot].record(computing)
            with torch.cuda.stream(storing):
                storing.wait_event(updated[slot])
                for moment, on_host in zip(moments, self._moments(parameter), strict=True):
                    on_host.copy_(moment, non_blocking=True)
                stored[slot].record(storing)
        storing.synchronize()  # behind the last copy back there is nothing on the other streams either

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of this optimizer or of torch's AdamW; moments stay on the host, where torch would move them."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in state_dict["state"]:
                saved = state_dict["state"][number]
                moments = {name: _on_host(saved[name].clone().cpu(), parameter) for name in _MOMENTS}
                self.state[parameter] = {"step": saved["step"].clone().cpu()} | moments


def _is_away(parameter: Tensor) -> bool:
    """Whether a parameter is not where its moments are."""
    return parameter.is_cuda


def _on_host(moment: Tensor, parameter: Tensor) -> Tensor:
    return moment.pin_memory() if parameter.is_cuda and not moment.is_pinned() else moment
