"""The budget that a client keeps on its own disk, whatever the server asks for.

For each sample the ledger holds the sum of its uploads' rho (``rdp.rho``), rounded up, and
the pure epsilon of its randomised labels (``fedlora.privacy.mechanisms.randomised_response``),
which adds to theirs. It is on disk before the upload may leave, see
``fedlora.privacy.ledger.store``.

Samples are known by salted hashes of their records, so a ledger tells nothing about them and
reordering a data file changes nothing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fedlora.config import ClientLimit
from fedlora.errors import FedloraError
from fedlora.privacy.accounting import Charge, add_up, epsilon_of
from fedlora.privacy.ledger.budget import OwnerBudget
from fedlora.privacy.ledger.records import FORMAT, OLD_FORMAT
from fedlora.privacy.ledger.store import LedgerFile


class BudgetSpentError(FedloraError):
    """The client's own limit does not pay for another upload of some sample."""

    kind = "budget"


@dataclass(frozen=True)
class Receipt:
    """An entry of a ledger that is on disk.

    Attributes
    ----------
    ledger
        Whose entry it is.
    records
        Identifiers of the records that it covers.
    """

    ledger: Ledger
    records: frozenset[int]


class Ledger:
    """A client's record of what each of its samples has spent; a context manager.

    Use one ledger for a data set, over all runs. Charges come from one thread at a time; any
    thread may close it, which waits for a charge that is being written.

    Parameters
    ----------
    path
        Journal file; it is created when there is none, two more are kept beside it.
    client
        Whose ledger it is.
    limit
        The owner's limit; without one nothing is refused, only counted.
    clock
        Seconds since the epoch.

    Raises
    ------
    FedloraError
        When the ledger is in use, damaged, another client's, rolled back, or from the future.
    """

    def __init__(
        self,
        path: Path,
        client: str,
        limit: ClientLimit | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client = client
        self._budget = OwnerBudget(client, limit)
        self._file = LedgerFile(path, client, clock)
        self._book = self._file.book

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process use the ledger, which takes no charge more; twice does no harm."""
        self._file.close()

    @property
    def path(self) -> Path:
        """Journal file."""
        return self._file.path

    @property
    def seq(self) -> int:
        """Number of the last charge."""
        return self._book.seq

    @property
    def key(self) -> str:
        """Which ledger this is, see ``Book.key``."""
        return self._book.key

    def sample_ids(self, contents: Iterable[bytes]) -> list[int]:
        """Return the identifiers of records, in order.

        Parameters
        ----------
        contents
            What makes each record itself: all of it, the label included. Only a run says which
            column is the label, so an identifier that left it out would change at the server's
            word; as it is, a label that the owner mends makes another record. Equal records in
            one call get different identifiers, so pass a client's whole data set at once.

        Raises
        ------
        FedloraError
            When an earlier release wrote the ledger and may have counted these records by other
            identifiers.
        """
        ids = record_ids(self._book.salt, contents)
        if self._book.format == OLD_FORMAT:
            self._adopt(ids)
        return ids

    def _adopt(self, ids: Sequence[int]) -> None:
        """Take over an earlier release's ledger, where nothing in it goes by other identifiers."""
        strange = (self._book.spent.keys() | self._book.labels.keys()) - set(ids)
        if strange:
            raise FedloraError(
                f"ledger {self._file.path} is of an earlier release and holds {len(strange)} "
                "samples that are not among these records, or are but go by their tokens; give it "
                "the data that it was kept for, or set another privacy-ledger for records never "
                "used"
            )
        self._book.format = FORMAT
        self._file.merge()

    def charge(self, sample_ids: Sequence[int], charge: Charge, run: str = "") -> Receipt:
        """Book one release of each sample and sync it to disk; only then may it leave.

        Parameters
        ----------
        sample_ids
            Samples of the release, from ``sample_ids``; one that occurs twice pays twice. Without
            any nothing is booked.
        charge
            What it costs each of them.
        run
            Name of the plan that counts the upload; empty where none does.

        Raises
        ------
        BudgetSpentError
            When the limit does not pay for it; nothing is booked.
        FedloraError
            When its noise is below the owner's floor, the clock went back, or the disk failed;
            after a failure of the disk the ledger must be opened anew.
        """
        ids, book = [int(i) for i in sample_ids], self._book
        if charge.epsilon:
            spent = {i: book.spent.get(i, 0.0) for i in ids}
            labels = book.labels_after(ids, charge.epsilon)
        else:
            spent, labels = book.after(ids, charge.rho), book.labels
        if not self._budget.pays(spent, labels, charge.sigma):
            raise BudgetSpentError(self._refusal(charge))
        if ids:
            cost = {"epsilon": charge.epsilon} if charge.epsilon else {"rho": charge.rho}
            self._file.append({**cost, "ids": ids} | ({"run": run} if run else {}))
        return Receipt(self, frozenset(ids))

    def _refusal(self, charge: Charge) -> str:
        spent = self._in_epsilon(self.rho)
        if charge.epsilon:
            return (
                f"client {self.client} has spent epsilon {spent} on uploads "
                f"and {self.label_epsilon:.3g} on labels, and its privacy-epsilon "
                f"{self._budget.epsilon:g} does not pay for labels at epsilon {charge.epsilon:g}; "
                "set a smaller privacy.epsilon"
            )
        return (
            f"client {self.client} has spent epsilon {spent} of its "
            f"privacy-epsilon {self._budget.epsilon:.3g}, which does not pay for another "
            f"upload at sigma {charge.sigma:g}; it leaves the run"
        )

    def note(self, sample_ids: Sequence[int], run: str) -> None:
        """Count in a plan, at no cost, that samples were used; raises ``FedloraError``."""
        if sample_ids:
            self._file.append({"rho": 0.0, "ids": [int(i) for i in sample_ids], "run": run})

    def done(self, run: str, sample_id: int) -> tuple[int, float]:
        """Return number and rho of a sample's uploads in a plan, as ``charge`` was told of them.

        A plan that has no name, or is not among the latest, has none, so that it begins anew.
        """
        return self._book.runs.get(run, {}).get(sample_id, (0, 0.0))

    def paid(self, run: str, sample_ids: Iterable[int]) -> Receipt:
        """Return the receipt of those samples that have been charged in a plan."""
        done = self._book.runs.get(run, {})
        return Receipt(self, frozenset(i for i in sample_ids if done.get(i, (0, 0.0))[1] > 0))

    def paid_labels(self, sample_ids: Iterable[int], epsilon: float) -> Receipt:
        """Return the receipt of those samples whose labels have cost at least so much."""
        labels = self._book.labels
        return Receipt(self, frozenset(i for i in sample_ids if labels.get(i, 0.0) >= epsilon))

    def label_epsilon_of(self, sample_id: int) -> float:
        """Return the pure epsilon that a sample's randomised labels have cost."""
        return self._book.labels.get(sample_id, 0.0)

    @property
    def label_epsilon(self) -> float:
        """The largest pure epsilon that any sample's randomised labels have cost."""
        return max(self._book.labels.values(), default=0.0)

    def check_plan(
        self,
        needed: Mapping[int, float],
        label_epsilon: Mapping[int, float] | None = None,
        sigma: float = math.inf,
    ) -> None:
        """Refuse a run whose planned uploads the limit does not pay for; book nothing.

        Parameters
        ----------
        needed
            Sum of ``rdp.upload_cost`` over all that each sample, by its identifier, is still
            to upload.
        label_epsilon
            Pure epsilon of the labels that are still to be drawn for it.
        sigma
            The least noise of the uploads.

        Raises
        ------
        FedloraError
            When that is beyond the limit for any sample, or below the owner's floor.
        """
        after, due = self._after(needed), label_epsilon or {}
        labels = {i: self.label_epsilon_of(i) + due.get(i, 0.0) for i in after}
        if self._budget.pays(after, labels, sigma):
            return
        worst = max(after, key=lambda i: self._budget.in_epsilon(after[i]) + labels[i])
        before = self._budget.in_epsilon(self._book.spent.get(worst, 0.0))
        planned = self._budget.in_epsilon(after[worst]) + labels[worst]
        raise FedloraError(
            f"what this run still needs would bring client {self.client} from epsilon "
            f"{before + self.label_epsilon_of(worst):.3g} to {planned:.3g}, beyond its "
            f"privacy-epsilon {self._budget.epsilon:.3g}; plan fewer rounds or more noise"
        )

    def planned(self, needed: Mapping[int, float]) -> float:
        """Return the largest rho of any sample once all of ``check_plan``'s ``needed`` is spent."""
        return max([self.rho, *self._after(needed).values()])

    def spent(self) -> dict[int, float]:
        """Return the sum of rho of each sample, by its identifier."""
        return dict(self._book.spent)

    def _after(self, needed: Mapping[int, float]) -> dict[int, float]:
        return {i: add_up(self._book.spent.get(i, 0.0), cost) for i, cost in needed.items()}

    @property
    def rho(self) -> float:
        """The largest sum of rho that any sample has spent, replace-one."""
        return self._book.largest

    def epsilon(self, delta: float, *, tight: bool = False) -> float:
        """Return the epsilon of the sample that has spent most, replace-one."""
        return epsilon_of(self.rho, delta, tight=tight) + self.label_epsilon

    def _in_epsilon(self, rho: float) -> str:
        return f"{self._budget.in_epsilon(rho):.3g}"


def record_ids(salt: bytes, contents: Iterable[bytes]) -> list[int]:
    """Return records' identifiers under a ledger's salt; see ``Ledger.sample_ids``."""
    seen: Counter[bytes] = Counter()
    ids = []
    for content in contents:
        key = salt + seen[content].to_bytes(8, "big")
        seen[content] += 1
        digest = hashlib.blake2b(content, digest_size=8, key=key).digest()
        ids.append(int.from_bytes(digest, "big"))
    return ids
