"""Lines of Python that load an export with transformers and PEFT, and give the run's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.commands.prompts import TaskFacts
from fedlora.lora.classifier import Head

PACKAGE = "package:"


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes
    ----------
    format_
        As the command line names it.
    base, revision
        The backbone's name or folder, and its commit on the hub.
    ranks
        Of the projections.
    client
        Whose adapter it is; None for the run's.
    head
        The head that goes along; None without one.
    holder
        transformers' class that holds the head; empty where there is none.
    why_not
        One sentence that says why no class of transformers holds the head, or it is not here.
    padding_id
        Of the backbone's token to pad with; None where one text at a time is to be given.
    declared_padding_id
        What the backbone's own configuration says.
    opening
        Ids before every text.
    embedded
        Whether the backbone stores its token embedding under that name.
    chat
        Whether texts are a user's turns.
    texts
        Whether the task reads texts.
    front
        Whether the token embedding is in a file of its own.
    """

    format_: str
    base: str
    revision: str | None
    ranks: Sequence[int]
    client: str | None
    head: Head | None = None
    holder: str = ""
    why_not: str = ""
    padding_id: int | None = None
    declared_padding_id: int | None = None
    opening: Sequence[int] = ()
    embedded: bool = True
    chat: bool = False
    texts: bool = True
    front: bool = False

    @property
    def merged(self) -> bool:
        """Whether it is a whole model."""
        return self.format_ == "merged"


def loading_lines(export: Export, facts: TaskFacts, *, pooled: bool) -> list[str]:
    """Return the lines.

    Parameters
    ----------
    export
        What was written.
    facts
        The task.
    pooled
        Whether it is a classifier's.
    """
    if not export.texts:
        return _vectors(export)
    if not pooled:
        return _language(export, facts)
    return _held(export, facts) if export.holder else _by_hand(export, facts)


def _places(export: Export) -> tuple[list[str], str, str]:
    """Return lines that say where things are, and what the base model's place is called."""
    lines = ['folder = "."  # where this file is']
    if export.merged:
        return lines, "folder", ""
    revision = f", revision={export.revision!r}" if export.revision else ""
    if export.base.startswith(PACKAGE):
        package, _, inside = export.base.removeprefix(PACKAGE).partition("/")
        place = f'str(importlib.resources.files("{package}") / "{inside}")'
        return [*lines, f"base = {place}"], "base", revision
    place = "PeftConfig.from_pretrained(folder).base_model_name_or_path"
    return [*lines, f"base = {place}"], "base", revision


def _imports(export: Export, auto: str, peft: str, more: Sequence[str] = ()) -> list[str]:
    own_place = export.base.startswith(PACKAGE) and not export.merged
    reader, arguments = (["AutoTokenizer"], ["sys"]) if export.texts else ([], [])
    standard = sorted({*arguments, *more, *(["importlib.resources"] if own_place else [])})
    lines = [*(f"import {name}" for name in standard), *([""] if standard else []), "import torch"]
    needed = [] if own_place or export.merged else ["PeftConfig"]
    needed += [] if export.merged else [peft]
    if needed:
        lines += [f"from peft import {', '.join(sorted(needed))}"]
    if "json" in more or export.front:
        lines += ["from safetensors import safe_open"]
    auto = ", ".join(sorted({auto, *reader} - {""}))
    return [*lines, f"from transformers import {auto}", ""]


def _embedding(export: Export) -> list[str]:
    """Return lines that give the model the token embedding beside it."""
    if not export.front:
        return []
    return [
        'with safe_open(f"{folder}/front.safetensors", "pt") as file:',
        '    model.get_input_embeddings().weight = torch.nn.Parameter(file.get_tensor("weight"))',
    ]


def _vectors(export: Export) -> list[str]:
    """Return lines that load the blocks, for what a task's own front makes."""
    places, base, revision = _places(export)
    auto = "AutoModel" if export.embedded or export.merged else "AutoModelForCausalLM"
    inner = "" if auto == "AutoModel" else ".base_model"
    whole = f"{auto}.from_pretrained({base}{revision}){inner}"
    load = whole if export.merged else f"PeftModel.from_pretrained({whole}, folder)"
    return [
        *_imports(export, auto, "PeftModel"),
        *places,
        f"model = {load}.eval()",
        "width = model.get_input_embeddings().weight.shape[1]",
        "vectors = torch.zeros(1, 8, width)  # a row of 8 places, as the task's front makes them",
        "with torch.no_grad():",
        "    states = model(inputs_embeds=vectors).last_hidden_state  # what its head is given",
    ]


_TEXTS = 'texts = sys.argv[1:] or ["A text.", "Another one."]'


