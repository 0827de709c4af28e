"""A checkpoint cut between client and server, one file a family."""

from fedlora.split.blocks import Blocks, Cut, cut_widths, embedding_width, empty_model, pad_rows
from fedlora.split.checkpoint import DTYPES, Checkpoint
from fedlora.split.conformity import check_conformity, plain_llama
from fedlora.split.edge import Back, Front, TokenEmbedding, pool_packed
from fedlora.split.embeddings import LanguageHead, language_head, token_embedding
from fedlora.split.family import Family, Loader, final_stage, find_family
from fedlora.split.few_bits import (
    LIBRARIES,
    FewBitLinear,
    check_form,
    compute_as_kept,
    predicted_bytes,
)
from fedlora.split.frozen_linear import FrozenLinear, linear_names, replace_linear
from fedlora.split.plain import PlainLlama
from fedlora.split.prepacked import PrepackedLinear, to_prepack
from fedlora.split.resolve import is_hub_name, model_folder, published_name, resolve_path
from fedlora.split.slice import (
    RUN_FILE,
    RUN_HEAD,
    RUN_SCENARIO,
    Package,
    edge_tensors,
    slice_checkpoint,
)
from fedlora.split.tokenizer_files import TOKENIZER_FILES, copy_tokenizer, has_tokenizer
from fedlora.split.whole import load_whole, take_embedding

__all__ = [
    "DTYPES",
    "LIBRARIES",
    "RUN_FILE",
    "RUN_HEAD",
    "RUN_SCENARIO",
    "TOKENIZER_FILES",
    "Back",
    "Blocks",
    "Checkpoint",
    "Cut",
    "Family",
    "FewBitLinear",
    "Front",
    "FrozenLinear",
    "LanguageHead",
    "Loader",
    "Package",
    "PlainLlama",
    "PrepackedLinear",
    "TokenEmbedding",
    "check_conformity",
    "check_form",
    "compute_as_kept",
    "copy_tokenizer",
    "cut_widths",
    "edge_tensors",
    "embedding_width",
    "empty_model",
    "final_stage",
    "find_family",
    "has_tokenizer",
    "is_hub_name",
    "language_head",
    "linear_names",
    "load_whole",
    "model_folder",
    "pad_rows",
    "plain_llama",
    "pool_packed",
    "predicted_bytes",
    "published_name",
    "replace_linear",
    "resolve_path",
    "slice_checkpoint",
    "take_embedding",
    "to_prepack",
    "token_embedding",
]
