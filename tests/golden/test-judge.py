#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A test of the comparison: what is wrong must be found, what is right must pass."""
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from golden import errors, golden, judge, manifest, np

M = manifest()
A = golden("exact-prefill1.f32", M["vocab_size"])
NOISE = np.random.default_rng(1).standard_normal(A.shape).astype(np.float32)


def noisy(rows, size):
    """A with an error of that relative size in the rows."""
    b = A.copy()
    n = NOISE[rows]
    b[rows] += size * n * np.linalg.norm(A[rows], axis=1, keepdims=True) / np.linalg.norm(n, axis=1, keepdims=True)
    return b


def found(b, first=0):
    return judge(errors(b, A), first)


def refused(b):
    try:
        errors(b, A)
    except AssertionError:
        return True
    return False


ALL = slice(None)
CASES = {
    "the same": not found(A),
    "small noise everywhere": not found(noisy(ALL, 5e-5)),
    "noise of 4e-3 everywhere": found(noisy(ALL, 4e-3)),
    "noise of 4e-3 in more than half": found(noisy(slice(100, None), 4e-3)),
    "noise of 4e-3 in less than half": not found(noisy(slice(200, None), 4e-3)),
    "four late positions wrong": found(noisy(slice(310, 314), 0.2)),
    "three late positions wrong": not found(noisy(slice(310, 313), 0.2)),
    "an early position a little off": found(noisy(slice(19, 20), 2e-4)),
    "the same position, said to be late": not judge(errors(noisy(slice(19, 20), 2e-4), A), 300),
    "rows swapped": found(np.roll(A, 1, axis=0)),
    "zeros": found(np.zeros_like(A)),
    "not finite": refused(np.where(np.arange(len(A))[:, None] == 7, np.nan, A)),
    "a row missing": refused(A[1:]),
}
for name, good in CASES.items():
    print("ok  " if good else "FAIL", name)
sys.exit(0 if all(CASES.values()) else 1)
