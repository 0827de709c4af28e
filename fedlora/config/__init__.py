"""The scenario: everything that defines a run, as frozen dataclasses read from TOML.

A scenario file holds one table per section below. ``load_scenario`` reads it, ``with_overrides``
applies ``--set section.key=value``, ``scenario_to_toml`` writes it back as it was resolved. Every
value is checked when it is read; an error quotes the value and the mend.
"""

from fedlora.config.channel import (
    LONGEST_S,
    MOST_WALKED_BLOCKS,
    SNR_LIMIT_DB,
    ChannelConfig,
    ReportConfig,
    ScheduleConfig,
)
from fedlora.config.data import AXES, DataConfig, PartitionConfig
from fedlora.config.forecast import ForecastConfig
from fedlora.config.learning import (
    FrontConfig,
    HeadConfig,
    LoraConfig,
    ModelConfig,
    TaskConfig,
    TrainConfig,
)
from fedlora.config.node import NodeKeys, dashed, shown_default, states_folder
from fedlora.config.node_values import Report, is_file, lost_keys
from fedlora.config.observe import ObserveConfig
from fedlora.config.placement import is_away, parse_blocks, place_blocks
from fedlora.config.privacy import SIGMA_MAX, SIGMA_MIN, ClientLimit, PrivacyPolicy, Unit
from fedlora.config.robust import RobustConfig
from fedlora.config.scenario import Scenario
from fedlora.config.system import (
    ENDS,
    PAYLOADS,
    ComputeConfig,
    End,
    EvaluateConfig,
    FederationConfig,
    LinkConfig,
    Payload,
    RanksConfig,
)
from fedlora.config.toml import (
    assignment,
    load_scenario,
    parse_toml,
    read_section,
    scenario_from_table,
    scenario_from_toml,
    scenario_to_toml,
    with_overrides,
)
from fedlora.errors import require

__all__ = [
    "AXES",
    "ENDS",
    "LONGEST_S",
    "MOST_WALKED_BLOCKS",
    "PAYLOADS",
    "SIGMA_MAX",
    "SIGMA_MIN",
    "SNR_LIMIT_DB",
    "ChannelConfig",
    "ClientLimit",
    "ComputeConfig",
    "DataConfig",
    "End",
    "EvaluateConfig",
    "FederationConfig",
    "ForecastConfig",
    "FrontConfig",
    "HeadConfig",
    "LinkConfig",
    "LoraConfig",
    "ModelConfig",
    "NodeKeys",
    "ObserveConfig",
    "PartitionConfig",
    "Payload",
    "PrivacyPolicy",
    "RanksConfig",
    "Report",
    "ReportConfig",
    "RobustConfig",
    "Scenario",
    "ScheduleConfig",
    "TaskConfig",
    "TrainConfig",
    "Unit",
    "assignment",
    "dashed",
    "is_away",
    "is_file",
    "load_scenario",
    "lost_keys",
    "parse_blocks",
    "parse_toml",
    "place_blocks",
    "read_section",
    "require",
    "scenario_from_table",
    "scenario_from_toml",
    "scenario_to_toml",
    "shown_default",
    "states_folder",
    "with_overrides",
]
