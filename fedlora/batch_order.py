"""The order in which a client goes through its samples."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np


class BatchStream:
    """An endless sequence of shuffled passes over a client's samples.

    The order follows from seed, client number and pass alone, so that a resumed run, or a client
    that was dropped and returns, can be put back to any position.

    Parameters
    ----------
    samples
        The client's training samples, of which only the number matters.
    batch_size
        Samples for each batch; a client with fewer gives what it has.
    seed, client
        Seed of the run and number of the client.
    """

    def __init__(self, samples: Sized, batch_size: int, seed: int, client: int) -> None:
        self.samples = len(samples)
        self.batch_size = min(batch_size, self.samples)
        self.position = 0
        self._key = (seed, client)
        self._pass = -1
        self._order = np.empty(0, dtype=np.int64)

    def indices(self) -> list[int]:
        """Return the sample numbers of the next batch, and move on."""
        chosen = [self._at(self.position + offset) for offset in range(self.batch_size)]
        self.position += self.batch_size
        return chosen

    def back(self) -> None:
        """Put the last batch back, as when it was fetched ahead and then not used."""
        self.position -= self.batch_size

    def _at(self, position: int) -> int:
        number, place = divmod(position, self.samples)
        if number != self._pass:
            self._order = np.random.default_rng((*self._key, number)).permutation(self.samples)
            self._pass = number
        return int(self._order[place])
