"""Data-free Joint Rank-k Approximation (arXiv 2402.16319): the sentence of its abstract.

"Model pruning of 80 % parameters while retaining 93.43 %": that 80 % are kept is inferred. Its benchmarks are
OpenCompass's; the commonsense tasks take their place here.
"""

from __future__ import annotations

from .sfsd import SIX
from .specs import Form, Item, Line, Panel, Paper

NAME = "joint-rank-k"
_LINES = (Line("joint-rank-k", "joint-rank-k"), Line("svd", "svd"))
_DENSE_HEAD = tuple(Line(line.label, line.method, {"head": False}) for line in _LINES)

PAPER = Paper(
    NAME,
    "Data-free Weight Compress and Denoise for Large Language Models",
    "arXiv:2402.16319",
    (
        Item(
            NAME,
            "table",
            "headline",
            "LLaMA-7B: performance retained with 80 % of the parameters, next to separate SVDs",
            "huggyllama/llama-7b",
            Form(
                sweep=f"{NAME}-headline",
                task="commonsense",
                lines=_DENSE_HEAD,
                ratios=(round(1 / 0.9, 4), 1.25),
                panels=(Panel("opencompass-average", SIX, "retained"),),
                recipe="paper",
                benchmarks=SIX,
                training_free=True,
                departs=("ours is the mean of six commonsense tasks, theirs OpenCompass's",),
            ),
            Form(
                sweep=f"{NAME}-headline-toy-math",
                task="toy-math",
                lines=_LINES,
                ratios=(round(1 / 0.9, 4), 1.25),
                panels=(Panel("toy-math", ("toy-math",), "retained"),),
                recipe="small",
                recover_steps=0,
                caption=(
                    "Small form: toy-math replaces OpenCompass's tasks; {finetune_steps} steps of finetuning come "
                    "first, {recover_steps} after compression.",
                ),
            ),
            "4782ad278652c7c71b72204d462d6d01eaaf7549",
        ),
    ),
)
