#!/bin/sh
# What the tokeniser behind CIDEr and BLEU makes of prices and of halves. Needs java.
#
# pycocoevalcap 1.2 (Stanford's PTBTokenizer inside), seen 2026-11-29:
#   'a price tag of 5 € on a box' -> 'a price tag of 5 $ on a box'      so a caption with the wrong currency scores as if it were right
#   'a price tag of 5 £ on a box' -> 'a price tag of 5 # on a box'
#   '2 1/2 pizzas' -> '2\xa01/2 pizzas'                                 one token with a no-break space, which CIDEr's split() cuts into two again
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocoevalcap==1.2 >/dev/null 2>&1
cat > "$folder/words.py" <<'PY'
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

captions = ["a price tag of 5 € on a box", "a price tag of 5 £ on a box", "a price tag of 5 $ on a box", "2 1/2 pizzas"]
found = PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(captions)})
for k, text in enumerate(captions):
    print(f"{text!r} -> {found[k][0]!r}")
assert found[0] == found[2], "a euro is a dollar"
assert "#" in found[1][0].split(), "a pound is a number sign"
assert "\u00a0" in found[3][0], "a whole number and a half are one token, joined by a no-break space"
PY
cd "$folder"
"$folder/venv/bin/python" words.py
