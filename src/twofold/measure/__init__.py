"""How good: distances between sets of images, neighbours, and answers against labels.

`measure.quality.quality` joins them into one verdict; `measure.statistics.reference` keeps the real images' part, and
`measure.statfile` exchanges it with other programs.
"""

from .answers import acceptance, accuracy, auroc, calibration_error, class_shares, share_interval, top_k
from .density import density_coverage
from .encoders import ENCODERS, ClassifierEncoder, PixelEncoder, check_fits, embed, encoder, fits, probabilities
from .frechet import Gaussian, frechet_distance, result_name
from .kernel import kernel_distance, kernel_distance_of_subsets
from .neighbours import nearest, neighbour_report, precision_recall
from .score import inception_score

__all__ = [
    "ENCODERS",
    "ClassifierEncoder",
    "Gaussian",
    "PixelEncoder",
    "acceptance",
    "accuracy",
    "auroc",
    "calibration_error",
    "check_fits",
    "class_shares",
    "density_coverage",
    "embed",
    "encoder",
    "fits",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "nearest",
    "neighbour_report",
    "precision_recall",
    "probabilities",
    "result_name",
    "share_interval",
    "top_k",
]
