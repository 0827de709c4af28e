"""Which class of tokenizer transformers takes for a folder."""

from __future__ import annotations

from fedlora.errors import FedloraError

AS_IT_STANDS = "TokenizersBackend"
"""The class that takes ``tokenizer.json`` as it stands."""

_BYTE_LEVEL = ("gpt2", "opt", "gpt_neo", "gptj", "codegen", "phi", "starcoder2")
_WORD_PIECE = ("bert", "distilbert", "electra", "ernie", "nomic_bert")
_AS_THEY_STAND = (
    "mistral",
    "mixtral",
    "ministral",
    "ministral3",
    "granite",
    "granitemoe",
    "olmo2",
    "olmo3",
    "stablelm",
    "gpt_bigcode",
    "glm",
    "glm4",
    "persimmon",
    "nemotron",
    "phi3",
    "phimoe",
    "modernbert",
    "modernbert-decoder",
    "ernie4_5",
    "internlm2",
)
REGISTERED: dict[str, str | None] = {
    **dict.fromkeys(_BYTE_LEVEL, "GPT2Tokenizer"),
    **dict.fromkeys(_WORD_PIECE, "BertTokenizer"),
    **dict.fromkeys(_AS_THEY_STAND, AS_IT_STANDS),
    **dict.fromkeys(("roberta", "roberta-prelayernorm", "longformer"), "RobertaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt", "olmo", "olmoe", "mamba"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("", "llama", "llama4", "smollm3", "falcon", "bloom", "exaone4"), None),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"),
    "qwen4_exp": "Qwen3_5Tokenizer",
    "siglip2": "Siglip2Tokenizer",
    "hyperclovax_vision_v2": "GPT2Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
"""Class that transformers registers for an architecture; None where it registers none."""

OVERRULED = frozenset(
    (
        "qwen2",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen4_exp",
        "siglip2",
        "hyperclovax_vision_v2",
    )
)
"""Architectures whose registered class counts, whatever the folder says."""

AS_A_MEND = (
    'write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json, with which '
    "transformers and fedlora take tokenizer.json as it stands"
)

_ALIASES = {
    **dict.fromkeys(("PreTrainedTokenizer", "PythonBackend", "BloomTokenizer"), AS_IT_STANDS),
    **dict.fromkeys(
        ("DistilBertTokenizer", "ElectraTokenizer", "LxmertTokenizer", "MobileBertTokenizer"),
        "BertTokenizer",
    ),
    **dict.fromkeys(("BartTokenizer", "LEDTokenizer", "LongformerTokenizer"), "RobertaTokenizer"),
}


def class_of(model_type: str, declared: str | None, in_config: str | None, text: str | None) -> str:
    """Return the name of the class that ``AutoTokenizer`` takes.

    Parameters
    ----------
    model_type
        Of ``config.json``.
    declared, in_config
        ``tokenizer_class`` of ``tokenizer_config.json`` and of ``config.json``; None where neither
        says it.
    text
        Content of ``tokenizer.json``, None where there is none.

    Raises
    ------
    FedloraError
        When that depends on an architecture that is not listed here.
    """
    wanted = declared or in_config
    named = canonical(wanted) if wanted else None
    if named == "LlamaTokenizer" and model_type not in OVERRULED and '"ByteLevel"' in (text or ""):
        return AS_IT_STANDS  # Llama 3 and its like, which declare the class of Llama 2
    if model_type not in REGISTERED:
        if named == AS_IT_STANDS:
            return named
        raise FedloraError(
            f"which class of tokenizer transformers takes for model_type {model_type!r} is not "
            f"known here; {AS_A_MEND}"
        )
    registered = REGISTERED[model_type]
    if registered is None:
        return named or AS_IT_STANDS
    if named is None or registered == AS_IT_STANDS or model_type in OVERRULED:
        return registered
    return named


def canonical(name: str) -> str:
    """Return the name of the class behind a name, which may be an older one."""
    plain = name.removesuffix("Fast")
    return _ALIASES.get(plain, plain)
