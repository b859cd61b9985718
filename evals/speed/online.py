"""A ``vllm serve`` of one checkpoint on this machine, and ``vllm bench serve`` as its client."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...foundation.environment import one_gpu
from ...foundation.errors import UserError
from ...foundation.memory import free_share
from ...foundation.process import python_command, python_environment
from ...models.configs import load_config
from ...models.footprint import context_length, token_bytes
from ...models.loading import DTYPES
from .online_spec import Load, LoadTiming, OnlineSpec

_PACKAGE = __package__.rpartition(".evals.")[0]
_BLOCK_TOKENS = 128
_SPARE_BYTES = 64 << 20
_SPARE_TOKENS = 1
_START_SECONDS = 1800.0
_STOP_SECONDS = 15.0
_MESSAGE_CHARACTERS = 300
_ERROR = re.compile(r"\b([A-Z]\w*(?:Error|Exception): .+(?:\n[ \t]+\S.*)?)")  # with the line that pydantic indents
_CONSEQUENCE = "Engine core initialization failed"
_WARM_UPS = 2
_MOST_UNDER_WAY = 256
"""vLLM's own default; further requests wait in its queue."""
# Without the environment's proxies, one of which might be asked for 127.0.0.1.
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        spec: what it serves.
        port: on 127.0.0.1.
        process: leads a group of its own.
        log: what the group wrote.
        version: of vLLM.
    """

    spec: OnlineSpec
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Check that it still runs.

        Raises:
            UserError: it ended; with its last words.
        """
        if (code := self.process.poll()) is not None:
            raise UserError(f"the server of {Path(self.spec.folder).name} {_last_words(code, self.log)}")


