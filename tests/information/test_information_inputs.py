"""What every estimator owes its caller: errors that name the fault, low precision, and invariances."""

import contextlib
import fractions
import inspect
import math
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_data import normal

from sslinfo import information as info

# Estimators of one view at settings that suit data of unit scale; f(z) is a 0-d tensor, or one (d,).
ONE_VIEW = {
    "gaussian": info.gaussian_entropy,
    "gaussian_debiased": lambda z: info.gaussian_entropy(z, debias=True),
    "logdet": lambda z: info.logdet_entropy(z, beta=2.0),
    "logdet_uncentred": lambda z: info.logdet_entropy(z, beta=2.0, centered=False),
    "pairwise_lower": lambda z: info.pairwise_entropy(z, 0.5),
    "pairwise_upper": lambda z: info.pairwise_entropy(z, 0.5, bound="upper"),
    "pairwise_loo": lambda z: info.pairwise_entropy(z, 0.5, leave_one_out=True),
    "vmf": lambda z: info.vmf_entropy(z, 3.0),
    "renyi": info.renyi_entropy,
    "renyi_2": lambda z: info.renyi_entropy(z, alpha=2.0),
    "renyi_rbf": lambda z: info.renyi_entropy(z, bandwidth=1.0),
    "knn": info.knn_entropy,
    "spectrum": info.covariance_spectrum,
    "effective_rank": info.effective_rank,
    "rankme": info.rankme,
    "participation": info.participation_ratio,
    "participation_debiased": lambda z: info.participation_ratio(z, debias=True),
    "stable_rank": info.stable_rank,
    "decay": lambda z: info.spectral_decay(z, start=1).exponent,
    "hadamard": info.hadamard_gap,
    "off_diagonal": info.off_diagonal_covariance,
    "uniformity": info.uniformity,
    "std": info.feature_std,
    "std_raw": lambda z: info.feature_std(z, normalize=False),
    "normality": lambda z: info.normality(z).statistic,
    "epps_pulley": lambda z: info.epps_pulley(z, slices=16),
}
TWO_VIEWS = {
    "mutual_information": info.gaussian_mutual_information,
    "infonce": lambda a, b: info.infonce(a, b, 0.5).value,
    "view_logdet": lambda a, b: info.view_information(a, b).total,
    "view_smoothed": lambda a, b: info.smoothed_view_information(a, b, 2.0).total,
    "view_gaussian": lambda a, b: info.view_information(a, b, "gaussian").total,
    "view_pairwise": lambda a, b: info.view_information(a, b, "pairwise", variance=0.5).total,
    "view_vmf": lambda a, b: info.view_information(a, b, "vmf", concentration=3.0).total,
    "alignment": info.alignment,
    "alignment_normalized": lambda a, b: info.alignment(a, b, normalize=True),
}
# The same from state that merges; and LiDAR, whose 40 rows are 10 images of 4 views.
STATE = {
    "mutual_information": lambda a, b: info.gaussian_mutual_information(info.Moments.of(a, b)),
    "alignment": lambda a, b: info.alignment(info.Moments.of(a, b)),
    "view_logdet": lambda a, b: info.view_information(info.Moments.of(a, b)).total,
    "view_gaussian": lambda a, b: info.view_information(info.Moments.of(a, b), entropy="gaussian").total,
}
LIDAR = {
    "lidar": lambda z: info.lidar(z.reshape(10, 4, 4)),
    "lidar_debiased": lambda z: info.lidar(z.reshape(10, 4, 4), debias=True),
}
LABELS = torch.arange(40) % 4
LABELLED = {
    "class_share": lambda z: info.class_share_of_variance(z, LABELS),
    "knn_top1": lambda z: info.knn_top1(z, LABELS),
}
PAIRED_TRANSLATION = {"mutual_information", "view_logdet", "view_gaussian", "view_pairwise", "alignment"}
TRANSLATION = {
    "gaussian", "gaussian_debiased", "logdet", "pairwise_lower", "pairwise_upper", "pairwise_loo", "renyi_rbf", "knn",
    "spectrum", "effective_rank", "participation", "participation_debiased", "stable_rank", "decay", "hadamard",
    "off_diagonal", "uniformity", "std_raw", "normality",
}  # fmt: skip
NOT_ROTATION = {"hadamard", "off_diagonal", "std", "std_raw", "normality", "epps_pulley"}
# f(c z) = f(z) + slope d log c, or f(z) c^power.
LOG_SCALE = {"gaussian": 1, "gaussian_debiased": 1, "knn": 1}
SCALE_POWER = {
    "vmf": 0, "renyi": 0, "renyi_2": 0, "spectrum": 2, "effective_rank": 0, "rankme": 0, "participation": 0,
    "participation_debiased": 0, "stable_rank": 0, "decay": 0, "hadamard": 0, "off_diagonal": 4, "std": 0, "std_raw": 1,
    "normality": 0,
}  # fmt: skip


