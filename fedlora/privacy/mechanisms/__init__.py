"""How what depends on a label leaves: one file a mechanism, and how noise is drawn and added."""

from fedlora.privacy.mechanisms.analog import AirNoise, AnalogNoise, receiver_noise, top_up
from fedlora.privacy.mechanisms.base import Gradients, Mechanism, ReleasePlan
from fedlora.privacy.mechanisms.check import check_mechanism
from fedlora.privacy.mechanisms.full import Full
from fedlora.privacy.mechanisms.gaussian import clip_rows, release, release_sum, rounding_step
from fedlora.privacy.mechanisms.head_releases import row_space, zero_sum_basis
from fedlora.privacy.mechanisms.labels import Labels, label_epsilon
from fedlora.privacy.mechanisms.logits import Logits, label_corners, label_reach
from fedlora.privacy.mechanisms.noise import (
    InsecureNoise,
    KeyedNoise,
    KeyStreamNoise,
    NoiseSource,
    SystemNoise,
)
from fedlora.privacy.mechanisms.noise_keys import NoiseKeys
from fedlora.privacy.mechanisms.noised_labels import NoisedLabels
from fedlora.privacy.mechanisms.plugin import (
    SHIPPED,
    asked,
    blaming,
    charge_of,
    check_words,
    gradients_of,
    mechanism_class,
    mechanism_of,
    numbers_of,
    probe_of,
    shaped,
)
from fedlora.privacy.mechanisms.randomised_response import (
    RandomisedLabels,
    flip_probability,
    label_auc,
)
from fedlora.privacy.mechanisms.row_space import RowSpace, row_space_coordinates

__all__ = [
    "SHIPPED",
    "AirNoise",
    "AnalogNoise",
    "Full",
    "Gradients",
    "InsecureNoise",
    "KeyStreamNoise",
    "KeyedNoise",
    "Labels",
    "Logits",
    "Mechanism",
    "NoiseKeys",
    "NoiseSource",
    "NoisedLabels",
    "RandomisedLabels",
    "ReleasePlan",
    "RowSpace",
    "SystemNoise",
    "asked",
    "blaming",
    "charge_of",
    "check_mechanism",
    "check_words",
    "clip_rows",
    "flip_probability",
    "gradients_of",
    "label_auc",
    "label_corners",
    "label_epsilon",
    "label_reach",
    "mechanism_class",
    "mechanism_of",
    "numbers_of",
    "probe_of",
    "receiver_noise",
    "release",
    "release_sum",
    "rounding_step",
    "row_space",
    "row_space_coordinates",
    "shaped",
    "top_up",
    "zero_sum_basis",
]
