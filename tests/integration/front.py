#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The operations of the front over a fake engine: sessions and their owners, streams, cancel, resume, usage, quotas."""
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
from dsv4test import pb  # noqa: E402

daemon = None
OTHER_UID = 65534


def kinds(messages):
    return [m.WhichOneof("event") for m in messages]


def running():
    with daemon.connect() as c:
        return c.ask(get_status=pb.GetStatus())[-1].status.running


def wait_for(condition, what):
    deadline = time.monotonic() + t.TIMEOUT
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("never: " + what)


def test_models_and_status():
    with daemon.connect() as c:
        model, = c.ask(list_models=pb.ListModels())[-1].models.model
        assert (model.name, model.state, model.architecture, model.vocabulary) == ("nano", pb.READY, "fake", 100)
        status = c.ask(get_status=pb.GetStatus())[-1].status
        assert status.version == t.package_version() and status.queued == 0
        assert abs(status.started_usec / 1e6 - time.time()) < 600


def test_generate():
    with daemon.connect() as c:
        messages = c.generate(model="nano", text="to be or not")
        assert kinds(messages) == ["accepted", "prefill"] + ["delta"] * 4 + ["finished"], kinds(messages)
        assert [m.delta.index for m in messages if m.HasField("delta")] == [0, 1, 2, 3]
        assert t.text_of(messages) == "tobeornot"
        assert not messages[0].accepted.HasField("resume_token")
        assert messages[-1].finished.reason == pb.STOP and not messages[-1].finished.HasField("session")


def test_requests_overlap():
    with daemon.connect() as c:
        ids = [c.start(generate=pb.Generate(model="nano", text=f"word{i} end")) for i in range(50)]
        for i, id in reversed(list(enumerate(ids))):
            assert t.text_of(c.until_end(id)) == f"word{i}end"


def test_sessions():
    with daemon.connect() as c:
        before = time.time()
        info = c.ask(open_session=pb.OpenSession(model="nano", label="étude"))[-1].session
        assert len(info.session) == 32 and info.model == "nano" and info.label == "étude" and info.tokens == 5
        assert abs(info.created_usec / 1e6 - before) < 60 and info.place == pb.DEVICE and info.kv_bytes == 100
        fork = c.ask(fork_session=pb.ForkSession(session=info.session, label="b"))[-1].session
        assert fork.session != info.session and fork.label == "b"
        assert c.ask(trim_session=pb.TrimSession(session=fork.session, tokens=3))[-1].session.tokens == 3
        assert c.generate(session=fork.session, text="x")[-1].finished.session == fork.session
        assert c.refused(generate=pb.Generate(session=fork.session, model="other", text="x")).code == "NO_SUCH_MODEL"
    with daemon.connect() as c:  # they outlive the connection
        listed = c.ask(list_sessions=pb.ListSessions())[-1].sessions.session
        assert {s.session for s in listed} == {info.session, fork.session}
        for s in listed:
            c.ask(close_session=pb.CloseSession(session=s.session))
            assert c.refused(generate=pb.Generate(session=s.session, text="x")).code == "NO_SUCH_SESSION"
        assert not c.ask(list_sessions=pb.ListSessions())[-1].sessions.session


def test_idle_sessions_are_closed():
    with daemon.connect() as c:
        kept, gone = c.open_session(), c.open_session(idle_seconds=1)
        time.sleep(1.5)
        assert [s.session for s in c.ask(list_sessions=pb.ListSessions())[-1].sessions.session] == [kept]
        assert c.refused(close_session=pb.CloseSession(session=gone)).code == "NO_SUCH_SESSION"
        c.ask(close_session=pb.CloseSession(session=kept))


def test_session_quota():
    with daemon.connect() as c:
        sessions = [c.open_session() for _ in range(8)]
        e = c.refused(open_session=pb.OpenSession(model="nano"))
        assert (e.code, e.field, e.limit, e.value) == ("QUOTA", "Sessions", 8, 8) and e.retry_after_ms
        assert c.refused(fork_session=pb.ForkSession(session=sessions[0])).code == "QUOTA"
        for s in sessions:
            c.ask(close_session=pb.CloseSession(session=s))
        c.ask(close_session=pb.CloseSession(session=c.open_session()))


