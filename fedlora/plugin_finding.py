"""What the functions ``check_*`` make of a plug-in: one sentence for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class PluginFinding(Exception):
    """What ends a part of a check; its text is the sentence."""


def first_findings(parts: Iterable[Callable[[], Iterable[str]]]) -> list[str]:
    """Return what the first part finds that finds anything; what comes later often follows from it.

    Parameters
    ----------
    parts
        Each gives its sentences, or raises a ``PluginFinding``, which then is the only one.
    """
    for part in parts:
        try:
            findings = list(dict.fromkeys(part()))
        except PluginFinding as finding:
            findings = [str(finding)]
        if findings:
            return findings
    return []
