"""The quantisation method ``lowrank`` as vLLM sees it: which layers are factorised, and by what they are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from ...foundation.errors import UserError
from ..layout import LOWRANK, Layout
from .embedding import LowRankEmbeddingMethod, TiedHeadMethod
from .method import LowRankMethod
from .sharing import FirstFactors

_DRAFT = "draft_model."
"""What vLLM puts before the names of a draft model of speculative decoding, which has a configuration of its own."""

_RENAMED = "block_sparse_moe"
"""What vLLM's Mixtral reads, as files on the hub name it; transformers, and so a factorised folder, says ``mlp``."""

_USUAL: dict[type[LinearBase], tuple[str, ...]] = {
    QKVParallelLinear: ("q_proj", "k_proj", "v_proj"),
    MergedColumnParallelLinear: ("gate_proj", "up_proj"),
}
"""What fused layers are made of in nearly every checkpoint, where vLLM's model class does not say it."""


@register_quantization_config(LOWRANK)
class LowRankServingConfig(QuantizationConfig):
    """vLLM's side of ``quantization_config``; the names in it become vLLM's own as the model is built.

    Args:
        layout: what the checkpoint announces.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.factors = FirstFactors(layout.shared)
        self._embedding_built = False

    def get_name(self) -> str:
        """Return ``lowrank``."""
        return LOWRANK

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Return every dtype that a plain matrix product has."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return 0: there is no kernel of our own."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return nothing: ``config.json`` says it all."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LowRankServingConfig:
        """Read ``quantization_config``.

        Raises:
            UserError: another layout version, or fields that contradict each other.
        """
        return cls(Layout.read(config))

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Check that a local folder is whole, so that a damaged one is an error that names the tensor.

        Raises:
            UserError: a file cut short, a missing tensor, or a rank that does not fit.
        """
        from ..loading import verify_folder

        if Path(model_name).is_dir():
            verify_folder(Path(model_name))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename the modules as vLLM names them (OPT, GPT-NeoX and others differ from transformers)."""

        def rename(name: str) -> str:
            return hf_to_vllm_mapper.map_name(name) or name

        old = self.layout
        self.layout = Layout(
            {rename(name): rank for name, rank in old.ranks.items()},
            {rename(name): rename(owner) for name, owner in old.shared.items()},
            tuple(map(rename, old.added_bias)),
            tuple(map(rename, old.dense)),
            old.guard,
            {rename(name): rename(head) if head else "" for name, head in old.embeddings.items()},
        )
        # They were made with the checkpoint's names.
        self.factors.shared = self.layout.shared

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return the factorised method for a layer with a factorised part, vLLM's dense one for the rest.

        Args:
            layer: the layer being built.
            prefix: its dotted name in vLLM; a fused layer is several modules of the checkpoint.

        Raises:
            UserError: the checkpoint factorises a layer that only works dense (experts of a mixture), or one that
                vLLM fuses from matrices that it does not name; or it stores experts under other names than vLLM reads.
        """
        prefix = prefix.removeprefix(_DRAFT)
        if _RENAMED in prefix.split("."):
            raise UserError(
                f"vLLM's class of this mixture reads '{prefix}', which factorised folders store as transformers names "
                "it ('mlp'); export the model dense (bench export FOLDER --dense --out DIR), or evaluate it with "
                "transformers"
            )
        if self.layout.embeddings and isinstance(layer, VocabParallelEmbedding):
            # In vLLM the class of heads is derived from that of embeddings.
            if isinstance(layer, ParallelLMHead):
                if prefix in self.layout.embeddings.values():
                    return TiedHeadMethod()
            elif prefix in self.layout.embeddings or not prefix:  # Llama's class gives its embedding no name
                self._embedding_built = True
                name = prefix or next(iter(self.layout.embeddings))
                return LowRankEmbeddingMethod(name, self.layout.ranks[name])
        if isinstance(layer, LinearBase):
            self._check_embedding()
        modules = self._modules(layer, prefix)
        factorised = any(name in self.layout.ranks for name in modules)
        if isinstance(layer, LinearBase):
            return LowRankMethod(self, prefix, modules) if factorised else UnquantizedLinearMethod()
        if isinstance(layer, ParallelLMHead) and factorised:
            return LowRankMethod(self, prefix, modules)
        inner = next((name for name in self.layout.ranks if name == prefix or name.startswith(f"{prefix}.")), None)
        if inner and not isinstance(layer, ParallelLMHead):
            raise UserError(
                f"the checkpoint factorises '{inner}', inside a {type(layer).__name__} that vLLM only serves dense; "
                "export the model dense, or evaluate it with transformers"
            )
        return None

    def _check_embedding(self) -> None:
        """Raise a `UserError` if vLLM's model class, which builds its embedding first, built a dense one."""
        if self.layout.embeddings and not self._embedding_built and get_pp_group().is_first_rank:
            raise UserError(
                "the checkpoint factorises the embedding, which vLLM's class of this architecture only knows dense; "
                "export the model dense (bench export FOLDER --dense --out DIR), or evaluate it with transformers"
            )

    def _modules(self, layer: nn.Module, prefix: str) -> tuple[str, ...]:
        """Return the checkpoint's modules that a layer consists of."""
        ranks, dense = self.layout.ranks, self.layout.dense
        if prefix in ranks:  # one matrix on disk too, as Phi-3's qkv_proj
            return (prefix,)
        parent, dot, leaf = prefix.rpartition(".")
        packed = self.packed_modules_mapping.get(leaf)
        usual = next((names for kind, names in _USUAL.items() if isinstance(layer, kind)), None)
        if packed is not None or usual is None or prefix in dense:
            return tuple(f"{parent}{dot}{name}" for name in packed or [leaf])
        modules = tuple(f"{parent}{dot}{name}" for name in usual)
        if any(name in ranks or name in dense for name in modules):
            return modules
        beside = next((name for name in ranks if name.rpartition(".")[0] == parent), None)
        if beside is not None:
            raise UserError(
                f"vLLM fuses '{prefix}' from matrices that its model class does not name (it has no "
                f"packed_modules_mapping), and the checkpoint, which factorises '{beside}', has no "
                f"{' or '.join(usual)} there; export the model dense (bench export FOLDER --dense --out DIR), or "
                "evaluate it with transformers"
            )
        return (prefix,)
