# SPDX-License-Identifier: MIT
"""What the golden tests share: running dsv4-eval, files of float32, errors per position. Needs numpy."""
import json
import os
import subprocess
import sys

TOP = os.environ.get("top_srcdir", ".")
BUILD = os.environ.get("top_builddir", ".")
DATA = os.path.join(TOP, "tests", "golden", "data")
NANO = os.path.join(TOP, "models", "nano")
EVAL = os.path.join(BUILD, "dsv4-eval")

try:
    import numpy as np
except ImportError:
    print("skipped: numpy is missing")
    sys.exit(77)


def manifest():
    with open(os.path.join(DATA, "manifest.json")) as f:
        return json.load(f)


def read_f32(path, width):
    """[rows][width]"""
    a = np.fromfile(path, "<f4")
    assert a.size and a.size % width == 0, f"{path}: {a.size} values are no rows of {width}"
    return a.reshape(-1, width)


def golden(name, width):
    return read_f32(os.path.join(DATA, name), width)


def run(*args):
    """stdout of dsv4-eval; its failure is the test's."""
    done = subprocess.run([EVAL, *map(str, args)], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise SystemExit(f"dsv4-eval {' '.join(map(str, args))}: exit {done.returncode}: {done.stderr}")
    return done.stdout


def write_tokens(path, tokens):
    with open(path, "w") as f:
        f.write("\n".join(map(str, tokens)))
    return path


def logits(folder, model, tokens, prefill, vocab, *more):
    """[len(tokens) - prefill + 1][vocab]"""
    out = os.path.join(folder, "logits.f32")
    run("logits", "--model", model, "--tokens", write_tokens(os.path.join(folder, "tokens"), tokens),
        "--prefill", prefill, "--output", out, *more)
    a = read_f32(out, vocab)
    assert len(a) == len(tokens) - prefill + 1, f"{len(a)} rows for {len(tokens)} tokens, prefill {prefill}"
    return a


def errors(a, b):
    """||a - b|| / ||b|| of each row."""
    assert a.shape == b.shape, f"{a.shape} is not {b.shape}"
    assert np.isfinite(a).all() and np.isfinite(b).all(), "not all values are finite"
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)


MEDIAN, MOST, FIRST = 3e-3, 1e-1, 1e-4  # what rounding of the cache that flips may do; and where none has flipped yet


def judge(e, first_position, most_share=0.99, first=FIRST):
    """What is wrong with the errors of consecutive positions from first_position on; [] if nothing."""
    wrong = []
    if np.median(e) > MEDIAN:
        wrong.append(f"median error {np.median(e):.2e} > {MEDIAN:.0e}")
    if (e <= MOST).mean() < most_share:
        wrong.append(f"{(e <= MOST).mean():.1%} of the positions have an error <= {MOST:.0e}; {most_share:.0%} must")
    early = e[:max(0, 20 - first_position)]
    if len(early) and early.max() > first:
        wrong.append(f"error {early.max():.2e} > {first:.0e} within the first 20 positions")
    return wrong


def describe(e):
    return f"median {np.median(e):.1e}, 99 % {np.quantile(e, 0.99):.1e}, max {e.max():.1e}"


class Verdict:
    """Counts what was checked and what was wrong; exit status at the end."""

    def __init__(self):
        self.checked, self.wrong = 0, 0

    def check(self, what, wrong, note=""):
        self.checked += 1
        self.wrong += bool(wrong)
        print(("FAIL" if wrong else "ok  "), what, note, *(f"[{w}]" for w in wrong), flush=True)

    def exit(self):
        print(f"{self.checked} checked, {self.wrong} wrong")
        sys.exit(1 if self.wrong or not self.checked else 0)
