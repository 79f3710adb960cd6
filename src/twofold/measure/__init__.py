"""How good: distances between sets of images, neighbours, and answers against labels.

`measure.quality.quality` joins them into one verdict; `measure.statistics.reference` keeps the real images' part.
"""

from .answers import acceptance, accuracy, auroc, calibration_error, class_shares, share_interval, top_k
from .encoders import ENCODERS, ClassifierEncoder, PixelEncoder, check_fits, embed, encoder, fits, probabilities
from .frechet import Gaussian, frechet_distance, result_name
from .neighbours import nearest, neighbour_report, precision_recall

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
    "embed",
    "encoder",
    "fits",
    "frechet_distance",
    "nearest",
    "neighbour_report",
    "precision_recall",
    "probabilities",
    "result_name",
    "share_interval",
    "top_k",
]
