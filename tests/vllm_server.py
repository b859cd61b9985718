"""``vllm serve FOLDER`` on a free port of this machine, asked over HTTP, and stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from served_models import ENVIRONMENT

_SECONDS = 900


def ask(url: str, body: dict[str, object] | None = None) -> str:
    """Return what the server answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return str(answer.read().decode())


@contextmanager
def serving(words: list[str], work: Path) -> Iterator[str]:
    """Start ``vllm serve``, yield its URL when it answers, and stop it.

    Args:
        words: of the command line behind ``vllm``: ``serve FOLDER``.
        work: folder for the log and vLLM's cache.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), *words, "--host", "127.0.0.1", "--port", str(port)]
    limits = [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "64",
        "--kv-cache-memory-bytes",
        str(64 << 20),
    ]
    environment = os.environ | ENVIRONMENT | {"VLLM_CACHE_ROOT": str(work / "cache")}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    with open(work / "log", "wb") as log:
        server = subprocess.Popen([*command, *limits], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                ask(f"http://127.0.0.1:{port}/health")
                break
            except OSError:  # no connection yet, or no answer in time
                output = (work / "log").read_text(errors="replace")[-3000:]
                assert server.poll() is None, output
                assert time.monotonic() < deadline, output
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def complete(url: str, model: str, prompts: list[object], tokens: int) -> list[str]:
    """Return greedy completions of prompts, texts or token ids, in their order."""
    body: dict[str, object] = {"model": model, "prompt": prompts, "max_tokens": tokens, "temperature": 0}
    choices = json.loads(ask(f"{url}/v1/completions", body))["choices"]
    return [str(choice["text"]) for choice in sorted(choices, key=lambda choice: int(choice["index"]))]
