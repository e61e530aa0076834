"""The generalization bound: each term by numpy, each step of the proof where it is nearly tight, and any sharding."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from information_data import normal, sphere
from scipy import optimize, stats

from sslinfo.information import (
    LeastSquares,
    PairSums,
    best_constant,
    checkpoint_complexity,
    generalization_bound,
    prediction_complexity,
    within_radius,
)
from sslinfo.information.bound import CAVEAT, WITHOUT_LABELS


def integers(n, k, seed=0):
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))


def mixture(means, labels, sigma, seed):
    return means[labels] + sigma * normal(len(labels), means.shape[1], seed)


def problem(n=60, m=80, d=5, k=4, sigma=0.3, seed=0):
    """Labelled features, their labels, two members of each pair, and the pairs' labels."""
    means = 0.8 * sphere(k, d, seed)
    labels, of_pairs = integers(n, k, seed), integers(m, k, seed + 1)
    first, second = mixture(means, of_pairs, sigma, seed + 2), mixture(means, of_pairs, sigma, seed + 3)
    return mixture(means, labels, sigma, seed + 4), labels, (first, second), of_pairs


def by_numpy(z, labels, pairs, of_pairs, *, k, delta, radius, size, treatment, complexity=0.0, predictions=None):
    """All terms and contributions, from the formulas as they are published, with scipy's least squares and SVD."""

    def treat(rows):
        rows = rows.numpy().astype(np.float64)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        if treatment == "simplex":
            return rows
        factor = radius / length
        return rows * (factor if treatment == "normalize" else np.minimum(factor, 1))

    z, first, second = treat(z), treat(pairs[0]), treat(pairs[1])
    y, y2 = np.eye(k)[labels], np.eye(k)[of_pairs]
    n, m = len(z), len(first)
    w, w2 = np.linalg.lstsq(z, y, rcond=None)[0].T, np.linalg.lstsq(first, y2, rcond=None)[0].T
    if predictions is None:
        predictions = math.sqrt(2) * size * radius * math.sqrt(k)
    terms = {
        "invariance": np.linalg.norm(first - second, axis=1).mean(),
        "residual": np.linalg.norm(y - z @ w.T) / math.sqrt(n),
        "pair_residual": np.linalg.norm(y2 - first @ w2.T) / math.sqrt(m),
        "mean_residual": np.linalg.norm(y - z @ w.T, axis=1).mean(),
        "c": np.linalg.svd(w - w2)[1][0],
        "s": np.linalg.svd(w)[1][0],
        "tau": 2 * radius,
        "kappa": 1 + size * radius,
        "kappa_prime": 1 + np.linalg.svd(w2)[1][0] * radius,
        "pair_weight_norm": np.linalg.norm(w2),
        "rank": np.linalg.matrix_rank(z),
        "pair_rank": np.linalg.matrix_rank(first),
        "complexity": complexity,
        "prediction_complexity": predictions,
    }
    terms["B"], terms["B_prime"] = terms["c"] * radius, 1 + terms["s"] * radius
    if (
        treatment == "simplex"
    ):  # differences of shares span the directions of sum zero, and a norm is largest at a corner
        basis = np.linalg.svd(np.ones((1, z.shape[1])))[2][1:].T
        terms["tau"], terms["c"] = math.sqrt(2) * radius, np.linalg.svd((w - w2) @ basis)[1][0]
        terms["s"] = np.linalg.svd(w @ basis)[1][0]
        terms["B"] = max(radius * np.linalg.norm(column) for column in (w - w2).T)
        corners = itertools.product(range(z.shape[1]), range(k))
        pairs_of_corners = [(radius * w[:, j] - np.eye(k)[i], radius * w2[:, j] - np.eye(k)[i]) for j, i in corners]
        terms["B_prime"], terms["kappa_prime"] = np.linalg.norm(pairs_of_corners, axis=2).max(0)
    tau = terms["tau"]
    i, res, res2, c, s = (terms[name] for name in ("invariance", "residual", "pair_residual", "c", "s"))
    five, three, one = math.log(5 / delta), math.log(3 / delta), math.log(1 / delta)
    forms = {
        "paper": {
            "invariance": i,
            "pair_residual": 2 * res2,
            "residual": res,
            "invariance_complexity": 2 * complexity / math.sqrt(m),
            "confidence_pairs": math.sqrt(one / m),
            "confidence_labelled": math.sqrt(one / n),
        },
        "certified": {
            "invariance": c * i,
            "pair_residual": 2 * res2,
            "residual": res,
            "invariance_complexity": c * 2 * complexity / math.sqrt(m),
            "invariance_deviation_pairs": c * tau * math.sqrt(five / 2 / m),
            "invariance_deviation_labelled": c * tau * math.sqrt(five / 2 / n),
            "label_frequency": terms["B"] / 2 * math.sqrt(2 * math.log(5 * (2**k - 2) / delta) / n),
            "prediction_complexity": 4 * predictions / math.sqrt(m),
            "prediction_deviation_pairs": 2 * terms["kappa"] * math.sqrt(five / 2 / m),
            "prediction_deviation_labelled": terms["kappa_prime"] * math.sqrt(five / 2 / n),
        },
        "corollary": {
            "invariance": s * i,
            "residual": res,
            "invariance_complexity": s * 2 * complexity / math.sqrt(m),
            "invariance_deviation_pairs": s * tau * math.sqrt(three / 2 / m),
            "invariance_deviation_labelled": s * tau * math.sqrt(three / 2 / n),
            "label_frequency": terms["B_prime"] / 2 * math.sqrt(2 * math.log(3 * (2**k - 2) / delta) / n),
        },
    }
    forms["sharp"] = forms["corollary"] | {"residual": terms["mean_residual"]}
    margin = math.sqrt(2 * math.log(3 * (2**k - 2) / delta) / n) / math.sqrt(2)
    return {**terms, "best_constant_margin": margin}, forms


# Terms


