#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""dsv4-eval encode gives on every case of tests/golden/encoding what the released code gives, and survives bad lines."""
import json
import os
import subprocess
import sys

src = os.environ.get("top_srcdir", ".")
build = os.environ.get("top_builddir", ".")
cases = json.load(open(os.path.join(src, "tests/golden/encoding/cases.json"), encoding="utf-8"))

# line, what the answer must be: a dict exactly, or a string that its "error" contains
BAD_LINES = [
    ("", "MALFORMED"),
    ("x", "MALFORMED"),
    ("[1]", "MALFORMED"),
    ("{}", "MISSING_FIELD"),
    ('{"kind":"dance","input":{}}', "MISSING_FIELD"),
    ('{"kind":"encode","input":{}}', "BAD_CHAT"),
    ('{"kind":"encode","input":{"messages":[],"thinking_mode":"chat"}}', {"prompt": "<｜begin▁of▁sentence｜>"}),
    ('{"kind":"encode","input":{"messages":[5],"thinking_mode":"chat"}}', "BAD_CHAT"),
    ('{"kind":"encode","input":{"messages":[],"thinking_mode":"loud"}}', "BAD_CHAT"),
    ('{"kind":"parse","input":{"text":5,"thinking_mode":"chat"}}', "BAD_COMPLETION"),
    ('{"kind":"encode","input":' * 3000 + "1" + "}" * 3000, "MALFORMED"),
    ("[" * 1000000, "MALFORMED"),
    ('{"a":"' + "x" * (17 << 20) + '"}', "FRAME_TOO_LARGE"),
    ('{"kind":"encode","input":{"messages":[{"role":"user","content":"\\u0000"}],"thinking_mode":"chat"}}', "BAD_CHAT"),
]


def run(lines):
    p = subprocess.run([os.path.join(build, "dsv4-eval"), "encode"], input="".join(line + "\n" for line in lines),
                       stdout=subprocess.PIPE, encoding="utf-8", timeout=120)
    if p.returncode != 0:
        sys.exit(f"dsv4-eval encode: exit status {p.returncode}")
    answers = [json.loads(line) for line in p.stdout.splitlines()]
    if len(answers) != len(lines):
        sys.exit(f"{len(lines)} lines gave {len(answers)} answers")
    return answers


failed = 0


def check(name, good, answer, expected):
    global failed
    if not good:
        failed += 1
        print(f"FAIL {name}\n  expected {expected!r}\n  found    {answer!r}")


answers = run([json.dumps({"kind": c["kind"], "input": c["input"]}) for c in cases])
for case, answer in zip(cases, answers):
    if case.get("error"):
        check(case["name"], set(answer) == {"error"}, answer, "an error")
    else:
        key = "prompt" if case["kind"] == "encode" else "message"
        check(case["name"], answer == {key: case[key]}, answer, {key: case[key]})

for (line, expected), answer in zip(BAD_LINES, run([line for line, _ in BAD_LINES])):
    good = answer == expected if isinstance(expected, dict) else expected in answer.get("error", "")
    check("line " + line[:60], good, answer, expected)

print(f"{len(cases)} cases, {len(BAD_LINES)} other lines, {failed} failed")
sys.exit(failed != 0)
