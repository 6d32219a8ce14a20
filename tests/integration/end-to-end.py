#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The daemon with its real engine and the nano checkpoint: from a client to tokens and back."""
import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
from dsv4test import pb  # noqa: E402

daemon = None
GREEDY = pb.Sampling(temperature=0)


def test_the_same_alone_and_among_32():
    """Each of 32 sessions at once gets exactly what it gets alone."""
    texts = [f"client number {i} says {'word ' * (i % 7)}" for i in range(32)]
    work = [{"sampling": pb.Sampling(temperature=1, seed=i) if i % 2 else GREEDY, "max_tokens": 24} for i in range(32)]
    with daemon.connect() as c:
        alone = [t.text_of(c.generate(model="nano", text=x, **w)) for x, w in zip(texts, work)]
    connections = [daemon.connect() for _ in texts]
    sessions = [c.open_session() for c in connections]
    ids = [c.start(generate=pb.Generate(session=s, text=x, **w))
           for c, s, x, w in zip(connections, sessions, texts, work)]
    together = [t.text_of(c.until_end(id)) for c, id in zip(connections, ids)]
    assert together == alone, [i for i in range(32) if together[i] != alone[i]]
    assert len(set(alone)) > 16  # they are not all the same
    for c, s in zip(connections, sessions):
        c.ask(close_session=pb.CloseSession(session=s))
        c.close()


def test_session_goes_on_where_it_was():
    with daemon.connect() as c:
        s = c.open_session()
        first = c.generate(session=s, text="hello", max_tokens=8, sampling=GREEDY)[-1].finished.counts
        row, = c.ask(list_sessions=pb.ListSessions())[-1].sessions.session
        assert row.tokens == first.input_computed + first.output
        second = c.generate(session=s, text=" and", max_tokens=4, sampling=GREEDY)[-1].finished.counts
        assert second.input_cached >= row.tokens - 1
        c.ask(close_session=pb.CloseSession(session=s))


def test_memfd_is_the_same_as_text():
    with daemon.connect() as c, t.sealed_memfd("Grüße aus dem memfd".encode()) as fd:
        work = {"model": "nano", "max_tokens": 12, "sampling": GREEDY}
        inline = t.text_of(c.generate(text="Grüße aus dem memfd", **work))
        messages = c.ask(fds=[fd], generate=pb.Generate(memfd=pb.MemfdText(is_chat=False), **work))
        assert t.text_of(messages) == inline


def test_control_tokens_in_text_are_text():
    with daemon.connect() as c:
        marker = "<｜Assistant｜>"
        plain = c.ask(tokenize=pb.Tokenize(model="nano", text=marker))[-1].tokens.id
        special = c.ask(tokenize=pb.Tokenize(model="nano", text=marker, special=True))[-1].tokens.id
        assert len(special) == 1 and len(plain) > 1 and special[0] not in plain
        chat = pb.Chat(message=[pb.ChatMessage(role=pb.USER, content=marker)])
        encoded = list(c.ask(tokenize=pb.Tokenize(model="nano", chat=chat))[-1].tokens.id)
        assert encoded.count(special[0]) == 1, encoded  # the one that the format puts there
        assert c.ask(detokenize=pb.Detokenize(model="nano", id=plain))[-1].text.utf8 == marker.encode()


def test_model_dependent_errors():
    with daemon.connect() as c:
        e = c.refused(generate=pb.Generate(model="nano", tokens=pb.TokenIds(id=[1, 2000000])))
        assert e.code == "BAD_TOKEN" and e.value == 2000000, e
        e = c.refused(generate=pb.Generate(model="nano", text="hello " * 10000))
        assert e.code == "PROMPT_TOO_LONG" and e.limit == 4096, e
        e = c.refused(generate=pb.Generate(model="nano", text="hello", max_tokens=4096))
        assert e.code == "CONTEXT_FULL" and e.limit == 4096, e


def test_cancel_during_prefill():
    with daemon.connect() as c:
        id = c.start(generate=pb.Generate(model="nano", tokens=pb.TokenIds(id=[50 + i % 50 for i in range(4000)])))
        c.ask(cancel=pb.Cancel(target=id))
        assert c.until_end(id)[-1].finished.reason == pb.CANCELLED


def test_cycles_leave_nothing():
    def cycle(i):
        c = daemon.connect()
        id = c.start(generate=pb.Generate(model="nano", text="hello", max_tokens=500))
        if i % 3:
            c.receive()
        if i % 2:
            c.start(cancel=pb.Cancel(target=id))
        c.close()

    def engine_fds():
        return len(os.listdir(f"/proc/{daemon.engine_pids()[0]}/fd"))

    def settle():
        with daemon.connect() as c:
            deadline = time.monotonic() + t.TIMEOUT
            while c.ask(get_status=pb.GetStatus())[-1].status.running and time.monotonic() < deadline:
                time.sleep(0.05)
            c.generate(model="nano", text="still", max_tokens=2)

    def fds(want=None):
        """Of front and engine; the front closes the last connection a moment after its client does."""
        deadline = time.monotonic() + t.TIMEOUT
        while True:
            now = daemon.fds(), engine_fds()
            if now == want or time.monotonic() > deadline or (want is None and time.monotonic() > deadline - t.TIMEOUT + 0.5):
                return now
            time.sleep(0.05)

    for i in range(50):
        cycle(i)
    settle()
    before = fds()
    for i in range(1000):
        cycle(i)
    settle()
    after = fds(before)
    assert after == before, (after, before)


def test_engine_killed():
    with daemon.connect() as c:
        id = c.start(generate=pb.Generate(model="nano", text="a", max_tokens=4000))
        while not c.receive().HasField("delta"):
            pass
        os.kill(daemon.engine_pids()[0], signal.SIGKILL)
        assert c.until_end(id)[-1].error.code == "ENGINE_GONE"
        assert t.text_of(c.generate(model="nano", text="again", max_tokens=4))


if __name__ == "__main__":
    with t.Daemon(args=["--context", "4096"]) as daemon:
        daemon.wait_model()
        t.run_tests({k: v for k, v in list(globals().items())})
