"""The Flower ClientApp: a session on a device, or one handed to an edge host in a simulation.

Whether this is a simulation is a fact of the process; no message says it. Nothing is raised to
Flower, which would send the words of an exception to the server.

Handlers import what they need: Flower's simulation loads this module in one thread while another
loads the ServerApp, and two threads that import one package can find half of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

# Before torch is loaded: threads that wait must not spin on cores that others want.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.process import in_simulation as _simulated
from fedlora.errors import FedloraError
from fedlora.import_path import put_bundles_last

log = logging.getLogger("fedlora.edge")

app = ClientApp()

_RECORD = "fedlora"
_HELLO, _SESSION, _COLLECT = "flower hello", "flower session", "flower collect"


def _answered(
    kind: str, message: Message, context: Context, answer: Callable[[], Mapping[str, Any]]
) -> Message:
    """Return a handler's reply; of one that fails what may be told of it.

    A simulation's handlers only hand on: they import neither torch nor the owner's door, which
    would be most of its start.
    """
    put_bundles_last()
    from fedlora.reasons import REASON, through_flower, whole_words

    if not _simulated(context.node_config):
        record = _through_door(kind, context.node_config, answer)
    else:
        try:
            record = dict(answer())
        except Exception as error:
            log.exception("the %s message is not answered", kind)
            record = dict(whole_words(error))
    if kind == _SESSION or REASON in record:
        record = through_flower(record)
    return Message(RecordDict({_RECORD: ConfigRecord(record)}), reply_to=message)


def _through_door(
    kind: str, node_config: Mapping[str, Any], answer: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a device's answer; the whole of what fails goes to the owner's log alone."""
    from clients.owner import Door, OwnerTerms, log_whole
    from fedlora.config import states_folder
    from fedlora.site.device_log import device_log

    with device_log(states_folder(node_config), f"client {node_config.get('partition-id')}"):
        try:
            return dict(answer())
        except Exception as error:
            log_whole(f"the {kind} message is not answered", error)
            return Door(OwnerTerms(deployed=True)).told(error)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell who this node is, or why nobody can tell."""
    node_config = context.node_config

    def answer() -> Mapping[str, Any]:
        from fedlora.config import NodeKeys
        from fedlora.reasons import about

        with about("keys"):
            keys = NodeKeys.read(node_config)
        own = -1 if keys.partition_id is None else keys.partition_id
        told = {"client": own, "clients": keys.num_partitions}
        if _simulated(node_config):
            return told
        from clients.owner import Door, OwnerTerms

        door = Door(OwnerTerms(deployed=True))
        return door.record(_HELLO, {name: door.public(value) for name, value in told.items()})

    return _answered(_HELLO, message, context, answer)


@app.train("session")
def session(message: Message, context: Context) -> Message:
    """Take part in a run: until its end on a device, or by handing over in a simulation."""
    node_config = context.node_config
    simulated = _simulated(node_config)

    def answer() -> Mapping[str, Any]:
        record = _record(message)
        if simulated:
            from clients.edge_host import hand_over

            return hand_over(record)
        from clients.device import take_part

        return take_part(record, node_config)

    return _answered(_SESSION, message, context, answer)


@app.query("collect")
def collect(message: Message, context: Context) -> Message:
    """Return what the edge host knows of a simulated client; a device tells nothing."""
    simulated = _simulated(context.node_config)

    def answer() -> Mapping[str, Any]:
        if not simulated:
            raise FedloraError("a server asks a device for what a simulation knows of its clients")
        from clients.edge_host import result_of

        return result_of(_record(message))

    return _answered(_COLLECT, message, context, answer)


def _record(message: Message) -> dict[str, Any]:
    from fedlora.reasons import about

    with about("invitation"):
        if _RECORD not in message.content:
            raise FedloraError(
                "the message holds no record of fedlora; both sides need one release"
            )
        record = message.content[_RECORD]
        return {str(key): record[key] for key in record}
