"""What the estimators cost, as ratios to the bare products they are made of, and the memory they add.

Run ``python tests/benchmarks/bench_information.py [part of a name]``. Each line is measured in a process of its own, on
one thread and by processor time, so that other work on the machine matters little: the estimator and its yardstick in
turns, compared by the fastest of each. Exits with 1 where a ratio or a memory is over its allowance.
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sslinfo.information import Moments, logdet_entropy, pairwise_entropy


class Line(NamedTuple):
    name: str
    yardstick: float
    ratio: float
    allowed: float
    megabytes: float


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(
    name: str, allowed: float, yardstick: Callable[[], object], run: Callable[[], object], repeats: int
) -> Line:
    torch.set_num_threads(1)
    fastest = [float("inf")] * 2
    base = peak_megabytes()
    for _ in range(repeats):
        for i, call in enumerate((yardstick, run)):
            start = time.process_time()
            call()
            fastest[i] = min(fastest[i], time.process_time() - start)
    return Line(name, fastest[0], fastest[1] / fastest[0], allowed, peak_megabytes() - base)


def moments(n: int = 1_000_000, d: int = 512, batch: int = 4096) -> Line:
    """Moments of n float32 samples streamed in batches, against the float64 products of batches already cast."""
    stored = torch.randn(4, batch, d)
    cast = stored.double()
    steps = n // batch

    def stream() -> None:
        total = Moments.empty(d)
        for step in range(steps):
            total = total + Moments.of(stored[step % 4])

    def products() -> None:
        for step in range(steps):
            cast[step % 4].T @ cast[step % 4]

    return compare(f"moments, N={steps * batch}, d={d}", 1.3, products, stream, repeats=1)


def pairwise(dtype: torch.dtype, backward: bool, n: int = 32768, d: int = 128) -> Line:
    """Pairwise entropy against the product of the distances alone, both in blocks of rows and in one precision."""
    z = torch.randn(n, d, dtype=dtype, requires_grad=backward)

    def products() -> None:
        detached = z.detach()
        for rows in detached.split(256):
            rows @ detached.T

    def estimate() -> None:
        value = pairwise_entropy(z, float(d), dtype=dtype)
        if backward:
            torch.autograd.grad(value, z)

    direction, allowed = ("forward + backward", 8.0) if backward else ("forward", 3.0)
    precision = str(dtype).removeprefix("torch.")
    return compare(f"pairwise {direction}, {precision}, N={n}, d={d}", allowed, products, estimate, repeats=1)


def logdet(n: int, d: int, allowed: float) -> Line:
    """LogDet forward and backward against VICReg's covariance term, both in float32."""
    z = torch.randn(n, d, requires_grad=True)

    def covariance_term() -> Tensor:
        centered = z - z.mean(0)
        covariance = centered.T @ centered / (n - 1)
        term = (covariance.square().sum() - covariance.diagonal().square().sum()) / d
        return torch.autograd.grad(term, z)[0]

    def estimate() -> Tensor:
        return torch.autograd.grad(logdet_entropy(z, beta=1.0, dtype=torch.float32), z)[0]

    return compare(f"logdet forward + backward, N={n}, d={d}", allowed, covariance_term, estimate, repeats=10)


CASES: list[tuple[Callable[..., Line], tuple]] = [
    (moments, ()),
    (pairwise, (torch.float64, False)),
    (pairwise, (torch.float64, True)),
    (pairwise, (torch.float32, False)),
    (pairwise, (torch.float32, True)),
    (logdet, (512, 2048, 1.0)),
    (logdet, (2048, 512, 1.5)),
]


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print(f"{'':64s}{'yardstick':>11s}{'ratio':>8s}{'allowed':>9s}{'memory':>10s}")
    context = multiprocessing.get_context("spawn")
    over_allowance = 0
    for function, arguments in CASES:
        if wanted not in function.__name__:
            continue
        with context.Pool(1) as pool:
            line = pool.apply(function, arguments)
        over = line.ratio > line.allowed or line.megabytes > 1024
        over_allowance += over
        figures = f"{line.yardstick:9.3f} s{line.ratio:8.2f}{line.allowed:9.1f}{line.megabytes:7.0f} MB"
        print(f"{line.name:64s}{figures}{'  over' if over else ''}", flush=True)
    if over_allowance:
        sys.exit(1)


if __name__ == "__main__":
    main()
