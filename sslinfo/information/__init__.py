"""Entropies, mutual informations, spectra, geometry and normality of representations: pure functions, in nats.

z is (N, d), one sample a row, of any floating-point precision; it is cast to float64 first unless ``dtype`` says
otherwise. Bad input raises ValueError with the way out; a quantity that does not exist at this N, d raises
``UndefinedEstimate``, which a logger skips with that reason. Nothing non-linear is ever averaged over batches or ranks:
``Moments`` and its kin merge exactly (``a + b``, ``.reduce()``), and the quantity is computed once.

docs/quantities.md has a table of all: what each is, which side it bounds, when not to trust it, and its source.
``python -m sslinfo.information.tables`` prints that page.
"""

from sslinfo.information.bound import Bound, generalization_bound
from sslinfo.information.bound_terms import best_constant, checkpoint_complexity, prediction_complexity
from sslinfo.information.checks import UndefinedEstimate
from sslinfo.information.cholesky import JitterWarning
from sslinfo.information.entropy import (
    gaussian_entropy,
    gaussian_logdet_bias,
    logdet_entropy,
    pairwise_entropy,
    pairwise_entropy_cap,
)
from sslinfo.information.geometry import alignment, feature_std, lidar, uniformity
from sslinfo.information.labelled import class_share_of_variance, knn_top1
from sslinfo.information.least_squares import LeastSquares, PairSums, within_radius
from sslinfo.information.local_affine import (
    LocalAffine,
    NoiseNormality,
    affine_residual,
    local_affine,
    local_gaussian_entropy,
    noise_normality,
)
from sslinfo.information.matrix_entropy import renyi_ceiling, renyi_entropy
from sslinfo.information.moments import GroupedMoments, Moments
from sslinfo.information.mutual_information import (
    InfoNCE,
    ViewInformation,
    gaussian_mutual_information,
    infonce,
    smoothed_view_information,
    view_information,
)
from sslinfo.information.neighbors import knn_entropy
from sslinfo.information.normality import (
    CharacteristicSums,
    FourthMoments,
    Normality,
    benjamini_hochberg,
    epps_pulley,
    normality,
)
from sslinfo.information.spectrum import (
    SpectralDecay,
    covariance_spectrum,
    effective_rank,
    hadamard_gap,
    off_diagonal_covariance,
    participation_ratio,
    rank_ceiling,
    rankme,
    spectral_decay,
    stable_rank,
)
from sslinfo.information.vmf import vmf_entropy, vmf_log_normalizer

__all__ = [
    "Bound",
    "CharacteristicSums",
    "FourthMoments",
    "GroupedMoments",
    "InfoNCE",
    "JitterWarning",
    "LeastSquares",
    "LocalAffine",
    "Moments",
    "NoiseNormality",
    "Normality",
    "PairSums",
    "SpectralDecay",
    "UndefinedEstimate",
    "ViewInformation",
    "affine_residual",
    "alignment",
    "benjamini_hochberg",
    "best_constant",
    "checkpoint_complexity",
    "class_share_of_variance",
    "covariance_spectrum",
    "effective_rank",
    "epps_pulley",
    "feature_std",
    "gaussian_entropy",
    "gaussian_logdet_bias",
    "gaussian_mutual_information",
    "generalization_bound",
    "hadamard_gap",
    "infonce",
    "knn_entropy",
    "knn_top1",
    "lidar",
    "local_affine",
    "local_gaussian_entropy",
    "logdet_entropy",
    "noise_normality",
    "normality",
    "off_diagonal_covariance",
    "pairwise_entropy",
    "pairwise_entropy_cap",
    "participation_ratio",
    "prediction_complexity",
    "rank_ceiling",
    "rankme",
    "renyi_ceiling",
    "renyi_entropy",
    "smoothed_view_information",
    "spectral_decay",
    "stable_rank",
    "uniformity",
    "view_information",
    "vmf_entropy",
    "vmf_log_normalizer",
    "within_radius",
]
