"""Serves factorised checkpoints in vLLM; ``vllm serve FOLDER`` finds it through the installed entry points.

vLLM calls `register` in each of its processes (group ``vllm.general_plugins``). It teaches vLLM the quantisation method
``lowrank`` of a checkpoint's ``config.json``, so every architecture with vLLM linear layers loads factorised, with the
engine's own attention, batching, prefix caching, compilation and tensor parallelism. See ``docs/serving.md``.
"""

from __future__ import annotations

import importlib


def register() -> None:
    """Make vLLM load factorised folders; calling it again changes nothing."""
    importlib.import_module(".config", __name__)
