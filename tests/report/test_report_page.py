"""The report page stands alone, escapes what it shows, and copes with a run cut short."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from support.holdings import add_holdings

from fedlora.report import RunFolder
from fedlora.report.gallery import GALLERY
from fedlora.report.page import write_report

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def sources(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]


def read(folder: RunFolder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_page_refers_to_nothing_outside_itself(finished):
    add_holdings(finished, {"lights": {"client-0": 3}})
    html = write_report(finished).read_text(encoding="utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    for tag, attrs in page.tags:
        assert not {"href", "srcset", "style", "action"} & set(attrs), tag
        assert not any(name.startswith("on") for name in attrs), tag
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import", style.group(1))
    policy = [attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_plot_is_inside_as_the_png_on_disk(finished):
    add_holdings(finished, {"lights": {"client-0": 3}})
    sources = read(finished).sources()
    assert len(sources) == len(GALLERY)
    for plot, source in zip(GALLERY, sources, strict=True):
        head, data = source.split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (finished.plots / f"{plot.name}.png").read_bytes()


def test_values_are_escaped(finished):
    hostile = "<script>alert(1)</script>&\"'"
    finished.write_scenario(f"name = '''{hostile}'''\n")
    finished.append_event("message", level="warning", text=hostile)
    html = write_report(finished).read_text(encoding="utf-8")
    assert "<script" not in html
    assert Page(html).text.count(hostile) == 4  # title, heading, notice, scenario


def test_half_a_character_in_what_a_client_told_leaves_the_page_whole(finished):
    finished.append_event("message", level="warning", text="label on\ud83d is odd")
    assert "label on? is odd" in read(finished).text


def test_page_states_result_clients_scenario_and_versions(finished):
    text = read(finished).text
    assert "Accuracy 0.923 on held-out data after 6 rounds with 8 clients, 0.198 better" in text
    assert "intents <over> a & fading link" in text
    assert "client-7" in text
    assert "r_max = 8" in text
    assert "transformers" in text


def test_privacy_block_says_what_is_covered_and_what_is_not(finished):
    text = read(finished).text
    assert "epsilon 7.94" in text
    assert "factor of at most 2,807" in text
    for statement in ("labels and all that", "forward activations", "replace-one"):
        assert statement in text


def test_what_else_is_stated_of_privacy_is_told_in_words_and_not_as_code(make_run, make_rounds):
    zero_out = {"adjacency": "zero-out", "epsilon": 5.25}
    stated = {"epsilon": 3.0, "delta": 1e-5, "adjacency": "replace_one", "covers": ["labels"]}
    further = {"excludes": ["texts"], "zero_out": zero_out, "adapter": {"epsilon": None}}
    text = read(make_run(make_rounds(rounds=1), privacy={**stated, **further})).text
    for told in ("zero out: adjacency", "zero out: epsilon", "5.25", "adapter: epsilon", "none"):
        assert told in text
    assert "{'" not in text and "None" not in text


def test_noise_that_can_be_repeated_is_called_no_guarantee(make_run, make_rounds):
    privacy = {"epsilon": 3.0, "delta": 1e-5, "adjacency": "replace_one", "guarantee": False}
    folder = make_run(make_rounds(rounds=1), privacy={**privacy, "covers": [], "excludes": []})
    text = read(folder).text
    assert "without guarantee" in text
    assert "odds" not in text


def test_page_says_when_there_was_no_privacy(make_run, make_rounds):
    text = read(make_run(make_rounds(rounds=2), privacy=None)).text
    assert "There was no differential privacy in this run." in text


def test_run_that_was_interrupted_shows_the_rounds_it_finished(tmp_path, make_rounds):
    folder = RunFolder.create(tmp_path / "run")
    for record in make_rounds(rounds=2):
        folder.append_round(record)
    folder.append_event("done", status="interrupted", text="Stopped by Ctrl-C.")
    page = read(folder)
    assert "The run was interrupted" in page.text
    assert "after 2 rounds with 8 clients" in page.text
    assert page.sources()


@pytest.mark.parametrize("status", ["failed", None])
def test_run_without_a_round_still_has_a_page(tmp_path, status):
    folder = RunFolder.create(tmp_path / "run")
    if status:
        folder.append_event("done", status=status, text="no client connected")
    text = read(folder).text
    assert ("The run failed" if status else "The run has not ended") in text
    assert "No evaluation was reached" in text
