"""Moments against numpy and scipy, in every order of merging, and on several ranks against one process."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_data import normal
from scipy import stats

from sslinfo.information import (
    CharacteristicSums,
    FourthMoments,
    GroupedMoments,
    Moments,
    UndefinedEstimate,
    alignment,
    covariance_spectrum,
    effective_rank,
    epps_pulley,
    feature_std,
    gaussian_entropy,
    gaussian_mutual_information,
    hadamard_gap,
    lidar,
    logdet_entropy,
    normality,
    participation_ratio,
    rankme,
    spectral_decay,
    stable_rank,
    view_information,
)


def assert_moments_equal_numpy(moments, z, rtol=1e-10):
    z = z.double().numpy()
    assert moments.n == len(z)
    np.testing.assert_allclose(moments.mean, z.mean(0), rtol=rtol)
    scale = np.abs(np.cov(z.T)).max()
    np.testing.assert_allclose(moments.covariance(), np.cov(z.T), rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(moments.covariance(ddof=0), np.cov(z.T, ddof=0), rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(moments.second_moment(), z.T @ z / len(z), rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (50, 7), (9000, 4)])  # 9000: more than one chunk of rows
def test_moments_equal_numpy(n, d):
    z = normal(n, d) * torch.arange(1, d + 1) + 5
    assert_moments_equal_numpy(Moments.of(z), z)


@given(
    cuts=st.lists(st.integers(0, 60), max_size=6), order=st.randoms(use_true_random=False), mean=st.floats(-1e3, 1e3)
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_merge_in_any_order_and_any_shards(cuts, order, mean):
    """Shards of any size, 0 and 1 included, merged in any order and association."""
    z = normal(60, 5, seed=1) * torch.tensor([1, 2, 3, 4, 50.0]) + mean
    edges = [0, *sorted(cuts), 60]
    shards = [Moments.of(z[a:b]) for a, b in itertools.pairwise(edges)]
    while len(shards) > 1:
        a = shards.pop(order.randrange(len(shards)))
        b = shards.pop(order.randrange(len(shards)))
        shards.append(a + b)
    assert_moments_equal_numpy(shards[0], z)


def test_float32_far_from_the_origin():
    """Mean 1e3, standard deviation 1, streamed in float32: the covariance of those very numbers to 1e-10."""
    z = (normal(4000, 3) + 1e3).float()
    merged = sum((Moments.of(part) for part in z.split(321)), start=Moments.empty(3))
    assert_moments_equal_numpy(merged, z)


def test_joint_moments_split_into_views():
    z1, z2 = normal(40, 3), normal(40, 2, seed=1) * 3 + 1
    joint = Moments.of(z1[:15], z2[:15]) + Moments.of(z1[15:], z2[15:])
    assert_moments_equal_numpy(joint, torch.cat([z1, z2], dim=1))
    assert_moments_equal_numpy(joint.view(0), z1)
    assert_moments_equal_numpy(joint.view(1), z2)
    assert joint.sizes == (3, 2)


def test_grouped_moments_equal_a_loop_over_groups():
    z, groups = normal(90, 4) + 10, torch.arange(90) % 7
    groups[groups == 5] = 6  # group 5 stays empty
    z = z * (1 + groups[:, None])
    merged = sum(
        (GroupedMoments.of(z[a:b], groups[a:b], 7) for a, b in [(10, 40), (40, 90), (0, 10)]),
        start=GroupedMoments.of(z[:0], groups[:0], 7),
    )
    parts = [z[groups == g].numpy() for g in range(7) if g != 5]
    scatter = sum(np.cov(part.T, ddof=0) * len(part) for part in parts)
    assert merged.count.tolist() == [13, 13, 13, 13, 13, 0, 25]
    np.testing.assert_allclose(merged.mean[merged.count > 0], [part.mean(0) for part in parts], rtol=1e-10)
    np.testing.assert_allclose(merged.within_covariance(), scatter / (90 - 6), rtol=1e-10)
    np.testing.assert_allclose(
        merged.between().covariance(), np.cov(np.stack([p.mean(0) for p in parts]).T), rtol=1e-10
    )


@given(cuts=st.lists(st.integers(0, 60), max_size=4), mean=st.floats(-100, 100))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_fourth_moments_equal_scipy(cuts, mean):
    z = normal(60, 3, seed=2).exp() + mean
    edges = [0, *sorted(cuts), 60]
    merged = FourthMoments.of(z[:0])
    for a, b in itertools.pairwise(edges):
        merged = FourthMoments.of(z[a:b]) + merged
    for power, value in ((2, merged.second), (3, merged.third), (4, merged.fourth)):
        np.testing.assert_allclose(value / 60, stats.moment(z.numpy(), power), rtol=1e-9)


def test_gradient_flows_through_merging():
    z = normal(8, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: (Moments.of(z[:3]) + Moments.of(z[3:])).covariance(), z)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"z2 must be floating point.*int64"):
        Moments.of(normal(3, 2), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"z holds 1 NaN"):
        Moments.of(torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match=r"\(3, 2\), \(4, 2\)"):
        Moments.of(normal(3, 2), normal(4, 2))
    with pytest.raises(ValueError, match="do not merge"):
        Moments.of(normal(3, 2)) + Moments.of(normal(3, 4))
    with pytest.raises(ValueError, match="do not merge"):
        CharacteristicSums.of(normal(3, 2)) + CharacteristicSums.of(normal(3, 2), seed=1)
    with pytest.raises(ValueError, match=r"groups must lie in 0\.\.1, got 0\.\.2"):
        GroupedMoments.of(normal(3, 2), torch.tensor([0, 1, 2]), 2)
    with pytest.raises(ValueError, match=r"views of widths \(3, 5\) and \(4, 4\) do not merge"):
        Moments.of(normal(9, 3), normal(9, 5)) + Moments.of(normal(9, 4), normal(9, 4))
    with pytest.raises(TypeError, match=r"groups must be a torch\.Tensor, got list: .*torch\.as_tensor"):
        GroupedMoments.of(normal(3, 2), [0, 1, 1], 2)
    with pytest.raises(UndefinedEstimate, match="n=1"):
        Moments.of(normal(1, 2)).covariance()
    with pytest.raises(UndefinedEstimate):
        GroupedMoments.of(normal(3, 2), torch.tensor([0, 1, 2]), 3).within_covariance()


@pytest.mark.parametrize(
    "state", [Moments.of, FourthMoments.of, CharacteristicSums.of, lambda z: GroupedMoments.of(z, torch.arange(3), 3)]
)
def test_every_state_refuses_bad_samples(state):
    z = normal(3, 2)
    with pytest.raises(ValueError, match="z holds 1 NaN or infinite"):
        state(z.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(torch.inf).double()))
    with pytest.raises(ValueError, match=r"z must be floating point, got torch\.int64"):
        state(z.long())
    with pytest.raises(ValueError, match=r"z must have shape \(N, d\), got \(3,\)"):
        state(z[:, 0])
    with pytest.raises(TypeError, match=r"z must be a torch\.Tensor, got ndarray: convert it with torch\.as_tensor"):
        state(z.numpy())


def mergeable_quantities(z1, z2, groups, images):
    """Every quantity computed from state that merges."""
    joint, first, fourth = Moments.of(z1, z2), Moments.of(z1), FourthMoments.of(z1)
    grouped, slices = GroupedMoments.of(z1, groups, images), CharacteristicSums.of(z1, slices=8)
    before = torch.distributed.all_reduce
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return before(*args, **kwargs)

    torch.distributed.all_reduce = counted
    try:
        joint = joint.reduce()
        collectives = len(calls)
    finally:
        torch.distributed.all_reduce = before
    first, fourth, grouped, slices = first.reduce(), fourth.reduce(), grouped.reduce(), slices.reduce()
    decay, test = spectral_decay(first, start=1), normality(fourth)
    values = {
        "mean": first.mean,
        "covariance": first.covariance(),
        "gaussian": gaussian_entropy(first, debias=True),
        "logdet": logdet_entropy(first, beta=3.0),
        "logdet_uncentred": logdet_entropy(first, beta=3.0, centered=False),
        "mutual_information": gaussian_mutual_information(joint),
        "alignment": alignment(joint),
        "split": view_information(joint, beta=2.0).total,
        "spectrum": covariance_spectrum(first),
        "effective_rank": effective_rank(first),
        "rankme": rankme(first),
        "participation": participation_ratio(first, debias=True),
        "stable_rank": stable_rank(first),
        "decay": decay.exponent,
        "r2": decay.r2,
        "hadamard": hadamard_gap(first),
        "std": feature_std(first, normalize=False),
        "lidar": lidar(grouped),
        "lidar_debiased": lidar(grouped, debias=True),
        "statistic": test.statistic,
        "pvalue": test.pvalue,
        "skewness": test.skewness,
        "kurtosis": test.excess_kurtosis,
        "epps_pulley": epps_pulley(slices),
    }
    return {name: value.numpy() for name, value in values.items()}, collectives


def views_of_unequal_shards():
    """Rows whose mean and variance drift, so that contiguous shards differ in both; 12 rows an image, interleaved."""
    drift = torch.linspace(0, 3, 120, dtype=torch.float64)[:, None]
    image = normal(10, 4, seed=3).repeat(12, 1)
    z1 = image * 2 + normal(120, 4) * (0.5 + drift) + 10 * drift
    return z1, z1 + normal(120, 4, seed=1) * (0.2 + drift), torch.arange(120) % 10


def on_rank(rank, world_size, edges):
    z1, z2, groups = views_of_unequal_shards()
    rows = slice(edges[rank], edges[rank + 1])
    return mergeable_quantities(z1[rows], z2[rows], groups[rows], 10)


@pytest.mark.parametrize("edges", [[0, 60, 120], [0, 1, 120], [0, 40, 80, 120], [0, 7, 100, 120], [0, 50, 50, 120]])
def test_any_ranks_equal_one_process(ranks, edges):
    """Even, uneven, single-row and empty shards: every mergeable quantity to 1e-10, on every rank, two collectives."""
    z1, z2, groups = views_of_unequal_shards()
    expected, _ = mergeable_quantities(z1, z2, groups, 10)
    for values, collectives in ranks(len(edges) - 1, on_rank, edges):
        assert collectives == 2
        for name, value in values.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
