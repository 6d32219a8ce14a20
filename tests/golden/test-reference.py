#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checkpoints of other seeds, shapes and layouts, made here, against reference.py; and a long session."""
import os
import random
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from golden import NANO, Verdict, describe, errors, judge, logits, np
from reference import Model

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKPOINTS = {
    "nano, seed 7": ["--seed", "7"],
    "nano, FP8 experts, no MTP": ["--expert-dtype", "fp8", "--no-mtp", "--seed", "2"],
    "nano, 3 layers, 5 experts, many shards": ["--layers", "3", "--experts", "5", "--shard-bytes", "100000", "--seed", "3"],
    "nanopro": ["--preset", "nanopro", "--seed", "4"],
    "nanopro, FP8 experts": ["--preset", "nanopro", "--expert-dtype", "fp8", "--seed", "5"],
}
# Where the order of sums flips a rounding of the cache is chance: with some seeds within the first positions (1e-4 from
# there on), and far from the start, with random weights, at some position every time.
EARLY, EARLIEST, LONG_SHARE = 1e-3, 1e-5, 0.95
LONG = 1100  # tokens: more compressed entries than top-k by far, several pages, several steps


def make(folder, args):
    subprocess.run([sys.executable, os.path.join(HERE, "mkckpt.py"), folder, *args], check=True, capture_output=True)
    return folder


def tokens_of(vocab, n):
    r = random.Random(n)
    return [r.randrange(vocab) for _ in range(n)]


def compare(v, name, model, n, prefill, share=0.99):
    """Judges positions prefill - 1 .. n - 1."""
    with tempfile.TemporaryDirectory() as folder:
        reference = Model(model)
        vocab = reference.c["vocab_size"]
        tokens = tokens_of(vocab, n)
        want = reference.logits(tokens)[prefill - 1:].astype(np.float32)
        exact = logits(folder, model, tokens, prefill, vocab)
        e = errors(exact, want)
        wrong = judge(e, prefill - 1, share, EARLY)
        if prefill == 1 and e[0] > EARLIEST:
            wrong.append(f"error {e[0]:.2e} > {EARLIEST:.0e} at the first position")
        v.check(name, wrong, describe(e))
        fast = errors(logits(folder, model, tokens, prefill, vocab, "--numerics", "fast"), want)
        # The released kernels' own median error is 1.4e-1 to 2e-1 on nano (test-released.py).
        v.check(name + ", fast", [] if np.median(fast) <= 1e-1 else ["median error > 1e-1"], describe(fast))


def main():
    v = Verdict()
    for name, args in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as folder:
            compare(v, name, make(os.path.join(folder, "model"), args), 150, 1)
    compare(v, f"nano, {LONG} tokens", NANO, LONG, LONG - 100, LONG_SHARE)
    v.exit()


main()
