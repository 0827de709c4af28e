"""The Flower ServerApp: who takes part, sessions, results and failures go through Flower.

Tensors take their own road: this app opens the tensor stream, and each client gets one long
message with the stream's address, the certificate to pin and a token that opens its session.
"""

from __future__ import annotations

import os

# Before Flower or Ray start anything: neither is to call home.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Before torch is loaded: threads that wait must not spin on cores that others want.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora.errors import FedloraError
from fedlora.import_path import Importing, put_bundles_last
from fedlora.terminal import leave_out_chatter

leave_out_chatter()

app = ServerApp()


class RunEnded(FedloraError):
    """Ends a run with a sentence. Flower logs exceptions with their frames, which would bury it."""

    __traceback__ = property(lambda _: None, lambda _, __: None)  # contextlib sets it


@app.main()  # type: ignore[untyped-decorator]  # flwr is not typed for us
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run configuration names."""
    put_bundles_last()
    with Importing():
        from fedlora.server.flower.run import run_over_flower

    try:
        run_over_flower(grid, context.run_config, context.run_id)
    except FedloraError as error:
        raise RunEnded(str(error)) from None
