"""Small private federations in this process, with a tap on what each client uploads."""

from __future__ import annotations

import random
from pathlib import Path

from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from fedlora.config import Scenario, with_overrides
from fedlora.link import Frame
from fedlora.report import RunFolder
from simulations import in_process
from simulations.in_process import Handler, Record

LABELS = ("cold", "mild", "warm")


def write_records(path: Path, rows: int) -> Path:
    rng = random.Random(1)
    words = {"cold": ["snow", "ice"], "mild": ["rain", "fog"], "warm": ["sun", "beach"]}
    lines = ["text,label"]
    for number in range(rows):
        label = LABELS[number % 3]
        text = [rng.choice([*words[label], "lamp", "door"]) for _ in range(rng.randint(2, 6))]
        lines.append(f"{' '.join(text)} {number},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


def scenario(data: Path, *overrides: str) -> Scenario:
    defaults = [
        f"data.train={data}",
        "data.holdout=0.2",
        "federation.clients=2",
        "partition.min_rows=4",
        "lora.r_max=2",
        "task.max_length=12",
        "train.rounds=2",
        "train.steps=2",
        "train.batch_size=4",
        "evaluate.baseline=false",
        "evaluate.report=true",
        "head.share=step",
        "privacy.sigma=2.0",
        "privacy.release=logits",
        "compute.threads=1",
    ]
    return with_overrides(Scenario(), [*defaults, *overrides])


class Federation(in_process.Federation):
    """A server and its clients; ``sent`` holds every pair of request and reply."""

    def __init__(
        self,
        config: Scenario,
        terms: dict[int, OwnerTerms] | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        self.recorder, self.sent = Record(), list[tuple[Frame, Frame]]()
        super().__init__(config, folder or self.recorder, 1, self._tap, terms)

    def _tap(self, client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            self.sent.append((frame, reply))
            return reply

        return handle

    def run(self) -> Federation:
        self.server.training.run()
        return self

    def replies(self, kind: str) -> list[Frame]:
        return [reply for _, reply in self.sent if reply.kind == kind]