@pytest.mark.parametrize("treatment", ["clip", "normalize", "simplex"])
@pytest.mark.parametrize(
    ("k", "radius", "delta", "size", "complexity", "predictions"),
    [(4, 1.0, 0.05, 9.0, 0.0, None), (2, 0.5, 0.2, 30.0, 0.0, None), (6, 1.7, 0.01, 12.0, 0.4, 3.0)],
)
def test_every_term_and_form_equals_numpy(treatment, k, radius, delta, size, complexity, predictions):
    z, labels, pairs, of_pairs = problem(k=k, seed=k)
    if treatment == "simplex":
        z, *pairs = (radius * (4 * rows).softmax(1) for rows in (z, *pairs))
    chosen = {"delta": delta, "radius": radius, "treatment": treatment, "complexity": complexity}
    found = generalization_bound(
        z, labels, pairs, pair_targets=of_pairs, weight_norm=size, num_classes=k, predictions=predictions, **chosen
    )
    terms, forms = by_numpy(z, labels, pairs, of_pairs, k=k, size=size, predictions=predictions, **chosen)
    assert found.terms == pytest.approx(terms, rel=1e-8)
    assert set(found.contributions) == set(forms)
    for form, parts in forms.items():
        assert found.contributions[form] == pytest.approx(parts, rel=1e-8), form
        assert getattr(found, form) == math.fsum(found.contributions[form].values())  # exactly
        assert getattr(found, form) == pytest.approx(sum(parts.values()), rel=1e-8)
    assert found.top1_error == pytest.approx(math.sqrt(2) * sum(forms["corollary"].values()), rel=1e-8)
    assert found.reasons == {}
    assert (found.n, found.m, found.d, found.num_classes, found.rank, found.pair_rank) == (60, 80, 5, k, 5, 5)
    assert (found.delta, found.radius, found.weight_norm) == (delta, radius, size)
    assert (found.treatment, found.pairs_of) == (treatment, "class")


def test_many_classes_do_not_overflow():
    k, n = 3000, 50
    z = normal(n, 2)
    found = generalization_bound(z, integers(n, k), (z, z), num_classes=k)
    expected = math.sqrt(2 * (math.log(3 / 0.05) + k * math.log(2)) / n)  # 2^K - 2 is 2^K to the last digit
    assert found.contributions["corollary"]["label_frequency"] == pytest.approx(
        found.terms["B_prime"] / 2 * expected, rel=1e-12
    )


def test_the_default_weight_norm_depends_on_no_data():
    z, labels, pairs, _ = problem(k=4)
    for scale in (0.1, 1.0, 10.0):
        found = generalization_bound(z * scale, labels, (pairs[0] * scale, pairs[1]), radius=0.5)
        assert found.weight_norm == pytest.approx(math.sqrt(4) / 0.5)


def test_labels_in_the_row_space_leave_no_residual():
    labels = integers(300, 4)
    z = F.one_hot(labels, 4).double() @ normal(4, 6, seed=1)
    fit = LeastSquares.of(z, labels, 4).solve()
    assert fit.rank == 4
    assert float(fit.residual) / math.sqrt(300) < 1e-6  # rounding of ||Y||^2, after a square root
    # Of minimum norm among the exact solutions, which differ outside the row space.
    np.testing.assert_allclose(fit.weights, np.linalg.lstsq(z, np.eye(4)[labels], rcond=1e-9)[0].T, atol=1e-9)


def test_features_unrelated_to_labels_take_their_share_of_the_residual():
    """E||P Y||^2 = (1 - d/N) E||Y - mean||^2 + ... for features independent of labels drawn of mean 0 in the mean.

    A Gaussian row space of dimension d is uniform: E||P Y||_F^2 = (1 - d/N) ||Y||_F^2 for any fixed Y. Mean of 200
    draws, within 5 standard errors: false alarm rate below 1e-6.
    """
    n, d, k = 60, 20, 3
    labels = integers(n, k)
    squares = [float(LeastSquares.of(normal(n, d, seed), labels, k).solve().residual) ** 2 for seed in range(200)]
    error = np.std(squares) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - (1 - d / n) * n) < 5 * error
    assert error < 0.01 * n


@pytest.mark.parametrize(("n", "d", "rank"), [(40, 6, 6), (5, 9, 5), (200, 8, 3), (1, 4, 1), (30, 1, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_least_squares_equals_scipy(n, d, rank, scale):
    labels = integers(n, 3)
    z = normal(n, rank) @ normal(rank, d, seed=1) * scale
    state = LeastSquares.of(z, labels, 3)
    fit, y = state.solve(), np.eye(3)[labels.numpy()]
    weights = np.linalg.pinv(z.numpy(), rcond=1e-9) @ y
    assert fit.rank == rank
    np.testing.assert_allclose(fit.weights, weights.T, rtol=1e-6, atol=1e-7 / scale)
    assert float(fit.residual) == pytest.approx(np.linalg.norm(y - z.numpy() @ weights), rel=1e-8, abs=1e-6)
    np.testing.assert_allclose(state.gram, z.T @ z, rtol=1e-12, atol=1e-12 * scale**2 * n)
    np.testing.assert_allclose(state.cross, z.numpy().T @ y, rtol=1e-12, atol=1e-12 * scale * n)
    assert state.class_counts.tolist() == np.bincount(labels, minlength=3).tolist()


def test_rounding_of_float32_features_is_no_rank():
    """A representation of rank 6 in 40 dimensions that float32 stores: no weight on what is only rounding."""
    labels = integers(2000, 3)
    z = (normal(2000, 6) @ normal(6, 40, seed=1) + 3).float()
    fit = LeastSquares.of(z, labels, 3).solve()
    assert fit.rank == 7  # and the mean
    exact = np.linalg.lstsq(z.double().numpy(), np.eye(3)[labels], rcond=1e-5)[0]
    np.testing.assert_allclose(fit.weights, exact.T, rtol=1e-4, atol=1e-7)


def test_a_representation_of_zeros():
    z = torch.zeros(50, 3)
    found = generalization_bound(z, integers(50, 2), (z, z), pair_targets=integers(50, 2))
    assert (found.rank, found.terms["s"], found.terms["invariance"], found.terms["residual"]) == (0, 0, 0, 1)
    assert found.corollary > 1
    assert found.vacuous


def test_within_radius():
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3e200, 4e200], [3e-200, 4e-200]], dtype=torch.float64)
    clipped = torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [1.2, 1.6], [3e-200, 4e-200]], dtype=torch.float64)
    scaled = torch.tensor([[1.2, 1.6], [1.2, 1.6], [0.0, 0.0], [1.2, 1.6], [1.2, 1.6]], dtype=torch.float64)
    torch.testing.assert_close(within_radius(z, 2.0), clipped)
    torch.testing.assert_close(within_radius(z, 2.0, "normalize"), scaled)
    assert within_radius(z.float()[:2].bfloat16()).dtype == torch.float64


