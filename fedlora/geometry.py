"""What a scenario makes of a checkpoint: which blocks are where, and how wide what crosses is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import Labels, Logits, mechanism_of
from fedlora.split import Checkpoint, Cut, cut_widths, embedding_width
from fedlora.tasks import Classification, head_trains, task_class

_RAW_BITS, _RAW_ROWS = 32, 16  # fp32; rows that a plain loop pads to the longest of them


_WITHOUT_HEAD = Logits | Labels  # what these release takes no head to compute


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
    server_final
        Whether the server applies the modules after the last block, above all the final norm.
    classifies
        Whether the server pools, and the head is of classes.
    trains_head
        Whether the head trains.
    embedding_width
        Numbers of a vector that the client's front makes, before any block.
    activation_width
        Numbers a token of the smashed data that go up.
    representation_width
        Numbers a row that come down, a row being a sample where the server pools, else a token.
    head_width
        Numbers that the head is given, after the final stage.
    """

    cut: Cut
    server_pools: bool
    server_final: bool
    classifies: bool
    trains_head: bool
    embedding_width: int
    activation_width: int
    representation_width: int
    head_width: int

    def targets_only(self, scenario: Scenario) -> bool:
        """Tell whether only the tokens that are learnt go down and come back as gradients.

        Which they are says where prompts end, which privacy would have to pay for.
        """
        language = task_class(scenario.task.kind).language()
        tokens_alone = language and self.cut.stop == self.cut.blocks
        return tokens_alone and scenario.link.targets_only and not scenario.privacy.enabled

    def raw_bits(self, lengths: Sequence[int]) -> int:
        """Return what rows take where all is sent at every step, as it is: the raw cut.

        That is fp32 activations up, representations down and gradients up, for every token and
        each time that a row is trained on, rows padded to the longest of 16.

        Parameters
        ----------
        lengths
            Tokens of one client's rows, in the order in which it trained on them.
        """
        batches = [lengths[i : i + _RAW_ROWS] for i in range(0, len(lengths), _RAW_ROWS)]
        tokens = sum(len(batch) * max(batch) for batch in batches)
        return _RAW_BITS * tokens * (self.activation_width + 2 * self.representation_width)

    def check_r_cut(self, scenario: Scenario, classes: int = 0) -> None:
        """Refuse a width of the cut (``link.r_cut``) at which something would be lost.

        Parameters
        ----------
        scenario
            Its ``link`` section is held against the rest.
        classes
            Of the task; 0 where they are not known yet.

        Raises
        ------
        FedloraError
            When the head has another number of directions, or the server does not know it.
        """
        r_cut = scenario.link.r_cut
        if not r_cut:
            return
        whole, share = "or link.r_cut to 0, which sends all", scenario.head.share
        if not (self.server_pools and issubclass(task_class(scenario.task.kind), Classification)):
            why = "only a classifier that the server pools has so few directions; set it to 0"
        elif share != "step" or not self.trains_head:
            trains = "does not train" if share == "step" else f"has head.share {share}"
            why = f"the head, which the server then applies, {trains}; set head.share to step, "
            why += whole
        elif not isinstance(mechanism_of(scenario.privacy), _WITHOUT_HEAD | None):
            why = f"a device needs the head for privacy.release {scenario.privacy.release}; set "
            why += "that to logits or labels, " + whole
        elif classes and r_cut != classes - 1:
            why = f"a head of {classes} classes tells {classes - 1} directions apart; set it to "
            why += f"{classes - 1}, {whole}"
        elif r_cut >= self.representation_width:
            why = f"a row has {self.representation_width} numbers; set it to 0"
        else:
            return
        raise FedloraError(f"link.r_cut is {r_cut}, and {why}")

    def check_link(self, scenario: Scenario) -> None:
        """Refuse what ``link`` asks for and a run's ends cannot do.

        Raises
        ------
        FedloraError
            When activations stand for no tokens (``link.activation``), or tokens cannot be left out
            (``link.keep``).
        """
        self._check_tokens(scenario)
        if scenario.link.keep == 1:
            return
        if not task_class(scenario.task.kind).language():
            why = f"task.kind {scenario.task.kind} has no tokens that are learnt; set it to 1"
        elif scenario.privacy.enabled:
            why = "which tokens are kept tells of what is learnt, which privacy would have to pay "
            why += "for; set it to 1"
        else:
            return
        raise FedloraError(f"link.keep is {scenario.link.keep:g}, and {why}")

    def _check_tokens(self, scenario: Scenario) -> None:
        """Refuse to send tokens (``link.activation``) where an activation stands for none."""
        if not scenario.link.sends_tokens:
            return
        other = "choose another codec, such as distinct"
        if not task_class(scenario.task.kind).tokens:
            why = f"inputs of task.kind {scenario.task.kind} are no tokens; {other}"
        elif self.cut.start:
            why = "the client's blocks make other vectors of tokens; set model.client_front to 0, "
            why += f"or {other}"
        elif scenario.train.embedding:
            why = "the embedding trains, so that the server's is another; set train.embedding to "
            why += f"false, or {other}"
        elif scenario.privacy.activation_sigma is not None:
            why = f"privacy.activation_sigma is {scenario.privacy.activation_sigma}, which hides "
            why += f"tokens; {other}"
        else:
            return
        raise FedloraError(f"link.activation is tokens, and {why}")

    def check_front(self, scenario: Scenario, checkpoint: Checkpoint) -> None:
        """Refuse to share token embeddings that no frame holds.

        Raises
        ------
        FedloraError
            When ``link.max_frame_mib`` is too small for them.
        """
        if scenario.front.share == "personal" or not task_class(scenario.task.kind).tokens:
            return
        most = scenario.link.max_frame_mib
        needed = math.ceil(4 * self.embedding_width * checkpoint.size("vocab_size") / 2**20) + 1
        if needed > most:
            raise FedloraError(
                f"front.share is {scenario.front.share}, and the token embedding takes {needed} "
                f"MiB, where link.max_frame_mib is {most}; raise it, or set front.share to personal"
            )

    @classmethod
    def of(cls, scenario: Scenario, checkpoint: Checkpoint) -> Geometry:
        """Return a scenario's geometry with a checkpoint.

        Raises
        ------
        FedloraError
            When no block is left for the server, or there is no such task.
        """
        cut = Cut.of(checkpoint, scenario.model.client_front, scenario.model.client_back)
        kind = task_class(scenario.task.kind)
        pools = kind.pooled and cut.stop == cut.blocks
        final = pools or (scenario.model.server_norm and not kind.pooled)
        up, down = cut_widths(checkpoint, cut, final=final)
        whole = Cut(cut.blocks, cut.start, cut.blocks)
        return cls(
            cut=cut,
            server_pools=pools,
            server_final=final,
            classifies=pools and kind.labelled,
            trains_head=head_trains(scenario),
            embedding_width=embedding_width(checkpoint),
            activation_width=up,
            representation_width=down,
            head_width=cut_widths(checkpoint, whole, final=True)[1],
        )
