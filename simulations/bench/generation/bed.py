"""A model that generates, as the measurements here make one: server's blocks and device's ends."""

from __future__ import annotations

import torch

from clients.edge_model import EdgeModel
from clients.generation import Ask, RemoteRow
from clients.generation.ends import TextEnds
from clients.owner import Door, OwnerTerms
from fedlora.config import LoraConfig, ModelConfig, Scenario, TaskConfig
from fedlora.generation.engine import GenerationEngine
from fedlora.link import PROTOCOL, Identity
from fedlora.split import Back, Checkpoint, Front, LanguageHead, model_folder
from fedlora.tasks import task_class

R_MAX = 8


class Bed:
    """Blocks with an adapter that changes nothing until one is loaded, and a device's ends.

    Parameters
    ----------
    path
        Scenario path of the model.
    server_norm
        Whether the final norm is the server's, as ``model.server_norm`` says.
    leave_after
        See ``GenerationEngine``.
    """

    def __init__(self, path: str, *, server_norm: bool = False, leave_after: int = 0) -> None:
        self.folder = model_folder(path)
        self.scenario = Scenario(
            model=ModelConfig(path=str(self.folder), server_norm=server_norm),
            task=TaskConfig(kind="causal_lm", max_length=8),
            lora=LoraConfig(r_max=R_MAX, alpha=16.0),
        )
        self.checkpoint = checkpoint = Checkpoint(self.folder)
        self.engine = GenerationEngine(checkpoint, self.scenario, leave_after=leave_after)
        geometry = self.engine.geometry
        self._model = EdgeModel(
            Front(checkpoint, geometry.cut, torch.float32),
            Back(checkpoint, geometry.cut, torch.float32, final=not geometry.server_final),
            task_class("causal_lm")(self.scenario.task, ()),
            geometry,
        )
        self._head = LanguageHead.of(checkpoint, torch.float32)
        self.identity = Identity(PROTOCOL, "", "", "", "fp32")

    @property
    def full_ranks(self) -> list[int]:
        """The largest rank at each projection."""
        return [R_MAX] * len(self.engine.projections)

    def text_ends(self) -> TextEnds:
        """Return a device's two ends of a text."""
        return TextEnds(self._model, self._head)

    def row(self, ask: Ask, client: str) -> RemoteRow:
        """Return a device's session, not opened yet."""
        door, link = Door(OwnerTerms()), self.scenario.link
        return RemoteRow(ask, client, door, self.identity, link, self.engine.geometry)
