#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes engine/unicode-table.h: the general category of every code point, as the `tokenizers` library sees it.

The table is asked from the library itself (its regular expression engine answers \\p{Lu} and the others for every
scalar value) instead of from a copy of the Unicode database, because equality with the library is what counts, newly
assigned characters included. Run it again when a new version of the library knows a newer Unicode:

    engine/unicode-table.py > engine/unicode-table.h

Needs the Python package `tokenizers`; takes about a minute.
"""
import tokenizers
from tokenizers import Regex, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cs Cn".split()
SCALARS = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)


def members(pattern):
    split = pre_tokenizers.Split(Regex(pattern + "+"), "removed", invert=True)
    for piece, _ in split.pre_tokenize_str(SCALARS):
        yield from map(ord, piece)


def main():
    unassigned = CATEGORIES.index("Cn")
    category = bytearray([unassigned]) * 0x110000
    for number, name in enumerate(CATEGORIES[:-2]):  # Cs cannot occur in UTF-8, Cn is the rest
        for c in members(r"\p{%s}" % name):
            if category[c] != unassigned:
                raise SystemExit(f"U+{c:04X} has two categories")
            category[c] = number
    space = sorted(members(r"\s"))
    z = sorted(c for c in range(0x110000) if CATEGORIES[category[c]][0] == "Z")
    if space != sorted([*range(9, 14), 0x85, *z]) or sorted(members(r"\d")) != [
            c for c in range(0x110000) if CATEGORIES[category[c]] == "Nd"]:
        raise SystemExit("\\s or \\d is not what engine/pattern-parse.c takes it for")
    runs = [(c, category[c]) for c in range(0x110000) if c == 0 or category[c] != category[c - 1]]
    print("/* SPDX-License-Identifier: MIT */")
    print(f"/* Made by engine/unicode-table.py with tokenizers {tokenizers.__version__}; do not edit. Each number is")
    print(" * (first code point << 8 | category); a run goes up to the next one's first. */")
    for i in range(0, len(runs), 10):
        print("    " + " ".join(f"{c << 8 | k:#x}," for c, k in runs[i:i + 10]))


if __name__ == "__main__":
    main()
