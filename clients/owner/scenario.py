"""A server's scenario within the owner's terms: what the device makes of it, or why it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from fedlora.config import ENDS, PAYLOADS, DataConfig, NodeKeys, Scenario
from fedlora.errors import FedloraError, shown
from fedlora.reasons import about
from fedlora.tasks import task_class
from fedlora.tasks.forecast import Forecast

_INSTALLED: Final = "package:"
_FORMS: Final = ("messages", "prompt", "completion")


def local_scenario(scenario: Scenario, node: NodeKeys | Mapping[str, Any]) -> Scenario:
    """Return the scenario with this device's own paths, which the server never learns.

    With data of its own the device also says itself what separates the records of a text file, and
    which columns are text and label: activations give the text away, so a server that names the
    label's column as the text would read every label, whatever noise the gradients carry.

    Parameters
    ----------
    scenario
        As the server sent it.
    node
        The node configuration, read or as Flower hands it over.

    Raises
    ------
    FedloraError
        When the scenario names a file, a plug-in that is not registered or other classes, when the
        classes would have to be guessed from one device's data, or when the owner has set a limit
        but not said which columns are what.
    """
    keys = node if isinstance(node, NodeKeys) else NodeKeys.read(node)
    scenario = dataclasses.replace(scenario, python_path="")
    with about("plugins"):
        _check_plugins(scenario)
    with about("model"):
        scenario = _with_model(scenario, keys)
    with about("terms"):
        _check_scores(scenario, keys)
        _check_tokens(scenario, keys)
    if not keys.data:
        with about("data"):
            _check_trial(keys)
        return scenario
    with about("classes"):
        _check_classes(scenario, keys)
    with about("terms"):
        return _with_data(scenario, keys)


def _check_plugins(scenario: Scenario) -> None:
    """Refuse code that is named by a scenario instead of being installed and registered here."""
    named = {
        "task.kind": scenario.task.kind,
        "channel.model": scenario.channel.model,
        "channel.predict": scenario.channel.predict,
        "privacy.release": scenario.privacy.release,
        **{f"link.{name}": getattr(scenario.link, name) for name in (*PAYLOADS, *ENDS)},
    }
    for key, value in named.items():
        if ":" in value:
            raise FedloraError(
                f"{key} is {value!r}, and no server may choose code on this device; install the "
                "plug-in here and name what it is registered as"
            )
    for key in ("path", "up_path"):
        path = scenario.channel.options.get(key, _INSTALLED)
        for one in path if isinstance(path, (list, tuple)) else [path]:
            if not str(one).startswith(_INSTALLED):
                raise FedloraError(
                    f"channel.options.{key} is {path!r}, and no server may choose what is read on "
                    "this device; use another channel.model"
                )


def _with_model(scenario: Scenario, keys: NodeKeys) -> Scenario:
    if keys.model:
        return dataclasses.replace(
            scenario, model=dataclasses.replace(scenario.model, path=keys.model)
        )
    if not (scenario.model.path.startswith(_INSTALLED) or keys.scenario_data):
        raise FedloraError(
            f"the scenario names the model {scenario.model.path!r}, and no server may choose what "
            "is read on this device; set model in the node configuration"
        )
    return scenario


def _check_scores(scenario: Scenario, keys: NodeKeys) -> None:
    if scenario.evaluate.scores and not keys.privacy_scores:
        raise FedloraError(
            "evaluate.scores asks for histograms of held-out records' scores, which tell more of "
            'them than counts, and the node configuration does not allow it; set privacy-scores="'
            'true", or take part in a run without'
        )


def _check_tokens(scenario: Scenario, keys: NodeKeys) -> None:
    if scenario.link.sends_tokens and not keys.tokens:
        raise FedloraError(
            "link.activation is tokens, which says texts plainly, and the node configuration does "
            'not allow it; set tokens="true", or take part in a run with another codec'
        )


def _check_trial(keys: NodeKeys) -> None:
    if not keys.scenario_data:
        raise FedloraError(
            "the node configuration sets no data; set data to this device's file, or "
            'scenario-data="true" for a trial with the records that the scenario names'
        )


def _check_classes(scenario: Scenario, keys: NodeKeys) -> None:
    labels = scenario.task.labels
    if not task_class(scenario.task.kind).labelled:
        return
    if not labels:
        raise FedloraError(
            "task.labels is empty, and one device's data may lack a class; name all classes "
            "in the scenario"
        )
    if keys.classes and set(keys.classes) != set(labels):
        raise FedloraError(
            f"task.labels is {shown(', '.join(labels))}, but classes in the node configuration is "
            f"{shown(', '.join(keys.classes))}; both have to name the same"
        )


def _with_data(scenario: Scenario, keys: NodeKeys) -> Scenario:
    kind, limited = task_class(scenario.task.kind), keys.limit is not None
    labelled, form = kind.labelled, keys.form
    columns = {"text": kind.tokens, "label": labelled}
    for key in (name for name, asked in columns.items() if asked):
        if limited and not getattr(keys, key) and (labelled or not form):
            raise FedloraError(
                f"privacy-epsilon is set, but not which column of data is the {key}; set {key} in "
                "the node configuration, as a server that chooses it could have labels sent as text"
            )
    plain = DataConfig()
    theirs = plain if limited else scenario.data
    forms: Mapping[str, Any] = form or {key: getattr(theirs, key) for key in ("text", *_FORMS)}
    if limited and issubclass(kind, Forecast) and not keys.segment and "record" not in keys.axes:
        raise FedloraError(
            "privacy-epsilon is set, but not what a record of data is, which a server would choose "
            "by task.forecast; set segment (time steps), or axes with record among them"
        )
    data = dataclasses.replace(
        scenario.data,
        train=keys.data,
        test=keys.test,
        columns=keys.columns or theirs.columns,
        **forms,
        chat=keys.chat or theirs.chat,
        label=keys.label or theirs.label,
        # where a text file is cut makes its records, by which the owner's ledger knows them
        record_separator=_or(keys.record_separator, plain.record_separator),
        pattern=_or(keys.pattern, plain.pattern),
        prompt_separator=_or(
            keys.prompt_separator, "" if keys.messages or keys.prompt else theirs.prompt_separator
        ),
        split=plain.split,
        max_rows=plain.max_rows,
        holdout=_holdout(scenario, keys),
        values=keys.values or theirs.values,
        group=keys.group or theirs.group,
        axes=keys.axes or theirs.axes,
        segment=keys.segment or theirs.segment,
    )
    if labelled and kind.tokens and data.text == data.label:
        raise FedloraError(
            f"text and label are both the column {data.text!r}, so the label would be sent as "
            "text; name two"
        )
    if kind.language() and limited:
        _check_prompts(scenario, data)
    partition = dataclasses.replace(scenario.partition, kind="iid", min_rows=1)
    return dataclasses.replace(scenario, data=data, partition=partition)


def _holdout(scenario: Scenario, keys: NodeKeys) -> float:
    """Return the share of records that is held out; the scenario's where nothing is private."""
    if keys.test:
        return 0.0
    if keys.holdout is not None:
        return keys.holdout
    if keys.limit is None and not scenario.privacy.enabled:
        return scenario.data.holdout
    return DataConfig().holdout if keys.privacy_report != "false" else 0.0


def _check_prompts(scenario: Scenario, data: DataConfig) -> None:
    """Refuse a run that would make other targets of the owner's text than the owner says."""
    asked = scenario.data.prompt_separator
    if data.form == "text" and asked != data.prompt_separator:
        raise FedloraError(
            f"data.prompt_separator is {asked!r}, but with privacy-epsilon the node configuration "
            f"says what ends a prompt, which is {data.prompt_separator!r}; set prompt-separator"
        )
    key = f"data.{data.form}" if data.form != "text" else "data.prompt_separator" if asked else ""
    if key and scenario.privacy.activation_sigma is not None:
        raise FedloraError(
            f"privacy.activation_sigma hides texts, but with {key} the number of samples tells of "
            "them; train on whole texts, or run without it"
        )


def _or(own: str | None, theirs: str) -> str:
    return theirs if own is None else own
