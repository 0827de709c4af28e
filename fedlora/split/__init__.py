"""A checkpoint cut between client and server, one file a family."""

from fedlora.split.blocks import Blocks, Cut, cut_widths, embedding_width, pad_rows
from fedlora.split.checkpoint import DTYPES, Checkpoint
from fedlora.split.edge import Back, Front, TokenEmbedding, pool_packed
from fedlora.split.embeddings import LanguageHead, language_head
from fedlora.split.family import find_family
from fedlora.split.resolve import model_folder, published_name, resolve_path

__all__ = [
    "DTYPES",
    "Back",
    "Blocks",
    "Checkpoint",
    "Cut",
    "Front",
    "LanguageHead",
    "TokenEmbedding",
    "cut_widths",
    "embedding_width",
    "find_family",
    "language_head",
    "model_folder",
    "pad_rows",
    "pool_packed",
    "published_name",
    "resolve_path",
]
