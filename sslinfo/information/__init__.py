"""Entropies, mutual informations, spectra, geometry and normality of representations: pure functions, in nats.

z is (N, d), one sample a row, of any floating-point precision; it is cast to float64 first unless ``dtype`` says
otherwise. Bad input raises ValueError with the way out; a quantity that does not exist at this N, d raises
``UndefinedEstimate``, which a logger skips with that reason. Nothing non-linear is ever averaged over batches or ranks:
``Moments`` and its kin merge exactly (``a + b``, ``.reduce()``), and the quantity is computed once.

What each quantity is, which side it bounds, and when not to trust it:

=========================== ============================================ ==============================================
quantity                    what it bounds                               when not to trust it
=========================== ============================================ ==============================================
gaussian_entropy            above: no density of that covariance has     N near d: tens of nats low; ``debias`` is
                            more                                         exact for Gaussian data only
logdet_entropy              nothing across scales; I(z; z + noise) of    without its beta and the scale of z
                            Gaussian z
pairwise_entropy            both sides, of the mixture of N Gaussians    near ``pairwise_entropy_cap``, where it is a
                            at the samples, not of the population        function of N alone and has no gradient
vmf_entropy                 nothing: resubstitution, biased low;         without its concentration
                            ``leave_one_out`` is biased high
renyi_entropy               not a differential entropy; <= log min(N,    with a bandwidth, which sets the answer
                            d)
knn_entropy                 nothing; few assumptions                     d > 8; refused above 10
gaussian_mutual_information nothing unless z is Gaussian                above log N it states the assumption
infonce                     below, in expectation                        ``saturated``: past 95% of log N
view_information            below only if ``is_bound``, about the        all else is a proxy; with a Gaussian entropy
                            empirical mixture                            it runs to infinity as the views coincide; the
                                                                         pairwise one is at most log N - d/2
effective_rank,             at most ``rank_ceiling(N, d)``; read beside  N < 10 d: white noise of d dimensions reads
participation_ratio,        it                                           d exp(-d/2N), d/(1 + d/N),
stable_rank                                                              d/(1 + sqrt(d/N))^2
rankme                      at most min(N, d); uncentred, as published   after a shift of the mean; across methods
spectral_decay              -                                            R^2 well below 1
hadamard_gap                >= 0                                         N near d: high by sampling
alignment, uniformity       on the sphere if normalised                  across scales otherwise
feature_std                 1/sqrt(d) when spread evenly                 blind to dimensional collapse
lidar                       at most min(n - 1, d)                        raw: noise reads d; two views are too few
normality                   p-value and effect sizes                     p alone: its power is a matter of N
epps_pulley                 1.05 on average under N(0, I)                data not standardised
local_gaussian_entropy      exact within one affine piece                a nat off where ``affine_residual`` nears 0.6
generalization_bound        the risk above, with probability 1 - delta,  vacuous at or above ``best_constant``; pairs of
                            if ``certified`` or ``corollary`` exists     one image, or a network trained on the pairs
=========================== ============================================ ==============================================

Ranks and entropies compare runs of one method; they select no model across methods: necessary, not sufficient.
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
    "lidar",
    "local_affine",
    "local_gaussian_entropy",
    "logdet_entropy",
    "noise_normality",
    "normality",
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