# The trivial value


@pytest.mark.parametrize("k", [2, 3, 10])
def test_the_best_constant_of_equal_classes(k):
    assert best_constant(torch.full((k,), 1 / k)) == pytest.approx(math.sqrt(1 - 1 / k), rel=1e-7)


@pytest.mark.parametrize(
    "p", [[0.5, 0.3, 0.2], [0.65, 0.35], [0.4, 0.4, 0.2, 0.0], [0.55, 0.15, 0.15, 0.15], [0.8, 0.1, 0.1], [0.0, 1.0]]
)
def test_the_best_constant_is_the_geometric_median(p):
    p = np.array(p)

    def risk(v):
        return float((p * np.linalg.norm(v - np.eye(len(p)), axis=1)).sum())

    starts = [p, *np.eye(len(p)), np.full(len(p), 1 / len(p))]
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20000, "maxfev": 20000}
    best = min(optimize.minimize(risk, start, method="Nelder-Mead", options=options).fun for start in starts)
    assert best_constant(torch.from_numpy(p)) == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert best_constant(torch.from_numpy(p)) <= math.sqrt(1 - (p**2).sum()) + 1e-12  # below the constant p itself


def test_the_best_constant_moves_no_more_than_the_margin():
    """|g(p) - g(q)| <= ||p - q||_1 / sqrt 2, with equality next to a corner."""
    for seed in range(50):
        p, q = (normal(4, 2, seed).exp() / normal(4, 2, seed).exp().sum(0)).T
        assert abs(best_constant(p) - best_constant(q)) <= float((p - q).abs().sum()) / math.sqrt(2) + 1e-9
    corner, near = torch.tensor([1.0, 0.0]), torch.tensor([0.9, 0.1])
    assert best_constant(near) - best_constant(corner) == pytest.approx(0.2 / math.sqrt(2), rel=1e-6)


def test_features_off_the_simplex_are_refused():
    shares = normal(30, 4).softmax(1)
    labels = integers(30, 3)
    for bad in (shares * 1.1, normal(30, 4), shares - shares.amin()):
        with pytest.raises(ValueError, match="rows that are not >= 0 with sum 1.*softmax"):
            generalization_bound(bad, labels, (shares, shares), treatment="simplex")
    with pytest.raises(ValueError, match="not >= 0 with sum 2"):
        within_radius(shares, 2.0, "simplex")
    rounded = within_radius(shares.float(), treatment="simplex")
    assert rounded.sum(1) == pytest.approx(1, abs=1e-15)


def test_the_simplex_is_tighter_and_its_ranges_are_reached():
    z, labels = normal(400, 5).softmax(1), integers(400, 3)
    pairs = normal(200, 5, 7).softmax(1), normal(200, 5, 8).softmax(1)
    ball, simplex = (
        generalization_bound(z, labels, pairs, treatment=treatment, pair_targets=integers(200, 3, 5), weight_norm=9.0)
        for treatment in ("clip", "simplex")
    )
    for name in ("tau", "s", "c", "B", "B_prime", "kappa_prime"):
        assert simplex.terms[name] < ball.terms[name], name
    weights = LeastSquares.of(z, labels, 3).solve().weights
    # Of a hundred thousand random shares near the corners none goes beyond the ranges, and some come within 3%.
    shares = (12 * normal(100_000, 5, 9)).softmax(1)
    outputs = shares @ weights.T
    reached = torch.cdist(outputs, torch.eye(3, dtype=torch.float64)).max()
    assert 0.97 * simplex.terms["B_prime"] < reached <= simplex.terms["B_prime"] + 1e-6  # cdist's rounding
    apart = torch.linalg.vector_norm(shares - shares.roll(1, 0), dim=1)
    assert 0.97 * math.sqrt(2) < apart.max() <= math.sqrt(2)
    moved = torch.linalg.vector_norm(outputs - outputs.roll(1, 0), dim=1)
    assert bool((moved <= simplex.terms["s"] * apart + 1e-12).all())


def test_the_sharp_form_takes_the_mean_residual_of_sums_from_outside():
    z, labels, pairs, _ = problem(k=4)
    whole = generalization_bound(z, labels, pairs)
    treated = within_radius(z)
    sums = LeastSquares.of(treated, labels, 4)
    of_sums = generalization_bound(sums, None, pairs)
    assert of_sums.sharp is None
    assert "mean_residual" in of_sums.reasons["sharp"]
    assert "sharp" not in of_sums.verdicts
    residual = F.one_hot(labels, 4) - treated @ sums.solve().weights.T
    mean = float(residual.norm(dim=1).mean())
    given = generalization_bound(sums, None, pairs, mean_residual=mean)
    assert given.sharp == pytest.approx(whole.sharp, rel=1e-12)
    # By Jensen it is below the corollary, by the difference of mean and root mean square.
    assert whole.corollary - whole.sharp == pytest.approx(
        float(residual.square().sum(1).mean().sqrt()) - mean, rel=1e-9
    )
    with pytest.raises(ValueError, match="mean_residual"):
        generalization_bound(sums, None, pairs, mean_residual=-1.0)


def test_vacuous_and_below():
    labels = torch.arange(20_000) % 2
    z = 0.9 * torch.eye(2)[labels]
    for n, vacuous, below in [(40, True, False), (120, False, False), (20_000, False, True)]:
        found = generalization_bound(z[:n], labels[:n], (z, z))
        assert (found.vacuous, found.verdicts["corollary"] == "below for sure") == (vacuous, below)
        assert found.verdicts["sharp"] == found.verdicts["corollary"]  # no residual either way
        assert found.best_constant == pytest.approx(math.sqrt(0.5))
        assert found.vacuous == (found.corollary >= math.sqrt(0.5))
        margin = math.sqrt(math.log(2 * 3 / 0.05) / n)
        assert below == (found.corollary < math.sqrt(0.5) - margin)


