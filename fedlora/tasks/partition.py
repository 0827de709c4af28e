"""Who holds which records in a simulation, as flwr-datasets' partitioners deal one column.

IID, or non-IID by label skew: a Dirichlet distribution over classes, shards, a natural column.
Shards and natural columns are dealt by flwr-datasets itself, the others as it does.

Partitioners see row numbers and a column of group numbers only, never the texts.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedlora.config import PartitionConfig
from fedlora.errors import FedloraError, shown
from fedlora.tasks.columns import Record, require_column

Rows: TypeAlias = npt.NDArray[np.int64]

_DIRICHLET_SEEDS = 20
_DIRICHLET_DRAWS = 11  # of a seed, which are all that flwr-datasets' partitioner makes


def partition(
    records: Sequence[Record],
    config: PartitionConfig,
    clients: int,
    label_column: str,
    seed: int,
) -> list[Rows]:
    """Deal the records to the clients, each record to exactly one.

    Parameters
    ----------
    records
        All training records.
    config
        The scenario's ``partition`` section.
    clients
        Number of clients.
    label_column
        Column of the class, used where ``config.column`` is empty.
    seed
        Seed of the run; the same seed gives the same partition.

    Returns
    -------
    list of ndarray
        Ascending row numbers of each client.

    Raises
    ------
    FedloraError
        When there are too few records or groups, the column is missing, or the Dirichlet draws
        keep leaving a client short of ``min_rows``.
    """
    smallest = max(1, config.min_rows)
    if len(records) < clients * smallest:
        raise FedloraError(
            f"{len(records)} records are too few for federation.clients {clients} with at least "
            f"{smallest} each; add records, or lower federation.clients or partition.min_rows"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(records))
    if clients == 1:
        parts = [order]  # a device with data of its own; shards would cost it 130 MiB
    elif config.kind == "iid":
        parts = _iid(order, clients)
    else:
        key = "partition.column" if config.column else "data.label"
        column = config.column or label_column
        if not column:
            there = ", ".join(shown(name) for name in records[0])
            raise FedloraError(
                f"partition.kind {config.kind} deals by the values of a column, but "
                f"partition.column is empty; set it to one of {there}, or partition.kind to iid"
            )
        require_column(records, column, key)
        groups = _group_numbers([records[row][column] for row in order])
        if config.kind == "dirichlet":
            parts = _dirichlet(order, groups, config, clients, rng)
        elif config.kind == "shards":
            parts = _shards(order, groups, config, clients, rng)
        else:
            parts = _whole_groups(order, groups, config, clients)
    short = min(range(clients), key=lambda client: len(parts[client]))
    if len(parts[short]) < smallest:
        raise FedloraError(
            f"client {short} gets {len(parts[short])} of {len(records)} records by "
            f"partition.kind {config.kind}, fewer than partition.min_rows {smallest}; lower "
            "partition.min_rows or federation.clients"
        )
    return [np.sort(part) for part in parts]


def holdout_split(
    rows: Rows, fraction: float, seed: int, client: int, labels: Sequence[str] | None = None
) -> tuple[Rows, Rows]:
    """Set aside part of a client's rows for evaluation.

    Parameters
    ----------
    rows
        The client's row numbers.
    fraction
        Share to hold out, rounded to a whole number of rows, at least one; 0 holds out nothing.
    seed, client
        Seed of the run and number of the client; the same pair gives the same split.
    labels
        Class of each row; when given, every class is held out in proportion.

    Returns
    -------
    tuple of ndarray
        Ascending row numbers to train on, and to evaluate on.

    Raises
    ------
    FedloraError
        When there are too few rows for one in each part.
    """
    if fraction == 0:
        return np.sort(rows), rows[:0]
    count = len(rows)
    if count < 2:
        raise FedloraError(
            f"client {client} has {count} records, too few for data.holdout {fraction}; raise "
            "partition.min_rows, or set data.test and data.holdout 0"
        )
    rng = np.random.default_rng((seed, client))
    order = rng.permutation(count)
    if labels is not None:
        order = order[np.argsort(_group_numbers([labels[place] for place in order]), kind="stable")]
    held = min(max(1, round(fraction * count)), count - 1)
    # Systematic sampling: every count/held-th row of the list sorted by class, from a random start.
    places = ((np.arange(held) + rng.random()) * (count / held)).astype(np.int64)
    chosen = np.zeros(count, dtype=bool)
    chosen[order[places]] = True
    return np.sort(rows[~chosen]), np.sort(rows[chosen])


def label_table(
    records: Sequence[Record], parts: Sequence[Rows], label_column: str
) -> dict[str, list[int]]:
    """Count each label's records at each client.

    Returns
    -------
    dict
        From label, in sorted order, to its count at every client.
    """
    counts = [Counter(records[row][label_column] for row in part) for part in parts]
    labels = sorted(set().union(*counts))
    return {label: [count[label] for count in counts] for label in labels}


def _group_numbers(values: Sequence[str]) -> npt.NDArray[np.int64]:
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.array([numbers[value] for value in values], dtype=np.int64)


def _load(partitioner: Any, order: Rows, groups: npt.NDArray[np.int64]) -> list[Rows]:
    """Run a partitioner over shuffled rows, and return the row numbers of each part."""
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({"row": order, "group": groups})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow's news
        return [
            np.array(partitioner.load_partition(number)["row"][:], dtype=np.int64)
            for number in range(partitioner.num_partitions)
        ]


def _iid(order: Rows, clients: int) -> list[Rows]:
    """Deal parts of equal size, as ``IidPartitioner`` does."""
    return np.array_split(order, clients)


def _dirichlet(
    order: Rows,
    groups: npt.NDArray[np.int64],
    config: PartitionConfig,
    clients: int,
    rng: np.random.Generator,
) -> list[Rows]:
    """Draw each class's shares until every client has enough rows.

    The draws are those of flwr-datasets' ``DirichletPartitioner`` without balance and shuffling
    (https://arxiv.org/abs/1905.12022), one partitioner for each seed. Importing it takes 2 s
    and 130 MiB in each process that deals.
    """
    smallest = max(1, config.min_rows)
    of_class = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(_DIRICHLET_SEEDS):
        draws = np.random.default_rng(int(rng.integers(2**31)))
        for _ in range(_DIRICHLET_DRAWS):
            parts: list[list[Rows]] = [[] for _ in range(clients)]
            for rows in of_class:
                shares = np.cumsum(draws.dirichlet(np.full(clients, config.alpha)))
                cuts = (shares * len(rows)).astype(int)[:-1]
                for part, own in zip(parts, np.split(rows, cuts), strict=True):
                    part.append(own)
            dealt = [np.concatenate(part) for part in parts]
            if min(map(len, dealt)) >= smallest:
                return [order[part] for part in dealt]
    largest = int(np.bincount(groups).max())
    mend = "raise alpha, or lower partition.min_rows or federation.clients"
    if largest < clients:  # shares of a record are rounded down, and the last client has the rest
        mend = f"no class has more than {largest}; set partition.kind to iid or shards"
    raise FedloraError(
        f"partition.alpha {config.alpha} left one of {clients} clients with fewer than "
        f"partition.min_rows {smallest} of {len(order)} records in every draw; {mend}"
    )


def _shards(
    order: Rows,
    groups: npt.NDArray[np.int64],
    config: PartitionConfig,
    clients: int,
    rng: np.random.Generator,
) -> list[Rows]:
    """Deal shards of equal size of the rows sorted by group.

    The partitioner would drop what is left over when the rows do not divide evenly. Those few rows,
    chosen at random, go to the smallest client that holds their group instead.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    shards = clients * config.shards_per_client
    if shards > len(order):
        raise FedloraError(
            f"{len(order)} records are too few for federation.clients {clients} with "
            f"partition.shards_per_client {config.shards_per_client}; lower one of them"
        )
    extra = len(order) % shards
    partitioner = ShardPartitioner(
        clients,
        partition_by="group",
        num_shards_per_partition=config.shards_per_client,
        shuffle=False,
        seed=int(rng.integers(2**31)),
    )
    parts = _load(partitioner, order[extra:], groups[extra:])
    group_of = dict(zip(order.tolist(), groups.tolist(), strict=True))
    held = [{group_of[row] for row in part.tolist()} for part in parts]
    hands = [part.tolist() for part in parts]
    for row in order[:extra].tolist():
        holders = [client for client in range(clients) if group_of[row] in held[client]]
        client = min(holders or range(clients), key=lambda client: len(hands[client]))
        hands[client].append(row)
    return [np.array(hand, dtype=np.int64) for hand in hands]


def _whole_groups(
    order: Rows, groups: npt.NDArray[np.int64], config: PartitionConfig, clients: int
) -> list[Rows]:
    """Deal whole groups, largest first, each to the client that has the fewest rows so far.

    Groups of one size follow each other in the order in which they appear in the shuffled rows.
    """
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    partitioner = GroupedNaturalIdPartitioner(partition_by="group", group_size=1)
    pieces = _load(partitioner, order, groups)
    if len(pieces) < clients:
        raise FedloraError(
            f"partition.column {config.column!r} has {len(pieces)} groups, fewer than "
            f"federation.clients {clients}; lower federation.clients or name another column"
        )
    hands: list[list[Rows]] = [[] for _ in range(clients)]
    sizes = [0] * clients
    for piece in sorted(pieces, key=len, reverse=True):
        client = sizes.index(min(sizes))
        hands[client].append(piece)
        sizes[client] += len(piece)
    return [np.concatenate(hand) for hand in hands]
