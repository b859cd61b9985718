"""Pivoting storage (PIFA, arXiv 2501.19090) beside two factors of the same rank: time, numbers stored, error.

python perf/pivoted.py --shapes 1024x640,2048x640,640x2048,2048x2048

A matrix W = B A (m x n, rank r) is stored as r of its rows W_p, chosen by a QR decomposition with pivoting, and as
coefficients C ((m - r) x r) with which the others are C W_p: r (m + n - r) numbers in place of r (m + n). A product
makes y_p = W_p x and C y_p, and puts both in the order of W's rows. Times are CPU seconds of one thread, the best of
several; errors are relative, in the Frobenius norm, against the product in float64.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.nn.functional import linear

HEADS = (
    *("m x n", "ratio", "rank", "dtype", "batch", "numbers stored", "time", "without the order", "two ÷ dense"),
    *("error of two", "error of pivoted"),
)


def pivoted(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_p (r, n), C (m - r, r), and where each row of W is in both, (m,), of W (m, n) in float64."""
    *_, columns = scipy.linalg.qr(weight.T.numpy(), mode="economic", pivoting=True)
    rows = np.sort(columns[:rank])
    others = np.setdiff1d(np.arange(len(weight)), rows)
    chosen = weight[rows]
    coefficients = torch.linalg.lstsq(chosen.T, weight[others].T).solution.T
    order = np.argsort(np.concatenate([rows, others]))
    return chosen, coefficients, torch.from_numpy(order)


def best(run: Callable[[], Tensor], seconds: float) -> float:
    """Return the CPU seconds of one call, the best of at least five within a time."""
    run()
    fastest, begin, calls = float("inf"), time.thread_time(), 0
    while calls < 5 or time.thread_time() - begin < seconds:
        start = time.thread_time()
        run()
        fastest, calls = min(fastest, time.thread_time() - start), calls + 1
    return fastest


def measure(m: int, n: int, ratio: float, seconds: float) -> list[tuple[str, ...]]:
    """Return the table's rows of one shape at one ratio of parameters: two dtypes, one token and 128."""
    rank = max(1, int(m * n / ratio / (m + n)))
    b = torch.randn(m, rank, dtype=torch.float64) / rank**0.5
    a = torch.randn(rank, n, dtype=torch.float64) / n**0.5
    chosen, coefficients, order = pivoted(b @ a, rank)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        first, second, pivots, rest, dense = (part.to(dtype) for part in (a, b, chosen, coefficients, b @ a))
        for batch in (1, 128):
            x = torch.randn(batch, n).to(dtype)
            exact = x.double() @ (b @ a).T

            def factors(x: Tensor = x, first: Tensor = first, second: Tensor = second) -> Tensor:
                return linear(linear(x, first), second)

            def unordered(x: Tensor = x, pivots: Tensor = pivots, rest: Tensor = rest) -> Tensor:
                y = linear(x, pivots)
                return linear(y, rest)

            def ordered(x: Tensor = x, pivots: Tensor = pivots, rest: Tensor = rest) -> Tensor:
                y = linear(x, pivots)
                return torch.cat([y, linear(y, rest)], -1)[:, order]

            plain = best(factors, seconds)
            errors = (float((run().double() - exact).norm() / exact.norm()) for run in (factors, ordered))
            rows.append(
                (
                    *(f"{m} x {n}", f"{ratio:g}", str(rank), str(dtype).removeprefix("torch."), str(batch)),
                    f"{(m + n - rank) / (m + n):.2f}",
                    f"{best(ordered, seconds) / plain:.2f}",
                    f"{best(unordered, seconds) / plain:.2f}",
                    f"{plain / best(lambda x=x, dense=dense: linear(x, dense), seconds):.2f}",
                    *(f"{error:.1e}" for error in errors),
                )
            )
    return rows


def main() -> None:
    """Measure and print a table; numbers stored and times are over those of two factors of the same rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1024x640,2048x640,640x2048,2048x2048")
    parser.add_argument("--ratios", default="1.5,2,4")
    parser.add_argument("--seconds", type=float, default=0.15, help="of each measurement")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
    for shape in asked.shapes.split(","):
        m, n = map(int, shape.split("x"))
        for ratio in map(float, asked.ratios.split(",")):
            for row in measure(m, n, ratio, asked.seconds):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