def test_request_quota():
    with daemon.connect() as c:
        ids = [c.start(generate=pb.Generate(model="nano", text="stream")) for _ in range(100)]
        e = c.until_end(c.start(generate=pb.Generate(model="nano", text="stream")))[-1].error
        assert (e.code, e.field, e.limit) == ("QUOTA", "QueuedRequests", 100)
    wait_for(lambda: running() == 0, "all cancelled")
    assert len(ids) == 100


def test_cancel():
    with daemon.connect() as c:
        id = c.start(generate=pb.Generate(model="nano", text="stream"))
        while not c.receive().HasField("delta"):
            pass
        c.ask(cancel=pb.Cancel(target=id))
        messages = c.until_end(id)
        assert messages[-1].finished.reason == pb.CANCELLED
        assert c.refused(cancel=pb.Cancel(target=id)).code == "NO_SUCH_REQUEST"


def test_disconnect_cancels():
    for _ in range(5):
        c = daemon.connect()
        c.start(generate=pb.Generate(model="nano", text="stream"))
        while not c.receive().HasField("delta"):
            pass
        c.close()
    wait_for(lambda: running() == 0, "cancelled")


def test_text():
    with daemon.connect() as c:
        assert list(c.ask(tokenize=pb.Tokenize(model="nano", text="abc"))[-1].tokens.id) == [97, 98, 99]
        assert c.ask(detokenize=pb.Detokenize(model="nano", id=[97, 200]))[-1].text.utf8 == b"a\xc8"
        id = c.next_id
        full = pb.ClientMessage(request_id=id, tokenize=pb.Tokenize(model="nano", text="x" * (4 << 20)))
        full.tokenize.text = "x" * ((4 << 20) - (len(full.SerializeToString()) - t.FRAME_MAX))
        assert len(full.SerializeToString()) == t.FRAME_MAX  # passed on, it has some bytes more
        assert c.refused(tokenize=full.tokenize).code == "FRAME_TOO_LARGE"


def test_usage():
    with daemon.connect() as c:
        before = c.ask(get_usage=pb.GetUsage())[-1].usage
        c.generate(model="nano", text="one two three")
        after = c.ask(get_usage=pb.GetUsage())[-1].usage
    a, b = ({m.model: m for m in u.model}.get("nano", pb.ModelUsage()) for u in (before, after))
    assert b.requests == a.requests + 1 and b.counts.output == a.counts.output + 3
    assert b.counts.input_computed == a.counts.input_computed + 3 and b.counts.input_cached == a.counts.input_cached + 2
    quotas = {q.name: q for q in after.quota}
    assert quotas["Connections"].used == 1 and quotas["Sessions"].limit == 8
    assert quotas["TokensPerMinute"].used > 0 and quotas["TokensPerMinute"].resets_usec / 1e6 > time.time()


def as_other_user(fn):
    """Run fn in a child of another uid; its result must be true."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(OTHER_UID)
            os.setuid(OTHER_UID)
            status = 0 if fn() else 1
        except BaseException as e:  # the child must not return into the test
            print(repr(e), flush=True)
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_other_users():
    """Others' sessions are as if they were not there, and each has limits of its own."""
    if os.getuid() != 0:
        print("     (not root: no other user to be)")
        return
    with daemon.connect() as c:
        sessions = [c.open_session() for _ in range(8)]
        token = c.until_end(c.start(generate=pb.Generate(model="nano", text="a", resume_seconds=60)))[0].accepted.resume_token

        def other():
            with daemon.connect() as o:
                assert o.hello.uid == OTHER_UID
                assert not o.ask(list_sessions=pb.ListSessions())[-1].sessions.session
                for operation in ({"close_session": pb.CloseSession(session=sessions[0])},
                                  {"fork_session": pb.ForkSession(session=sessions[0])},
                                  {"trim_session": pb.TrimSession(session=sessions[0], tokens=0)},
                                  {"generate": pb.Generate(session=sessions[0], text="x")}):
                    theirs = o.refused(**operation)
                    assert theirs.code == "NO_SUCH_SESSION"
                absent = o.refused(close_session=pb.CloseSession(session="0" * 32))
                assert o.refused(close_session=pb.CloseSession(session=sessions[0])) == absent
                assert o.refused(resume=pb.Resume(resume_token=token, next_index=0)).code == "RESUME_GONE"
                assert not o.ask(get_usage=pb.GetUsage())[-1].usage.model
                o.ask(close_session=pb.CloseSession(session=o.open_session()))
            return True

        as_other_user(other)
        for s in sessions:
            c.ask(close_session=pb.CloseSession(session=s))


