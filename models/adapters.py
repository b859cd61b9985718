"""LoRA on factorised layers: what peft needs to train, save, load and merge adapters of a factorised model.

peft keeps the class that adapts a model in a table by method; `register` puts `FactorisedLoraModel` there, which leaves
every layer but `LowRankLinear` to peft's own. Imported by `autoload` as soon as peft is, since this package does not
require peft. See ``docs/serving.md``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import Linear, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn

from ..foundation.errors import UserError
from ..foundation.finite import all_finite
from .layers import LowRankLinear
from .matrices import head_name, low_rank_layers

_INITIALISATIONS = (True, False, "gaussian")


class LoraLowRankLinear(Linear):
    """A factorised layer with LoRA adapters beside it: ``y = lr_b (lr_a x) + bias + s · B (A x)``.

    The base layer is a `LowRankLinear`; A is (r, in), B is (out, r). Merging stacks the factors, so the merged layer is
    a `LowRankLinear` of the sum of the ranks, with a first factor of its own where the base layer shares one.
    """

    base_layer: LowRankLinear

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        """Plain LoRA and nothing else."""
        return {(): None}

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """Add an adapter.

        Raises:
            UserError: a variant of LoRA that needs the dense weight.
        """
        _refuse_variants(config)
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Replace the base layer by one that holds the adapters' factors too.

        Args:
            safe_merge: whether to check that the adapters' factors are finite before anything is changed.
            adapter_names: default: the active ones.

        Raises:
            UserError: such a factor holds NaN or infinity.
        """
        base = self.get_base_layer()
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.lora_A]
        if not names:
            return
        wide = torch.promote_types(base.lr_b.dtype, torch.float32)
        first = [self.lora_A[name].weight.detach().to(base.lr_b.device, wide) for name in names]
        second = [self.lora_B[name].weight.detach().to(base.lr_b.device, wide) * self.scaling[name] for name in names]
        if safe_merge and not all(map(all_finite, (*first, *second))):
            raise UserError(f"the adapters {', '.join(names)} hold NaN or infinity; train them again")
        merged = _stacked(base, first, second)
        if not self.merged_adapters:
            self._before_merge = (base,)  # in a tuple: not a child, so not among the parameters
        self.base_layer = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the layer back that was there before the first merge; its numbers are exactly the old ones."""
        if self.merged_adapters:
            (base,) = self._before_merge
            self.base_layer = base.to(self.base_layer.lr_b.device, self.base_layer.lr_b.dtype)
            self.merged_adapters.clear()
            del self._before_merge

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: LowRankLinear) -> tuple[torch.device, torch.dtype]:
        return base_layer.lr_b.device, base_layer.lr_b.dtype


class FactorisedLoraModel(LoraModel):
    """peft's LoRA, which adapts factorised layers too; models without them are adapted as ever."""

    @staticmethod
    def _create_new_module(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, LowRankLinear):
            return LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        if kwargs.get("parameter_name") is not None:
            raise UserError(
                f"target_parameters names '{kwargs['parameter_name']}' of a factorised layer, where adapters go on "
                "whole layers only; use target_modules instead"
            )
        return LoraLowRankLinear(target, adapter_name, config=lora_config, **kwargs)

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        config = super()._prepare_adapter_config(peft_config, model_config)
        every = config.target_modules
        factorised = _factorised(self.model)
        if factorised and isinstance(every, str) and every.lower() == "all-linear":
            config.target_modules = set(_linear_layers(self.model, factorised))
        return config

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        _give_away_factors(self.model)


def _refuse_variants(config: Any) -> None:
    used = [
        field.name
        for field in dataclasses.fields(config)
        if field.metadata.get("is_lora_variant") and getattr(config, field.name)
    ]
    used += ["lora_bias"] if config.lora_bias else []
    if used:
        raise UserError(
            f"LoraConfig({used[0]}=…) is not supported on a factorised layer, only plain LoRA is (rslora, dropout, "
            f"rank and alpha patterns included); leave {used[0]} out, or adapt a dense export (bench export "
            "FOLDER --dense --out DIR)"
        )
    start = config.init_lora_weights
    if not any(start is allowed or start == allowed for allowed in _INITIALISATIONS):
        raise UserError(
            f"LoraConfig(init_lora_weights={start!r}) is not supported on a factorised layer, which has no dense "
            "weight to start from; use True, False or 'gaussian'"
        )


def _stacked(base: LowRankLinear, first: list[Tensor], second: list[Tensor]) -> LowRankLinear:
    """Return a layer with further factors: A (r_i, in) each, B (out, r_i) each, all in float32 or better."""
    # B A + B₁ A₁ = [B B₁] [A; A₁]: the sum of products is the product of the stacked factors, so nothing is multiplied.
    a = torch.cat([base.lr_a.detach().to(first[0].dtype), *first])
    b = torch.cat([base.lr_b.detach().to(first[0].dtype), *second], dim=1)
    if len(a) > base.in_features:  # more rows than a first factor can have: the product itself is smaller
        a, b = torch.eye(base.in_features, dtype=a.dtype, device=a.device), b @ a
    bias, added = (None if own is None else own.detach() for own in (base.bias, base.lr_bias))
    merged = LowRankLinear.from_factors(a.to(base.lr_b.dtype), b.to(base.lr_b.dtype), bias, added)
    return merged.requires_grad_(base.lr_b.requires_grad).train(base.training)


def _linear_layers(model: nn.Module, factorised: dict[str, LowRankLinear]) -> list[str]:
    """Return what ``all-linear`` means: every linear layer, dense or factorised or adapted, except the output head."""
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    inside = tuple(f"{name}." for name in adapted)
    dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    adapted = [name for name in adapted if "Linear" in type(model.get_submodule(name)).__name__]
    head = head_name(model)
    return [name for name in (*dense, *factorised, *adapted) if name != head and not name.startswith(inside)]


def _factorised(model: nn.Module) -> dict[str, LowRankLinear]:
    """Return the factorised linear layers; adapters leave a factorised embedding alone."""
    return {name: layer for name, layer in low_rank_layers(model).items() if isinstance(layer, LowRankLinear)}


def _give_away_factors(model: nn.Module) -> None:
    """Give first factors that leave with a merged layer to the layers that use them and are not merged."""
    adapted = {id(m.get_base_layer()) for m in model.modules() if isinstance(m, LoraLowRankLinear)}
    heirs: dict[int, LowRankLinear] = {}
    for layer in _factorised(model).values():
        owner = layer.source
        # The first layer that loses its owner gets a copy of the factor; the others of that owner then share the copy.
        if owner is not None and id(owner) in adapted and id(layer) not in adapted:
            layer.set_source(heirs.get(id(owner)))
            heirs.setdefault(id(owner), layer)


def register() -> None:
    """Make peft adapt factorised models; calling it again changes nothing."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = FactorisedLoraModel


register()
