#!/bin/sh
# SPDX-License-Identifier: MIT
# The tokenizer of the small model against the Hugging Face library.
exec "${PYTHON:-python3}" "${top_srcdir:-.}/tests/integration/tokenizer-compare.py" nano