def test_a_wrong_arg_max_costs_one_over_sqrt2():
    u, y = normal(4000, 3), integers(4000, 3)
    u[0], y[0] = torch.tensor([0.5, 0.5 + 1e-9, 0.0], dtype=torch.float64), 0  # all but a tie
    wrong = u.argmax(1) != y
    cost = (u - F.one_hot(y, 3)).norm(dim=1)[wrong]
    assert float(cost.min()) == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    assert bool((cost >= 1 / math.sqrt(2) - 1e-9).all())


# Each step of the proof where it is nearly tight. "Holds, and half of the term does not" is what fails when a
# coefficient is dropped or halved.


def holds_and_half_does_not(value, bound, slack=1e-9):
    assert value <= bound * (1 + slack)
    assert value > bound / 2


def quantile_between(excess, delta, bound):
    """excess(t) = P(deviation >= t), exact, is at most delta at the bound and more than delta at half of it."""
    assert excess(bound) <= delta
    assert excess(bound / 2) > delta


def every_point(d):
    """d orthogonal points of two classes in turn, and every pair of points of a class."""
    points, labels = torch.eye(d, dtype=torch.float64), torch.arange(d) % 2
    first, second = torch.meshgrid(torch.arange(d), torch.arange(d), indexing="ij")
    same = labels[first] == labels[second]
    return points, labels, (first[same], second[same])


def test_steps_1_and_3_points_not_seen_before():
    """Each class has two orthogonal points, of which S saw one: what is learnt there says nothing of the other.

    W_S' is right at all points (phi = 0); D f is 0 at those seen and of length 1 at the others, at distance sqrt 2:
    the risk of 1/2 is to be found in c I, and for the corollary in s I.
    """
    points, labels, (first, second) = every_point(4)
    pairs = (points[first], points[second])
    found = generalization_bound(points[:2], labels[:2], pairs, pair_targets=labels[first], weight_norm=10.0)
    risk = 1 / 2
    assert found.terms["residual"] + found.terms["pair_residual"] < 1e-6
    for form in ("certified", "corollary"):
        holds_and_half_does_not(risk, found.contributions[form]["invariance"])
        assert found.contributions[form]["invariance"] == pytest.approx(math.sqrt(2) / 2)


def test_steps_1_5_and_6_count_the_residual_of_the_pairs_twice():
    """Points e_j and -e_j of one class, S saw e_j alone: W_S is as wrong as can be at -e_j, W_S' is 0.

    Over the points -e_j the risk is 2, of which ||D f|| is 1 and ||phi|| is 1, and both are the residual of the pairs.
    """
    points, labels, _ = every_point(6)
    both = torch.cat([points, -points])
    pairs = (both, both)  # no distance: the term of the residual stands alone
    found = generalization_bound(points, labels, pairs, pair_targets=labels.repeat(2))
    weights = LeastSquares.of(points, labels, 2).solve().weights
    risk = float((-points @ weights.T - F.one_hot(labels, 2)).norm(dim=1).mean())
    assert risk == pytest.approx(2)
    assert found.terms["pair_weight_norm"] < 1e-12
    parts = found.contributions["certified"]
    assert parts["residual"] + parts["invariance"] < 1e-6
    assert parts["pair_residual"] == pytest.approx(risk)


def test_step_5_the_residual_is_the_error_where_all_errors_are_alike():
    """Features that are one point: every error of the mean of two equal classes has length sqrt(1/2)."""
    z, labels = torch.ones(400, 1), torch.arange(400) % 2
    found = generalization_bound(z, labels, (z, z), pair_targets=labels)
    for form in ("certified", "corollary"):
        assert found.contributions[form]["residual"] == pytest.approx(math.sqrt(0.5))
        assert found.contributions[form]["invariance"] == 0


DELTA = 1e-3


def two_points(n, m, k=2):
    """Features +1 and -1 in equal number whatever the class, after one that sets W_S: slopes s and c not 0."""
    z = torch.cat([0.9 * torch.eye(2)[torch.arange(n) % 2]], dim=1)
    labels = torch.arange(n) % 2
    first = torch.eye(2)[torch.arange(m) % 2] * 0.5
    of_pairs = torch.arange(m) % 2
    found = generalization_bound(
        z, labels, (first, first), pair_targets=of_pairs, num_classes=k, delta=DELTA, weight_norm=4.0
    )
    y, y2 = np.eye(k)[labels], np.eye(k)[of_pairs]
    w, w2 = np.linalg.lstsq(z.numpy(), y, rcond=None)[0].T, np.linalg.lstsq(first.numpy(), y2, rcond=None)[0].T
    return found, np.linalg.norm(w - w2, 2), np.linalg.norm(w, 2), np.linalg.norm(w2, 2)


def test_step_4_the_mean_over_pairs():
    """Pairs at distance 0 or 2R with equal chance: their mean over m pairs is binomial, I(f) = R."""
    m = 1000
    found, c, s, _ = two_points(200, m)
    for form, slope, events in (("certified", c, 5), ("corollary", s, 3)):
        bound = found.contributions[form]["invariance_deviation_pairs"]

        def excess(t, slope=slope):  # P(slope (I - I_S') >= t), I_S' = 2 Bin / m
            return stats.binom(m, 0.5).cdf(m / 2 * (1 - t / slope))

        quantile_between(excess, DELTA / events, bound)


def test_step_3_the_mean_over_labelled_images():
    """h is 0 for a class of one point, and near sqrt(2) R for a class of orthogonal ones: a binomial mean over S.

    No h is above sqrt(2) R this often, so that the bound is not met closer than by 1/sqrt(2).
    """
    n = 1000
    found, c, s, _ = two_points(n, 300)
    for form, slope, events in (("certified", c, 5), ("corollary", s, 3)):
        bound = found.contributions[form]["invariance_deviation_labelled"]

        def excess(t, slope=slope):  # P(slope (mean h - E h) >= t), mean h = sqrt 2 Bin / n
            return stats.binom(n, 0.5).sf(n * (0.5 + t / slope / math.sqrt(2)) - 1)

        quantile_between(excess, DELTA / events, bound)


