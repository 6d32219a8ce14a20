#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Clients that come and go, at any moment: file descriptors and memory of dsv4d and of its engine stay flat."""
import os
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
import real_engine_util as u  # noqa: E402
from dsv4test import pb  # noqa: E402

# The heap may still find its shape after the first cycles; one leak of 2 KB in a cycle would be above this.
GROWTH_KIB = 2048
daemon = None
LONG = pb.TokenIds(id=[2 + i % 500 for i in range(3000)])


def quiet():
    """Nothing runs, and all connections but this one are gone."""
    with daemon.connect() as c:
        u.wait_for(lambda: u.running(c) == 0, "all requests ended")
        assert not c.ask(list_sessions=pb.ListSessions())[-1].sessions.session
    time.sleep(0.1)


def measure():
    quiet()
    engine, = daemon.engine_pids()
    return {(name, what): value for name, pid in (("dsv4d", daemon.process.pid), ("engine", engine))
            for what, value in (("pid", pid), ("fds", u.fds_of(pid)), ("KiB", u.status_of(pid, "VmRSS")))}


def assert_flat(before, after):
    print("     " + ", ".join(f"{a} {b} {before[a, b]} to {after[a, b]}" for a, b in after if b != "pid"))
    for key, value in after.items():
        allowed = before[key] + (GROWTH_KIB if key[1] == "KiB" else 0)
        if key[1] != "KiB" or not u.SLOW:
            assert value <= allowed, f"{key}: {before[key]} before, {value} after"


def first(c, id, kind):
    while True:
        m = c.receive()
        assert not m.HasField("error"), m
        if m.request_id == id and m.HasField(kind):
            return


def end_cancelled(c, id):
    c.ask(cancel=pb.Cancel(target=id))
    assert u.finished(c.until_end(id)).reason == pb.CANCELLED


def cycle(i):
    """Connect, generate, and cancel or vanish: while it decodes, while it reads its prompt, or at once."""
    c = daemon.connect()
    decodes = {"text": f"cycle {i}", "max_tokens": 100000, "sampling": u.sampling(i)}
    kind = i % 6
    if kind == 0:
        id = c.start(generate=pb.Generate(model="nano", **decodes))
        first(c, id, "delta")
        end_cancelled(c, id)
    elif kind == 1:
        session = c.open_session()
        id = c.start(generate=pb.Generate(session=session, **decodes))
        first(c, id, "delta")
        c.close()
        c = daemon.connect()
        c.ask(close_session=pb.CloseSession(session=session))
    elif kind == 2:  # reading it takes many steps
        id = c.start(generate=pb.Generate(model="nano", tokens=LONG))
        first(c, id, "prefill")
        end_cancelled(c, id)
    elif kind == 3:
        first(c, c.start(generate=pb.Generate(model="nano", tokens=LONG)), "prefill")
    elif kind == 4:
        c.start(generate=pb.Generate(model="nano", **decodes))
    else:
        with t.sealed_memfd(b"from a memfd " * 100) as fd:
            id = c.start([fd], generate=pb.Generate(model="nano", memfd=pb.MemfdText(is_chat=False)))
        c.start(cancel=pb.Cancel(target=id))
    c.close()


def test_generate_and_go():
    for i in range(100):
        cycle(i)
    before = measure()
    for i in range(100, 1000 if not u.SLOW else 400):
        cycle(i)
    assert_flat(before, measure())


def frames():
    """Conversations to break off: Hello, and a Generate with a file descriptor."""
    def frame(**operation):
        data = pb.ClientMessage(request_id=1, **operation).SerializeToString()
        return struct.pack("<I", len(data)) + data
    return (frame(hello=pb.Hello(version_min=1, version_max=1)),
            frame(generate=pb.Generate(model="nano", text="half of this is never sent" * 50)),
            frame(generate=pb.Generate(model="nano", memfd=pb.MemfdText(is_chat=False))))


def half_a_frame(i, parts, fd):
    hello, generate, with_fd = parts
    s = socket.socket(socket.AF_UNIX)
    s.connect(daemon.socket)
    if i % 5 == 0:
        s.sendall(hello[:1 + i // 5 % (len(hello) - 1)])
    elif i % 5 == 1:
        s.sendall(hello + generate[:i * 7 % len(generate)])
    elif i % 5 == 2:
        s.sendall(hello)
        socket.send_fds(s, [with_fd[:1 + i // 5 % (len(with_fd) - 1)]], [fd])
    elif i % 5 == 3:
        s.sendall(struct.pack("<I", t.FRAME_MAX) + bytes(i % 3000))
    return s


def test_half_a_frame_and_go():
    parts = frames()
    with t.sealed_memfd(b"text") as fd:
        def cycles(n):
            for i in range(n):
                half_a_frame(i, parts, fd).close()
                if i % 20 == 19:  # let the daemon come along, or it refuses those above the quota unread
                    daemon.connect().close()
        cycles(200)
        before = measure()
        cycles(2000)
        assert_flat(before, measure())


def test_killed_clients():
    """Processes that hold several connections, half a frame on each, and are killed."""
    parts = frames()
    with t.sealed_memfd(b"text") as fd:
        def cycle_of_a_process():
            ready_r, ready_w = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    kept = [half_a_frame(i, parts, fd) for i in range(20)]
                    os.write(ready_w, b"%d" % len(kept))
                    time.sleep(60)
                finally:
                    os._exit(1)
            os.close(ready_w)
            assert os.read(ready_r, 2) == b"20"
            os.close(ready_r)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for _ in range(10):
            cycle_of_a_process()
        before = measure()
        for _ in range(100):
            cycle_of_a_process()
        assert_flat(before, measure())


def test_still_good():
    """After all this an answer is what it is on a fresh daemon."""
    def answer(d):
        with d.connect() as c:
            return u.whole(c.generate(model="nano", text="Once upon a time", max_tokens=30, logprobs=2, sampling=u.sampling(3)))
    with t.Daemon(args=["--threads", "2"]) as fresh:
        fresh.wait_model()
        assert answer(daemon) == answer(fresh)


if __name__ == "__main__":
    # short steps: what is cancelled in the middle of a prompt waits for the end of one
    with u.engine_with("--max-step-tokens", "64") as engine, \
         t.Daemon(engine=engine, args=["--threads", "2"]) as daemon:
        daemon.wait_model()
        t.run_tests({k: v for k, v in list(globals().items())})