def data(seed=0):
    """Correlated, of known condition: invariances hold to rounding for every seed."""
    rotation, _ = torch.linalg.qr(normal(4, 4, seed + 1))
    return normal(40, 4, seed) * torch.tensor([0.6, 1, 1.4, 2]) @ rotation + 0.3


def close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)


def test_every_estimator_is_covered():
    """A new public function of samples joins these tables."""
    not_of_samples = {
        "affine_residual", "benjamini_hochberg", "gaussian_logdet_bias", "local_affine", "noise_normality",
        "local_gaussian_entropy", "pairwise_entropy_cap", "rank_ceiling", "renyi_ceiling", "vmf_log_normalizer",
        "best_constant", "checkpoint_complexity", "generalization_bound", "prediction_complexity", "within_radius",
    }  # fmt: skip
    package = os.path.dirname(info.__file__)
    called = set()

    def note(frame, event, _):
        """Note a call made from this file, or through a decorator, not one that the package makes of itself."""
        caller = frame.f_back
        while caller and not caller.f_code.co_filename.startswith((package, __file__)):
            caller = caller.f_back
        if event == "call" and caller and caller.f_code.co_filename == __file__:
            called.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for entry in (*ONE_VIEW.values(), *LIDAR.values(), *LABELLED.values()):
            entry(data())
        for entry in TWO_VIEWS.values():
            entry(data(0), data(7))
    finally:
        sys.setprofile(before)
    functions = {name: getattr(info, name) for name in info.__all__ if inspect.isfunction(getattr(info, name))}
    missing = {name for name, function in functions.items() if inspect.unwrap(function).__code__ not in called}
    assert missing == not_of_samples


@pytest.mark.parametrize("name", [*ONE_VIEW, *LABELLED])
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda z: z.index_fill(0, torch.tensor([3]), torch.nan), "z holds 4 NaN or infinite values"),
        (lambda z: z.index_fill(0, torch.tensor([3]), torch.inf), "z holds 4 NaN or infinite values"),
        (lambda z: z[:1], "(?i)at least|needs"),
        (lambda z: z[:0], "(?i)at least|needs"),
        (lambda z: z[0], r"z must have shape \(N, d\), got \(4,\)"),
        (lambda z: z[None], r"z must have shape \(N, d\), got \(1, 40, 4\)"),
        (lambda z: z[:, :0], r"z has no features, got shape \(40, 0\)"),
        (lambda z: z.long(), r"z must be floating point, got torch.int64: .*z\.double"),
        (lambda z: z.cfloat(), "z must be floating point, got torch.complex64"),
    ],
)
def test_bad_samples_are_named(name, damage, match):
    with pytest.raises(ValueError, match=match):
        {**ONE_VIEW, **LABELLED}[name](damage(data()))


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_bad_pairs_are_named(name):
    z1, z2 = data(0), data(7)
    with pytest.raises(ValueError, match=r"\(40, 4\).*\(39, 4\) do not match"):
        TWO_VIEWS[name](z1, z2[:39])
    with pytest.raises(ValueError, match="z2 holds 4 NaN"):
        TWO_VIEWS[name](z1, z2.index_fill(0, torch.tensor([3]), torch.nan))
    with pytest.raises(ValueError, match="z1 must be floating point"):
        TWO_VIEWS[name](z1.int(), z2)
    with pytest.raises(ValueError, match=r"(?i)at least|needs"):
        TWO_VIEWS[name](z1[:1], z2[:1])
    if name != "mutual_information":
        with pytest.raises(ValueError, match="do not match"):
            TWO_VIEWS[name](z1, z2[:, :3])