def test_step_2_the_label_frequencies_of_two_classes():
    """a = (B, 0): sum (p - p^) a is B (p_1 - p^_1), binomial; and (1 + s R) for the corollary."""
    n = 1000
    found, c, s, _ = two_points(n, 300)
    for form, top, events in (("certified", c, 5), ("corollary", 1 + s, 3)):
        bound = found.contributions[form]["label_frequency"]

        def excess(t, top=top):
            return stats.binom(n, 0.5).cdf(n * (0.5 - t / top))

        quantile_between(excess, DELTA / events, bound)


def test_step_2_the_label_frequencies_of_ten_classes():
    """B/2 ||p - p^||_1 for a = B where p > p^: 4000 draws of S, the quantile at delta/events = 1/60 and 1/100."""
    n, k = 1000, 10
    z = torch.ones(n, 1)
    found = generalization_bound(z, integers(n, k), (z, z), num_classes=k)
    rng = np.random.default_rng(0)
    distance = np.abs(rng.multinomial(n, np.full(k, 1 / k), size=4000) / n - 1 / k).sum(1)
    half = found.terms["B_prime"] / 2
    bound = found.contributions["corollary"]["label_frequency"]
    holds_and_half_does_not(half * np.quantile(distance, 1 - 0.05 / 3), bound)
    # The 2^K - 2 subsets are needed: one event at this level would be exceeded more often.
    assert np.mean(distance > math.sqrt(2 * math.log(3 / 0.05) / n)) > 0.05 / 3


def test_steps_5_and_6_the_means_of_the_errors_of_the_pairs_map():
    """||phi|| is 0 or its largest with equal chance: kappa over the pairs, kappa' over S, binomial both."""
    n, m = 900, 1100
    found, _, _, pair_norm = two_points(n, m)
    for name, count, times, largest in (
        ("prediction_deviation_pairs", m, 2, 1 + 4.0),
        ("prediction_deviation_labelled", n, 1, 1 + pair_norm),
    ):

        def excess(t, count=count, top=times * largest):
            return stats.binom(count, 0.5).cdf(count * (0.5 - t / top))

        quantile_between(excess, DELTA / 5, found.contributions["certified"][name])


def test_the_largest_errors_exist():
    """max ||y - W f|| = 1 + L R, and ||D f|| = c R: at a feature of length R along the top singular vector."""
    y, w = np.array([1.0, 0.0]), np.array([[-4.0, 0.0], [0.0, 0.0]])
    assert np.linalg.norm(y - w @ np.array([0.5, 0.0])) == pytest.approx(1 + 4 * 0.5)
    z, labels, pairs, of_pairs = problem(k=3)
    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, weight_norm=4.0, radius=0.5)
    assert found.terms["kappa"] == pytest.approx(1 + 4 * 0.5)


