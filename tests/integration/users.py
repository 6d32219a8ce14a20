#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Users of one daemon, with the real engine: others' sessions are as if they were not there, and limits hold for each uid."""
import contextlib
import itertools
import os
import pickle
import select
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
import real_engine_util as u  # noqa: E402
from dsv4test import pb  # noqa: E402

ALICE, BOB = 61234, 61235
more_uids = itertools.count(61236)
LIMITS = {"Sessions": 4, "QueuedRequests": 6, "Connections": 8, "TokensPerMinute": 1000}
LONG = {"max_tokens": 30000, "sampling": u.sampling(1)}
SMALL = {"model": "nano", "text": "small", "max_tokens": 5, "sampling": u.sampling(2)}
daemon = None


class As:
    """A child process of another uid that runs fn(channel); used by `with`, which ends it."""

    def __init__(self, uid, fn):
        to_child, from_parent = os.pipe()
        self.from_child, to_parent = os.pipe()
        self.to_child = from_parent
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(from_parent)
                os.close(self.from_child)
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                channel = Channel(to_child, to_parent)
                channel.say(("result", fn(channel)))
            except BaseException as e:  # the child must not return into the test
                Channel(to_child, to_parent).say(("failed", f"uid {uid}: {e!r}"))
            finally:
                os._exit(0)
        os.close(to_child)
        os.close(to_parent)

    def hear(self):
        """What the child says next; its failure is this test's."""
        assert select.select([self.from_child], [], [], t.TIMEOUT * 2)[0], "the child is silent"
        kind, what = pickle.loads(os.read(self.from_child, 65536))
        assert kind != "failed", what
        return what

    def go_on(self):
        os.write(self.to_child, b"x")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.from_child)
        os.close(self.to_child)


class Channel:
    def __init__(self, read_fd, write_fd):
        self.read_fd, self.write_fd = read_fd, write_fd

    def say(self, what):
        os.write(self.write_fd, pickle.dumps(what))

    def stop_here(self, what=None):
        """Tell the parent that we are here, and wait until it says go on."""
        self.say(("here", what))
        os.read(self.read_fd, 1)


def as_user(uid, fn):
    with As(uid, lambda channel: fn()) as child:
        return child.hear()


def first_delta(c, id):
    while True:
        m = c.receive()
        assert not m.HasField("error"), m
        if m.request_id == id and m.HasField("delta"):
            return


def sessions_of(c):
    return {s.session for s in c.ask(list_sessions=pb.ListSessions())[-1].sessions.session}


def test_sessions_of_others():
    def alice(channel):
        with daemon.connect() as c:
            assert c.hello.uid == ALICE
            c2 = daemon.connect()
            idle, busy = c.open_session(label="diary"), c2.open_session()
            id = c2.start(generate=pb.Generate(session=busy, text="mine", resume_seconds=60, **LONG))
            accepted = c2.receive()
            first_delta(c2, id)
            c.generate(session=idle, text="secret", max_tokens=5, sampling=u.sampling(3))
            channel.stop_here((idle, busy, accepted.accepted.resume_token, id))
            assert sessions_of(c) == {idle, busy}
            assert c.ask(get_status=pb.GetStatus())[-1].status.sessions == 2
            again = c.generate(session=idle, text="", max_tokens=5, sampling=u.sampling(3))
            assert u.finished(again).counts.input_cached > 0
            first_delta(c2, id)  # still runs
            c2.ask(cancel=pb.Cancel(target=id))
            assert u.finished(c2.until_end(id)).reason == pb.CANCELLED
            for session in (idle, busy):
                c.ask(close_session=pb.CloseSession(session=session))
            c2.close()
        return True

    def bob(idle, busy, token, id):
        with daemon.connect() as c:
            assert c.hello.uid == BOB and sessions_of(c) == set()
            mine = c.open_session()
            assert sessions_of(c) == {mine}
            status = c.ask(get_status=pb.GetStatus())[-1].status
            assert status.sessions == 1 and status.running == 1  # of all users, and no more is told of theirs
            for theirs in (idle, busy):
                for ask in (lambda s: {"generate": pb.Generate(session=s, text="x", max_tokens=1)},
                            lambda s: {"generate": pb.Generate(session=s, text="x", append_only=True)},
                            lambda s: {"close_session": pb.CloseSession(session=s)},
                            lambda s: {"fork_session": pb.ForkSession(session=s)},
                            lambda s: {"trim_session": pb.TrimSession(session=s, tokens=0)}):
                    foreign, absent = c.refused(**ask(theirs)), c.refused(**ask("0" * 32))
                    assert foreign.code == "NO_SUCH_SESSION" and foreign == absent, (foreign, absent)
            assert c.refused(resume=pb.Resume(resume_token=token, next_index=0)).code == "RESUME_GONE"
            c.next_id = id + 100
            assert c.refused(cancel=pb.Cancel(target=id)).code == "NO_SUCH_REQUEST"
            usage = c.ask(get_usage=pb.GetUsage())[-1].usage
            assert not usage.model and {q.name: q.used for q in usage.quota}["Sessions"] == 1
            c.ask(close_session=pb.CloseSession(session=mine))
        return True

    with As(ALICE, alice) as child:
        told = child.hear()
        assert as_user(BOB, lambda: bob(*told))
        with daemon.connect() as root:  # root is a user like others here
            assert sessions_of(root) == set()
            assert root.refused(close_session=pb.CloseSession(session=told[0])).code == "NO_SUCH_SESSION"
        child.go_on()
        assert child.hear() is True


