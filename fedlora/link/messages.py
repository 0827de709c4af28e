"""The messages of a session, in the order in which they can occur.

The engine asks, the client answers with the frame in the right column. Rows of a batch travel
packed: a tensor of shape (tokens, width) holds the tokens of all rows one after the other, and
``lengths`` (int32, one for each row) tells where a row ends.

Where the server keeps rows (``link.reuse``), the requests that an activation answers hold ``kept``:
how many new rows of the last one, from the first, it has kept. The activation then holds ``ids``
(int64, one for each row of the batch, drawn at random by the client) and ``fresh`` (uint8); only
rows whose ``fresh`` is 1 stand in ``activation`` and ``lengths``.

Where ``link.targets_only`` saves what is not learnt, those requests hold ``targets``, and so does
the activation: a bit for each token that stands in it, packed into uint8, the first one highest.
The next representation and gradient then hold those tokens' rows alone.

With ``link.keep`` the gradient holds some tokens' rows alone, and ``kept`` a bit for each token
that came down, packed as ``targets``.

With ``link.r_cut`` representation and gradient are of that width, and ``step`` holds no weights;
see ``fedlora.server.exchange.head_space``.

=============  =========================================  =========================================
request        holds                                      reply
=============  =========================================  =========================================
(none)                                                    ``hello``: token, digests, sizes
``welcome``    what the server settled                    ``ready``
``phase``      ``baseline`` or ``train``: start anew      ``ready``: first weights of shared ends
``round``      round number                               ``report``: channel state, statistics
``batch``      ask for the next batch; front weights      ``activation``: e, lengths, ids, fresh
``step``       representation z; common head weights      ``gradient``: g, and the next e
``again``      ids of rows that the server has lost       ``activation``: those rows
``embedding``  dL/de, where the front trains              ``activation`` or ``ready``: its gradient
``head``       common weights of head and front to adopt  ``ready``
``round_end``                                             ``round_report``: losses, weights
``eval_begin``                                            ``activation`` or ``metrics``
``eval``       z of held-out rows, or of texts so far     ``activation`` or ``metrics``
``keep``       round that has ended: store your state     ``ready``: whether it is stored
``restore``    round to go back to                        ``ready``: whether its state was there
``end``                                                   ``result``
=============  =========================================  =========================================

A client that cannot or will not go on answers any request with ``leave`` and a reason.

In generation the client asks and the server answers. A session is one row that the blocks go on
with; ``position`` says how many of its tokens the client keeps, and the server forgets the others.

===============  ==============================================  ================
request          holds                                           reply
===============  ==============================================  ================
``gen_open``     digests; adapter, if a certain one is meant     ``gen_opened``
``gen_extend``   session, position, tokens, last; activation e   ``gen_states``
``gen_early``    the same, and block; activation e               ``gen_states``
``gen_rest``     session, last                                   ``gen_states``
``gen_close``    session                                         ``gen_closed``
===============  ==============================================  ================

A device that asks over TLS shows first who it is: the server begins with ``gen_challenge``, and
``gen_hello`` answers it with a proof of the node key, the cut and the codecs. ``gen_welcome`` says
which client that key is of, and the adapter.

``gen_opened`` holds session, adapter and the most tokens of a row, ``gen_states`` the
representations of the ``last`` tokens; of ``gen_early`` those after ``block`` blocks, where the new
tokens then wait. ``gen_rest`` has all that wait pass the other blocks. Each may be ``gen_refused``,
with a kind and a sentence.
"""

from __future__ import annotations

from typing import Final

HELLO: Final = "hello"
WELCOME: Final = "welcome"
READY: Final = "ready"
PHASE: Final = "phase"
ROUND: Final = "round"
REPORT: Final = "report"
BATCH: Final = "batch"
ACTIVATION: Final = "activation"
STEP: Final = "step"
GRADIENT: Final = "gradient"
AGAIN: Final = "again"
EMBEDDING: Final = "embedding"
HEAD: Final = "head"
ROUND_END: Final = "round_end"
ROUND_REPORT: Final = "round_report"
EVAL_BEGIN: Final = "eval_begin"
EVAL: Final = "eval"
METRICS: Final = "metrics"
KEEP: Final = "keep"
RESTORE: Final = "restore"
END: Final = "end"
RESULT: Final = "result"
LEAVE: Final = "leave"
GEN_CHALLENGE: Final = "gen_challenge"
GEN_HELLO: Final = "gen_hello"
GEN_WELCOME: Final = "gen_welcome"
GEN_OPEN: Final = "gen_open"
GEN_OPENED: Final = "gen_opened"
GEN_EXTEND: Final = "gen_extend"
GEN_STATES: Final = "gen_states"
GEN_EARLY: Final = "gen_early"
GEN_REST: Final = "gen_rest"
GEN_CLOSE: Final = "gen_close"
GEN_CLOSED: Final = "gen_closed"
GEN_REFUSED: Final = "gen_refused"

HEAD_GRADIENT: Final = "head_gradient."
"""Prefix of the tensors that carry a head's unreduced gradient."""
HEAD_WEIGHT: Final = "head_weight."
"""Prefix of the tensors that carry a head's weights."""
FRONT_GRADIENT: Final = "front_gradient."
"""Prefix of the tensors that carry the unreduced gradient of a front that all clients share."""
FRONT_WEIGHT: Final = "front_weight."
"""Prefix of the tensors that carry such a front's weights."""
