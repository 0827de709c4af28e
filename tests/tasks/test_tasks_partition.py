"""Each record goes to exactly one client, as skewed as the scenario asks, the same each time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fedlora.config import PartitionConfig
from fedlora.errors import FedloraError
from fedlora.tasks import holdout_split, partition
from fedlora.tasks.partition import label_table


def _records(count, labels=4, speakers=30, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"text": f"row {row}", "label": f"class {rng.integers(labels)}", "speaker": speaker}
        for row, speaker in enumerate(f"s{x}" for x in rng.geometric(1 / speakers, count))
    ]


KINDS = {
    "iid": PartitionConfig(kind="iid", min_rows=1),
    "dirichlet": PartitionConfig(kind="dirichlet", alpha=0.5, min_rows=1),
    "shards": PartitionConfig(kind="shards", shards_per_client=2, min_rows=1),
    "column": PartitionConfig(kind="column", column="speaker", min_rows=1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "clients"), [(400, 8), (157, 5), (40, 3), (63, 1)])
def test_each_record_goes_to_exactly_one_client(kind, count, clients):
    parts = partition(_records(count), KINDS[kind], clients, "label", 3)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert all(len(part) >= 1 and (np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_partition_follows_from_the_seed(kind):
    records = _records(300)
    first, again, other = (
        [part.tolist() for part in partition(records, KINDS[kind], 4, "label", seed)]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_iid_parts_are_even_and_not_in_file_order():
    parts = partition(_records(203), KINDS["iid"], 4, "label", 0)
    assert sorted(map(len, parts)) == [50, 51, 51, 51]
    assert all(np.ptp(part) > 150 for part in parts)


def _skew(records, parts):
    """Mean total-variation distance between a client's label shares and everybody's."""
    table = np.array(list(label_table(records, parts, "label").values()), dtype=float)
    shares, overall = table / table.sum(0), table.sum(1) / table.sum()
    return 0.5 * np.abs(shares - overall[:, None]).sum(0).mean()


def test_smaller_dirichlet_alpha_means_more_skew():
    records = _records(2000, labels=6)
    skews = []
    for alpha in (0.1, 1.0, 10.0, 1000.0):
        config = PartitionConfig(kind="dirichlet", alpha=alpha, min_rows=1)
        parts = [partition(records, config, 6, "label", seed) for seed in range(3)]
        skews.append(np.mean([_skew(records, part) for part in parts]))
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5
    assert skews[-1] < 0.05


def test_min_rows_holds_for_every_client_without_a_word():
    config = PartitionConfig(kind="dirichlet", alpha=0.3, min_rows=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = partition(_records(600), config, 8, "label", 0)
    assert min(map(len, parts)) >= 20


def test_each_client_holds_few_labels_by_shards():
    records = _records(1003, labels=10)
    parts = partition(records, KINDS["shards"], 10, "label", 0)
    held = np.count_nonzero(list(label_table(records, parts, "label").values()), axis=0)
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    assert held.max() <= 4  # two shards, of which each may straddle two labels
    everything = partition(records, KINDS["iid"], 10, "label", 0)
    assert np.count_nonzero(list(label_table(records, everything, "label").values()), 0).min() >= 9


def test_groups_of_a_column_stay_whole_and_are_balanced():
    records = _records(900, speakers=40)
    parts = partition(records, KINDS["column"], 5, "label", 0)
    speakers = [{records[row]["speaker"] for row in part} for part in parts]
    assert sum(map(len, speakers)) == len(set().union(*speakers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 5


def test_named_column_replaces_the_label():
    records = [{"text": "x", "topic": str(row % 2)} for row in range(200)]
    config = PartitionConfig(kind="dirichlet", column="topic", alpha=0.3, min_rows=20)
    parts = partition(records, config, 4, "label", 0)
    assert _skew([{"label": record["topic"]} for record in records], parts) > 0.2


@pytest.mark.parametrize(
    ("config", "count", "clients", "message"),
    [
        (KINDS["iid"], 3, 4, r"3 records are too few for federation\.clients 4"),
        (PartitionConfig(min_rows=50), 300, 8, r"at least 50 each.*partition\.min_rows"),
        (
            PartitionConfig(kind="dirichlet", alpha=0.001, min_rows=30),
            300,
            8,
            r"partition\.alpha 0\.001.*partition\.min_rows 30",
        ),
        (
            PartitionConfig(kind="shards", shards_per_client=60, min_rows=1),
            300,
            8,
            r"partition\.shards_per_client 60",
        ),
        (
            PartitionConfig(kind="column", column="label", min_rows=1),
            300,
            8,
            r"'label' has 4 groups, fewer than federation\.clients 8",
        ),
        (
            PartitionConfig(kind="column", column="label", min_rows=74),
            300,
            4,
            r"client \d gets \d+ of 300 records.*partition\.min_rows 74",
        ),
        (
            PartitionConfig(kind="column", column="speakers", min_rows=1),
            300,
            4,
            r"partition\.column is 'speakers'.*did you mean 'speaker'",
        ),
    ],
)
def test_impossible_partition_is_one_sentence(config, count, clients, message):
    with pytest.raises(FedloraError, match=message):
        partition(_records(count), config, clients, "label", 0)


def test_a_task_without_labels_is_asked_for_a_column_to_deal_by():
    with pytest.raises(FedloraError, match=r"partition\.column is empty; set it to one of 'text'"):
        partition([{"text": "a"}] * 4, PartitionConfig(kind="dirichlet", min_rows=1), 2, "", 0)


def test_missing_label_column_is_named():
    records = [{"text": "x"}] * 40
    with pytest.raises(FedloraError, match=r"data\.label is 'label'.*'text'"):
        partition(records, KINDS["dirichlet"], 2, "label", 0)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3, 10, 101])
@pytest.mark.parametrize("stratified", [False, True])
def test_holdout_leaves_a_row_in_each_part_and_loses_none(fraction, count, stratified):
    rows = np.arange(count) * 3 + 5
    labels = [str(row % 3) for row in range(count)] if stratified else None
    train, held = holdout_split(rows, fraction, 0, 1, labels)
    assert sorted([*train, *held]) == rows.tolist()
    assert len(train) >= 1
    assert len(held) == min(max(1, round(fraction * count)), count - 1)


def test_holdout_follows_from_seed_and_client():
    rows = np.arange(100)
    first, again = (holdout_split(rows, 0.2, 0, 3)[1].tolist() for _ in range(2))
    assert first == again
    assert first != holdout_split(rows, 0.2, 0, 4)[1].tolist()
    assert first != holdout_split(rows, 0.2, 1, 3)[1].tolist()


def test_stratified_holdout_keeps_class_proportions():
    labels = ["a"] * 70 + ["b"] * 20 + ["c"] * 10
    for seed in range(20):
        _, held = holdout_split(np.arange(100), 0.2, seed, 0, labels)
        counts = [sum(labels[row] == name for row in held) for name in "abc"]
        assert np.abs(np.array(counts) - [14, 4, 2]).max() <= 1


def test_every_row_is_held_out_equally_often():
    labels = ["rare"] * 5 + ["common"] * 45
    counts = np.zeros(50)
    for seed in range(400):
        counts[holdout_split(np.arange(50), 0.1, seed, 0, labels)[1]] += 1
    # 400 draws with probability 0.1: mean 40, standard deviation 6.
    assert counts.sum() == 400 * 5
    assert np.abs(counts - 40).max() < 27


def test_no_holdout_keeps_every_row():
    train, held = holdout_split(np.array([4, 2, 9]), 0.0, 0, 0)
    assert train.tolist() == [2, 4, 9]
    assert len(held) == 0


def test_holdout_of_a_single_row_is_refused():
    with pytest.raises(FedloraError, match=r"client 7 has 1 records.*data\.holdout 0\.1"):
        holdout_split(np.array([4]), 0.1, 0, 7)


def test_label_table_counts_what_each_client_holds():
    records = [{"label": name} for name in "abcab"]
    table = label_table(records, [np.array([0, 3]), np.array([1, 2, 4])], "label")
    assert table == {"a": [2, 0], "b": [0, 2], "c": [0, 1]}


def test_real_speakers_are_dealt_whole(shared):
    from fedlora.config import DataConfig
    from fedlora.tasks import load_records

    config = DataConfig(
        train=str(shared / "data" / "shakespeare" / "input.txt"),
        record_separator="\n\n",
        pattern=r"(?P<speaker>.+?):\n(?P<text>.+)",
    )
    records = load_records(config, "train")
    parts = partition(records, PartitionConfig(kind="column", column="speaker"), 8, "label", 0)
    speakers = [{records[row]["speaker"] for row in part} for part in parts]
    assert len(records) > 7000
    assert sum(map(len, speakers)) == len(set().union(*speakers)) > 250
    assert max(map(len, parts)) - min(map(len, parts)) <= 2


def test_classes_too_small_for_a_dirichlet_draw_are_refused_with_a_mend_that_helps():
    records = [{"text": f"row {row}", "label": f"class {row}"} for row in range(24)]
    config = PartitionConfig(kind="dirichlet", alpha=100.0, min_rows=1)
    mend = "no class has more than 1; set partition.kind to iid or shards"
    with pytest.raises(FedloraError, match=mend):
        partition(records, config, 2, "label", 0)
    for kind in ("iid", "shards"):
        assert len(partition(records, KINDS[kind], 2, "label", 0)) == 2


@pytest.mark.parametrize("seed", range(4))
def test_iid_and_dirichlet_deal_as_the_partitioners_of_flwr_datasets_do(seed):
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    rng = np.random.default_rng(seed)
    count, clients, alpha = int(rng.integers(60, 400)), int(rng.integers(2, 9)), rng.uniform(0.2, 3)
    records, smallest = _records(count, seed=seed), 1 + seed
    draw = np.random.default_rng(seed)
    order = draw.permutation(count)
    names = sorted({record["label"] for record in records})
    groups = [names.index(records[row]["label"]) for row in order]
    table = Dataset.from_dict({"row": order, "group": groups})
    theirs = {"iid": IidPartitioner(clients)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that are repeated
        while "dirichlet" not in theirs:
            drawn = DirichletPartitioner(
                clients,
                "group",
                float(alpha),
                smallest,
                shuffle=False,
                seed=int(draw.integers(2**31)),
            )
            drawn.dataset = table
            try:
                drawn.load_partition(0)
            except ValueError:  # it gives up after eleven draws, at which we take the next seed
                continue
            theirs["dirichlet"] = drawn
    theirs["iid"].dataset = table
    for kind, partitioner in theirs.items():
        config = PartitionConfig(kind=kind, alpha=float(alpha), min_rows=smallest)
        ours = partition(records, config, clients, "label", seed)
        expected = [sorted(partitioner.load_partition(k)["row"]) for k in range(clients)]
        assert [part.tolist() for part in ours] == expected
