#!/bin/sh
# transformers 5.23.0, apply_chat_template(return_assistant_tokens_mask=True) with truncation on the left: where the cut
# goes through an assistant's turn, the mask is 0 for that turn and for all later ones, which are there whole. A row like
# this trains on nothing, or, where its loss is a mean over its own tokens, on a division by zero. A template without {%
# generation %} gives zeros everywhere as well (one line in the log). fedlora finds turns and cuts by offsets of its own.
#
# Seen on 2026-11-30, two turns of each, the last of them three tokens of the assistant's:
#   whole: 5 tokens in the mask; without the first four of twelve tokens: 0
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "transformers==5.23.0" "numpy<3" "jinja2>=3.1.6"
cd "$place"
cat > look.py <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = ["<s>", "[u]", "[a]", "hi", "yes", "no"]
tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<s>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<s>", truncation_side="left")
template = (
    "{% for m in messages %}{% if m.role == 'user' %}[u] {{ m.content }} {% else %}[a] "
    "{% generation %}{{ m.content }}{% endgeneration %} {% endif %}{% endfor %}"
)
turns = [("user", "hi"), ("assistant", "yes yes"), ("user", "hi hi"), ("assistant", "no no no")]
messages = [{"role": role, "content": content} for role, content in turns]


def masked(**options: object) -> tuple[int, list[int]]:
    """Return the tokens in the mask, and the last three tokens."""
    found = fast.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    return sum(found["assistant_masks"]), found["input_ids"][-3:]


whole, cut = masked(), masked(truncation=True, max_length=8)
print(f"whole: {whole[0]} tokens in the mask; cut on the left: {cut[0]}")
assert whole[0] == 5, "the mask of the whole has changed"
assert cut == (0, whole[1]), "later turns are in the mask now"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