@contextmanager
def serving(spec: OnlineSpec, log: Path) -> Iterator[Server]:
    """Serve a checkpoint on a free port of 127.0.0.1 for as long as the block runs.

    Prefix caching is off, since all models get the same prompts in every round. The cache of keys and values has room
    for all requests of a load at once. On a CPU nothing is compiled.

    Args:
        spec: what to serve.
        log: file for what the server writes.

    Raises:
        UserError: it ended before it answered, with its last words, or did not answer within half an hour.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    module = f"{_PACKAGE}.evals.speed.server_process"
    command = python_command("-m", module, str(os.getpid()), *_server_options(spec, port))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(spec.device, spec.threads),
            start_new_session=True,
        )
    server = Server(spec, port, process, log)
    try:
        _wait_for(server)
        yield server
    finally:
        _stop(process)


def ask(server: Server, seed: int, folder: Path, progress: Callable[[int], None] | None = None) -> list[LoadTiming]:
    """Send a server all loads, one after the other, by ``vllm bench serve``.

    Args:
        server: answers.
        seed: of prompts; the times at which requests arrive are the same for every seed.
        folder: new folder for what the client writes.
        progress: called with the number of loads that are done.

    Returns:
        One timing a load.

    Raises:
        UserError: the server ended, the client did, or a request failed.
    """
    folder.mkdir(parents=True)
    spec, name = server.spec, Path(server.spec.folder).name
    trace = _write_trace(spec, seed, folder / "trace.jsonl")
    results = [folder / f"{number}.json" for number in range(len(spec.loads))]
    lines = [_client_options(server, load, seed, trace, file) for load, file in zip(spec.loads, results, strict=True)]
    module = f"{_PACKAGE}.evals.speed.client_process"
    with (folder / "log").open("wb") as output:
        client = subprocess.Popen(
            python_command("-m", module, str(os.getpid()), json.dumps(lines)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **_environment("cpu", 1),
                "PYTHONHASHSEED": "0",
            },  # the client draws prompts by Python's hash of a text
            start_new_session=True,
        )
    try:
        while client.poll() is None:
            server.check()
            if progress:
                progress(sum(file.is_file() for file in results))
            time.sleep(0.2)
    finally:
        _stop(client)
    # The server first: where it ended, the client failed for that reason.
    server.check()
    if client.returncode:
        raise UserError(f"vllm bench serve, which asks {name}, {_last_words(client.returncode, folder / 'log')}")
    return [_timing(file, spec, load, name) for file, load in zip(results, spec.loads, strict=True)]


def _timing(file: Path, spec: OnlineSpec, load: Load, name: str) -> LoadTiming:
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if result["completed"] < spec.requests:
        errors = [" ".join(str(error).split()) for error in result.get("errors", []) if error]
        raise UserError(
            f"{spec.requests - result['completed']} of {spec.requests} requests to {name} failed at {load.title}: "
            f"{(errors or ['no message'])[-1][-_MESSAGE_CHARACTERS:]}"
        )
    lengths = result["total_input_tokens"], result["total_output_tokens"]
    if lengths != (spec.requests * spec.prompt_tokens, spec.requests * spec.new_tokens):
        raise UserError(
            f"{name} got {lengths[0]} and gave {lengths[1]} tokens in {spec.requests} requests of {spec.prompt_tokens} "
            f"+ {spec.new_tokens} at {load.title}, so its times say nothing; is its context long enough?"
        )
    return LoadTiming.read(result)


def _write_trace(spec: OnlineSpec, seed: int, file: Path) -> Path:
    """Write the requests as a trace, the form in which the client sends token ids.

    Its random dataset sends text, which small vocabularies split into other numbers of tokens than were asked for; the
    server then cuts completions short without a word.
    """
    lengths = {"timestamp": 0, "input_length": spec.prompt_tokens, "output_length": spec.new_tokens}
    # The client makes a prompt out of its number, so that each seed has prompts of its own.
    numbers = range(seed * spec.requests, (seed + 1) * spec.requests)
    file.write_text("".join(json.dumps(lengths | {"hash_ids": [number]}) + "\n" for number in numbers))
    return file


def _server_options(spec: OnlineSpec, port: int) -> list[str]:
    config = load_config(spec.folder)
    length = min(spec.prompt_tokens + spec.new_tokens + _SPARE_TOKENS, context_length(config))
    gpu = spec.device != "cpu"
    options: dict[str, object] = {
        "host": "127.0.0.1",
        "port": port,
        "dtype": spec.dtype,
        "max-model-len": length,
        "max-num-seqs": most_under_way(spec),
        "kv-cache-memory-bytes": cache_bytes(spec),
        "generation-config": "vllm",  # what the model's authors ship as settings decides nothing here
        "seed": 0,
        "uvicorn-log-level": "error",
    } | ({"gpu-memory-utilization": free_share(spec.device)} if gpu else {})
    flags = ["--no-enable-prefix-caching", *([] if gpu else ["--enforce-eager"])]
    return [spec.folder, *(word for name, value in options.items() for word in (f"--{name}", str(value))), *flags]


def most_under_way(spec: OnlineSpec) -> int:
    """Return how many requests a server works on side by side at most."""
    return min(_MOST_UNDER_WAY, max(load.concurrency or spec.requests for load in spec.loads))


def cache_bytes(spec: OnlineSpec) -> int:
    """Return the bytes of keys and values of all requests that may be under way."""
    token = token_bytes(load_config(spec.folder), DTYPES[spec.dtype].itemsize)
    blocks = -(-(spec.prompt_tokens + spec.new_tokens + _SPARE_TOKENS) // _BLOCK_TOKENS) + 1
    return token * most_under_way(spec) * blocks * _BLOCK_TOKENS + _SPARE_BYTES


def _client_options(server: Server, load: Load, seed: int, trace: Path, result: Path) -> list[str]:
    spec = server.spec
    options: dict[str, object] = {
        "host": "127.0.0.1",
        "port": server.port,
        "model": spec.folder,
        "dataset-name": "timed_trace",
        "dataset-path": trace,
        "timed-trace-chunk-hash-size": spec.prompt_tokens,
        "num-prompts": spec.requests,
        "num-warmups": min(_WARM_UPS, spec.requests),
        "request-rate": "inf" if math.isinf(load.rate) else load.rate,
        "seed": seed,
        "temperature": 0,
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "metric-percentiles": "99",
        "result-dir": result.parent,
        "result-filename": result.name,
    } | ({"max-concurrency": load.concurrency} if load.concurrency else {})
    goodput = [f"{name}:{milliseconds:g}" for name, milliseconds in spec.objectives.items()]
    return [
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        *("--no-self-timed", "--save-result", "--save-detailed", "--disable-tqdm"),
        *(["--goodput", *goodput] if goodput else []),
    ]


def _environment(device: str, threads: int) -> Mapping[str, str]:
    # A cache size from outside would override ours, and a proxy would be asked for this machine's own addresses.
    unwanted = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_API_KEY")
    inherited = {name: value for name, value in python_environment().items() if name not in unwanted}
    return inherited | {
        **one_gpu(device)[1],
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or the servers would all sit on the first cores
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        server.check()
        with suppress(OSError), _LOCAL.open(f"http://127.0.0.1:{server.port}/health", timeout=10):
            return
        if time.monotonic() > deadline:
            raise UserError(f"the server of {Path(server.spec.folder).name} did not answer within half an hour")
        time.sleep(0.3)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: politely, then for certain."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    # The group has the processes that vLLM started, which may outlive their leader.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(code: int, log: Path) -> str:
    if code == -int(signal.SIGKILL):
        return (
            "was killed, most likely for want of memory; name fewer checkpoints, or lower --requests or --concurrency"
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = [match for match in _ERROR.findall(text) if _CONSEQUENCE not in match]
    lines = [line for line in text.splitlines() if line.strip()]
    message = " ".join((errors or lines or ["no message"])[-1].split())[:_MESSAGE_CHARACTERS]
    return f"ended with exit code {code}: {message}"
