"""What each record has spent, on the disk of its owner."""

from fedlora.privacy.ledger.ledger import BudgetSpentError, Ledger, Receipt, record_ids
from fedlora.privacy.ledger.records import Book
from fedlora.privacy.ledger.store import verified

__all__ = [
    "Book",
    "BudgetSpentError",
    "Ledger",
    "Receipt",
    "record_ids",
    "verified",
]
