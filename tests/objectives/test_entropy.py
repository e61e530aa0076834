"""Each half against the formula written out in loops, and its gradient against finite differences."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from sslinfo.errors import UserError
from sslinfo.objectives import LogDet, PairDist, SIGReg, VarianceCovariance, VonNeumann
from sslinfo.objectives.entropy import EntropyHalf

SHAPES = [(12, 5), (5, 9)]  # more and fewer samples than dimensions


def views(n: int, d: int, count: int = 2) -> list[Tensor]:
    """Correlated embeddings with standard deviations on both sides of the hinge at 1, away from its edge."""
    generator = torch.Generator().manual_seed(n + d)
    out = []
    for _ in range(count):
        z = torch.randn(n, d, generator=generator, dtype=torch.float64)
        z = (z - z.mean(0)) / z.std(0) * torch.linspace(0.3, 1.8, d, dtype=torch.float64) + 0.7
        out.append(z + 0.2 * z.roll(1, dims=1))
    return out


def covariance(z: np.ndarray) -> np.ndarray:
    n, d = z.shape
    out = np.zeros((d, d))
    for j in range(d):
        for k in range(d):
            out[j, k] = sum((z[i, j] - z[:, j].mean()) * (z[i, k] - z[:, k].mean()) for i in range(n)) / (n - 1)
    return out


def on_sphere(z: np.ndarray) -> np.ndarray:
    return np.stack([row / math.sqrt(sum(x * x for x in row)) * math.sqrt(len(row)) for row in z])


def v_and_c(z: np.ndarray) -> tuple[float, float]:
    """arXiv:2105.04906, equations 1 to 4, gamma = 1, epsilon = 1e-4."""
    c = covariance(z)
    d = len(c)
    v = sum(max(0.0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d
    return v, sum(c[j, k] ** 2 for j in range(d) for k in range(d) if j != k) / d


def logdet(z: np.ndarray, beta: float) -> float:
    sign, value = np.linalg.slogdet(np.eye(z.shape[1]) + beta * covariance(z))
    assert sign == 1
    return float(value / 2)


def pairwise(z: np.ndarray, variance: float, bound: str) -> float:
    """Kolchinsky & Tracey: Gaussian components of one variance, Kullback-Leibler or Bhattacharyya distances."""
    n, d = z.shape
    total = 0.0
    for i in range(n):
        kernel = 0.0
        for j in range(n):
            squared = sum((z[i, k] - z[j, k]) ** 2 for k in range(d))
            kernel += math.exp(-squared / (2 * variance) if bound == "upper" else -squared / (8 * variance))
        total += math.log(kernel / n)
    return d / 2 * math.log(2 * math.pi * math.e * variance) - total / n


def terms(half: EntropyHalf, zs: list[Tensor]) -> dict[str, float]:
    out = half(*[half.prepare(z) for z in zs])
    assert all(term.dim() == 0 for term in out.values())
    return {name: term.item() for name, term in out.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("convention", ["paper", "code"])
def test_variance_and_covariance(shape: tuple[int, int], convention: Any) -> None:
    zs = views(*shape)
    (v1, c1), (v2, c2) = (v_and_c(z.numpy()) for z in zs)
    assert min(v1, v2) > 0.05, "every dimension is beyond the hinge: the test would show nothing"
    found = terms(VarianceCovariance(variance=7.0, covariance=3.0, convention=convention), zs)
    v = v1 + v2 if convention == "paper" else (v1 + v2) / 2
    expected = {"loss": 7 * v + 3 * (c1 + c2), "variance": (v1 + v2) / 2, "covariance": (c1 + c2) / 2}
    assert found == pytest.approx(expected, rel=1e-10)


def test_weight_50_of_the_code_is_weight_25_of_the_paper() -> None:
    zs = views(12, 5)
    code = VarianceCovariance(variance=50.0, covariance=1.0, convention="code")
    paper = VarianceCovariance(variance=25.0, covariance=1.0, convention="paper")
    assert terms(code, zs) == pytest.approx(terms(paper, zs), rel=1e-14)
    same_weight = VarianceCovariance(variance=25.0, covariance=1.0, convention="code")
    assert terms(same_weight, zs)["loss"] < 0.99 * terms(paper, zs)["loss"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_logdet(shape: tuple[int, int], normalize: bool) -> None:
    zs = views(*shape)
    prepared = [on_sphere(z.numpy()) if normalize else z.numpy() for z in zs]
    entropy = sum(logdet(z, beta=3.0) for z in prepared) / 2
    found = terms(LogDet(weight=5.0, beta=3.0, normalize=normalize), zs)
    assert found == pytest.approx({"loss": -5 * entropy / shape[1], "entropy": entropy}, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_normalised_logdet_stays_below_its_stated_maximum(shape: tuple[int, int]) -> None:
    n, d = shape
    half = LogDet(beta=10.0)
    bound = d / 2 * math.log1p(10 * n / (n - 1))
    scaled = [terms(half, [scale * z for z in views(*shape)])["entropy"] for scale in (0.01, 1.0, 100.0)]
    assert scaled == pytest.approx([scaled[0]] * 3, rel=1e-9)
    assert scaled[0] < bound
    # The maximum itself: an orthogonal frame and its mirror image, mean 0 and S = n / (n - 1) I.
    frame = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    assert terms(half, [frame])["entropy"] == pytest.approx(4 / 2 * math.log1p(10 * 8 / 7), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bound", ["lower", "upper"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pairdist(shape: tuple[int, int], bound: Any, normalize: bool) -> None:
    n, d = shape
    zs = views(*shape)
    prepared = [on_sphere(z.numpy()) if normalize else z.numpy() for z in zs]
    entropy = sum(pairwise(z, 0.3 * d, bound) for z in prepared) / 2
    # Components that do not overlap: the entropy of one and of the choice among them.
    cap = d / 2 * math.log(2 * math.pi * math.e * 0.3 * d) + math.log(n)
    found = terms(PairDist(weight=2.0, variance=0.3, bound=bound, normalize=normalize), zs)
    assert found == pytest.approx({"loss": -2 * entropy, "entropy": entropy, "below_cap": cap - entropy}, rel=1e-9)
    assert found["below_cap"] > 0.1, "saturated: the test would show nothing"


@pytest.mark.parametrize(("bound", "temperature"), [("upper", 0.2), ("lower", 0.8)])
def test_normalised_pairdist_has_simclrs_temperature(bound: Any, temperature: float) -> None:
    """On the sphere the kernel is exp(cos / T) up to a constant, T = variance or four times it, as documented."""
    (z,) = views(6, 5, count=1)
    half = PairDist(variance=0.2, bound=bound)
    unit = torch.nn.functional.normalize(z, dim=1)
    similarity = ((unit @ unit.T - 1) / temperature).exp().mean(1).log().mean().item()
    constant = 5 / 2 * math.log(2 * math.pi * math.e * 0.2 * 5)
    assert terms(half, [z])["entropy"] == pytest.approx(constant - similarity, rel=1e-10)


@pytest.mark.parametrize(
    "half",
    [VarianceCovariance(), LogDet(), PairDist(bound="lower"), VonNeumann(), SIGReg(slices=8).eval()],
    ids=lambda half: type(half).__name__,
)
def test_terms_are_means_over_any_number_of_views(half: EntropyHalf) -> None:
    zs = views(12, 5, count=3)
    single = [terms(half, [z]) for z in zs]
    together = terms(half, zs)
    for name in set(together) - {"loss"}:
        assert together[name] == pytest.approx(sum(each[name] for each in single) / 3, rel=1e-12)


HALVES: list[tuple[str, Callable[[], EntropyHalf]]] = [
    ("paper", lambda: VarianceCovariance()),
    ("code", lambda: VarianceCovariance(convention="code")),
    ("logdet", lambda: LogDet(beta=2.0)),
    ("logdet unnormalised", lambda: LogDet(beta=2.0, normalize=False)),
    ("pairdist upper", lambda: PairDist(variance=0.5, bound="upper")),
    ("pairdist lower", lambda: PairDist(variance=0.2, bound="lower")),
    ("pairdist unnormalised", lambda: PairDist(variance=0.5, normalize=False)),
    ("von neumann", lambda: VonNeumann()),
    ("von neumann unnormalised", lambda: VonNeumann(normalize=False)),
    ("sigreg", lambda: SIGReg(slices=16).eval()),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "build"), HALVES, ids=[name for name, _ in HALVES])
def test_gradients_are_finite_differences(name: str, build: Callable[[], EntropyHalf], shape: tuple[int, int]) -> None:
    half = build()
    zs = [z.requires_grad_() for z in views(*shape)]
    assert torch.autograd.gradcheck(lambda *z: half(*[half.prepare(each) for each in z])["loss"], zs, atol=1e-7)


@pytest.mark.parametrize(("name", "build"), HALVES, ids=[name for name, _ in HALVES])
def test_float32_stays_float32_and_close(name: str, build: Callable[[], EntropyHalf]) -> None:
    half, zs = build(), views(12, 5)
    narrow = half(*[half.prepare(z.float()) for z in zs])
    assert narrow["loss"].dtype == torch.float32
    assert narrow["loss"].item() == pytest.approx(terms(half, zs)["loss"], rel=1e-5)


def test_collapsed_embeddings_have_the_least_entropy() -> None:
    zs = views(12, 5)
    collapsed = [z[:1].expand(12, 5) for z in zs]
    for _, build in HALVES:
        assert terms(build(), collapsed)["loss"] > terms(build(), zs)["loss"]


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="convention='papper' is not known: choose paper or code"):
        VarianceCovariance(convention="papper")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="variance must be in .*, got 0"):
        PairDist(variance=0)
    with pytest.raises(UserError, match="bound='both' is not known: choose lower or upper"):
        PairDist(bound="both")  # type: ignore[arg-type]
    one = torch.zeros(1, 4)
    for half in (VarianceCovariance(), PairDist()):
        with pytest.raises(UserError, match=r"needs at least 2 samples a batch, got 1: raise data.batch_size"):
            half(one, one)
    with pytest.raises(ValueError, match="at least 2 samples"):
        LogDet()(one, one)


def von_neumann(z: np.ndarray) -> float:
    """arXiv:2304.01434, equation 3: -sum lambda log lambda of the autocorrelation, uncentred, with trace 1."""
    n, d = z.shape
    autocorrelation = np.zeros((d, d))
    for j in range(d):
        for k in range(d):
            autocorrelation[j, k] = sum(z[i, j] * z[i, k] for i in range(n))
    values = np.linalg.eigvalsh(autocorrelation / np.trace(autocorrelation))
    return float(-sum(value * math.log(value) for value in values if value > 1e-14))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_von_neumann(shape: tuple[int, int], normalize: bool) -> None:
    zs = views(*shape)
    prepared = [on_sphere(z.numpy()) if normalize else z.numpy() for z in zs]
    entropy = sum(von_neumann(z) for z in prepared) / 2
    found = terms(VonNeumann(weight=5.0, normalize=normalize), zs)
    assert found == pytest.approx({"loss": -5 * entropy, "entropy": entropy}, rel=1e-9)
    assert found["entropy"] < math.log(min(shape))


def test_von_neumann_by_hand() -> None:
    half, bare = VonNeumann(), VonNeumann(normalize=False)
    # An orthogonal frame: four eigenvalues of 1/4, whatever the lengths once these are made equal.
    frame = torch.eye(4, dtype=torch.float64)
    assert terms(half, [frame * torch.tensor([1.0, 5.0, 0.1, 2.0])])["entropy"] == pytest.approx(math.log(4), rel=1e-12)
    # Three rows along one axis and one along another: eigenvalues 3/4 and 1/4.
    axes = frame[[0, 0, 0, 1]]
    expected = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    assert terms(half, [axes])["entropy"] == pytest.approx(expected, rel=1e-12)
    # The sign of a row is nothing to it, its length only without normalisation: squares 9 and 1 of 10.
    assert terms(half, [-axes])["entropy"] == pytest.approx(expected, rel=1e-12)
    lengths = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    expected = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert terms(bare, [frame[:2] * lengths])["entropy"] == pytest.approx(expected, rel=1e-12)
    # Uncentred: one point away from the origin is one direction, and has no entropy.
    assert terms(half, [torch.full((5, 3), 2.0).double()])["entropy"] == pytest.approx(0, abs=1e-12)


def slices_of(d: int, count: int, seed: int) -> np.ndarray:
    """The directions as documented: standard normal columns (d, count) of the seed's generator, made unit vectors."""
    drawn = torch.randn(d, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    return np.stack([column / math.sqrt(sum(x * x for x in column)) for column in drawn.T], axis=1)


def epps_pulley_integrand(sample: np.ndarray, t: float) -> float:
    """N |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) with phi_N the mean of exp(i t x) (arXiv:2511.08544)."""
    characteristic = sum(complex(math.cos(t * x), math.sin(t * x)) for x in sample) / len(sample)
    return len(sample) * abs(characteristic - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)


def epps_pulley_trapezoid(sample: np.ndarray) -> float:
    """The integral over [-3, 3] on 33 equal knots."""
    heights = [epps_pulley_integrand(sample, -3 + 6 * knot / 32) for knot in range(33)]
    return sum((a + b) / 2 * 6 / 32 for a, b in itertools.pairwise(heights))


@pytest.mark.parametrize("shape", SHAPES)
def test_sigreg(shape: tuple[int, int]) -> None:
    zs = views(*shape)
    projected = [z.numpy() @ slices_of(shape[1], 6, seed=0) for z in zs]
    statistic = np.mean([epps_pulley_trapezoid(x) for view in projected for x in view.T])
    found = terms(SIGReg(weight=5.0, slices=6), zs)
    assert found == pytest.approx({"loss": 5 * statistic, "statistic": statistic}, rel=1e-10)
    # The knots stand for the integral itself.
    exact = np.mean([quad(lambda t, x=x: epps_pulley_integrand(x, t), -3, 3)[0] for view in projected for x in view.T])
    assert found["statistic"] == pytest.approx(exact, rel=5e-3)


def test_sigreg_wants_a_standard_normal() -> None:
    """The statistic's mean under N(0, I) is 1.0525; shifted, spread out or drawn together it grows with N."""
    z = torch.randn(512, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = SIGReg(slices=64).eval()
    # Other seeds have a standard deviation of 0.28, and a largest value of 2.03 in 400: false alarms below 1 in 400.
    assert terms(half, [z])["statistic"] < 2.5
    for other in (z + 1, 2 * z, 0.5 * z):
        assert terms(half, [other])["statistic"] > 5


def test_sigreg_draws_new_slices_at_every_training_forward_and_keeps_them_in_evaluation() -> None:
    zs = views(12, 5)
    half = SIGReg(slices=4)
    trained = [terms(half, zs)["statistic"] for _ in range(4)]
    assert len({round(value, 9) for value in trained}) == 4
    half.eval()
    evaluated = {terms(half, zs)["statistic"] for _ in range(3)}
    assert len(evaluated) == 1
    # Evaluation uses none up: the next training forward has the slices it would have had.
    undisturbed = SIGReg(slices=4)
    expected = [terms(undisturbed, zs)["statistic"] for _ in range(5)][4]
    assert terms(half.train(), zs)["statistic"] == expected
    # Both views are seen on the same slices.
    assert terms(SIGReg(slices=4), [zs[0], zs[0]]) == terms(SIGReg(slices=4), [zs[0]])
    # Another seed has others.
    assert terms(SIGReg(slices=4, seed=1), zs)["statistic"] not in trained


def test_sigreg_goes_on_from_a_state_dict() -> None:
    zs = views(12, 5)
    half, again = SIGReg(slices=4), SIGReg(slices=4)
    first = [terms(half, zs)["statistic"] for _ in range(3)]
    again.load_state_dict(half.state_dict())
    following = [terms(half, zs)["statistic"] for _ in range(2)]
    assert [terms(again, zs)["statistic"] for _ in range(2)] == following
    assert not set(first) & set(following)


def test_wrong_arguments_of_von_neumann_and_sigreg() -> None:
    with pytest.raises(UserError, match=r"slices must be a whole number in \[1, 1e6\], got 0"):
        SIGReg(slices=0)
    one = torch.zeros(1, 4)
    for half in (VonNeumann(), SIGReg()):
        with pytest.raises(UserError, match=r"needs at least 2 samples a batch, got 1: raise data.batch_size"):
            half(one, one)