def test_complexity_of_linear_maps_by_monte_carlo():
    """sqrt2 L/sqrt m E||Xi^T Z^T||_F reaches the closed form for long features in many dimensions."""
    m, d, k, size, radius = 200, 400, 3, 1.3, 0.7
    z = radius * sphere(m, d)
    signs = torch.randint(2, (40, k, m), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    mean = math.sqrt(2) * size / math.sqrt(m) * float((signs @ z).flatten(1).norm(dim=1).mean())
    closed = prediction_complexity(size, radius, k)
    assert mean <= closed
    assert mean > 0.97 * closed


def test_contraction_by_monte_carlo():
    """The supremum itself, in closed form for orthogonal features: every ||y_i - W f_i|| moves by L R/sqrt m."""
    m, k, size, radius = 64, 2, 2.0, 0.5
    best = []
    for seed in range(20):
        sign = torch.randint(2, (m,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        y = F.one_hot(integers(m, k, seed), k).double()
        prediction = -sign[:, None] * y * size / math.sqrt(m) * radius  # W f_i, with ||W||_F = L
        best.append(float((sign * (y - prediction).norm(dim=1)).sum()) / math.sqrt(m))
    # Two standard errors below: a maximum over W is larger than this W's value.
    reached = np.mean(best) - 2 * np.std(best) / math.sqrt(len(best))
    closed = prediction_complexity(size, radius, k)
    assert 0.3 * closed < reached <= closed
    holds = 1 / math.sqrt(2 * k) * closed  # L R
    assert np.mean(np.array(best)) == pytest.approx(holds, rel=0.3)


def test_complexity_of_checkpoints_by_monte_carlo():
    """E max over N checkpoints of a Rademacher sum of distances in [0, 2R]: below, and a fair part of it."""
    m, checkpoints, radius = 300, 50, 0.8
    generator = torch.Generator().manual_seed(0)
    distance = 2 * radius * torch.randint(2, (m, checkpoints), generator=generator).double()
    signs = torch.randint(2, (4000, m), generator=generator).double() * 2 - 1
    mean = float((signs @ distance / math.sqrt(m)).amax(1).mean())
    assert mean <= checkpoint_complexity(checkpoints, radius)
    assert mean > 0.35 * checkpoint_complexity(checkpoints, radius)
    assert checkpoint_complexity(checkpoints, radius) == pytest.approx(2 * radius * math.sqrt(2 * math.log(50)))
    # 2 R_m(F)/sqrt m, times the slope: what choosing the checkpoint of the smallest mean over the pairs gains by luck.
    # Symmetrization and Massart's lemma are a factor of four from it, which no data can show.
    chance = torch.randint(2, (200, m, checkpoints), generator=generator).double() * 2 * radius
    luck = float((radius - chance.mean(1).amin(1)).mean())
    z, labels, pairs, of_pairs = problem(m=m)
    found = generalization_bound(
        z,
        labels,
        pairs,
        pair_targets=of_pairs,
        radius=radius,
        weight_norm=9.0,
        complexity=checkpoint_complexity(checkpoints, radius),
        predictions=1.0,
    )
    for form, slope in (("paper", 1.0), ("certified", found.terms["c"]), ("corollary", found.terms["s"])):
        term = found.contributions[form]["invariance_complexity"]
        assert 0.15 * term < slope * luck <= term


def test_step_6_a_map_that_fits_the_pairs_by_heart():
    """100 pairs among 10 000 orthogonal points: W_S' is right there, ||phi|| = 0, and 0 elsewhere, ||phi|| = 1.

    It counts twice. Symmetrization and contraction are a factor of four from it, which no data can show.
    """
    points, labels, _ = every_point(100)
    found = generalization_bound(points, labels, (points, points), pair_targets=labels, weight_norm=10.0 * (1 + 1e-9))
    assert found.terms["pair_residual"] < 1e-6
    term = found.contributions["certified"]["prediction_complexity"]
    assert 0.2 * term < 2 * (1 - 100 / 10_000) <= term


def test_predictions_of_many_checkpoints():
    frozen = prediction_complexity(2.0, 0.5, 3)
    assert frozen == pytest.approx(math.sqrt(2) * 2.0 * 0.5 * math.sqrt(3))
    assert prediction_complexity(2.0, 0.5, 3, checkpoints=7) == pytest.approx(frozen * (1 + math.sqrt(2 * math.log(7))))
    # E max over N of ||Xi^T Z_j^T||_F on features of N checkpoints.
    m, k, checkpoints = 100, 2, 30
    z = torch.stack([0.5 * sphere(m, 2, seed) for seed in range(checkpoints)])
    signs = torch.randint(2, (500, 1, k, m), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    norms = (signs @ z).flatten(2).norm(dim=2).amax(1)
    mean = math.sqrt(2) * 2.0 / math.sqrt(m) * float(norms.mean())
    assert prediction_complexity(2.0, 0.5, k) < mean <= prediction_complexity(2.0, 0.5, k, checkpoints)


# Whole


def gaussians(n, m, sigma, seed):
    """The published simulation: five classes of means of length .8 in random directions, 16 dimensions."""
    means = 0.8 * sphere(5, 16, seed)
    labels, of_pairs, new = integers(n, 5, 10 * seed), integers(m, 5, 10 * seed + 1), integers(10_000, 5, 10 * seed + 2)
    pairs = tuple(mixture(means, of_pairs, sigma, 10 * seed + i) for i in (3, 4))
    z, other = mixture(means, labels, sigma, 10 * seed + 5), mixture(means, new, sigma, 10 * seed + 6)
    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, weight_norm=4.0, num_classes=5)
    weights = LeastSquares.of(within_radius(z), labels, 5).solve().weights
    output = within_radius(other) @ weights.T
    risk = float((output - F.one_hot(new, 5)).norm(dim=1).mean())
    return found, risk, float((output.argmax(1) != new).double().mean())


@pytest.mark.parametrize(
    ("n", "m", "sigma", "expected"),
    [
        (200, 2_000, 0.12, (0.345, 1.381, 1.978, 3.360, 2.254)),
        (1_000, 10_000, 0.12, (0.334, 1.203, 0.827, 2.030, 1.757)),
        (3_000, 20_000, 0.12, (0.332, 1.144, 0.553, 1.697, 1.609)),
        (3_000, 40_000, 0.02, (0.062, 0.213, 0.430, 0.643, 0.546)),
    ],
)
def test_the_simulation_of_the_specification(n, m, sigma, expected):
    """Means over 20 seeds, independent of those of the table: within 4 standard errors of the difference, or 5%.

    Five comparisons in four rows at 4 sigma: a false alarm in a thousand, were there no allowance of 5%.
    """
    rows = []
    for seed in range(20):
        found, risk, _ = gaussians(n, m, sigma, seed)
        parts = found.contributions["certified"]
        main = parts["invariance"] + parts["pair_residual"] + parts["residual"]
        rows.append((risk, main, found.certified - main, found.certified, found.corollary))
        assert risk <= found.corollary
    means, errors = np.mean(rows, 0), np.std(rows, 0, ddof=1) * math.sqrt(2 / 20)
    for value, error, published in zip(means, errors, expected, strict=True):
        assert abs(value - published) <= max(4 * error, 0.05 * published)


def test_coverage():
    """At delta = .2 the bound fails in at most a fifth of 100 draws of S and S'; that of top-1 with it.

    More than 32 failures were the rate .2: probability below 0.002. Among the draws are those of d > n, in which the
    risk is largest against the residual.
    """
    failures = np.zeros(3)
    for seed in range(100):
        k, d, n = 2 + seed % 3, (3, 60)[seed % 2], 30
        means = 0.7 * sphere(k, d, seed)
        labels, of_pairs, new = integers(n, k, seed), integers(200, k, seed + 1000), integers(400, k, seed + 2000)
        z, first, second, other = (
            mixture(means, y, 0.15, 10_000 + 10 * seed + i) for i, y in enumerate((labels, of_pairs, of_pairs, new))
        )
        found = generalization_bound(
            z, labels, (first, second), pair_targets=of_pairs, num_classes=k, delta=0.2, weight_norm=1000.0
        )
        output = within_radius(other) @ LeastSquares.of(within_radius(z), labels, k).solve().weights.T
        risk = float((output - F.one_hot(new, k)).norm(dim=1).mean())
        wrong = float((output.argmax(1) != new).double().mean())
        failures += [risk > found.certified, risk > found.corollary, wrong > found.top1_error]
    assert (failures <= 32).all()


# What does not apply, and what is refused


def test_what_does_not_apply_is_none_with_its_reason():
    z, labels, pairs, of_pairs = problem()
    whole = generalization_bound(z, labels, pairs, pair_targets=of_pairs, weight_norm=9.0)

    found = generalization_bound(z, labels, pairs, weight_norm=9.0)
    assert found.certified is None
    assert "pair_targets" in found.reasons["certified"]
    assert found.corollary == whole.corollary
    stand_in = math.sqrt(1 - 5 / 80)
    assert found.contributions["paper"]["pair_residual_stand_in"] == pytest.approx(2 * stand_in)
    assert found.paper == pytest.approx(whole.paper - 2 * whole.terms["pair_residual"] + 2 * stand_in)

    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, pairs_of="image", weight_norm=9.0)
    assert (found.certified, found.corollary, found.top1_error, found.vacuous, found.sharp) == (None,) * 5
    assert found.verdicts == {}
    assert "step 3" in found.reasons["certified"]
    assert "step 3" in found.reasons["corollary"]
    assert found.paper == whole.paper
    assert found.best_constant == whole.best_constant

    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, complexity=None)
    assert (found.paper, found.certified, found.corollary) == (None,) * 3
    assert all("R_m(F) is unknown" in found.reasons[form] for form in ("paper", "certified", "corollary"))
    assert "complexity" not in found.terms

    small = whole.terms["pair_weight_norm"] * 0.999
    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, weight_norm=small)
    assert found.certified is None
    assert "exceeds weight_norm" in found.reasons["certified"]
    assert found.corollary == whole.corollary
    assert generalization_bound(z, labels, pairs, pair_targets=of_pairs, weight_norm=small * 1.002).certified

    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, weight_norm=9.0, complexity=0.3)
    assert found.certified is None
    assert "not frozen" in found.reasons["certified"]
    assert found.corollary == pytest.approx(whole.corollary + whole.terms["s"] * 2 * 0.3 / math.sqrt(80))


