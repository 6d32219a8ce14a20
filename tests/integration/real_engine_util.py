# SPDX-License-Identifier: MIT
"""What the tests of dsv4d with its real engine share, beyond dsv4test: an engine with options, prompts, and answers in a
form that can be compared."""
import contextlib
import os
import stat
import tempfile
import time

import dsv4test as t
from dsv4test import pb

EOS = 1  # of models/nano
NO_EOS = [pb.LogitBias(id=EOS, bias=-100)]
# Built with sanitizers or run under valgrind, memory is not flat by design (quarantine) and everything is slower.
with open(os.path.join(t.TOP_BUILD, "config.status")) as _f:
    SANITIZED = "-fsanitize" in _f.read()
SLOW = SANITIZED or "DSV4_TEST_WRAPPER" in os.environ
SCALE = 6 if SLOW else 1
t.TIMEOUT *= SCALE


def sampling(seed, temperature=1.0, bias=NO_EOS, **fields):
    return pb.Sampling(seed=seed, temperature=temperature, bias=bias, **fields)


def user(text, **fields):
    return pb.Chat(message=[pb.ChatMessage(role=pb.USER, content=text)], **fields)


def ids(messages):
    return [p.id for m in messages if m.HasField("delta") for p in m.delta.logprob]


def finished(messages):
    assert messages[-1].HasField("finished"), messages[-1]
    return messages[-1].finished


def whole(messages):
    """Everything that an answer says, except times and ids made at random."""
    deltas = [m.delta for m in messages if m.HasField("delta")]
    assert [d.index for d in deltas] == list(range(len(deltas)))
    f = finished(messages)
    return {"content": "".join(d.content for d in deltas), "reasoning": "".join(d.reasoning for d in deltas),
            "calls": "".join(d.tool_call.name + d.tool_call.arguments for d in deltas),
            "tokens": [(p.id, p.logprob, tuple((a.id, a.logprob) for a in p.top)) for d in deltas for p in d.logprob],
            "reason": f.reason, "seed": f.seed, "output": f.counts.output,
            "input": f.counts.input_computed + f.counts.input_cached}


@contextlib.contextmanager
def engine_with(*options):
    """A program for Daemon(engine=...): the real engine with options that dsv4d does not pass on."""
    with tempfile.TemporaryDirectory(prefix="dsv4-engine-") as directory:
        path = os.path.join(directory, "engine")
        with open(path, "w") as f:
            f.write(f'#!/bin/sh\nexec "{t.TOP_BUILD}/dsv4d-engine" "$@" {" ".join(options)}\n')
        os.chmod(path, stat.S_IRWXU)
        yield path


def running(c):
    return c.ask(get_status=pb.GetStatus())[-1].status.running


def wait_for(condition, what, timeout=None):
    """Seconds until it was so."""
    start = time.monotonic()
    while time.monotonic() - start < (timeout or t.TIMEOUT):
        if condition():
            return time.monotonic() - start
        time.sleep(0.01)
    raise AssertionError("never: " + what)


def status_of(pid, key):
    """A line of /proc/PID/status as a number."""
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key + ":"))


def fds_of(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
