"""How a client and the server talk: frames, messages, codecs, and links that carry them."""

from fedlora.link.base import ClientLink
from fedlora.link.codec import (
    Codec,
    Fp32Codec,
    RememberingCodec,
    codec_profile,
    create_codec,
    pack,
    pack_beside,
    unpack,
    unpack_beside,
)
from fedlora.link.distinct import DistinctCodec, places_bits
from fedlora.link.ends import WIDTH, ends_rows, pack_ends, unpack_ends
from fedlora.link.frame import Frame, decode_frame, encode_frame, peek_frame
from fedlora.link.handshake import PROTOCOL, Identity, check_identity
from fedlora.link.levels import KeptLevels, Levels, levels_bytes
from fedlora.link.local import Handler, LocalLink, edge_executor
from fedlora.link.message import Message
from fedlora.link.reasons import (
    ERROR,
    KINDS,
    NUMBERS,
    REASON,
    Reason,
    Words,
    closed_words,
    through_flower,
    told,
)
from fedlora.link.replies import Gradient, Metrics, Ready
from fedlora.link.requests import (
    Again,
    Batch,
    Embedding,
    End,
    Eval,
    EvalBegin,
    Head,
    Keep,
    Phase,
    Restore,
    Round,
    RoundEnd,
    Step,
)
from fedlora.link.tokens import TokensCodec, token_bytes

__all__ = [
    "ERROR",
    "KINDS",
    "NUMBERS",
    "PROTOCOL",
    "REASON",
    "WIDTH",
    "Again",
    "Batch",
    "ClientLink",
    "Codec",
    "DistinctCodec",
    "Embedding",
    "End",
    "Eval",
    "EvalBegin",
    "Fp32Codec",
    "Frame",
    "Gradient",
    "Handler",
    "Head",
    "Identity",
    "Keep",
    "KeptLevels",
    "Levels",
    "LocalLink",
    "Message",
    "Metrics",
    "Phase",
    "Ready",
    "Reason",
    "RememberingCodec",
    "Restore",
    "Round",
    "RoundEnd",
    "Step",
    "TokensCodec",
    "Words",
    "check_identity",
    "closed_words",
    "codec_profile",
    "create_codec",
    "decode_frame",
    "edge_executor",
    "encode_frame",
    "ends_rows",
    "levels_bytes",
    "pack",
    "pack_beside",
    "pack_ends",
    "peek_frame",
    "places_bits",
    "through_flower",
    "token_bytes",
    "told",
    "unpack",
    "unpack_beside",
    "unpack_ends",
]
