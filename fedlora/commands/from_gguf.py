"""``fedlora from-gguf``: a model folder of a GGUF file, for fedlora, transformers and PEFT."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import typer

from fedlora.errors import FedloraError, shown
from fedlora.split import Checkpoint, find_family, resolve_path
from fedlora.storage import FolderKind
from fedlora.tasks import load_tokenizer

_KIND = FolderKind("model", (), ())


def write_model(file: str, out: Path) -> None:
    """Write the model of a GGUF file as a folder, and say how large it is.

    Parameters
    ----------
    file
        The file: a path, or ``package:NAME/FILE`` inside an installed package.
    out
        Folder to write, which must be new or empty.

    Raises
    ------
    FedloraError
        When the file cannot be read, is of a model that fedlora does not know, or the folder is in
        use. Nothing is left in the folder then.
    """
    source = resolve_path(file, "GGUF file", "FILE")
    if not source.is_file():
        raise FedloraError(f"FILE {source} is a folder; name the GGUF file in it")
    _KIND.check_free(out, overwrite=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        made = Path(aside) / "model"
        _convert(source, made)
        find_family(Checkpoint(made))
        load_tokenizer(made)
        size = sum(part.stat().st_size for part in made.iterdir())
        if out.is_dir():
            out.rmdir()
        shutil.move(made, out)
    typer.echo(f"wrote {size / 1e6:.0f} MB in fp32 to {out}; name it as model.path")


def _convert(source: Path, made: Path) -> None:
    """Have transformers read the file, and save it as a model whose weights are plain numbers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    options = {"gguf_file": source.name, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent), dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **options)
    except ImportError as error:
        raise FedloraError(
            f"a GGUF file is read by gguf ({_first_line(error)}); pip install gguf"
        ) from None
    except Exception as error:  # whatever a file that is none, or of an unknown model, comes to
        raise FedloraError(
            f"{shown(str(source))} cannot be read ({_first_line(error)}); name a GGUF file of a "
            "model that transformers reads"
        ) from None
    # transformers takes the weights to be quantised still, and refuses to save them.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:")[:200] or type(error).__name__
