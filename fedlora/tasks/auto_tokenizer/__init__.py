"""The tokenizer that ``AutoTokenizer`` makes of a folder, made with ``tokenizers`` alone.

transformers 5 takes ``tokenizer.json`` as it stands for some classes of tokenizers only. For others
it takes the vocabulary, the merges and the post-processor from there, and everything else from the
class and from ``tokenizer_config.json``. Which class it is follows from the architecture and from
``tokenizer_class``. Tests hold that both give the same serialisation.
"""

from fedlora.tasks.auto_tokenizer.load import AutoTokenizer, load_auto_tokenizer

__all__ = ["AutoTokenizer", "load_auto_tokenizer"]