@pytest.mark.parametrize("name", [*ONE_VIEW, *LABELLED])
def test_anything_but_a_tensor_is_a_type_error(name):
    with pytest.raises(TypeError, match=r"z must be a torch\.Tensor, got list: convert it with torch\.as_tensor"):
        {**ONE_VIEW, **LABELLED}[name]([[1.0], [2.0]])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda z: info.logdet_entropy(z, beta=0.0), "beta must be a finite number above 0, got 0.0"),
        (lambda z: info.logdet_entropy(z, beta=math.nan), "beta"),
        (lambda z: info.pairwise_entropy(z, -1.0), "variance must be a finite number above 0, got -1.0"),
        (lambda z: info.pairwise_entropy(z, 1.0, bound="middle"), "bound must be 'lower' or 'upper', got 'middle'"),
        (lambda z: info.vmf_entropy(z, 0.0), "concentration"),
        (lambda z: info.vmf_entropy(z[:, :1], 1.0), "d must be an integer >= 2, got 1"),
        (lambda z: info.vmf_entropy(torch.zeros(3, 2), 1.0), "3 rows of length 0"),
        (lambda z: info.renyi_entropy(z, alpha=0.0), "alpha"),
        (lambda z: info.renyi_entropy(z, bandwidth=0.0), "bandwidth"),
        (lambda z: info.renyi_entropy(0 * z), "zero throughout"),
        (lambda z: info.rankme(0 * z), "zero throughout"),
        (lambda z: info.knn_entropy(z, k=0), "k must be an integer >= 1, got 0"),
        (lambda z: info.infonce(z, z, temperature=0.0), "temperature"),
        (lambda z: info.uniformity(z, t=0.0), "t must be"),
        (lambda z: info.spectral_decay(z, start=0), "start"),
        (lambda z: info.pairwise_entropy_cap(0, 1, 1.0), "n must be an integer >= 1, got 0"),
        (lambda z: info.epps_pulley(z, slices=0), "slices"),
        (lambda z: info.spectral_decay(z, start=1, stop=50.5), "stop must be an integer >= 3, got 50.5"),
        (lambda z: info.epps_pulley(z, seed=1.5), "seed must be an integer >= 0, got 1.5"),
        (lambda z: info.pairwise_entropy(z, torch.tensor(0.5, requires_grad=True)), "variance.*detach"),
        (lambda z: info.pairwise_entropy(z, "0.5"), "variance must be a finite number above 0, got '0.5'"),
        (lambda z: info.pairwise_entropy(z, torch.ones(2)), "variance must be a finite number above 0, got"),
        (lambda z: info.knn_entropy(z, k=True), "k must be an integer >= 1, got True"),
        (lambda z: info.knn_entropy(z, k=torch.tensor(2.0)), "k must be an integer >= 1, got"),
        (lambda z: info.gaussian_entropy(info.Moments.of(z[:1])), "n=1"),
        (lambda z: info.alignment(info.Moments.of(z)), "joint"),
    ],
)
def test_bad_settings_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call(data())


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor, fractions.Fraction])
def test_settings_may_be_real_numbers_of_any_kind(kind):
    z = data()
    half, two = kind(0.5), kind(2.0)
    calls = [
        (info.logdet_entropy, "beta"), (info.pairwise_entropy, "variance"), (info.vmf_entropy, "concentration"),
        (info.renyi_entropy, "bandwidth"), (info.renyi_entropy, "alpha"), (info.uniformity, "t"),
        (info.rankme, "eps"),
    ]  # fmt: skip
    for function, name in calls:
        for number, plain in ((half, 0.5), (two, 2.0)):
            close(function(z, **{name: number}), function(z, **{name: plain}))
    close(info.infonce(z, z, half).value, info.infonce(z, z, 0.5).value)
    close(info.lidar(z.reshape(10, 4, 4), half), info.lidar(z.reshape(10, 4, 4), 0.5))
    for entropy, options in (("logdet", {}), ("pairwise", {"variance": half}), ("vmf", {"concentration": half})):
        plain = dict.fromkeys(options, 0.5)
        close(
            info.view_information(z, z + 1, entropy, **options).total,
            info.view_information(z, z + 1, entropy, **plain).total,
        )
    close(
        info.view_information(z, z + 1, decoder_variance=half).total,
        info.view_information(z, z + 1, decoder_variance=0.5).total,
    )


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor])
def test_counts_may_be_integers_of_any_kind(kind):
    z = data()
    close(info.knn_entropy(z, kind(3)), info.knn_entropy(z, 3))
    close(info.epps_pulley(z, kind(4), kind(9)), info.epps_pulley(z, 4, 9))
    close(info.spectral_decay(z, kind(1), kind(4)).exponent, info.spectral_decay(z, 1, 4).exponent)


