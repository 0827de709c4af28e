"""The scenario: everything that defines a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedlora.config.channel import ChannelConfig
from fedlora.config.data import DataConfig, PartitionConfig
from fedlora.config.learning import (
    FrontConfig,
    HeadConfig,
    LoraConfig,
    ModelConfig,
    TaskConfig,
    TrainConfig,
)
from fedlora.config.observe import ObserveConfig
from fedlora.config.placement import is_away
from fedlora.config.privacy import PrivacyPolicy
from fedlora.config.ranges import check_ranges, within
from fedlora.config.robust import RobustConfig
from fedlora.config.system import (
    ENDS,
    ComputeConfig,
    EvaluateConfig,
    FederationConfig,
    LinkConfig,
    RanksConfig,
)
from fedlora.errors import FedloraError, require, shown


@dataclass(frozen=True)
class Scenario:
    """A whole run; see the sections for their keys.

    Attributes
    ----------
    name
        Used for the run folder and the report.
    seed
        Everything random except privacy noise follows from it.
    python_path
        Folder of a stranger's plug-ins, put on the import path of the server and the edge hosts. A
        relative one starts from the scenario's file.
    """

    name: str = "quickstart"
    seed: int = within(0, 0, (1 << 63) - 1)
    python_path: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    front: FrontConfig = field(default_factory=FrontConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    privacy: PrivacyPolicy = field(default_factory=PrivacyPolicy)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    def __post_init__(self) -> None:
        require(
            bool(self.name.strip(" .")) and not any(c in "/\\" or c < " " for c in self.name),
            f"name is {shown(self.name)}; write some letters without / and \\, as the run's folder "
            "is named after it",
        )
        check_ranges(self)
        require(
            self.federation.min_clients <= self.federation.clients,
            f"federation.min_clients {self.federation.min_clients} exceeds federation.clients "
            f"{self.federation.clients}, so no round could start; lower it or add clients",
        )
        require(
            self.federation.clients_per_round <= self.federation.clients,
            f"federation.clients_per_round {self.federation.clients_per_round} exceeds "
            f"federation.clients {self.federation.clients}; lower it or add clients",
        )
        require(
            self.train.embedding or self.front.share == "personal",
            f"front.share is {self.front.share}, and train.embedding is false, so that no front "
            "trains; set it to true, or front.share to personal",
        )
        require(
            self.link.reuse or not self.compute.reuse_blocks,
            "compute.reuse_blocks is true and link.reuse is false, by which devices say what may "
            "be kept of their rows; set link.reuse to true",
        )
        self._check_weights()
        self._check_also()
        self._check_generate()
        self._check_ends()
        taking_part = self.federation.clients_per_round or self.federation.clients
        require(
            not self.train.overlap or taking_part > 1,
            f"train.overlap is true with {taking_part} client a round, and two halves of them "
            "overlap; set it to false, or let more clients take part",
        )
        require(
            not self.robust.enabled or taking_part > 2 * self.robust.hostile,
            f"robust.hostile is {self.robust.hostile} with {taking_part} clients a round; a robust "
            f"average needs at least {2 * self.robust.hostile + 1}, so add clients, or set "
            "robust.average to mean",
        )

    def _check_weights(self) -> None:
        """Refuse few bits for blocks that are brought from where the checkpoint has them."""
        form, compute = self.model.few_bits, self.compute
        away = [place for place in compute.device_map if is_away(place, compute.device)]
        key = "compute.max_memory" if compute.max_memory else "compute.device_map"
        require(
            not form or not (away or compute.max_memory),
            f"model.weights is {form!r}, and {key} has blocks brought to the device as the "
            "checkpoint has them; set model.weights to fp32, or keep all blocks on devices",
        )

    def _check_also(self) -> None:
        """Refuse to train norms and positions where a run rests on their being those of the base.

        Raises
        ------
        FedloraError
            See above.
        """
        if not self.lora.also:
            return
        also, compute = f"lora.also is {list(self.lora.also)}", self.compute
        key = "compute.max_memory" if compute.max_memory else "compute.device_map"
        require(
            self.model.dtype == "fp32" and not self.model.few_bits,
            f"{also}, which trains in fp32, and the blocks are kept in {self.model.precision}; set "
            "model.dtype to fp32 and model.weights to it, too, or leave lora.also empty",
        )
        require(
            not compute.device_map and not compute.max_memory,
            f"{also}, and {key} has blocks brought to the device as the checkpoint has them; keep "
            "all blocks on one device, or leave lora.also empty",
        )
        require(
            not compute.reuse_blocks,
            f"{also}, which changes what the lowest blocks make of a row, and compute.reuse_blocks "
            "keeps that; set one of the two off",
        )
        require(
            not self.robust.enabled and not self.robust.momentum,
            f"{also}, whose gradients are averaged over clients as a mean, and robust.average is "
            f"{self.robust.average}; set it to mean, or leave lora.also empty",
        )
        require(
            not self.channel.deliver_every,
            f"{also}, and with channel.deliver_every {self.channel.deliver_every} a client works "
            "with what it was last delivered, or with the bare backbone; set it to 0, or leave "
            "lora.also empty",
        )

    def _check_generate(self) -> None:
        """Refuse to have prompts completed where there are none, or where that would tell of them.

        Raises
        ------
        FedloraError
            See above.
        """
        prompts, data = self.evaluate.generate, self.data
        if not prompts:
            return
        require(
            not self.privacy.enabled,
            f"evaluate.generate is {prompts} and privacy is on, and no noise covers held-out texts "
            "or their scores; set evaluate.generate to 0",
        )
        require(
            data.form != "text" or bool(data.prompt_separator),
            f"evaluate.generate is {prompts}, and records are texts without prompts; set "
            "data.prompt_separator, data.prompt with data.completion, or data.messages",
        )

    def _check_ends(self) -> None:
        """Refuse codecs of shared heads and fronts where they must be the same on both sides."""
        coded = [end for end in ENDS if getattr(self.link, end) != "fp32"]
        if not coded or self.front.share == self.head.share == "personal":
            return
        if self.privacy.enabled:
            why = "under privacy client and server must have the same head"
        elif self.link.r_cut:
            why = f"with link.r_cut {self.link.r_cut} the server applies the head itself"
        else:
            return
        told = f"link.{coded[0]} is {getattr(self.link, coded[0])}"
        raise FedloraError(f"{told}, and {why}; set it to fp32")