def _held(export: Export, facts: TaskFacts) -> list[str]:
    """Return lines that use transformers' class for classification."""
    places, base, revision = _places(export)
    assert export.head is not None
    auto = "AutoModelForSequenceClassification"
    more: list[str] = []
    own_place = export.base.startswith(PACKAGE) and not export.merged
    if export.merged:
        load = [f"model = {auto}.from_pretrained(folder).eval()"]
        imports = _imports(export, auto, "")
        labels = "model.config.id2label"
        batch = True
    else:
        settings = f"num_labels={len(export.head.weight)}"
        if export.padding_id != export.declared_padding_id:
            settings += f", pad_token_id={export.padding_id}"
        batch = export.padding_id is not None
        more = ["json"]
        if own_place:
            imports = _imports(export, auto, "PeftModel", more)
            load = [
                f"whole = {auto}.from_pretrained(base, {settings})",
                "model = PeftModel.from_pretrained(whole, folder).eval()",
            ]
        else:
            peft = "AutoPeftModelForSequenceClassification"
            imports = _imports(export, "", peft, more)
            load = [f"model = {peft}.from_pretrained(folder, {settings}).eval()"]
        load += [
            'with safe_open(f"{folder}/head.safetensors", "pt") as file:',
            '    labels = json.loads(file.metadata()["labels"])',
        ]
        labels = "labels"
    lines = [
        *imports,
        *places,
        _TEXTS,
        f"tokenizer = AutoTokenizer.from_pretrained({base}{revision})",
        *load,
    ]
    cut = f"truncation=True, max_length={facts.task.max_length}"
    if batch:
        lines += [
            f"cut = dict({cut})",
            'pad = dict(padding=True, padding_side="right")',
            'rows = tokenizer(texts, **cut, **pad, return_tensors="pt")',
            "with torch.no_grad():",
            "    logits = model(rows.input_ids, attention_mask=rows.attention_mask).logits",
        ]
    else:  # without a padding token
        lines += [
            f'rows = [tokenizer(t, {cut}, return_tensors="pt").input_ids for t in texts]',
            "with torch.no_grad():  # one at a time, as there is no token to pad with",
            "    logits = torch.cat([model(input_ids=ids).logits for ids in rows])",
        ]
    return [
        *lines,
        "for text, chances in zip(texts, logits.float().softmax(-1)):",
        f"    print({labels}[int(chances.argmax())], float(chances.max()), text)",
    ]


_POOLED = {"last": "states[-1]", "cls": "states[0]", "mean": "states.mean(0)"}


def _by_hand(export: Export, facts: TaskFacts) -> list[str]:
    """Return lines that pool and classify with the head's own file."""
    places, base, revision = _places(export)
    auto = "AutoModel" if export.embedded or export.merged else "AutoModelForCausalLM"
    inner = "" if auto == "AutoModel" else ".base_model"
    whole = f"{auto}.from_pretrained({base}{revision}){inner}"
    if export.merged:
        load = [f"model = {whole}.eval()"]
    else:
        load = [f"model = PeftModel.from_pretrained({whole}, folder).eval()"]
    lines = [
        *_imports(export, auto, "PeftModel", ["json"] if export.head else []),
        *places,
        _TEXTS,
        f"tokenizer = AutoTokenizer.from_pretrained({base}{revision})",
        *load,
        *_embedding(export),
    ]
    if export.head is not None:
        lines += [
            'with safe_open(f"{folder}/head.safetensors", "pt") as file:',
            '    head, labels = file.get_tensor("weight"), json.loads(file.metadata()["labels"])',
        ]
    cut = f"truncation=True, max_length={facts.task.max_length}"
    lines += [
        "for text in texts:",
        f'    ids = tokenizer(text, {cut}, return_tensors="pt").input_ids',
        "    with torch.no_grad():",
        "        states = model(input_ids=ids).last_hidden_state[0].float()",
    ]
    pooled = _POOLED[facts.task.pool]
    if export.head is None:
        return [*lines, f"    print({pooled}, text)  # what the head is given"]
    return [
        *lines,
        f"    chances = (head @ {pooled}).softmax(-1)",
        "    print(labels[int(chances.argmax())], float(chances.max()), text)",
    ]


def _language(export: Export, facts: TaskFacts) -> list[str]:
    places, base, revision = _places(export)
    own_place = export.base.startswith(PACKAGE)
    if export.merged:
        auto, peft = "AutoModelForCausalLM", ""
        load = ["model = AutoModelForCausalLM.from_pretrained(folder).eval()"]
    elif own_place:
        auto, peft = "AutoModelForCausalLM", "PeftModel"
        load = [
            "whole = AutoModelForCausalLM.from_pretrained(base)",
            "model = PeftModel.from_pretrained(whole, folder).eval()",
        ]
    else:
        auto, peft = "", "AutoPeftModelForCausalLM"
        load = ["model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()"]
    text = f"text + {facts.prompt_separator!r}" if facts.prompt_separator else "text"
    ids = f"tokenizer({text}, add_special_tokens=False).input_ids"
    ids = f"[{', '.join(map(str, export.opening))}, *{ids}]" if export.opening else ids
    given = [f"    ids = torch.tensor([{ids}])"]
    if export.chat:
        given = [
            '    turn = [{"role": "user", "content": text}]',
            "    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True,",
            '                                        return_tensors="pt").input_ids',
        ]
    return [
        *_imports(export, auto, peft),
        *places,
        _TEXTS,
        f"tokenizer = AutoTokenizer.from_pretrained({base}{revision})",
        *load,
        *_embedding(export),
        "for text in texts:",
        *given,
        "    mask, pad = torch.ones_like(ids), tokenizer.eos_token_id or 0",
        "    output = model.generate(",
        "        input_ids=ids, attention_mask=mask, max_new_tokens=48, do_sample=False,",
        "        pad_token_id=pad,",
        "    )",
        "    print(text, tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True))",
    ]
