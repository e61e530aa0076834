"""Small runs behind the notebooks, and what is measured in them."""

from sslinfo.experiments.certificate import Certificate, certify, cluster_shares, probe_shares
from sslinfo.experiments.entropy import ViewFeatures, calibrate, pairwise_terms, snapshots, view_features
from sslinfo.experiments.noise import AffineFit, Gaussianity, PixelDistances, affine_fit, gaussianity, pixel_distances
from sslinfo.experiments.training import METHODS, build, digits, digits_folder, pretrain, validation_images

__all__ = [
    "METHODS",
    "AffineFit",
    "Certificate",
    "Gaussianity",
    "PixelDistances",
    "ViewFeatures",
    "affine_fit",
    "build",
    "calibrate",
    "certify",
    "cluster_shares",
    "digits",
    "digits_folder",
    "gaussianity",
    "pairwise_terms",
    "pixel_distances",
    "pretrain",
    "probe_shares",
    "snapshots",
    "validation_images",
    "view_features",
]
