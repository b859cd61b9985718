"""Running stages on the nodes of a Ray cluster, or of a Ray that is started here; imported only when asked for.

Stages are written to the store as the local executor writes them, so the store must be a folder that all nodes see,
or have a storage behind it; then each node has a folder of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...foundation.process import python_command, python_environment
from ...foundation.progress import throttled
from ..config import SweepConfig
from ..config.execution import host_and_port
from ..specs import Stage
from ..store.folders import StageStore
from ..store.shared import SharedStore
from ..training.recipes import SMALL_MODEL_PARAMETERS
from .local import Event, StageCrashed, do_stage, failed_evaluation, prepare

RETRIES = 3
"""How often a stage is begun again after its worker process or node was lost."""

CONNECT_SECONDS = 60
"""How long a cluster may take to answer."""

SCRATCH = "LOWRANK_BENCH_SCRATCH"
"""Environment variable of a node: its own folder in place of ``--out``, where stages go to a storage."""

_POLL_SECONDS = 0.2
_SHARED_SECONDS = 60  # NFS clients keep what they know of a folder for up to that long
_OBJECT_STORE_BYTES = 100 << 20  # only events pass through it
_TOKEN = secrets.token_hex(32)  # Ray keeps the first one of a process
_PROBE = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


@dataclass(frozen=True)
class Node:
    """CPUs and GPUs of a node."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Share:
    """What each stage asks of a node, the CPU threads it uses, and how many stages the cluster holds at once."""

    cpus: int
    gpus: int
    threads: int
    slots: int


