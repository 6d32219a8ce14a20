#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes nano.json: what the Hugging Face library makes of some texts with models/nano/tokenizer.json.

    tests/golden/tokenizer/record.py > tests/golden/tokenizer/nano.json

`control` are the ids with added tokens, `plain` those without. tests/unit/test-tokenizer.c compares; the large
comparison, which needs the library, is tests/integration/tokenizer-compare.py.
"""
import importlib.util
import json
import pathlib
import random

from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[2]
spec = importlib.util.spec_from_file_location("compare", TOP / "tests/integration/tokenizer-compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)

parsed = json.loads((TOP / "models/nano/tokenizer.json").read_text())
added = [a["content"] for a in parsed["added_tokens"]]
control = Tokenizer.from_str(json.dumps(parsed))
plain = Tokenizer.from_str(json.dumps({**parsed, "added_tokens": []}))
rng = random.Random(7)
tight = list("aZ é中の١1٣ \t\r\n!.<{_-'") + ["\u0301", "\u3000", "\u2028", "\u200d", "€"]
texts = ["", " ", "\n", "a", "  a", "a  ", "\r\n", "\0", "\U0010ffff", "\ufeffbom", "".join(added)]
texts += [compare.words(rng, 12) for _ in range(100)]
texts += [compare.tangle(rng, 12, rng.sample(tight, 5)) for _ in range(100)]
texts += ["".join(compare.scalar(rng) for _ in range(15)) for _ in range(60)]
texts += ["".join(rng.choice(added + compare.WORDS)[rng.randrange(2):] for _ in range(6)) for _ in range(60)]
rows = [json.dumps({"text": t, "control": control.encode(t, add_special_tokens=False).ids,
                    "plain": plain.encode(t, add_special_tokens=False).ids}) for t in texts]
print("[\n" + ",\n".join(rows) + "\n]")
