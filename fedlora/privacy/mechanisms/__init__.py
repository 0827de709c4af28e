"""How noise is drawn and added, and how labels are randomised."""

from fedlora.privacy.mechanisms.analog import AirNoise, AnalogNoise, receiver_noise, top_up
from fedlora.privacy.mechanisms.gaussian import clip_rows, release, release_sum, rounding_step
from fedlora.privacy.mechanisms.head_releases import (
    head_gradients,
    label_corners,
    label_reach,
    release_width,
    row_space_basis,
    row_space_coordinates,
    zero_sum_basis,
)
from fedlora.privacy.mechanisms.noise import InsecureNoise, NoiseSource, SystemNoise
from fedlora.privacy.mechanisms.noised_labels import NoisedLabels
from fedlora.privacy.mechanisms.randomised_response import (
    RandomisedLabels,
    flip_probability,
    label_auc,
)

__all__ = [
    "AirNoise",
    "AnalogNoise",
    "InsecureNoise",
    "NoiseSource",
    "NoisedLabels",
    "RandomisedLabels",
    "SystemNoise",
    "clip_rows",
    "flip_probability",
    "head_gradients",
    "label_auc",
    "label_corners",
    "label_reach",
    "receiver_noise",
    "release",
    "release_sum",
    "release_width",
    "rounding_step",
    "row_space_basis",
    "row_space_coordinates",
    "top_up",
    "zero_sum_basis",
]