def require_ray(config: SweepConfig) -> None:
    """Refuse what can be seen to fail before anything is planned.

    Raises:
        UserError: Ray is not installed, or the device is none that it can use.
    """
    if find_spec("ray") is None:
        raise UserError("--executor ray needs Ray, which is not installed; type pip install 'lowrank-bench[ray]'")
    device = config.execution.device
    if device.startswith("cuda:"):
        raise UserError(f"--executor ray picks the GPU of each stage; use --device cuda instead of {device}")


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[list[Node]]:
    """Connect to a cluster, or start Ray on this machine and end it afterwards; gives the nodes.

    Args:
        address: HOST:PORT of a running cluster, ``auto`` for the one that this machine belongs to, or None.

    Raises:
        UserError: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # says so on every start otherwise
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # else without end
    if address is not None:
        _probe(address)
    else:
        # Ray's autoscaler offers its metrics to all the network, without a token; no such port, no such server.
        os.environ.setdefault("AUTOSCALER_METRIC_PORT", "-1")
    import ray

    # Ray looks for a socket path below 108 bytes, hence the short name.
    temp = tempfile.mkdtemp(prefix="lrb-") if address is None else None
    own: dict[str, Any] = {
        "num_cpus": len(os.sched_getaffinity(0)),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": temp,
    }
    before = signal.getsignal(signal.SIGTERM)  # `ray.init` sets a handler of its own
    environment = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    try:
        if temp and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # Ray lets in whoever has a token. Else it writes one into the home folder, where it stays and changes what
            # a later 'ray start' does. The folder is the user's alone.
            os.environ["RAY_AUTH_TOKEN_PATH"] = f"{temp}/token"
            Path(temp, "token").write_text(_TOKEN)
        try:
            # Ray puts the driver's current folder before all others on its workers' import path.
            with contextlib.chdir("/"):
                ray.init(
                    address=address or "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **(own if temp else {}),
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(_refusal(address, str(error))) from error
        finally:
            with contextlib.suppress(ValueError):  # not the main thread, where Ray sets no handler either
                signal.signal(signal.SIGTERM, before)
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield [Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0))) for resources in alive]
    finally:
        ray.shutdown()
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if temp:
            shutil.rmtree(temp, ignore_errors=True)


def _probe(address: str) -> None:
    """Connect in another process first: Ray waits for minutes, or ends the process, where nothing usable answers."""
    if address != "auto":
        try:
            socket.create_connection(host_and_port(address), timeout=10).close()
        except OSError as error:
            raise UserError(_refusal(address, str(error.strerror or error))) from error
    try:
        done = subprocess.run(
            python_command("-c", _PROBE, address),
            env=python_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CONNECT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(_refusal(address, f"no answer within {CONNECT_SECONDS} s")) from None
    if done.returncode:
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise UserError(_refusal(address, words[-1] if words else f"exit code {done.returncode}"))


def _refusal(address: str | None, why: str) -> str:
    short = " ".join(why.split())[:300]
    if address is None:
        return f"Ray cannot be started on this machine ({short}); mend that, or leave out --executor ray"
    return (
        f"no Ray cluster can be used at {address} ({short}); give the address that 'ray start --head' printed, from a "
        "machine that joined with 'ray start --address'"
    )


def share_of(workers: int | None, device: str, parameters: int, nodes: Sequence[Node]) -> Share:
    """Return what each stage asks for: the same on every node, as the number of threads can change the last digits.

    Args:
        workers: stages side by side on a node, or None: one per CPU for small models, per GPU, or per node.
        device: torch device of the stages.
        parameters: size of the uncompressed model.
        nodes: of the cluster; the smallest usable one decides.

    Raises:
        UserError: no node could ever run a stage.
    """
    gpus = 1 if device.startswith("cuda") else 0
    usable = [node for node in nodes if node.cpus >= 1 and node.gpus >= gpus]
    if not usable:
        device_name = "a GPU" if gpus else "a CPU"
        raise UserError(
            f"no node of the Ray cluster offers {device_name} to tasks ({len(nodes)} nodes); start nodes with "
            f"'ray start --address … --num-{'gpus' if gpus else 'cpus'} N', or choose another --device"
        )
    small = not gpus and parameters < SMALL_MODEL_PARAMETERS
    cores = min(node.cpus for node in usable)
    side_by_side = workers or (cores if small else min(node.gpus for node in usable) if gpus else 1)
    cpus = max(1, cores // side_by_side)
    slots = sum(min(node.cpus // cpus, node.gpus if gpus else node.cpus) for node in usable)
    return Share(cpus, gpus, 1 if small else cpus, slots)


def run_stages(
    stages: Mapping[str, Stage],
    needs: Mapping[str, tuple[str, ...]],
    store: StageStore,
    share: Share,
    on_event: Callable[[Event, Stage], None],
    on_start: Callable[[Stage], None],
) -> dict[str, Event]:
    """Run stages as Ray tasks as soon as what they need is complete; call inside `ray_session`.

    A stage whose worker process or node was lost begins again up to `RETRIES` times; one that failed does not.

    Args:
        stages: those to run, by key; needed ones that are missing here are complete.
        needs: keys that each stage needs.
        store: where they are written; all nodes must see its folder under the same path, or its storage.
        share: what each stage asks of a node.
        on_event, on_start: called with what happens.

    Returns:
        The evaluations that failed, by key, with what they said. Nothing needs them, so all other stages are run.

    Raises:
        UserError: the first other stage that failed for a reason the user can mend; running stages are ended.
        StageCrashed: another stage failed otherwise, or a stage's process was lost too often.
    """
    import ray

    options: dict[str, Any] = {"num_cpus": share.cpus, "max_retries": RETRIES, "retry_exceptions": False}
    if share.gpus:
        options["num_gpus"] = share.gpus  # a process for each stage: a GPU cannot be exchanged in a running one
    environment = {"env_vars": {"OMP_NUM_THREADS": str(share.threads)}}
    task = ray.remote(**options, runtime_env=environment)(_do_stage)
    mailbox = _mailbox()
    waiting = dict(stages)
    running: dict[Any, Stage] = {}
    done: set[str] = set()
    failed: dict[str, Event] = {}
    started: set[str] = set()

    def start(key: str) -> None:
        if key not in started:
            started.add(key)
            on_start(stages[key])

    shared = store if isinstance(store, SharedStore) else None
    with shared.storage.beacon() if shared else _token(store.root) as token:
        try:
            while waiting or running:
                for key in [k for k in waiting if all(n in done or n not in stages for n in needs[k])]:
                    stage = waiting.pop(key)
                    ref = task.options(name=stage.title or key).remote(
                        stage, store, token, share.threads, mailbox, os.getcwd()
                    )
                    running[ref] = stage
                ended, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
                for key, (count, total, unit) in _news(mailbox).items():
                    if key not in done:
                        start(key)
                        if total:
                            on_event(Event(key, "progress", count, total, unit=unit), stages[key])
                for ref in ended:
                    stage = running.pop(ref)
                    start(stage.key)  # a short stage may end before its first news is read
                    event = _outcome(ref, stage)
                    if event.kind == "done" and shared:
                        shared.gather([stage.key])
                    elif event.kind == "done":
                        _await(store.path(stage.key), "a node")
                    on_event(event, stage)
                    if event.kind == "failed":
                        failed[event.key] = failed_evaluation(event, stage)
                    else:
                        done.add(stage.key)
        finally:
            _cancel(list(running))
    return failed


def _do_stage(stage: Stage, store: StageStore, token: str, threads: int, mailbox: Any, folder: str) -> Event:
    """The task: runs in a Ray worker, on whichever node has room."""
    with contextlib.suppress(OSError):
        os.chdir(folder)  # the sweep's own, where this node has it
    mailbox.put.remote(stage.key, 0, 0, "")  # a total of 0 says only that the stage has begun

    def report(done: int, total: int, unit: str) -> None:
        mailbox.put.remote(stage.key, done, total, unit)

    try:
        if isinstance(store, SharedStore):
            scratch = os.environ.get(SCRATCH)
            root = Path(scratch).expanduser().resolve() / "stages" if scratch else store.root
            store = SharedStore(root, store.storage.url)
            if not store.storage.sees(token):
                raise UserError(
                    f"{socket.gethostname()} does not see {store.storage.shown} as the machine that runs the sweep "
                    "does; choose a storage that all nodes reach"
                )
        else:
            _await(Path(token), "the machine that runs the sweep")
    except UserError as error:
        return Event(stage.key, "failed", text=str(error), expected=True)
    prepare(threads)
    return do_stage(stage, store, throttled(report, _POLL_SECONDS))


def _mailbox() -> Any:
    import ray

    class Mailbox:
        """Keeps the latest progress of each stage. Defined here so that its process need not import this package."""

        def __init__(self) -> None:
            self.latest: dict[str, tuple[int, int, str]] = {}

        def put(self, key: str, done: int, total: int, unit: str) -> None:
            self.latest[key] = (done, total, unit)

        def take(self) -> dict[str, tuple[int, int, str]]:
            latest, self.latest = self.latest, {}
            return latest

    return ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).remote()


def _news(mailbox: Any) -> dict[str, tuple[int, int, str]]:
    import ray

    try:
        latest: dict[str, tuple[int, int, str]] = ray.get(mailbox.take.remote(), timeout=10)
        return latest
    except (
        ray.exceptions.RayError
    ):  # its node was lost; it comes back on another, and only the display missed something
        return {}


def _outcome(ref: Any, stage: Stage) -> Event:
    import ray

    try:
        event: Event = ray.get(ref)
        return event
    except ray.exceptions.RayTaskError as error:
        raise StageCrashed(f"{stage.title} failed before it began:\n{error}") from error
    except ray.exceptions.RayError as error:
        last = " ".join(str(error).split())[:600]
        raise StageCrashed(
            f"the process of '{stage.title}' was lost {RETRIES + 1} times ({last}); use fewer --workers or a smaller "
            "batch, then run the same command again: finished stages are kept"
        ) from error


def _cancel(running: list[Any]) -> None:
    import ray

    for ref in running:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(ref, force=True)
    if running:
        ray.wait(running, num_returns=len(running), timeout=15)


@contextlib.contextmanager
def _token(root: Path) -> Iterator[str]:
    """A file in the store by which a node tells that it sees this very folder."""
    root.mkdir(parents=True, exist_ok=True)
    token = root / f".ray-{uuid.uuid4().hex}"
    token.touch()
    try:
        yield str(token)
    finally:
        token.unlink(missing_ok=True)


def _await(path: Path, writer: str) -> None:
    """Wait until a file that another machine wrote is seen here."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{socket.gethostname()} does not see {path.parent} as {writer} does; choose a folder with --out that "
                "all nodes share under the same path"
            )
        time.sleep(1)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes an NFS client ask again
