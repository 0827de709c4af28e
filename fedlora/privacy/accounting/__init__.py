"""What an upload costs, and how much noise a budget buys."""

from fedlora.privacy.accounting.budget_schedule import BudgetSpread, ChannelWeight
from fedlora.privacy.accounting.calibration import (
    calibrate_sigma,
    epsilon_of,
    gradient_sigma,
    planned_uploads,
    rho_budget,
)
from fedlora.privacy.accounting.lower_bound import (
    Bools,
    Floats,
    mu_lower_bound,
    rate_high,
    rate_low,
)
from fedlora.privacy.accounting.rdp import (
    ORDERS,
    Charge,
    SampledAccountant,
    add_up,
    convert,
    exact_epsilon,
    rdp_epsilon,
    upload_cost,
)

__all__ = [
    "ORDERS",
    "Bools",
    "BudgetSpread",
    "ChannelWeight",
    "Charge",
    "Floats",
    "SampledAccountant",
    "add_up",
    "calibrate_sigma",
    "convert",
    "epsilon_of",
    "exact_epsilon",
    "gradient_sigma",
    "mu_lower_bound",
    "planned_uploads",
    "rate_high",
    "rate_low",
    "rdp_epsilon",
    "rho_budget",
    "upload_cost",
]
