"""Links of admitted clients that nobody has taken yet: one for each client, the newest."""

from __future__ import annotations

import threading

from fedlora.link.stream.server.link import StreamLink


class Admitted:
    """A queue whose length is bounded by the number of clients, however often they say hello."""

    def __init__(self) -> None:
        self._links: dict[str, StreamLink] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, link: StreamLink) -> None:
        """Queue a link, in place of one of the same client that is still queued."""
        with self._changed:
            self._links.pop(link.client, None)
            self._links[link.client] = link
            self._changed.notify()

    def get(self, timeout_s: float) -> StreamLink | None:
        """Return the link that has waited longest; None when none came in time or it was closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._links) or self._closed, timeout_s)
            if self._closed or not self._links:
                return None
            return self._links.pop(next(iter(self._links)))

    def close(self) -> None:
        """Wake whoever waits; nothing is returned any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
