"""``fedlora generate`` and ``chat`` say in one sentence what they cannot do."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_run_that_labels_texts_writes_none(fedlora, finished, verb):
    status, said = fedlora(verb, finished, *(["w1"] if verb == "generate" else []))
    assert (status, said.count("\n")) == (2, 1)
    assert "task.kind is 'classification', whose model writes no text; use fedlora infer" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--top-p", "0.5"), "top_p 0.5 would change nothing; set a temperature as well"),
        (("--seed", "-4", "--temperature", "1"), "seed is -4"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--drafts", "some"), "'none', 'prompt', 'history'"),
        (("--client", "9"), "the run has no client '9'"),
        (("--rank", "9"), "--rank 9 exceeds the run's r_max 2"),
    ],
)
def test_an_option_that_means_nothing_is_refused(fedlora, finished, options, expected):
    status, said = fedlora("generate", finished, "w1", *options)
    assert status == 2
    assert expected in said


def test_a_folder_that_is_no_run_is_named(fedlora, tmp_path):
    for folder in (tmp_path / "away", tmp_path):
        status, said = fedlora("generate", folder, "w1")
        assert (status, said.count("\n")) == (2, 1)
        assert str(folder) in said
