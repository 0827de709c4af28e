"""Generation on a device: tokens, head and sampling stay here, the blocks are the server's."""

from clients.generation.completion import Completion, Finish
from clients.generation.connection import Credentials, ServerConnection
from clients.generation.drafts import DraftHistory, Drafts
from clients.generation.leaving import LeaveEarly
from clients.generation.pace import DraftPace
from clients.generation.remote_row import Ask, RemoteRow
from clients.generation.sampling import Sampler, Sampling
from clients.generation.writer import Writer

__all__ = [
    "Ask",
    "Completion",
    "Credentials",
    "DraftHistory",
    "DraftPace",
    "Drafts",
    "Finish",
    "LeaveEarly",
    "RemoteRow",
    "Sampler",
    "Sampling",
    "ServerConnection",
    "Writer",
]
