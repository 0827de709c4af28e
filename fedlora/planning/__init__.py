"""What a run will take on the air, walked batch by batch before anything starts."""

from fedlora.planning.rehearsal import Booked, Rehearsal
from fedlora.planning.walk import Forecast, forecast

__all__ = ["Booked", "Forecast", "Rehearsal", "forecast"]
