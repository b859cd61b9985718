"""How checkpoints serve requests: ``vllm serve`` under ``vllm bench serve``, dense and factorised in one run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...evals.hosting.choice import vllm_lacks, vllm_version
from ...evals.speed.online import Server, ask, cache_bytes, serving
from ...evals.speed.online_spec import OBJECTIVES, Load, LoadTiming, OnlineSpec
from ...foundation.errors import UserError, unknown
from ...foundation.memory import free_memory
from ...models.configs import load_config
from ...models.loading import DTYPES, load_tokenizer, weights_size
from ...models.matrices import Size
from ...runners.choices import pick_device
from .measure import SpeedRequest, default_threads, dense_twins, measured_subjects
from .subject import Subject

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class OnlineRequest:
    """What `measure_online` needs to know; see the options of ``bench speed --online``.

    Attributes:
        base: checkpoints, lengths, number format, device, threads and rounds.
        rates: requests per second, each a load of its own; infinite sends all at once.
        concurrency: requests under way, each a load of its own.
        requests: sent for each load.
        objectives: milliseconds by name, for goodput.
    """

    base: SpeedRequest
    rates: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    concurrency: Sequence[int] = ()
    requests: int = 32
    objectives: tuple[tuple[str, float], ...] = ()

    @property
    def loads(self) -> tuple[Load, ...]:
        """All loads in the order in which they are measured."""
        return (*map(Load, self.rates), *(Load(concurrency=count) for count in self.concurrency))


@dataclass(frozen=True)
class OnlineSeries:
    """All rounds of one checkpoint.

    Attributes:
        subject: the checkpoint.
        spec: what was measured.
        rounds: a timing for each load, each round.
        size: parameters and bytes of the weights on disk.
        reference: index of its dense form's series, or None.
        version: of vLLM.
    """

    subject: Subject
    spec: OnlineSpec
    rounds: tuple[tuple[LoadTiming, ...], ...]
    size: Size
    reference: int | None
    version: str

    def values(self, metric: str, load: Load) -> list[float]:
        """Return a field of `LoadTiming` under one load, one value a round."""
        index = self.spec.loads.index(load)
        return [float(getattr(timings[index], metric)) for timings in self.rounds]


def read_objectives(text: str | None) -> tuple[tuple[str, float], ...]:
    """Read ``ttft:200,tpot:50``: milliseconds by name.

    Raises:
        UserError: no such name, a name twice, or no positive number.
    """
    objectives: dict[str, float] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, number = (word.strip() for word in part.partition(":"))
        if name not in OBJECTIVES:
            raise unknown("objective", name, OBJECTIVES)
        try:
            milliseconds = float(number)
        except ValueError:
            milliseconds = math.nan
        if not 0 < milliseconds < math.inf or name in objectives:
            raise UserError(
                f"--goodput '{part}' is not usable; give each name once with milliseconds: ttft:200,tpot:50"
            )
        objectives[name] = milliseconds
    return tuple(sorted(objectives.items()))


def measure_online(request: OnlineRequest, report: Report | None = None) -> list[OnlineSeries]:
    """Serve all checkpoints side by side and send each all loads in every round, in alternating order.

    In a round all checkpoints get the same prompts at the same times; every other round has the opposite order, so
    that a machine that grows slower or faster favours none. The next round has other prompts. A server that is not
    asked waits.

    Args:
        request: what to measure.
        report: called with (done, in all, what is counted).

    Raises:
        UserError: unusable input, before anything is started; a server or a client that ended; a failed request.
    """
    _check(request)
    with measured_subjects(request.base) as (subjects, dtype), ExitStack() as stack:
        specs = [_spec(request, subject, dtype) for subject in subjects]
        _check_servable(subjects, specs)
        sizes = [weights_size(subject.folder) for subject in subjects]  # a dense export is gone at the end
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-online-")))
        servers: list[Server] = []
        for number, spec in enumerate(specs):
            if report:
                report(number, len(specs), "servers")
            servers.append(stack.enter_context(serving(spec, scratch / f"server-{number}.log")))
        rounds = _alternate(servers, request.base.repeats, scratch, report)
    twins, version = dense_twins(subjects), vllm_version()
    return [
        OnlineSeries(subject, spec, tuple(rounds[index]), size, twins[index], version)
        for index, (subject, spec, size) in enumerate(zip(subjects, specs, sizes, strict=True))
    ]


def _alternate(
    servers: Sequence[Server], repeats: int, scratch: Path, report: Report | None
) -> list[list[tuple[LoadTiming, ...]]]:
    loads = len(servers[0].spec.loads)
    total, done = repeats * len(servers) * loads, 0
    rounds: list[list[tuple[LoadTiming, ...]]] = [[] for _ in servers]
    for number in range(repeats):
        order = range(len(servers)) if number % 2 == 0 else range(len(servers) - 1, -1, -1)
        for index in order:

            def count(finished: int, before: int = done) -> None:
                if report:
                    report(before + finished, total, "loads")

            count(0)
            rounds[index].append(tuple(ask(servers[index], number, scratch / f"{number}-{index}", count)))
            done += loads
    if report:
        report(total, total, "loads")
    return rounds


def _check(request: OnlineRequest) -> None:
    if not request.loads:
        raise UserError("there is no load to measure; give --rates 1,2,4 or --concurrency 1,8, or both")
    if len(set(request.loads)) < len(request.loads) or not all(rate > 0 for rate in request.rates):
        raise UserError("--rates takes different positive numbers, such as 1,2,4,inf; inf sends all requests at once")
    if not all(count > 0 for count in request.concurrency):
        raise UserError("--concurrency takes different whole numbers from 1, such as 1,8,32")
    if request.requests < 1:
        raise UserError(f"--requests is {request.requests} and must be at least 1")


def _spec(request: OnlineRequest, subject: Subject, dtype: str) -> OnlineSpec:
    base = request.base
    return OnlineSpec(
        str(subject.folder.resolve()),
        dtype,
        pick_device(base.device),
        base.threads or default_threads(),
        request.loads,
        request.requests,
        base.prompt_tokens,
        base.new_tokens,
        dict(request.objectives),
    )


def _check_servable(subjects: Sequence[Subject], specs: Sequence[OnlineSpec]) -> None:
    needed = 0
    for subject, spec in zip(subjects, specs, strict=True):
        if lacking := vllm_lacks(load_config(spec.folder), spec.device):
            raise UserError(f"{subject.name} cannot be served: {lacking}; bench speed without --online measures it")
        if load_tokenizer(spec.folder) is None:
            raise UserError(
                f"{subject.name} has no tokenizer, which a server needs; copy that of its model into {spec.folder}"
            )
        needed += weights_size(Path(spec.folder)).parameters * DTYPES[spec.dtype].itemsize + cache_bytes(spec)
    free = free_memory(specs[0].device)
    if needed > free:
        raise UserError(
            f"{len(specs)} servers need about {needed / 2**30:.1f} GiB together and {free / 2**30:.1f} GiB are free; "
            "name fewer checkpoints, or lower --requests, --prompt-tokens or --new-tokens"
        )
