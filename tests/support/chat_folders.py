"""Tokenizer folders with chat templates of the shapes that published models have.

In a template ``«`` and ``»`` stand around what an assistant says, up to the token that ends its
turn: generation tags for the reference, nothing for a template that does not tell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from support.tokenizer_folders import CORPUS

TOKENS = (
    *("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|begin|>", "<|end_header|>", "<|start_header|>", "<|eot|>"),
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As the model has it."""
_SAYS = "{% if message['role'] == 'assistant' %}"
SHAPES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n'}}"
        f"{_SAYS}«{{{{ message['content'] + '<|im_end|>' }}}}»"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "system in the first turn": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}{% endif %}"
        "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}"
        "{% endif %}{% if loop.first and system is defined %}"
        "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        f"{_SAYS}{{{{ ' ' }}}}«{{{{ content.strip() + ' ' + eos_token }}}}»"
        "{% else %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% endif %}"
        "{% endfor %}"
    ),
    "own name for the assistant": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
        f"{_SAYS}{{{{ '<start_of_turn>model\n' }}}}"
        "«{{ message['content'] | trim + '<end_of_turn>' }}»{% else %}"
        "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + "
        "'<end_of_turn>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "headers": (
        "{% for message in messages %}{% set head = '<|start_header|>' + message['role'] + "
        "'<|end_header|>\n\n' %}{% if loop.index0 == 0 %}{% set head = bos_token + head %}"
        "{% endif %}{{ head }}"
        f"{_SAYS}«{{{{ message['content'] | trim + '<|eot|>' }}}}»"
        "{% elif message['role'] == 'tool' %}{{ message['content'] | tojson + '<|eot|>' }}"
        "{% else %}{{ message['content'] | trim + '<|eot|>' }}{% endif %}{% endfor %}"
    ),
    "lines": (
        "{%- for message in messages %}\n"
        "    {%- if message.role == 'assistant' %}\n"
        "        {{- '<|assistant|>\n' }}«{{ message.content + eos_token }}»\n"
        "    {%- else %}\n"
        "        {{- '<|' + message.role + '|>\n' + message.content + eos_token }}\n"
        "    {%- endif %}\n"
        "    {{- '\n' }}\n"
        "{%- endfor %}\n"
    ),
    "names as words": (
        "{{ bos_token }}{% for message in messages %}"
        f"{_SAYS}{{{{ 'ASSISTANT: ' }}}}«{{{{ message['content'] + eos_token }}}}»"
        "{% else %}{{ message['role'] | upper + ': ' + message['content'] + ' ' }}{% endif %}"
        "{% endfor %}"
    ),
    "end at the end alone": (
        "{% for message in messages %}"
        f"{_SAYS}{{{{ 'A: ' }}}}«{{{{ message['content'] }}}}"
        "{% if loop.last %}{{ eos_token }}{% endif %}»"
        "{% else %}{{ 'Q: ' + message['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    ),
    "no token at the end": (
        "{% for message in messages %}"
        f"{_SAYS}{{{{ '### Response:\n' }}}}«{{{{ message['content'] }}}}»"
        "{% else %}{{ '### Instruction:\n' + message['content'] }}{% endif %}{{ '\n\n' }}"
        "{% endfor %}"
    ),
    "an end of words": (
        "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
        f"{_SAYS}«{{{{ message['content'] + '<stop>' }}}}»"
        "{% else %}{{ message['content'] + '<stop>' }}{% endif %}{% endfor %}"
    ),
}


def tagged(shape: str) -> str:
    """Return a shape that says what the assistant's turns are."""
    opening, closing = "{% generation %}", "{% endgeneration %}"
    return SHAPES[shape].replace("«", opening).replace("»", closing)


def untagged(shape: str) -> str:
    """Return a shape that does not say it."""
    return SHAPES[shape].replace("«", "").replace("»", "")


def write_chat_model(folder: Path, template: str | None) -> Path:
    """Write a tiny random Llama with the tokenizer of ``write_chat_tokenizer``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_chat_tokenizer(folder, template)
    ends = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, eos = (ends.token_to_id(token) for token in ("<s>", "</s>"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=448, bos_token_id=bos, eos_token_id=eos, **sizes, **heads)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_chat_tokenizer(folder: Path, template: str | None, **settings: Any) -> Path:
    """Write a byte-level tokenizer that puts a start token before every text.

    Parameters
    ----------
    folder
        Folder to write, which may hold a model.
    template
        The chat template; None for a tokenizer without.
    **settings
        What else stands in ``tokenizer_config.json``.
    """
    folder.mkdir(exist_ok=True)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*CORPUS, "user assistant system user assistant tool\n"], trainer)
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    made.save(str(folder / "tokenizer.json"))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text('{"model_type": "llama"}')
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        **settings,
    }
    if template is not None:
        settings = {"chat_template": template, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def plain_answers(
    model: Path, adapter: Path, texts: list[str | list[dict[str, str]]], most: int
) -> list[str]:
    """Return what plain transformers and PEFT answer to texts, a turn each, or to turns."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    answers = []
    for text in texts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}] if isinstance(text, str) else text,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).input_ids
        with torch.no_grad():
            out = tuned.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        answers.append(answer.strip())
    return answers


def write_conversations(path: Path, count: int, first: int = 0) -> Path:
    """Write conversations of one or two turns, each with an answer of its own."""
    rows = []
    for n in range(first, first + count):
        turns = [("user", f"dog {n}?"), ("assistant", f"fox {n % 3}")] * (1 + n % 2)
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
