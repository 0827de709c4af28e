"""A thread keeps the number of torch's threads that it was given."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from fedlora.threads import compute_with, on_threads


def test_what_others_are_told_before_its_first_product_changes_nothing():
    with ThreadPoolExecutor(1, initializer=compute_with, initargs=(1,)) as pool:
        pool.submit(int).result()  # it is there, and has computed nothing yet
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            assert pool.submit(torch.get_num_threads).result() == 1
        finally:
            torch.set_num_threads(before)


def test_the_number_comes_back_after_something_on_the_side():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with on_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
