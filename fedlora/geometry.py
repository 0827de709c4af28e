"""What a scenario makes of a checkpoint: which blocks are where, and how wide what crosses is."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.config import Scenario
from fedlora.split import Checkpoint, Cut, cut_widths
from fedlora.tasks import head_trains, task_class


@dataclass(frozen=True)
class Geometry:
    """The shape of a run: the same for its server, its clients and whoever checks it.

    Attributes
    ----------
    cut
        Which blocks the server holds.
    server_pools
        Whether the server pools each sample's tokens and sends one vector a sample: of a pooled
        task, where no block follows on the client. In a U-shaped split (``model.client_back``) the
        client pools.
    trains_head
        Whether the head trains.
    activation_width
        Numbers a token of the smashed data that go up.
    representation_width
        Numbers a row that come down, a row being a sample where the server pools, else a token.
    head_width
        Numbers that the head is given, after the final stage.
    """

    cut: Cut
    server_pools: bool
    trains_head: bool
    activation_width: int
    representation_width: int
    head_width: int

    def targets_only(self, scenario: Scenario) -> bool:
        """Tell whether only the tokens that are learnt go down and come back as gradients.

        Which they are says where prompts end, which privacy would have to pay for.
        """
        tokens_alone = not self.server_pools and self.cut.stop == self.cut.blocks
        return tokens_alone and scenario.link.targets_only and not scenario.privacy.enabled

    @classmethod
    def of(cls, scenario: Scenario, checkpoint: Checkpoint) -> Geometry:
        """Return a scenario's geometry with a checkpoint.

        Raises
        ------
        FedloraError
            When no block is left for the server, or there is no such task.
        """
        cut = Cut.of(checkpoint, scenario.model.client_front, scenario.model.client_back)
        pools = task_class(scenario.task.kind).pooled and cut.stop == cut.blocks
        up, down = cut_widths(checkpoint, cut, final=pools)
        whole = Cut(cut.blocks, cut.start, cut.blocks)
        return cls(
            cut=cut,
            server_pools=pools,
            trains_head=head_trains(scenario),
            activation_width=up,
            representation_width=down,
            head_width=cut_widths(checkpoint, whole, final=True)[1],
        )
