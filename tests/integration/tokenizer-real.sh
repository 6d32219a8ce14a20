#!/bin/sh
# SPDX-License-Identifier: MIT
# The real tokenizer.json of 128,000 entries against the Hugging Face library.
exec "${PYTHON:-python3}" "${top_srcdir:-.}/tests/integration/tokenizer-compare.py" real