@pytest.mark.parametrize("name", [*ONE_VIEW, *LIDAR, *LABELLED])
@pytest.mark.parametrize("fill", [0.0, 1e3 + 0.1])
def test_collapsed_samples_read_a_value_or_have_none(name, fill):
    """One point: a logger gets a number, or the one error that it skips; nothing else."""
    with contextlib.suppress(info.UndefinedEstimate):
        {**ONE_VIEW, **LIDAR, **LABELLED}[name](torch.full((40, 4), fill))


@pytest.mark.parametrize("name", TWO_VIEWS)
@pytest.mark.parametrize("fill", [0.0, 1e3 + 0.1])
def test_collapsed_pairs_read_a_value_or_have_none(name, fill):
    z = torch.full((40, 4), fill)
    with contextlib.suppress(info.UndefinedEstimate):
        assert not TWO_VIEWS[name](z, z).isnan()


@pytest.mark.parametrize("function", [info.renyi_entropy, lambda z: info.vmf_entropy(z, 1.0), info.feature_std])
def test_zero_is_skipped_by_loggers(function):
    with pytest.raises(info.UndefinedEstimate):
        function(torch.zeros(10, 3))
    with pytest.raises(info.UndefinedEstimate):
        info.infonce(torch.zeros(10, 3), torch.zeros(10, 3), 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: info.pairwise_entropy(m, 0.5),
        lambda m: info.vmf_entropy(m, 0.5),
        info.renyi_entropy,
        info.knn_entropy,
        info.uniformity,
        info.normality,
        info.epps_pulley,
        info.lidar,
        lambda m: info.infonce(m, m, 0.5),
    ],
)
def test_moments_where_samples_are_needed(call):
    with pytest.raises(TypeError, match="must be a torch.Tensor, got Moments: this needs the samples themselves"):
        call(info.Moments.of(data()))


