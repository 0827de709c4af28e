"""The compute of a step on the server: all clients' rows in one forward and one backward."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from fedlora.config import Scenario
from fedlora.geometry import Geometry
from fedlora.lora.also import AlsoTrained
from fedlora.lora.device import check_device
from fedlora.lora.fused import fuse
from fedlora.lora.layers import add_lora, set_adapter_dropout
from fedlora.lora.masks import RankMasks
from fedlora.lora.start import start_from
from fedlora.privacy.noise_propagation import SnrMeter
from fedlora.server.compute.adapter_update import AdapterUpdate, gradient_size
from fedlora.server.compute.batch import ClientRows, OpenBatch, SpoiledError
from fedlora.server.compute.frozen_rows import FrozenRows, Lacking
from fedlora.server.compute.kept_states import KeptStates
from fedlora.server.compute.placement import Placement
from fedlora.server.compute.prefix import Prefix
from fedlora.split import DTYPES, Blocks, Checkpoint, TokenEmbedding
from fedlora.tasks import task_class
from fedlora.threads import on_threads

log = logging.getLogger("fedlora.server")

AdapterState = Mapping[str, torch.Tensor]


class SplitEngine:
    """Frozen blocks with LoRA; one batch forward, and one backward.

    Both compute with the number of torch's threads that there was when it was made, whatever the
    server does the rest of its work with.

    Parameters
    ----------
    checkpoint
        Where the weights are.
    scenario
        Model, LoRA, task and training sections are used.

    Attributes
    ----------
    geometry
        Which blocks are here, and how wide what crosses is.
    vocabulary
        The token embedding, where clients send tokens (``link.activation``).
    prefix
        Runs batches through the blocks, and keeps what no client trains.
    also
        What trains whole beside the adapters.
    update
        Makes the next adapter of the gradients that ``backward`` adds up.
    """

    def __init__(self, checkpoint: Checkpoint, scenario: Scenario) -> None:
        self.geometry = geometry = Geometry.of(scenario, checkpoint)
        geometry.check_link(scenario)
        self.scenario = scenario
        self._threads = torch.get_num_threads()
        self.pool = scenario.task.pool if geometry.server_pools else None
        check_device(scenario.compute.device)
        self.device = torch.device(scenario.compute.device)
        self.blocks = Blocks(
            checkpoint,
            geometry.cut.start,
            geometry.cut.stop,
            final=geometry.server_final,
            dtype=self.dtype,
            load=False,
        )
        if not self.blocks.family.packs:
            log.info(
                "blocks of %s compute on rows padded to the longest: transformers' modules do not "
                "hand the rows' lengths on",
                checkpoint.model_type,
            )
        # the server's own copy of what devices hold, where they send tokens in its place
        sends_tokens = scenario.link.sends_tokens
        self.vocabulary = TokenEmbedding(checkpoint, self.dtype) if sends_tokens else None
        self.placement = Placement(self.blocks, scenario.compute, scenario.model.few_bits)
        self.placement.load()
        self.projections = add_lora(self.blocks, scenario.lora, scenario.seed)
        if scenario.lora.start:
            pooled = not task_class(scenario.task.kind).language()
            start_from(self.projections, scenario.lora, checkpoint, geometry.cut, pooled=pooled)
        self.placement.attach(self.projections)
        self.r_max = scenario.lora.r_max
        self.masks = RankMasks(self.projections, self.r_max)
        self.also = AlsoTrained(self.blocks, scenario)
        self.update = AdapterUpdate(self.projections, scenario, self.also)
        fuse(self.projections, self.masks, self.update.by_client)
        self.prefix = Prefix(
            self.blocks,
            self.projections,
            self.masks,
            scenario,
            self.pool,
            self.update.by_client,
        )
        self._rows: Sequence[ClientRows] = ()
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None
        self._frozen: FrozenRows | None = None
        self._snr = SnrMeter(len(self.projections))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen blocks."""
        return DTYPES[self.scenario.model.dtype]

    def forward(
        self, rows: Sequence[ClientRows], *, train: bool, exchange: int = 0
    ) -> list[torch.Tensor]:
        """Run one batch of all clients.

        Parameters
        ----------
        rows
            The clients' uploads, in the order of their identifiers.
        train
            Whether ``backward`` follows.
        exchange
            Number of the training exchange in the run, from which dropout masks follow.

        Returns
        -------
        list of torch.Tensor
            For each client what goes down: (rows, width) if pooled, else packed (tokens, width).
        """
        if self._frozen is not None and not train and not any(any(r.ranks) for r in rows):

            def lacking(found: Sequence[Lacking]) -> list[torch.Tensor]:
                own = [
                    dataclasses.replace(rows[r.place], activation=r.packed, lengths=r.lengths)
                    for r in found
                ]
                return self._forward(own, train=False, exchange=exchange)

            return self._frozen.forward(rows, lacking)
        return self._forward(rows, train=train, exchange=exchange)

    def _forward(
        self, rows: Sequence[ClientRows], *, train: bool, exchange: int
    ) -> list[torch.Tensor]:
        set_adapter_dropout(self.projections, train)
        drops = train and self.scenario.lora.dropout > 0
        with torch.random.fork_rng(enabled=drops):
            if drops:
                torch.manual_seed((self.scenario.seed << 32 | exchange) % 2**63)
            with on_threads(self._threads):
                packed, output = self.prefix.forward(rows, train=train)
        if train:
            self._rows, self._input, self._output = rows, packed, output
            self._begin()
        sizes = [len(r.lengths) if self.pool else sum(r.lengths) for r in rows]
        return list(torch.split(output.detach().float(), sizes))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Compute each row that may be kept once in this context, in steps that train no rank."""
        if not self.scenario.train.embedding:
            mib = self.scenario.compute.reuse_blocks_mib
            limit_bytes = (mib << 20) // max(1, self.scenario.federation.clients)
            self._frozen = FrozenRows(KeptStates(limit_bytes), pooled=bool(self.pool))
        try:
            yield
        finally:
            self._frozen = None

    def retain(self, clients: Collection[str]) -> None:
        """Forget what is kept of all other clients' rows."""
        self.prefix.retain(clients)
        if self._frozen is not None:
            self._frozen.retain(clients)

    def set_aside(self) -> OpenBatch:
        """Give away the batch that went forward for training, so that another can."""
        assert self._output is not None
        batch = OpenBatch(self._rows, self.masks.present, self._input, self._output)
        self._output = None
        return batch

    def take_up(self, batch: OpenBatch) -> None:
        """Let ``backward`` go over a batch that was set aside."""
        self._rows, self._input, self._output = batch.rows, batch.input, batch.output
        self.masks.present = batch.masks
        self._begin()

    def _begin(self) -> None:
        rows = self._rows
        self.update.begin_batch(
            [r.client for r in rows], self._places(rows), [r.ranks for r in rows]
        )

    def _places(self, rows: Sequence[ClientRows]) -> Sequence[int]:
        return self.blocks.places([r.lengths for r in rows])

    def backward(
        self,
        gradients: Sequence[torch.Tensor | None],
        weights: Sequence[float],
        noise: Sequence[torch.Tensor | None] = (),
    ) -> list[torch.Tensor] | None:
        """Back-propagate the clients' gradients of their unreduced losses, and add them up.

        Parameters
        ----------
        gradients
            In the order of ``forward``'s rows and the shape of what it returned; None where a
            client gave none, whose rows then count for nothing.
        weights
            Samples or target tokens of each client.
        noise
            A draw of the noise in each gradient, to tell signal from noise in each projection by;
            empty: not now.

        Returns
        -------
        list of torch.Tensor or None
            Where the embedding trains: gradient at each client's activation, packed.

        Raises
        ------
        SpoiledError
            When the gradients overflow; what earlier batches of the step added up is kept.
        """
        assert self._output is not None
        noise_energy = self.energies(noise) if noise else []
        before = []
        if noise:
            before = [f.grad.clone() if f.grad is not None else 0.0 for f in self._factors()]
        kept = self.update.kept()
        if self._output.requires_grad:  # nobody has a rank where it does not
            cotangent = self._cotangent(gradients)
            with on_threads(self._threads):
                torch.autograd.backward(self._output, cotangent)
        given = [None if g is None else w for g, w in zip(gradients, weights, strict=True)]
        if not self.update.is_sound(given):
            self.update.put_back(kept)
            self._output = None
            raise SpoiledError("a batch's gradients are beyond what floats hold")
        if noise:
            now = [f.grad if f.grad is not None else torch.zeros(()) for f in self._factors()]
            measured = _energies([a - b for a, b in zip(now, before, strict=True)])
            self._snr.add(measured, noise_energy)
        self.update.end_batch(given)
        self._output = None
        if self._input is None or self._input.grad is None:
            return None
        tokens = [sum(r.lengths) for r in self._rows]
        return list(torch.split(self._input.grad.float(), tokens))

    def size(self, gradients: Sequence[torch.Tensor | None], weights: Sequence[float]) -> float:
        """Return the size of a batch's gradients, in place of ``backward``; nothing is added up."""
        found = self._gradients(gradients)
        self._output = None
        return gradient_size(found, weights)

    def energies(self, gradients: Sequence[torch.Tensor | None]) -> list[float]:
        """Return the energy that gradients at the cut bring to each projection's A and B together.

        Parameters
        ----------
        gradients
            As for ``backward``, which may still follow: nothing is added up.
        """
        by_client = self.update.by_client
        with by_client.pause() if by_client else nullcontext():
            return _energies(self._gradients(gradients, again=True))

    def _gradients(
        self, gradients: Sequence[torch.Tensor | None], *, again: bool = False
    ) -> Sequence[torch.Tensor]:
        """Return what a batch brings to each factor; zeros where nobody has a rank."""
        assert self._output is not None
        factors, cotangent = self._factors(), self._cotangent(gradients)
        if not self._output.requires_grad:
            return [torch.zeros_like(factor) for factor in factors]
        with on_threads(self._threads):
            return torch.autograd.grad(
                self._output, factors, cotangent, retain_graph=again, materialize_grads=True
            )

    def _factors(self) -> list[torch.nn.Parameter]:
        return [factor for p in self.projections for factor in (p.A, p.B)]

    def _cotangent(self, parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Put the clients' gradients together, zeros where a client gave none."""
        assert self._output is not None
        sizes = [len(r.lengths) if self.pool else sum(r.lengths) for r in self._rows]
        width = self._output.shape[-1]
        cotangent = torch.cat(
            [torch.zeros(n, width) if g is None else g for g, n in zip(parts, sizes, strict=True)]
        )
        return cotangent.to(self.device, self._output.dtype)

    def round_snr(self) -> list[float] | None:
        """Return each projection's gradient signal-to-noise ratio since the last call.

        From the steps that were given a draw of the noise; None when there was none. The ratio is
        one of energies, of A and B together; see ``fedlora.privacy.noise_propagation``.
        """
        return self._snr.take()

    def adapter(self) -> dict[str, torch.Tensor]:
        """Return a copy of all factors, as ``NAME.A`` and ``NAME.B``, and of ``lora.also``'s."""
        state = self.also.values()
        for projection in self.projections:
            state[f"{projection.name}.A"] = projection.A.detach().clone()
            state[f"{projection.name}.B"] = projection.B.detach().clone()
        return state

    @torch.no_grad()
    def load_adapter(self, state: AdapterState) -> None:
        """Set all factors from what ``adapter`` returned."""
        self.also.load(state)
        for projection in self.projections:
            projection.A.copy_(state[f"{projection.name}.A"])
            projection.B.copy_(state[f"{projection.name}.B"])

    def state_dict(self) -> dict[str, Any]:
        """Return factors, optimiser and clients' momentum, for a checkpoint between rounds.

        Nothing else changes: what is random follows from the seed and the number of the exchange.
        """
        return {"adapter": self.adapter(), **self.update.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave, and forget a step or round that was not finished.

        Raises
        ------
        FedloraError
            For another model's state.
        """
        self.update.load_state_dict(state)
        self._snr.take()
        self.load_adapter(state["adapter"])

    def full_ranks(self) -> list[int]:
        """Return the vector that uses every component."""
        return [self.r_max] * len(self.projections)

    def zero_ranks(self) -> list[int]:
        """Return the vector that leaves the backbone as it is."""
        return [0] * len(self.projections)


def _energies(gradients: Sequence[torch.Tensor]) -> list[float]:
    """Return the squared norm of each projection's two gradients together."""
    squares = [float(g.detach().double().square().sum()) for g in gradients]
    return [a + b for a, b in zip(squares[::2], squares[1::2], strict=True)]