def collect(c, id, n):
    deltas = []
    while len(deltas) < n:
        m = c.receive()
        assert not m.HasField("error"), m
        if m.request_id == id and m.HasField("delta"):
            deltas.append((m.delta.index, m.delta.content))
    return deltas


def test_resume_after_a_break():
    c = daemon.connect()
    id = c.start(generate=pb.Generate(model="nano", text="stream", resume_seconds=30))
    token = c.receive().accepted.resume_token
    assert len(token) == 32
    first = collect(c, id, 5)
    c.close()
    time.sleep(0.1)
    assert running() == 1
    with daemon.connect() as c:
        id = c.start(resume=pb.Resume(resume_token=token, next_index=3))
        assert c.receive().accepted.resume_token == token
        again = collect(c, id, 20)
        assert [i for i, _ in again] == list(range(3, 23)), again
        assert again[:2] == first[3:5]
        with daemon.connect() as d:  # and once more, while the first still reads: it moves
            other = d.start(resume=pb.Resume(resume_token=token, next_index=10))
            assert [i for i, _ in collect(d, other, 5)] == list(range(10, 15))
            assert c.until_end(id)[-1].error.code == "CANCELLED"
            d.ask(cancel=pb.Cancel(target=other))
            d.until_end(other)
    assert running() == 0


def test_resume_of_what_has_ended():
    with daemon.connect() as c:
        messages = c.generate(model="nano", text="a b c", resume_seconds=1)
        token = messages[0].accepted.resume_token
        assert kinds(c.ask(resume=pb.Resume(resume_token=token, next_index=1))) == ["accepted", "delta", "delta", "finished"]
        assert kinds(c.ask(resume=pb.Resume(resume_token=token, next_index=3))) == ["accepted", "finished"]
        assert c.refused(resume=pb.Resume(resume_token=token, next_index=4)).code == "RESUME_GONE"
        time.sleep(1.5)
        assert c.refused(resume=pb.Resume(resume_token=token, next_index=0)).code == "RESUME_GONE"


def test_resume_is_bounded():
    """A detached stream is paused when its buffer is full, and ends when nobody comes."""
    c = daemon.connect()
    c.start(generate=pb.Generate(model="nano", text="stream", resume_seconds=2))
    token = c.receive().accepted.resume_token
    c.close()
    rss = daemon.rss_kib()
    time.sleep(1)
    assert running() == 1
    assert daemon.rss_kib() < rss + 20000 or t.KEEPS_FREED_MEMORY
    wait_for(lambda: running() == 0, "ended after its seconds")
    with daemon.connect() as c:
        assert c.refused(resume=pb.Resume(resume_token=token, next_index=0)).code == "RESUME_GONE"


def test_half_closed_connection():
    """A client that only stops sending gets what it asked for."""
    import socket
    with daemon.connect() as c:
        c.start(list_models=pb.ListModels())
        c.sock.shutdown(socket.SHUT_WR)
        assert c.receive().HasField("models")
        try:
            c.receive()
            raise AssertionError("still open")
        except t.Closed:
            pass


def test_many_cycles():
    """Connect, generate, cancel, vanish: no file descriptor and no memory stays."""
    def cycle(i):
        c = daemon.connect()
        id = c.start(generate=pb.Generate(model="nano", text="stream"))
        if i % 3:
            c.receive()
        if i % 2:
            c.start(cancel=pb.Cancel(target=id))
        c.close()
    for i in range(100):
        cycle(i)
    wait_for(lambda: running() == 0, "all ended")
    fds, rss = daemon.fds(), daemon.rss_kib()
    for i in range(1000):
        cycle(i)
    wait_for(lambda: running() == 0, "all ended")
    time.sleep(0.2)
    assert daemon.fds() <= fds, (daemon.fds(), fds)
    assert daemon.rss_kib() < rss + 2048 or t.KEEPS_FREED_MEMORY, (daemon.rss_kib(), rss)


if __name__ == "__main__":
    limits = ["Sessions=8", "QueuedRequests=100", "ResumeBytes=64K"]
    mode = "0666" if os.getuid() == 0 else "0600"
    with t.Daemon(args=[f"--limit={x}" for x in limits] + ["--socket-mode", mode], **t.fake(pace=0.001)) as daemon:
        os.chmod(daemon.dir, 0o755)
        os.chmod(os.path.join(daemon.dir, "run"), 0o755)
        daemon.wait_model()
        t.run_tests({k: v for k, v in list(globals().items())})
