#!/bin/sh
# transformers 5.23.0, LlamaForSequenceClassification (and its kin): the token that is pooled is the last whose id is not
# the pad id; the attention mask has no say. Where the end of a text is the pad id as well, as in SmolLM2 and whoever sets
# pad_token = eos_token, a row that ends in it is pooled one place before, padded or not. Embeddings in place of ids are
# pooled at the last column, padding included (one line in the log). fedlora pools by the mask, and exports a classifier
# with a pad id in which no text ends.
#
# Seen on 2026-11-30 (CPU, fp32), the place of five tokens that is pooled, an end as the last, all in the mask:
#   with a pad id of its own 4; with the end's id as pad id 3; embeddings of five tokens and two places of padding 6
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

END = 2


def classifier(pad: int) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_labels=3, pad_token_id=pad, eos_token_id=END,
        )
    ).eval()


ids = torch.tensor([[5, 6, 7, 8, END]])
mask = torch.ones_like(ids)
with torch.no_grad():
    by_place = {}
    for name, pad in (("a pad id of its own", 0), ("the end's id as pad id", END)):
        model = classifier(pad)
        scores = model.score(model.model(input_ids=ids, attention_mask=mask).last_hidden_state)[0]
        logits = model(input_ids=ids, attention_mask=mask).logits[0]
        by_place[name] = [place for place, own in enumerate(scores) if torch.allclose(own, logits, atol=1e-6)]
    model = classifier(0)
    embedded = model.model.embed_tokens(torch.tensor([[5, 6, 7, 8, END, 0, 0]]))
    padded = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    scores = model.score(model.model(inputs_embeds=embedded, attention_mask=padded).last_hidden_state)[0]
    logits = model(inputs_embeds=embedded, attention_mask=padded).logits[0]
    by_place["embeddings, two padded places"] = [
        place for place, own in enumerate(scores) if torch.allclose(own, logits, atol=1e-6)
    ]
print(by_place)
assert by_place == {
    "a pad id of its own": [4], "the end's id as pad id": [3], "embeddings, two padded places": [6]
}, "it pools elsewhere"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
