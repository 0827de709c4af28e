"""Peak memory of a step with blocks in different places: ``python -m simulations.bench.placement``.

A random model of the Llama shape is written once; each setting runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from fedlora.config import Scenario, with_overrides
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Checkpoint

LAYERS, WIDTH, ROWS, TOKENS = 16, 1024, 4, 64
SETTINGS = {
    "all on the device": [],
    "and checkpointed": ["compute.checkpoint=true"],
    "all on disk, checkpointed": [
        "compute.checkpoint=true",
        f'compute.device_map={{disk = "0-{LAYERS - 1}"}}',
    ],
}


def write_model(folder: Path) -> None:
    """Write a random model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=WIDTH, intermediate_size=2816, num_hidden_layers=LAYERS,
        num_attention_heads=16, max_position_embeddings=TOKENS,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(folder: Path, overrides: list[str]) -> tuple[float, float, float]:
    """Return the model's MiB, the peak MiB of loading and one step beyond, and the step's s."""
    process, peak, over = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    warm = torch.randn(64, 64, requires_grad=True)
    (warm @ warm).sum().backward()  # type: ignore[no-untyped-call]
    checkpoint = Checkpoint(folder)
    scenario = with_overrides(Scenario(), ["lora.r_max=8", *overrides])
    before = process.memory_info().rss
    threading.Thread(target=watch, daemon=True).start()
    engine = SplitEngine(checkpoint, scenario)
    rows = ClientRows(torch.randn(ROWS * TOKENS, WIDTH), [TOKENS] * ROWS, engine.full_ranks())
    started = time.perf_counter()
    [z] = engine.forward([rows], train=True)
    engine.backward([torch.randn_like(z)], [float(ROWS)])
    engine.update.step(0)
    seconds = time.perf_counter() - started
    over.set()
    size = sum(e.stop - e.start for name, e in checkpoint.entries.items() if ".layers." in name)
    return size / 2**20, (peak[0] - before) / 2**20, seconds


def main() -> None:
    """Measure every setting and print a line for each."""
    if len(sys.argv) > 1:
        size, peak, seconds = measure(Path(sys.argv[1]), SETTINGS[sys.argv[2]])
        print(f"{sys.argv[2]:28} blocks {size:.0f} MiB, peak {peak:.0f} MiB, step {seconds:.1f} s")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for name in SETTINGS:
            command = [sys.executable, "-m", "simulations.bench.placement", folder, name]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