def test_same_answer_for_everybody():
    asked = {**SMALL, "max_tokens": 40, "logprobs": 3}

    def answer():
        with daemon.connect() as c:
            return u.whole(c.generate(**asked))
    assert as_user(next(more_uids), answer) == as_user(next(more_uids), answer) == answer()


def assert_quota(e, name):
    assert (e.code, e.field, e.limit) == ("QUOTA", name, LIMITS[name]) and e.value >= e.limit and e.retry_after_ms, e


def hits(name, reach):
    """One user is at the limit; another is not touched by that, and reaches it; then both are."""
    one, other = next(more_uids), next(more_uids)  # nothing of earlier tests counts for them

    def at_the_limit(channel):
        with contextlib.ExitStack() as stack:
            reach(stack)
            channel.stop_here()
        return True

    def works():
        with daemon.connect() as c:
            session = c.open_session()
            u.finished(c.generate(**SMALL))
            u.finished(c.generate(session=session, text="x", max_tokens=5, sampling=u.sampling(1)))
            c.ask(close_session=pb.CloseSession(session=session))
            quota, = [q for q in c.ask(get_usage=pb.GetUsage())[-1].usage.quota if q.name == name]
            assert quota.limit == LIMITS[name] and quota.used < quota.limit, quota
        return True

    with As(one, at_the_limit) as first:
        first.hear()
        assert as_user(other, works)
        with As(other, at_the_limit) as second:
            second.hear()
            with daemon.connect() as root:
                u.finished(root.generate(**SMALL))
            second.go_on()
            assert second.hear() is True
        first.go_on()
        assert first.hear() is True
    with daemon.connect() as c:
        u.wait_for(lambda: u.running(c) == 0, "all ended")


def test_limit_of_sessions():
    def reach(stack):
        c = stack.enter_context(daemon.connect())
        for _ in range(LIMITS["Sessions"]):
            session = c.open_session()
            stack.callback(lambda s=session: c.ask(close_session=pb.CloseSession(session=s)))
        assert_quota(c.refused(open_session=pb.OpenSession(model="nano")), "Sessions")
        assert_quota(c.refused(fork_session=pb.ForkSession(session=session)), "Sessions")
        u.finished(c.generate(**SMALL))  # needs none
    hits("Sessions", reach)


def test_limit_of_requests():
    def reach(stack):
        c = stack.enter_context(daemon.connect())
        for i in range(LIMITS["QueuedRequests"]):
            first_delta(c, c.start(generate=pb.Generate(model="nano", text=f"{i}", **LONG)))
        with daemon.connect() as other:  # it is the user's, not the connection's
            assert_quota(other.refused(generate=pb.Generate(**SMALL)), "QueuedRequests")
    hits("QueuedRequests", reach)


def test_limit_of_connections():
    def reach(stack):
        for _ in range(LIMITS["Connections"]):
            stack.enter_context(daemon.connect())
        with daemon.connect(greet=False) as c:
            m = c.receive()
            assert m.request_id == 0
            assert_quota(m.error, "Connections")
    hits("Connections", reach)


def test_limit_of_tokens():
    def reach(stack):
        c = stack.enter_context(daemon.connect())
        prompt = pb.TokenIds(id=[5 + i % 500 for i in range(LIMITS["TokensPerMinute"])])
        u.finished(c.generate(model="nano", tokens=prompt, max_tokens=1))
        e = c.refused(generate=pb.Generate(**SMALL))
        assert_quota(e, "TokensPerMinute")
        assert 0 < e.retry_after_ms <= 60001
    hits("TokensPerMinute", reach)


if __name__ == "__main__":
    if os.getuid() != 0:
        t.skip("only root can be several users")
    with t.Daemon(args=[f"--limit={k}={v}" for k, v in LIMITS.items()] + ["--socket-mode", "0666", "--threads", "2"]) as daemon:
        # the directories are private; these users come through them
        os.chmod(daemon.dir, 0o711)
        os.chmod(os.path.dirname(daemon.socket), 0o711)
        daemon.wait_model()
        t.run_tests({k: v for k, v in list(globals().items())})
