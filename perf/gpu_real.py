"""A real model on a GPU: finetuned on GSM8K, compressed by four methods at three ratios, evaluated, timed.

    python perf/gpu_real.py --model FOLDER --data FOLDER                  # all parts; again, until nothing is left
    python perf/gpu_real.py --model FOLDER --data FOLDER --parts sweep    # nine minutes of the sweep; then again
    python perf/gpu_real.py --table                                       # the tables of all parts that have run
    python perf/gpu_real.py --device cpu --small --model tiny --task toy-math    # the same code on a CPU

The model is a folder as transformers writes it (Gemma 3 270M is what the defaults suit), the data a folder with
gsm8k/ in the form of docs/data.md. What the machine needs is what `perf/gpu.py` needs. Parts:

    training-free  `bench run --training-free` with all methods that need no training, at 1.2x, 1.5x and (where they
                   factorise the embedding) 2x: WikiText-2, C4, PIQA, ARC-easy, HellaSwag, WinoGrande with intervals.
                   Data: the folder needs these too.
    sweep          `bench run` with svd, fwsvd, bs, svd-llm at 1.2x, 1.35x, 1.5x through the transformers engine: pass@1
                   with its 95 % interval, seconds of fit and compress, updates/s and peak memory of the finetuning.
                   Four stages run side by side, so times are of a shared GPU. It is killed at the end of its time and
                   goes on when the part runs again; until it is done its row says so and the exit code is 1.
    decomposition  every matrix of the model: full spectra, beside `torch.linalg.svd`
    decode         `bench speed` on svd's and bs' checkpoints at 1.5x and their dense exports: tokens/s

Not run on a GPU yet.
"""

import sys
from pathlib import Path

from gpu_sections.frame import Part, main

PARTS = {
    "sweep": Part("real_sweep", 500.0),
    "training-free": Part("real_training_free", 500.0),
    "decomposition": Part("real_decomposition", 120.0),
    "decode": Part("real_decode", 300.0),
}
OPTIONS = {
    "model": ("google/gemma-3-270m", "folder of the model, or the preset tiny"),
    "data": ("", "folder with gsm8k/"),
    "task": ("math", "math, trained and evaluated on GSM8K, or toy-math"),
    "steps": ("150", "updates of the finetuning, and of compressing and recovering together"),
    "limit": ("400", "problems of the benchmark"),
}

if __name__ == "__main__":
    text = "A real model, finetuned, compressed, evaluated and timed on a GPU."
    sys.exit(main(Path(__file__).resolve(), text, PARTS, "runs/gpu-real", OPTIONS))
