"""A server that generates and its clients, of a tiny random model; and the unsplit oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from clients.edge_model import EdgeModel
from clients.generation import DraftPace, LeaveEarly, RemoteRow, Writer
from clients.generation.ends import TextEnds
from clients.owner import Door, OwnerTerms
from fedlora.config import Scenario, with_overrides
from fedlora.generation.bounds import CacheBounds
from fedlora.generation.engine import GenerationEngine
from fedlora.generation.server import GenerationServer
from fedlora.link import PROTOCOL, Identity
from fedlora.lora.export import Adapter
from fedlora.split import Back, Checkpoint, Front, LanguageHead, compute_as_kept
from support.architectures import tiny

R_MAX, ALPHA = 4, 8.0


class Generation:
    """A server over a tiny model with a random adapter.

    Parameters
    ----------
    folder
        Where the model is, or is made if ``kind`` says which.
    ranks
        The rank of each client at every projection.
    overrides
        Of the scenario.
    """

    def __init__(
        self,
        folder: Path,
        kind: str = "",
        ranks: Sequence[int] = (R_MAX,),
        *overrides: str,
        bounds: CacheBounds | None = None,
        chunk_tokens: int = 128,
        leave_after: int = 0,
    ) -> None:
        if kind:
            tiny(kind, folder)
        settings = [f"model.path={folder}", "task.kind=causal_lm", f"lora.r_max={R_MAX}"]
        settings += [f"lora.alpha={ALPHA}", *overrides]
        self.scenario = with_overrides(Scenario(), settings)
        self.folder, self.checkpoint = folder, Checkpoint(folder)
        self.engine = GenerationEngine(self.checkpoint, self.scenario, leave_after=leave_after)
        self.adapter = random_adapter(self.engine, folder)
        self.engine.load(self.adapter)
        checkpoint = self.checkpoint
        digests = (checkpoint.config_digest, checkpoint.weights_digest, "tokenizer")
        self.identity = Identity(PROTOCOL, *digests, "fp32")
        self._unsplit: dict[str, Any] = {}
        width = len(self.engine.projections)
        self.ranks = {str(n): [r] * width for n, r in enumerate(ranks)}
        self.server = GenerationServer(
            *(self.engine, self.scenario, self.identity),
            ranks=self.ranks,
            bounds=bounds,
            chunk_tokens=chunk_tokens,
        )

    def row(self, client: str = "0", terms: OwnerTerms | None = None) -> RemoteRow:
        """Return a client's own session, not opened yet."""
        door, geometry = Door(terms or OwnerTerms()), self.engine.geometry
        return RemoteRow(
            self.server.carry, client, door, self.identity, self.scenario.link, geometry
        )

    def writer(
        self,
        client: str = "0",
        terms: OwnerTerms | None = None,
        longest_draft: int = 0,
        ends: tuple[int, ...] = (),
        leaving: LeaveEarly | None = None,
    ) -> Writer:
        """Return a client that writes."""
        row = self.row(client, terms)
        writer = Writer(self.text_ends(), row, ends, DraftPace(longest_draft))
        writer.leaving = leaving
        return writer

    def text_ends(self) -> TextEnds:
        """Return a client's two ends of the model."""
        checkpoint, cut = self.checkpoint, self.engine.geometry.cut
        front = Front(checkpoint, cut, torch.float32)
        final = not self.engine.geometry.server_final
        back = Back(checkpoint, cut, torch.float32, final=final)
        model = EdgeModel(front, back, None, self.engine.geometry)  # type: ignore[arg-type]
        return TextEnds(model, LanguageHead.of(checkpoint, torch.float32))

    def unsplit(self, client: str = "0") -> Any:
        """Return Hugging Face's model with the adapter that this client would be given."""
        if client not in self._unsplit:
            model = AutoModelForCausalLM.from_pretrained(self.folder)
            if form := self.scenario.model.few_bits:
                held = range(self.checkpoint.blocks)
                compute_as_kept(model, self.engine.blocks.family.layers, held, form)
            if any(self.ranks[client]):
                place = self.folder / f"adapter-{client}"
                self.adapter.save(place, self.ranks[client])
                model = PeftModel.from_pretrained(model, str(place))
            self._unsplit[client] = model.eval()
        return self._unsplit[client]


def random_adapter(engine: GenerationEngine, folder: Path, seed: int = 1) -> Adapter:
    """Return an adapter with random A and B, named as the whole model has its modules."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        config = engine.blocks.model.config.__class__.from_pretrained(folder)
        whole = [name for name, _ in AutoModelForCausalLM.from_config(config).named_modules()]
    factors = {}
    for projection in engine.projections:
        name = next(name for name in whole if name.endswith(f".{projection.name}"))
        factors[name] = tuple(
            0.3 * torch.randn(factor.shape, generator=generator)
            for factor in (projection.A, projection.B)
        )
    transposed = any(isinstance(p.module.get_base_layer(), Conv1D) for p in engine.projections)
    return Adapter(factors, ALPHA, str(folder), "CAUSAL_LM", fan_in_fan_out=transposed)


def another(adapter: Adapter, engine: GenerationEngine, folder: Path) -> Adapter:
    """Return an adapter of the same shapes with other numbers."""
    return replace(adapter, factors=random_adapter(engine, folder, seed=2).factors)


def written(model: Any, prompt: Sequence[int], most: int, **options: Any) -> list[int]:
    """Return what ``generate`` of transformers writes after a prompt."""
    ids = torch.tensor([list(prompt)])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, **options
        )
    return out[0, len(prompt) :].tolist()
