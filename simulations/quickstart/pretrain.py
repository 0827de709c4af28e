"""Pretrain the quickstart decoder: a small Llama and its tokenizer, from generated stories.

``python -m simulations.quickstart.pretrain --out DIR`` takes under five minutes on one core; its
defaults made the folder ``decoder`` beside this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup as cosine_schedule,
)

from simulations.progress import Bars
from simulations.quickstart.stories import iter_pretraining_text
from simulations.refusals import one_sentence

VOCABULARY = 1024
POSITIONS = 128
PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(seed: int, documents: int = 20_000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts the start token before every text.

    Parameters
    ----------
    seed : int
        Seed of the text.
    documents : int
        Number of documents to learn merges from.

    Returns
    -------
    PreTrainedTokenizerFast
        Tokenizer with padding on the right.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(iter_pretraining_text(seed), documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="right",
        model_max_length=POSITIONS,
    )


def decoder_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the shape of the decoder: 4 blocks of width 128, tied embeddings, 0.8 M weights."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def iter_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, rows: int, length: int = POSITIONS
) -> Iterator[torch.Tensor]:
    """Pack documents end to end into rows.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        Tokenizer that adds the start token; the end token is added here.
    seed : int
        Seed of the text.
    rows : int
        Rows a batch.
    length : int
        Tokens a row.

    Yields
    ------
    torch.Tensor
        Token ids, (rows, length), int64.
    """
    texts = iter_pretraining_text(seed)
    tokens: list[int] = []
    while True:
        while len(tokens) < rows * length:
            for ids in tokenizer(list(islice(texts, 256)))["input_ids"]:
                tokens += [*ids, tokenizer.eos_token_id]
        yield torch.tensor(tokens[: rows * length]).view(rows, length)
        del tokens[: rows * length]


def main(
    out: Annotated[Path, typer.Option(help="folder for the model and its tokenizer")],
    steps: Annotated[int, typer.Option(min=1)] = 1200,
    seed: int = 0,
    rows: Annotated[int, typer.Option(min=1, help="rows of 128 tokens a step")] = 16,
    learning_rate: float = 3e-3,
) -> None:
    """Pretrain tokenizer and decoder and save them as a Hugging Face folder."""
    torch.set_num_threads(1)  # bits must not depend on the number of cores
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    model = LlamaForCausalLM(decoder_config(tokenizer))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    schedule = cosine_schedule(optimizer, num_warmup_steps=steps // 20, num_training_steps=steps)
    columns = (
        TextColumn("pretraining, loss {task.fields[loss]:.3f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns) as progress:
        bar = progress.add_task("pretraining", total=steps, loss=float("nan"))
        for batch in islice(iter_batches(tokenizer, seed + 1, rows), steps):
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1, loss=loss.item())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    with one_sentence():
        typer.run(main)