def test_without_labels():
    z, labels, pairs, _ = problem(n=50, m=70, d=5)
    found = generalization_bound(z, None, pairs)
    assert (found.certified, found.corollary, found.top1_error, found.best_constant, found.vacuous) == (None,) * 5
    assert (found.num_classes, found.weight_norm) == (None, None)
    log = math.log(1 / 0.05)
    invariance = float((within_radius(pairs[0]) - within_radius(pairs[1])).norm(dim=1).mean())
    expected = invariance + 2 * math.sqrt(65 / 70) + math.sqrt(45 / 50) + math.sqrt(log / 70) + math.sqrt(log / 50)
    assert found.paper == pytest.approx(expected)
    assert not {"c", "s", "residual", "pair_residual"} & set(found.terms)
    assert WITHOUT_LABELS in str(found)
    assert CAVEAT in str(found)
    assert WITHOUT_LABELS not in str(generalization_bound(z, labels, pairs))
    # The stand-in is what labels of random direction leave, and is passed by labels that are one constant.
    first = within_radius(pairs[0]) - within_radius(pairs[0]).mean(0)
    fit = LeastSquares.of(first, torch.zeros(70, dtype=torch.long), 2).solve()
    assert float(fit.residual) == pytest.approx(math.sqrt(70))
    assert fit.rank == 5


def test_the_table_names_every_contribution_and_repeats_the_caveat():
    z, labels, pairs, of_pairs = problem()
    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, weight_norm=9.0)
    lines = str(found).splitlines()
    for form, parts in found.contributions.items():
        column = lines[2].split().index(form)
        for name, value in {**parts, "sum": getattr(found, form)}.items():
            (row,) = (line.split() for line in lines if line.split()[0] == name)
            assert row[column] == f"{value:.4f}"
    assert CAVEAT in lines
    assert "n=60" in lines[0]
    assert "informal" in str(found)
    without = str(generalization_bound(z, labels, pairs, pairs_of="image"))
    assert "no certified: the pairs are augmentations" in without


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0}, "delta must be a finite number above 0"),
        ({"delta": 1.0}, "delta must lie between 0 and 1, got 1.0"),
        ({"delta": math.nan}, "delta must be a finite number"),
        ({"radius": -1}, "radius must be a finite number above 0, got -1"),
        ({"weight_norm": 0}, "weight_norm must be a finite number above 0"),
        ({"complexity": -0.1}, "complexity must be a finite number >= 0"),
        ({"predictions": -1.0}, "predictions must be a finite number above 0"),
        ({"treatment": "whiten"}, "treatment must be one of clip, normalize, simplex, got 'whiten'"),
        ({"pairs_of": "views"}, "pairs_of must be one of class, image"),
        ({"targets": torch.zeros(60, dtype=torch.long), "pair_targets": None}, "num_classes must be at least 2, got 1"),
        ({"num_classes": 3}, r"targets must lie in 0\.\.2, got 0\.\.3"),
        ({"targets": -torch.ones(60, dtype=torch.long)}, r"targets must lie in .*leave out what has no label"),
        ({"targets": torch.zeros(59, dtype=torch.long)}, r"targets must be integer labels \(60,\) or one-hot"),
        ({"targets": torch.full((60, 4), 0.25)}, "targets has rows that are not one-hot"),
        ({"targets": torch.rand(60)}, "targets must be integer labels"),
        ({"features": torch.zeros(0, 5), "targets": torch.zeros(0, dtype=torch.long)}, "features holds no samples"),
        ({"features": torch.full((60, 5), math.nan)}, "features holds 300 NaN"),
        ({"features": torch.zeros(60, 4)}, "features have d=4 and pairs d=5"),
        ({"features": torch.zeros(60)}, r"features must have shape \(N, d\)"),
        ({"features": torch.zeros(60, 5, dtype=torch.long)}, "features must be floating point"),
        ({"pairs": (torch.zeros(0, 5), torch.zeros(0, 5)), "pair_targets": None}, "pairs holds no samples"),
        ({"pairs": (torch.zeros(80, 5), torch.zeros(79, 5))}, "row i of both is a pair"),
        ({"pairs": torch.zeros(80, 5)}, "pairs must be two tensors"),
        ({"pairs": (torch.zeros(80, 5), torch.full((80, 5), math.inf))}, r"pairs\[1\] holds 400 NaN or infinite"),
    ],
)
def test_bad_input_is_named(change, message):
    z, labels, pairs, of_pairs = problem()
    given = {"features": z, "targets": labels, "pairs": pairs, "pair_targets": of_pairs, **change}
    with pytest.raises(ValueError, match=message):
        generalization_bound(given.pop("features"), given.pop("targets"), given.pop("pairs"), **given)


