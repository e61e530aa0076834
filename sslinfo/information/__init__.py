"""Entropies, mutual informations, spectra, geometry and normality of representations: pure functions, in nats."""

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
    participation_ratio,
    rank_ceiling,
    rankme,
    spectral_decay,
    stable_rank,
)
from sslinfo.information.vmf import vmf_entropy, vmf_log_normalizer

__all__ = [
    "CharacteristicSums",
    "FourthMoments",
    "GroupedMoments",
    "InfoNCE",
    "JitterWarning",
    "LocalAffine",
    "Moments",
    "NoiseNormality",
    "Normality",
    "SpectralDecay",
    "UndefinedEstimate",
    "ViewInformation",
    "affine_residual",
    "alignment",
    "benjamini_hochberg",
    "covariance_spectrum",
    "effective_rank",
    "epps_pulley",
    "feature_std",
    "gaussian_entropy",
    "gaussian_logdet_bias",
    "gaussian_mutual_information",
    "hadamard_gap",
    "infonce",
    "knn_entropy",
    "lidar",
    "local_affine",
    "local_gaussian_entropy",
    "logdet_entropy",
    "noise_normality",
    "normality",
    "pairwise_entropy",
    "pairwise_entropy_cap",
    "participation_ratio",
    "rank_ceiling",
    "rankme",
    "renyi_ceiling",
    "renyi_entropy",
    "spectral_decay",
    "stable_rank",
    "uniformity",
    "view_information",
    "vmf_entropy",
    "vmf_log_normalizer",
]
