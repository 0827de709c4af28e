"""What a client's samples spend, booked by their records before anything of them leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from clients.owner.origins import Origins
from clients.owner.terms import OwnerTerms
from fedlora.config import PrivacyPolicy
from fedlora.privacy.accounting import Charge, add_up, upload_cost
from fedlora.privacy.ledger import Ledger, Receipt
from fedlora.reasons import about


class Charges:
    """The budget of one client's samples: its owner's ledger, and what each sample is in it.

    A federation within one process keeps no ledger. There every sample is a record of its own, and
    the sums are kept in memory.

    Parameters
    ----------
    training
        Number of training samples; held-out ones are numbered after them.
    ledger
        The budget on disk.
    ids
        Each sample's identifier in it.
    plan
        Name under which the ledger counts the run's uploads; empty where it has none.

    Attributes
    ----------
    repeated
        Samples whose noised activation was paid before a restart, and is repeated.
    """

    def __init__(
        self,
        training: int,
        ledger: Ledger | None = None,
        ids: Sequence[int] = (),
        plan: str = "",
    ) -> None:
        self.training = training
        self.ledger, self.plan = ledger, plan
        self._ids = ids
        self._rho: dict[int, float] = {}
        self.repeated: Collection[int] = ()

    @classmethod
    def open(
        cls, terms: OwnerTerms, client: str, origins: Origins | None, training: int, plan: str
    ) -> Charges:
        """Open the owner's ledger, where there is one.

        Raises
        ------
        FedloraError
            When it cannot be used, or does not know the records.
        """
        if terms.ledger is None:
            return cls(training, plan=plan)
        with about("ledger"):
            ledger = Ledger(terms.ledger, client, terms.limit)
            try:
                return cls(training, ledger, (origins or Origins()).ids(ledger), plan)
            except BaseException:
                ledger.close()
                raise

    def record(self, sample: int) -> int:
        """Return the identifier of a sample's record."""
        return self._ids[sample] if self._ids else sample

    def records(self, samples: Iterable[int]) -> list[int]:
        """Return the identifiers of samples' records, in order."""
        return [self.record(sample) for sample in samples]

    def all_records(self) -> Sequence[int]:
        """Return the identifier of each sample's record, held-out last; none without a ledger."""
        return self._ids

    @property
    def held_out(self) -> Sequence[int]:
        """Identifiers of the held-out records; none where there is no ledger."""
        return self._ids[self.training :]

    def done(self) -> dict[int, tuple[int, float]]:
        """Return number and rho of the uploads that the plan has counted, by sample."""
        if self.ledger is None:
            return {}
        return {s: self.ledger.done(self.plan, i) for s, i in enumerate(self._ids)}

    def charge(self, samples: Sequence[int], charge: Charge, plan: str = "") -> list[Receipt]:
        """Book one release of each sample, on disk first.

        Parameters
        ----------
        samples
            Their numbers; one that occurs twice pays twice.
        charge
            What it costs each of them.
        plan
            Name of the plan that counts it; empty where none does.

        Raises
        ------
        BudgetSpentError
            When the owner's limit does not pay for it; nothing is booked.
        """
        receipts = list[Receipt]()
        if self.ledger is not None:
            receipts.append(self.ledger.charge(self.records(samples), charge, plan))
        for sample in samples:
            self._rho[sample] = add_up(self._rho.get(sample, 0.0), charge.rho)
        return receipts

    def paid(self, samples: Iterable[int], plan: str) -> list[Receipt]:
        """Return the receipts of samples that a plan counted before a restart."""
        if self.ledger is None:
            return []
        return [self.ledger.paid(plan, self.records(samples))]

    def counted(self, sample: int, plan: str) -> int:
        """Return how many releases of a sample's record a plan has counted."""
        return 0 if self.ledger is None else self.ledger.done(plan, self.record(sample))[0]

    def evaluations(self) -> int:
        """Return how many evaluations of the held-out records the run has had already."""
        if self.ledger is None:
            return 0
        return max((self.ledger.done(self._reports, i)[0] for i in self.held_out), default=0)

    def check_evaluations(self, policy: PrivacyPolicy, sigma: float, evaluations: int) -> None:
        """Refuse noised evaluations that the owner's limit does not pay for; book nothing.

        Raises
        ------
        FedloraError
            When it does not, or the noise is below the owner's floor.
        """
        if self.ledger is None:
            return
        cost, needed = evaluations * upload_cost(sigma), dict[int, float]()
        for sample, name in enumerate(self.held_out, self.training):
            needed[name] = (cost + self._activation(policy, sample)) * (1 + 2.0**-50)
        self.ledger.check_plan(needed, sigma=sigma)

    def evaluate(self, sigma: float | None) -> list[Receipt]:
        """Book an evaluation of the held-out records: its noise, or that there was one without.

        Raises
        ------
        BudgetSpentError
            When the owner's limit does not pay for it; nothing is booked.
        """
        if self.ledger is None:
            return []
        if sigma is None:
            self.ledger.note(self.held_out, self._reports)
            return []
        return [self.ledger.charge(self.held_out, Charge.gaussian(sigma), self._reports)]

    @property
    def _reports(self) -> str:
        return f"{self.plan}/reports"

    def check(self, policy: PrivacyPolicy, sigma: float, gradients: Callable[[int], float]) -> None:
        """Refuse a run that the owner's limit does not pay for; book nothing.

        Raises
        ------
        FedloraError
            When it does not, or the noise is below the owner's floor.
        """
        if self.ledger is not None:
            self.ledger.check_plan(self.needed(policy, gradients), sigma=sigma)

    def needed(
        self, policy: PrivacyPolicy, gradients: Callable[[int], float] = lambda _: 0.0
    ) -> dict[int, float]:
        """Return the rho that a run is still to spend, by record, rounded up.

        Parameters
        ----------
        policy
            The run's.
        gradients
            Returns the rho of the gradients that a training sample is still to upload.
        """
        found: dict[int, float] = {}
        for sample, name in enumerate(self._ids or range(max(1, self.training))):
            cost = self._activation(policy, sample)
            cost += gradients(sample) if sample < self.training else 0.0
            found[name] = (found.get(name, 0.0) + cost) * (1 + 2.0**-50)
        return found

    def _activation(self, policy: PrivacyPolicy, sample: int) -> float:
        """Return the rho of a sample's activation, where it is noised and still to be paid."""
        if policy.activation_sigma is None or sample in self.repeated:
            return 0.0
        return upload_cost(policy.activation_sigma)

    def planned(self, needed: Mapping[int, float]) -> float:
        """Return the largest rho of any sample once all that is ``needed`` is spent."""
        return max(needed.values()) if self.ledger is None else self.ledger.planned(needed)

    @property
    def rho(self) -> float:
        """The largest rho of any sample: with a ledger over all that it has booked.

        So a client that was restarted in the middle of a run does not state too little.
        """
        return max(self._rho.values(), default=0.0) if self.ledger is None else self.ledger.rho

    @property
    def label_epsilon(self) -> float:
        """The largest pure epsilon that any sample's randomised labels have cost."""
        return 0.0 if self.ledger is None else self.ledger.label_epsilon

    def close(self) -> None:
        """Let another process use the ledger."""
        if self.ledger is not None:
            self.ledger.close()
