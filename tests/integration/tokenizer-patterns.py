#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random split patterns against the Hugging Face library: tokenizer-patterns.py [seed [how many]]

Puts patterns made of everything that engine/pattern.h accepts into the small model's tokenizer.json and demands equal
ids. Exit status 77 where the package is not installed.
"""
import importlib.util
import json
import pathlib
import random
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("compare", HERE / "tokenizer-compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)

ATOMS = (r"a b 1 \s \S \d \D \p{L} \P{L} [ab] [^a] [^\s\p{L}] \n . [a-c1] \p{P} \. 中 [中文\p{M}] \r [\S\n] \u4e2d [-a] [b-] "
         r"\t \f \v \e \a [^\P{L}] [^\D] \p{Zs} \p{C} \p{Co} \p{Cn} \p{S}").split() + [" "]
LETTERS = "aabbc  11\n\n.中文\u0301\r\t!é\u00a0\u3000\f\x0b\x1b\x07\ue000\u0378$"


def pattern(rng, depth):
    kind = rng.random()
    if depth == 0 or kind < .35:
        return rng.choice(ATOMS)
    if kind < .6:
        return "".join(pattern(rng, depth - 1) for _ in range(rng.randrange(2, 4)))
    if kind < .75:
        return "(?:" + "|".join(pattern(rng, depth - 1) for _ in range(rng.randrange(2, 4))) + ")"
    if kind < .95:
        return "(" + pattern(rng, depth - 1) + ")" + rng.choice(["?", "*", "+", "{2}", "{1,3}", "{2,}", "{0,2}"])
    return pattern(rng, depth - 1) + rng.choice(["(?!", "(?="]) + rng.choice(ATOMS) + ")"


def variant(rng, base):
    """The small model's file with other splits."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": rng.random() < .1}
    splits = [{"type": "Split", "pattern": {"Regex": pattern(rng, 3) + rng.choice(["", "|" + pattern(rng, 2)])},
               "behavior": "Isolated", "invert": rng.random() < .3} for _ in range(rng.choice([1, 1, 2]))]
    return {**base, "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits + [byte_level]}}


def ours(text, texts):
    """None: the file was refused."""
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / "tokenizer.json").write_text(text)
        probe = subprocess.run([compare.BUILD / "tests/integration/tokenizer-batch", directory, "plain"], input=b"",
                               capture_output=True, timeout=60)
        if probe.returncode == 1 and b"the pattern " in probe.stderr:
            return None
        return compare.batch(directory, "control", texts)[0]


def main():
    if not importlib.util.find_spec("tokenizers"):
        compare.skip("comparing with the Hugging Face library needs the Python package tokenizers")
    from tokenizers import Tokenizer
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    want = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    base = json.loads((compare.TOP / "models/nano/tokenizer.json").read_text())
    texts = [compare.tangle(rng, rng.randrange(20), LETTERS) for _ in range(100)]
    refused = different = 0
    for _ in range(want):
        text = json.dumps(variant(rng, base))
        got = ours(text, texts)
        if got is None:
            refused += 1
            continue
        hf = Tokenizer.from_str(text)
        if got != [hf.encode(t, add_special_tokens=False).ids for t in texts]:
            different += 1
            print("different:", json.dumps(json.loads(text)["pre_tokenizer"]))
    print(f"{want} files, {refused} refused for their patterns, {different} different")
    sys.exit(1 if different or refused > want / 2 else 0)


if __name__ == "__main__":
    main()