def test_bad_sums_are_named():
    z, labels, pairs, of_pairs = problem()
    whole = LeastSquares.of(within_radius(z), labels, 4)
    paired = PairSums.of(within_radius(pairs[0]), within_radius(pairs[1]), of_pairs, 4)
    with pytest.raises(ValueError, match="targets must be None where the sums are passed"):
        generalization_bound(whole, labels, paired)
    with pytest.raises(ValueError, match="pair_targets must be None"):
        generalization_bound(whole, None, paired, pair_targets=of_pairs)
    with pytest.raises(ValueError, match="features longer than radius 0.1"):
        generalization_bound(whole, None, paired, radius=0.1)
    with pytest.raises(ValueError, match="pairs are farther apart"):
        generalization_bound(LeastSquares.of(z * 0, labels, 4), None, PairSums.of(z * 0, z + 5))
    with pytest.raises(ValueError, match="pairs holds sums of 4 classes, expected 7"):
        generalization_bound(LeastSquares.of(within_radius(z), labels, 7), None, paired)
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(5, 3\) do not merge"):
        whole + LeastSquares.empty(5, 3)
    with pytest.raises(ValueError, match="overflow float64 when squared.*within_radius"):
        LeastSquares.of(z * 1e200, labels, 4)
    with pytest.raises(ValueError, match="add up to 1, they add up to 0.5"):
        best_constant(torch.tensor([0.25, 0.25]))
    with pytest.raises(TypeError, match=r"targets must be a torch\.Tensor, got list"):
        LeastSquares.of(z, [0, 1])
    # Features too long to square are fine once they are brought within the radius.
    assert generalization_bound(z * 1e200, labels, (z * 1e200, z)).rank == 5


def test_one_hot_rows_equal_labels():
    z, labels, pairs, of_pairs = problem()
    expected = generalization_bound(z, labels, pairs, pair_targets=of_pairs, num_classes=4)
    for dtype in (torch.float32, torch.bool, torch.int64):
        rows, of_pairs_rows = (F.one_hot(y, 4).to(dtype) for y in (labels, of_pairs))
        assert generalization_bound(z, rows, pairs, pair_targets=of_pairs_rows) == expected


# Merging, ranks, memory


def sums(rows, pair_rows):
    z, labels, (first, second), of_pairs = problem(n=120, m=90, d=6, k=3, seed=7)
    drift = torch.linspace(0.2, 3, 120, dtype=torch.float64)[:, None]  # unequal shards
    z, first, second = within_radius(z * drift), within_radius(first * drift[:90]), within_radius(second)
    labels = labels.sort().values
    paired = PairSums.of(first[pair_rows], second[pair_rows], of_pairs[pair_rows], 3)
    return LeastSquares.of(z[rows], labels[rows], 3), paired


def numbers(found):
    forms = {form: getattr(found, form) for form in ("paper", "certified", "corollary", "best_constant")}
    return {**forms, **found.terms}


def whole_bound(merged):
    return numbers(generalization_bound(merged[0], None, merged[1], weight_norm=20.0))


@pytest.mark.parametrize("edges", [[0, 0.5, 1], [0, 0, 0.01, 1], [0, 1 / 3, 0.9, 0.9, 1]])
def test_shards_merge(edges):
    parts = []
    for start, stop in itertools.pairwise(edges):
        parts.append(sums(slice(int(120 * start), int(120 * stop)), slice(int(90 * start), int(90 * stop))))
    labelled, paired = LeastSquares.empty(6, 3), PairSums.empty(6, 3)
    for one, other in parts:
        labelled, paired = one + labelled, paired + other
    assert whole_bound((labelled, paired)) == pytest.approx(whole_bound(sums(slice(None), slice(None))), rel=1e-10)


def on_rank(rank, world_size, edges, pair_edges):
    labelled, paired = sums(slice(*edges[rank : rank + 2]), slice(*pair_edges[rank : rank + 2]))
    return whole_bound((labelled.reduce(), paired.reduce()))


@pytest.mark.parametrize(
    ("edges", "pair_edges"),
    [
        ([0, 120], [0, 90]),
        ([0, 60, 120], [0, 45, 90]),
        ([0, 1, 120], [0, 90, 90]),
        ([0, 7, 100, 120], [0, 0, 30, 90]),
        ([0, 50, 50, 120], [0, 89, 90, 90]),
    ],
)
def test_any_ranks_equal_one_process(ranks, edges, pair_edges):
    """Even, uneven, single-row and empty shards: every number to 1e-8, on every rank the same."""
    expected = whole_bound(sums(slice(None), slice(None)))
    answers = ranks(len(edges) - 1, on_rank, edges, pair_edges)
    assert all(answer == answers[0] for answer in answers)
    assert answers[0] == pytest.approx(expected, rel=1e-8)


def test_fewer_samples_than_features():
    z, labels, pairs, of_pairs = problem(n=6, m=9, d=20, k=3)
    found = generalization_bound(z, labels, pairs, pair_targets=of_pairs, num_classes=3, weight_norm=100.0)
    terms, _ = by_numpy(z, labels, pairs, of_pairs, k=3, delta=0.05, radius=1.0, size=100.0, treatment="clip")
    assert (found.rank, found.pair_rank) == (6, 9)
    # Zero comes out as the root of the rounding of ||Y||^2.
    assert found.terms == pytest.approx(terms, rel=1e-7, abs=1e-6)


def test_many_samples_in_bounded_memory():
    """200 000 samples of 64 features in float32: sums as of chunks, and no float64 copy (100 MB) of the whole."""
    n, d = 200_000, 64
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(n, d, generator=generator), torch.arange(n) % 3
    other = z.flip(0)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = generalization_bound(z, labels, (z, other), pair_targets=labels)
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 1e6 < peak < 30e6
    np.testing.assert_allclose(
        found.terms["residual"] ** 2 * n,
        n - np.linalg.norm(np.linalg.qr(within_radius(z).numpy())[0].T @ np.eye(3)[labels]) ** 2,
        rtol=1e-6,
    )


def test_nothing_is_kept_by_a_running_sum():
    labels = integers(50, 3)
    z = within_radius(normal(50, 8))
    tracemalloc.start()
    try:
        running = LeastSquares.empty(8, 3)
        for _ in range(20):
            running = running + LeastSquares.of(z, labels, 3)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            running = running + LeastSquares.of(z, labels, 3)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()
    assert running.n == 220 * 50


def test_no_gradient_is_asked_for():
    z, labels, pairs, of_pairs = problem()
    found = generalization_bound(z.requires_grad_(), labels, pairs, pair_targets=of_pairs, weight_norm=9.0)
    assert found == generalization_bound(z.detach(), labels, pairs, pair_targets=of_pairs, weight_norm=9.0)
