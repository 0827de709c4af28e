"""How a client and the server talk: frames, messages, codecs, and links that carry them."""

from fedlora.link.base import ClientLink
from fedlora.link.codec import Codec, codec_profile, create_codec, pack, unpack
from fedlora.link.ends import ends_rows, pack_ends, unpack_ends
from fedlora.link.frame import Frame, decode_frame, encode_frame
from fedlora.link.handshake import PROTOCOL, Identity, check_identity
from fedlora.link.local import LocalLink, edge_executor
from fedlora.link.reasons import ERROR, NUMBERS, REASON, Words, closed_words, through_flower, told

__all__ = [
    "ERROR",
    "NUMBERS",
    "PROTOCOL",
    "REASON",
    "ClientLink",
    "Codec",
    "Frame",
    "Identity",
    "LocalLink",
    "Words",
    "check_identity",
    "closed_words",
    "codec_profile",
    "create_codec",
    "decode_frame",
    "edge_executor",
    "encode_frame",
    "ends_rows",
    "pack",
    "pack_ends",
    "through_flower",
    "told",
    "unpack",
    "unpack_ends",
]
