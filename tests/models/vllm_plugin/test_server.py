"""``vllm serve FOLDER`` with no flag of ours on what `bench shrink` leaves, asked over HTTP on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from served_models import ENVIRONMENT
from shrinking import likelihood_sweep, write_sums

from lowrank_bench.evals.engines.base import Sampling
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.tasks.prompts import encode_prompt
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.results.shrink.run import shrink

_SECONDS = 900


def ask(url: str, body: dict[str, object] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return str(answer.read().decode())


def test_a_server_answers_as_transformers_does(tmp_path: Path) -> None:
    sums = tmp_path / "sums"
    sums.mkdir()
    config = likelihood_sweep(write_sums(sums), tmp_path / "runs", methods=["joint-rank-k"])
    folder = shrink(config, 0.3, (1.2, 1.5), 1.0).model
    assert folder is not None
    tokenizer = load_tokenizer(folder)
    texts = ["Question: 3 + 4", "def f(x):", "sort 3 1 2"]
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    engine = TransformersEngine(folder, "float32")
    expected = [completion.text for completion in engine.generate(prompts, Sampling(12), 3)]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [
        str(Path(sys.executable).with_name("vllm")),
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    limits = [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "64",
        "--kv-cache-memory-bytes",
        str(64 << 20),
    ]
    environment = os.environ | ENVIRONMENT | {"VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([*serve, *limits], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                ask(f"http://127.0.0.1:{port}/health")
                break
            except OSError:  # no connection yet, or no answer in time
                said = (tmp_path / "log").read_text(errors="replace")[-3000:]
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.5)
        body = {"model": str(folder), "prompt": prompts, "max_tokens": 12, "temperature": 0}
        choices = json.loads(ask(f"http://127.0.0.1:{port}/v1/completions", body))["choices"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert [choice["text"] for choice in sorted(choices, key=lambda choice: choice["index"])] == expected
