"""The models with short names: where they are published, at which commit, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Preset:
    """A model with a short name.

    Attributes:
        source: hub id or folder.
        revision: commit of the hub repository, or empty for a folder.
        recipe: training recipe that fits the model's size (see ``runners/training/recipes.py``).
        summary: what it is, for lists.
        licence: name of the licence or terms.
        gated: who has to grant access before the hub gives the files; empty for nobody.
    """

    source: str
    revision: str
    recipe: str
    summary: str
    licence: str = ""
    gated: str = ""


def _hub(source: str, revision: str, summary: str, licence: str, gated: str = "") -> Preset:
    return Preset(source, revision, "paper", summary, licence, gated)


_APACHE = "Apache-2.0"

PRESETS: Mapping[str, Preset] = {
    "tiny": Preset(
        str(Path(__file__).parent / "tiny"), "", "small", "built-in Llama, under 1 M parameters, for two CPU cores"
    ),
    "llama2-7b": _hub(
        "meta-llama/Llama-2-7b-hf",
        "01c7f73d771dfac7d292323805ebc428287df4f9",
        "Llama-2 7B, the papers' main model",
        "Llama 2",
        "Meta",
    ),
    "llama2-13b": _hub(
        "meta-llama/Llama-2-13b-hf", "5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1", "Llama-2 13B", "Llama 2", "Meta"
    ),
    "llama3.1-8b": _hub(
        "meta-llama/Llama-3.1-8B", "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b", "Llama 3.1 8B", "Llama 3.1", "Meta"
    ),
    "llama3.2-1b": _hub(
        "meta-llama/Llama-3.2-1B", "4e20de362430cd3b72f300e6b0f18e50e7166e08", "Llama 3.2 1B, tied", "Llama 3.2", "Meta"
    ),
    "llama3.2-3b": _hub(
        "meta-llama/Llama-3.2-3B", "13afe5124825b4f3751f836b40dafda64c1ed062", "Llama 3.2 3B, tied", "Llama 3.2", "Meta"
    ),
    "qwen2.5-0.5b": _hub(
        "Qwen/Qwen2.5-0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987", "Qwen2.5 0.5B, tied", _APACHE
    ),
    "qwen2.5-1.5b": _hub(
        "Qwen/Qwen2.5-1.5B", "8faed761d45a263340a0528343f099c05c9a4323", "Qwen2.5 1.5B, tied", _APACHE
    ),
    "qwen2.5-7b": _hub("Qwen/Qwen2.5-7B", "d149729398750b98c0af14eb82c78cfe92750796", "Qwen2.5 7B", _APACHE),
    "qwen3-0.6b": _hub(
        "Qwen/Qwen3-0.6B-Base", "da87bfb608c14b7cf20ba1ce41287e8de496c0cd", "Qwen3 0.6B (base), tied", _APACHE
    ),
    "qwen3-1.7b": _hub(
        "Qwen/Qwen3-1.7B-Base", "ea980cb0a6c2ae4b936e82123acc929f1cec04c1", "Qwen3 1.7B (base), tied", _APACHE
    ),
    "qwen3-8b": _hub("Qwen/Qwen3-8B-Base", "49e3418fbbbca6ecbdf9608b4d22e5a407081db4", "Qwen3 8B (base)", _APACHE),
    "gemma3-270m": _hub(
        "google/gemma-3-270m", "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1", "Gemma 3 270M, tied", "Gemma", "Google"
    ),
    "gemma3-1b": _hub(
        "google/gemma-3-1b-pt", "fcf18a2a879aab110ca39f8bffbccd5d49d8eb29", "Gemma 3 1B, tied", "Gemma", "Google"
    ),
    "mistral-7b-v0.3": _hub(
        "mistralai/Mistral-7B-v0.3", "caa1feb0e54d415e2df31207e5f4e273e33509b1", "Mistral 7B v0.3", _APACHE
    ),
    "phi4": _hub("microsoft/phi-4", "187ef0342fff0eb3333be9f00389385e95ef0b61", "Phi-4 14B, fused projections", "MIT"),
    "phi4-mini": _hub(
        "microsoft/Phi-4-mini-instruct",
        "cfbefacb99257ffa30c83adab238a50856ac3083",
        "Phi-4 mini 3.8B (instruct), fused projections, tied",
        "MIT",
    ),
    "smollm2-135m": _hub(
        "HuggingFaceTB/SmolLM2-135M", "93efa2f097d58c2a74874c7e644dbc9b0cee75a2", "SmolLM2 135M, tied", _APACHE
    ),
    "smollm2-360m": _hub(
        "HuggingFaceTB/SmolLM2-360M", "f8027fd0eaeea54caa13c31d31b9fdc459c38b49", "SmolLM2 360M, tied", _APACHE
    ),
    "smollm2-1.7b": _hub(
        "HuggingFaceTB/SmolLM2-1.7B", "effd688a12921b4cc83e3312b6feb579f70f9c71", "SmolLM2 1.7B, tied", _APACHE
    ),
    "smollm3-3b": _hub(
        "HuggingFaceTB/SmolLM3-3B-Base", "d78a42f79198603e614095753484a04c10c2b940", "SmolLM3 3B (base), tied", _APACHE
    ),
    "olmo2-1b": _hub("allenai/OLMo-2-0425-1B", "a1847dff35000b4271fa70afc5db10fd29fedbdf", "OLMo 2 1B", _APACHE),
    "olmo2-7b": _hub("allenai/OLMo-2-1124-7B", "7df9a82518afdecae4e8c026b27adccc8c1f0032", "OLMo 2 7B", _APACHE),
    "mixtral-8x7b": _hub(
        "mistralai/Mixtral-8x7B-v0.1",
        "fc7ac94680e38d7348cfa806e51218e6273104b0",
        "Mixtral 8x7B, a mixture of 8 experts",
        _APACHE,
    ),
    "qwen3-30b-a3b": _hub(
        "Qwen/Qwen3-30B-A3B-Base",
        "1b75feb79f60b8dc6c5bc769a898c206a1c6a4f9",
        "Qwen3 30B (base), a mixture of 128 experts",
        _APACHE,
    ),
}
"""By short name. ``docs/models.md`` says where each commit was seen."""
