#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The size of steps, of the prefill, the threads and the instruction set change no bit of the logits."""
import os
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from golden import EVAL, NANO, Verdict, logits, manifest, write_tokens

M = manifest()
VOCAB, TOKENS = M["vocab_size"], M["tokens"]


def isas(folder, numerics):
    """Instruction sets that this machine has."""
    found, tokens = [], write_tokens(os.path.join(folder, "one"), [1])
    for isa in ("plain", "avx2", "avx512"):
        done = subprocess.run([EVAL, "greedy", "--model", NANO, "--tokens", tokens, "--isa", isa, "--count", "1",
                               "--numerics", numerics], capture_output=True, text=True)
        if "UNSUPPORTED" not in done.stderr:
            found.append(isa)
    return found


def main():
    v = Verdict()
    with tempfile.TemporaryDirectory() as folder:
        for numerics in ("exact", "fast"):
            want = logits(folder, NANO, TOKENS, 300, VOCAB, "--numerics", numerics)
            ways = [["--step-tokens", n] for n in (1, 7, 64, 300)] + [["--threads", n] for n in (1, 2, 3)]
            ways += [["--isa", isa, "--step-tokens", 100] for isa in isas(folder, numerics)]
            for way in ways:
                got = logits(folder, NANO, TOKENS, 300, VOCAB, "--numerics", numerics, *way)
                wrong = [] if got.tobytes() == want.tobytes() else ["other bits"]
                v.check(f"{numerics} {' '.join(map(str, way))}", wrong)
            got = logits(folder, NANO, TOKENS, 1, VOCAB, "--numerics", numerics)[299:]
            v.check(f"{numerics} one at a time", [] if got.tobytes() == want.tobytes() else ["other bits"])
    v.exit()


main()
