"""The Flower ClientApp: a session on a device, or one handed to an edge host in a simulation."""

from __future__ import annotations

import logging
import sys

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.number import partition_id
from fedlora.errors import FedloraError

log = logging.getLogger("fedlora.edge")

app = ClientApp()

_RECORD = "fedlora"


def _simulated() -> bool:
    """Tell whether this is a worker of Flower's simulation, which runs on Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell who this node is, or why nobody can tell."""
    try:
        own = partition_id(context.node_config)
    except FedloraError as error:
        log.error("%s", error)
        record = ConfigRecord({"error": str(error)})
    else:
        record = ConfigRecord(
            {
                "client": -1 if own is None else own,
                "clients": int(context.node_config.get("num-partitions", 0)),
                "simulated": _simulated(),
            }
        )
    return Message(RecordDict({_RECORD: record}), reply_to=message)


@app.train("session")
def session(message: Message, context: Context) -> Message:
    """Take part in a run: until its end on a device, or by handing over in a simulation."""
    record = message.content[_RECORD]
    if record["host"]:
        from clients.edge_host import hand_over

        error = hand_over(record)
    else:
        from clients.device import take_part

        error = take_part(record, context.node_config)
    return Message(RecordDict({_RECORD: ConfigRecord({"error": error})}), reply_to=message)


@app.query("collect")
def collect(message: Message, context: Context) -> Message:
    """Return what the edge host knows of this client."""
    del context
    from clients.edge_host import result_of

    record = ConfigRecord(result_of(message.content[_RECORD]))
    return Message(RecordDict({_RECORD: record}), reply_to=message)