@pytest.mark.parametrize("name", [*ONE_VIEW, *LIDAR, *LABELLED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_cast_first(name, dtype):
    z = data().to(dtype)
    estimate = {**ONE_VIEW, **LIDAR, **LABELLED}[name]
    value = estimate(z)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, estimate(z.double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TWO_VIEWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_pairs_are_cast_first(name, dtype):
    z1, z2 = data(0).to(dtype), data(7).to(dtype)
    torch.testing.assert_close(TWO_VIEWS[name](z1, z2), TWO_VIEWS[name](z1.double(), z2.double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["logdet", "pairwise_lower", "uniformity", "epps_pulley", "vmf"])
def test_float32_on_request(name):
    functions = {
        "logdet": lambda z, dtype: info.logdet_entropy(z, dtype=dtype),
        "pairwise_lower": lambda z, dtype: info.pairwise_entropy(z, 0.5, dtype=dtype),
        "uniformity": lambda z, dtype: info.uniformity(z, dtype=dtype),
        "epps_pulley": lambda z, dtype: info.epps_pulley(z, dtype=dtype),
        "vmf": lambda z, dtype: info.vmf_entropy(z, 3.0, dtype=dtype),
    }
    z = data().float().requires_grad_()
    value = functions[name](z, torch.float32)
    assert value.dtype == torch.float32
    (gradient,) = torch.autograd.grad(value, z)
    exact = functions[name](z, torch.float64)
    (expected,) = torch.autograd.grad(exact, z)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", ONE_VIEW)
def test_order_of_samples_does_not_matter(name, seed):
    z = data(seed)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    close(ONE_VIEW[name](z[order]), ONE_VIEW[name](z))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", TWO_VIEWS)
def test_order_of_pairs_does_not_matter(name, seed):
    z1, z2 = data(seed), data(seed + 5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    close(TWO_VIEWS[name](z1[order], z2[order]), TWO_VIEWS[name](z1, z2))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", sorted(ONE_VIEW.keys() - NOT_ROTATION))
def test_rotation_does_not_matter(name, seed):
    z = data(seed)
    rotation, _ = torch.linalg.qr(normal(4, 4, seed + 2))
    close(ONE_VIEW[name](z @ rotation), ONE_VIEW[name](z))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", TWO_VIEWS)
def test_rotation_of_both_views_does_not_matter(name, seed):
    z1, z2 = data(seed), data(seed + 5)
    rotation, _ = torch.linalg.qr(normal(4, 4, seed + 2))
    close(TWO_VIEWS[name](z1 @ rotation, z2 @ rotation), TWO_VIEWS[name](z1, z2))


@given(seed=st.integers(0, 10**6), shift=st.floats(-1e3, 1e3))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", [*sorted(TRANSLATION), *LIDAR])
def test_translation_does_not_matter_where_centred(name, seed, shift):
    z = data(seed)
    estimate = {**ONE_VIEW, **LIDAR}[name]
    torch.testing.assert_close(estimate(z + shift), estimate(z), rtol=1e-7, atol=1e-7)


@given(seed=st.integers(0, 10**6), shift=st.floats(-1e3, 1e3))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", sorted(PAIRED_TRANSLATION))
def test_translation_of_both_views_does_not_matter(name, seed, shift):
    """Views that nearly agree, where what is left after the mean is smallest; from samples and from Moments."""
    z1 = data(seed)
    z2 = z1 + 1e-3 * data(seed + 5)
    expected = TWO_VIEWS[name](z1, z2)
    for table in (TWO_VIEWS, STATE):
        if name in table:
            torch.testing.assert_close(table[name](z1 + shift, z2 + shift), expected, rtol=1e-7, atol=1e-7)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("name", sorted({*LOG_SCALE, *SCALE_POWER}))
def test_scaling_laws(name, seed, scale):
    z = data(seed)
    value = ONE_VIEW[name](z)
    expected = value + 4 * math.log(scale) if name in LOG_SCALE else value * scale ** SCALE_POWER[name]
    torch.testing.assert_close(ONE_VIEW[name](z * scale), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_scaling_of_kernels_goes_with_the_data(scale):
    z = data()
    shift = 4 * math.log(scale)
    close(info.pairwise_entropy(z * scale, 0.5 * scale**2), info.pairwise_entropy(z, 0.5) + shift)
    close(info.uniformity(z * scale, t=2 / scale**2), info.uniformity(z))
    close(info.renyi_entropy(z * scale, bandwidth=scale), info.renyi_entropy(z, bandwidth=1.0))


@pytest.mark.parametrize("name", [*sorted(TRANSLATION), *LIDAR])
def test_float32_input_far_from_the_origin(name):
    """Mean 1e3, standard deviation 1, stored in float32: as of the same numbers less their mean."""
    z = (data() + 1e3).float()
    shifted = z.double() - 1e3
    estimate = {**ONE_VIEW, **LIDAR}[name]
    torch.testing.assert_close(estimate(z), estimate(shifted), rtol=1e-8, atol=1e-8)


def test_float32_arithmetic_far_from_the_origin():
    """In float32 throughout, centring first keeps what E[z^2] - mean^2 and |a|^2 + |b|^2 - 2ab would lose."""
    z = (normal(1000, 3) + 1e4).float()
    shifted = z.double() - 1e4
    value = info.logdet_entropy(z, beta=5.0, dtype=torch.float32).double()
    torch.testing.assert_close(value, info.logdet_entropy(shifted, beta=5.0), rtol=1e-3, atol=0)
    for leave_one_out in (False, True):
        value = info.pairwise_entropy(z, 0.3, leave_one_out=leave_one_out, dtype=torch.float32).double()
        expected = info.pairwise_entropy(shifted, 0.3, leave_one_out=leave_one_out)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["logdet", "pairwise_lower", "uniformity", "epps_pulley", "renyi", "infonce"])
def test_autocast_does_not_reach_float32_estimates(name):
    functions = {
        "logdet": lambda z: info.logdet_entropy(z, dtype=torch.float32),
        "pairwise_lower": lambda z: info.pairwise_entropy(z, 0.5, dtype=torch.float32),
        "uniformity": lambda z: info.uniformity(z, dtype=torch.float32),
        "epps_pulley": lambda z: info.epps_pulley(z, dtype=torch.float32),
        "renyi": lambda z: info.renyi_entropy(z, dtype=torch.float32),
        "infonce": lambda z: info.infonce(z, z + 0.1, 0.5, dtype=torch.float32).value,
    }
    z = data().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = functions[name](z)
    torch.testing.assert_close(value, functions[name](z), rtol=0, atol=0)
