#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""dsv4d with its real engine from end to end: what happens when one of them is killed or stopped, cancelled prompts,
sessions that continue exactly, limits of the context, resumed and slow readers."""
import os
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
import real_engine_util as u  # noqa: E402
from dsv4test import pb  # noqa: E402

TWO_MODELS = ("nano=" + t.NANO, "other=" + t.NANO)
SOON = 5 * u.SCALE  # seconds: generous, for what takes a fraction of one
FOREVER = 100000    # tokens: more than any test waits for
daemon = None


def engine_of(d, model):
    for pid in d.engine_pids():
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            argv = f.read().split(b"\0")
        if argv[argv.index(b"--name") + 1] == model.encode():
            return pid
    raise AssertionError("no engine of " + model)


def gone(pid):
    """No such process, or only its entry, which whoever inherited it has not read yet."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def stream(c, model="nano", text="a long story", **fields):
    """A stream that has begun; its id."""
    fields = {"max_tokens": FOREVER, "sampling": u.sampling(1), **fields}
    id = c.start(generate=pb.Generate(model=model, text=text, **fields))
    first(c, id, "delta")
    return id


def first(c, id, kind):
    """The first message of this kind; what came before it is kept."""
    before = []
    while True:
        m = c.receive()
        assert not m.HasField("error"), m
        before.append(m)
        if m.request_id == id and m.HasField(kind):
            c.kept = before + c.kept
            return getattr(m, kind)


# ---------------------------------------------------------------- death

def test_engine_killed():
    """Its streams end with an error, the next request works, and another model's stream does not notice."""
    with daemon.connect() as c, daemon.connect() as o:
        asked = {"model": "other", "text": "undisturbed", "max_tokens": 1500, "logprobs": 0, "sampling": u.sampling(5)}
        alone = u.whole(o.generate(60 * u.SCALE, **asked))
        session = c.open_session()
        ids = [stream(c, text=f"stream {i}") for i in range(4)]
        undisturbed = o.start(generate=pb.Generate(**asked))
        first(o, undisturbed, "delta")
        victim = engine_of(daemon, "nano")
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        for id in ids:
            e = c.until_end(id)[-1].error
            assert e.code == "ENGINE_GONE" and "engine of nano stopped" in e.message, e
        assert u.finished(c.generate(model="nano", text="next", max_tokens=3, sampling=u.sampling(1))).counts.output == 3
        print(f"     the next request was done {time.monotonic() - killed:.2f} s after the kill")
        assert time.monotonic() - killed < SOON
        assert c.refused(generate=pb.Generate(session=session, text="x")).code == "NO_SUCH_SESSION"
        assert engine_of(daemon, "nano") != victim
        assert u.whole(o.until_end(undisturbed, 60 * u.SCALE)) == alone
        u.wait_for(lambda: u.running(c) == 0, "nothing runs")


def test_engine_killed_while_reading_a_prompt():
    with daemon.connect() as c:
        id = c.start(generate=pb.Generate(model="nano", tokens=pb.TokenIds(id=[5] * 50000), max_tokens=1))
        first(c, id, "prefill")
        os.kill(engine_of(daemon, "nano"), signal.SIGKILL)
        assert c.until_end(id)[-1].error.code == "ENGINE_GONE"
        u.finished(c.generate(model="nano", text="next", max_tokens=3))


def test_stop():
    """SIGTERM ends everything within a bounded time and leaves nothing."""
    with t.Daemon(models=TWO_MODELS, args=["--limit=ShutdownGrace=500ms"]) as d:
        d.wait_model("nano"), d.wait_model("other")
        with d.connect() as c, d.connect() as o:
            ids = [stream(c), stream(c, "other")]
            long = c.start(generate=pb.Generate(model="nano", tokens=pb.TokenIds(id=[5] * 50000), max_tokens=1))
            stream(o)  # nobody reads its end
            pids = d.engine_pids()
            assert len(pids) == 2
            start = time.monotonic()
            assert d.stop() == 0, d.log()
            print(f"     stopped in {time.monotonic() - start:.2f} s")
            assert time.monotonic() - start < 0.5 + SOON
            assert not [pid for pid in pids if not gone(pid)]
            left = [name for name in os.listdir(os.path.join(d.dir, "run")) if name.endswith(".sock")]
            assert not left, left
            for id in [*ids, long]:  # every request has an end, which says why
                m = c.until_end(id)[-1]
                assert (m.error.code == "SHUTTING_DOWN" if m.HasField("error") else m.finished.reason == pb.CANCELLED), m


def test_daemon_killed():
    """No engine outlives dsv4d."""
    with t.Daemon(models=TWO_MODELS) as d:
        d.wait_model("nano"), d.wait_model("other")
        with d.connect() as c:
            stream(c)
            pids = d.engine_pids()
            d.expected_status = -signal.SIGKILL
            d.process.kill()
            d.process.wait()
            seconds = u.wait_for(lambda: all(gone(pid) for pid in pids), "engines end", SOON)
        print(f"     engines were gone after {seconds:.2f} s")


def damage(directory):
    """A copy of the checkpoint whose shard lost its last bytes; the shard's name."""
    shutil.copytree(t.NANO, directory)
    shard, = [n for n in os.listdir(directory) if n.endswith(".safetensors")]
    os.chmod(os.path.join(directory, shard), 0o600)
    os.truncate(os.path.join(directory, shard), os.path.getsize(os.path.join(directory, shard)) - 1000)
    return shard


def test_damaged_checkpoint():
    """The model says what is wrong with it, and the others serve."""
    with tempfile.TemporaryDirectory(prefix="dsv4-bad-") as tmp:
        shard = damage(os.path.join(tmp, "bad"))
        with t.Daemon(models=("nano=" + t.NANO, "bad=" + os.path.join(tmp, "bad"))) as d, d.connect() as c:
            row = d.wait_model("bad", pb.FAILED)
            assert shard in row.detail and any(ch.isdigit() for ch in row.detail), row
            e = c.refused(generate=pb.Generate(model="bad", text="x"))
            assert e.code == "MODEL_FAILED" and shard in e.message, e
            assert c.refused(open_session=pb.OpenSession(model="bad")).code == "MODEL_FAILED"
            d.wait_model("nano")
            u.finished(c.generate(model="nano", text="x", max_tokens=3))
            status = {m.name: m.state for m in c.ask(get_status=pb.GetStatus())[-1].status.model}
            assert status == {"nano": pb.READY, "bad": pb.FAILED}


# ---------------------------------------------------------------- cancel

def test_cancel_a_long_prompt():
    """20,000 tokens and more from a memfd: cancelled by id and by leaving, at once, and the session keeps what was read."""
    text = "".join(f"{i * 7919 % 100003} " for i in range(7000)).encode()
    with daemon.connect() as c, t.sealed_memfd(text) as fd:
        def begin(d, session):
            id = d.start([fd], generate=pb.Generate(session=session, memfd=pb.MemfdText(is_chat=False), max_tokens=5))
            p = first(d, id, "prefill")
            assert p.done < p.total and p.total >= 20000, p
            return id
        session = c.open_session()
        id = begin(c, session)
        start = time.monotonic()
        c.ask(cancel=pb.Cancel(target=id))
        f = u.finished(c.until_end(id))
        print(f"     cancelled by id in {time.monotonic() - start:.2f} s", end="")
        assert f.reason == pb.CANCELLED and f.counts.output == 0 and f.counts.input_computed < 20000, f
        assert time.monotonic() - start < SOON and u.running(c) == 0
        with daemon.connect() as d:
            begin(d, session)
        print(f", by leaving in {u.wait_for(lambda: u.running(c) == 0, 'it ends', SOON):.2f} s")
        held, = [s for s in c.ask(list_sessions=pb.ListSessions())[-1].sessions.session if s.session == session]
        assert held.tokens >= f.counts.input_computed
        c.ask(close_session=pb.CloseSession(session=session))


# ---------------------------------------------------------------- input and output

def test_memfd_is_the_same_input():
    with daemon.connect() as c:
        o = {"model": "nano", "max_tokens": 20, "logprobs": 2, "sampling": u.sampling(3)}
        for inline, data, is_chat in (({"text": "Grüße 世界 " * 100}, ("Grüße 世界 " * 100).encode(), False),
                                      ({"chat": u.user("Guten Tag")}, u.user("Guten Tag").SerializeToString(), True)):
            expected = u.whole(c.generate(**inline, **o))
            with t.sealed_memfd(data) as fd:
                assert u.whole(c.ask([fd], generate=pb.Generate(memfd=pb.MemfdText(is_chat=is_chat), **o))) == expected
            for seals in (0, 0x06):  # could still be written
                with t.sealed_memfd(data, seals) as fd:
                    e = c.refused([fd], generate=pb.Generate(memfd=pb.MemfdText(is_chat=is_chat), **o))
                    assert e.code == "BAD_MEMFD", e


def test_ends():
    with daemon.connect() as c:
        o = {"model": "nano", "text": "Hello", "sampling": u.sampling(11)}
        long = c.generate(max_tokens=80, **o)
        text = t.text_of(long)
        assert u.finished(long).reason == pb.LENGTH and u.finished(long).counts.output == 80 and len(text) > 20
        short = c.generate(max_tokens=7, logprobs=0, **o)
        assert u.finished(short).counts.output == len(u.ids(short)) == 7 and text.startswith(t.text_of(short))
        at = next(i for i in range(8, len(text)) if text.find(text[i:i + 4]) == i)
        cut = c.generate(max_tokens=80, stop=["no such text", text[at:at + 4]], **o)
        assert t.text_of(cut) == text[:at] and u.finished(cut).reason == pb.STOP
        assert u.finished(cut).counts.output < 80
        forced = u.sampling(1, bias=[pb.LogitBias(id=u.EOS, bias=100)])
        ended = c.generate(model="nano", text="Hello", max_tokens=9, sampling=forced)
        assert u.finished(ended).reason == pb.STOP and t.text_of(ended) == ""


CONTROL = ["<｜Assistant｜>", "<｜User｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>"]


def test_control_tokens_in_text():
    """What a user writes is text, whatever it looks like."""
    with daemon.connect() as c:
        def tokenize(**fields):
            return list(c.ask(tokenize=pb.Tokenize(model="nano", **fields))[-1].tokens.id)
        special = [tokenize(text=text, special=True) for text in CONTROL]
        assert all(len(ids) == 1 for ids in special), special
        control = {ids[0] for ids in special}
        for text in CONTROL + ["x".join(CONTROL), "<｜Assistant｜>" * 1000]:
            ids = tokenize(text=text)
            assert len(ids) > 1 and not control & set(ids), text
            assert c.ask(detokenize=pb.Detokenize(model="nano", id=ids))[-1].text.utf8.decode() == text
        plain, hostile = tokenize(chat=u.user("x")), tokenize(chat=u.user("".join(CONTROL)))
        assert control & set(plain)
        assert [i for i in plain if i in control] == [i for i in hostile if i in control]
        assert len(hostile) > len(plain) + len(CONTROL)


# ---------------------------------------------------------------- sessions

A, B, C = ([(k * 37 + i * i * (k + 1)) % 512 for i in range(n)] for k, n in ((1, 300), (2, 90), (3, 45)))


def generate_in(c, session, tokens, seed, **fields):
    given = {"session": session} if session else {"model": "nano"}
    return c.generate(tokens=pb.TokenIds(id=tokens), max_tokens=25, logprobs=2, sampling=u.sampling(seed), **given, **fields)


def outcome(messages):
    w = u.whole(messages)
    del w["input"]  # how much was there already is another matter
    return w


def test_append_only():
    with daemon.connect() as c:
        expected = outcome(generate_in(c, None, A + B, 1))
        session = c.open_session()
        for part in (A[:1], A[1:150], A[150:]):
            m = c.generate(session=session, tokens=pb.TokenIds(id=part), append_only=True)
            assert u.finished(m).reason == pb.PREFILLED and u.finished(m).counts.output == 0 and not u.ids(m)
        m = generate_in(c, session, B, 1)
        assert outcome(m) == expected and u.finished(m).counts.input_computed < len(B) + 2
        c.ask(close_session=pb.CloseSession(session=session))


def test_fork():
    """A session and its fork go on at the same time as two sessions would that never knew each other."""
    with daemon.connect() as c:
        def append(tokens):
            session = c.open_session()
            c.generate(session=session, tokens=pb.TokenIds(id=tokens), append_only=True)
            return session
        one = append(A)
        two = c.ask(fork_session=pb.ForkSession(session=one))[-1].session.session
        separate = [append(A), append(A)]
        pairs = [(one, B, 1), (two, C, 2)], [(separate[0], B, 1), (separate[1], C, 2)]
        for turn in range(2):
            forked, apart = ([outcome(c.until_end(id)) for id in
                              [c.start(generate=pb.Generate(session=s, tokens=pb.TokenIds(id=tokens), max_tokens=25, logprobs=2,
                                                            sampling=u.sampling(seed + turn))) for s, tokens, seed in pair]]
                             for pair in pairs)
            assert forked == apart and forked[0] != forked[1], turn
        for session in (one, two, *separate):
            c.ask(close_session=pb.CloseSession(session=session))


def test_trim():
    with daemon.connect() as c:
        session = c.open_session()
        held = A + u.ids(generate_in(c, session, A, 7))
        assert len(held) == 325
        for keep in (320, 301, 130, 1):
            info = c.ask(trim_session=pb.TrimSession(session=session, tokens=keep))[-1].session
            assert info.tokens == keep, info
            held = held[:keep] + C
            m = generate_in(c, session, C, 8)
            assert outcome(m) == outcome(generate_in(c, None, held, 8)), keep
            held += u.ids(m)
        c.ask(close_session=pb.CloseSession(session=session))


def test_limits_of_the_context():
    with t.Daemon(args=["--context", "256"]) as d, d.connect() as c:
        assert d.wait_model().context_tokens == 256

        def refused(**fields):
            return c.refused(generate=pb.Generate(model="nano", **fields))
        e = refused(tokens=pb.TokenIds(id=[3] * 300))
        assert (e.code, e.limit, e.value) == ("PROMPT_TOO_LONG", 256, 300), e
        e = refused(tokens=pb.TokenIds(id=[3] * 200), max_tokens=57)
        assert (e.code, e.limit, e.value) == ("CONTEXT_FULL", 256, 257), e
        e = refused(text="a" * 1000000)
        assert e.code == "PROMPT_TOO_LONG" and e.value > 256, e
        e = refused(tokens=pb.TokenIds(id=[1, 2, 512]))
        assert (e.code, e.limit, e.value) == ("BAD_TOKEN", 511, 512) and "token 2" in e.message, e
        e = refused(tokens=pb.TokenIds(id=[0xFFFFFFFF]))
        assert (e.code, e.limit, e.value) == ("BAD_TOKEN", 511, 0xFFFFFFFF), e
        assert refused(text="").code == "EMPTY_INPUT"
        assert refused(tokens=pb.TokenIds()).code == "EMPTY_INPUT"
        assert refused(chat=pb.Chat()).code == "EMPTY_INPUT"
        m = c.generate(model="nano", tokens=pb.TokenIds(id=[3] * 200), sampling=u.sampling(1))  # what fits
        assert u.finished(m).reason == pb.LENGTH and u.finished(m).counts.output == 56


# ---------------------------------------------------------------- readers

def test_resume():
    """A connection that breaks again and again: the whole text, once."""
    asked = {"model": "nano", "text": "resumed", "max_tokens": 400, "logprobs": 1, "sampling": u.sampling(21)}
    with daemon.connect() as c:
        expected = u.whole(c.generate(**asked))
    c = daemon.connect()
    c.start(generate=pb.Generate(resume_seconds=60, **asked))
    token = first(c, 2, "accepted").resume_token
    got, breaks = [], 0
    while True:
        while len(got) < 40 * (breaks + 1) and not (got and got[-1].HasField("finished")):
            m = c.receive()
            assert not m.HasField("error"), m
            if m.HasField("delta") or m.HasField("finished"):
                got.append(m)
        if got[-1].HasField("finished"):
            break
        c.close()
        breaks += 1
        c = daemon.connect()
        c.start(resume=pb.Resume(resume_token=token, next_index=len(got)))
    c.close()
    assert breaks >= 5, breaks
    assert u.whole(got) == expected


def test_slow_readers():
    """Readers that stop do not hold up others; when they read on, they get everything."""
    asked = {"text": "slow", "max_tokens": 3000, "logprobs": 20, "sampling": u.sampling(31)}
    other = {"model": "nano", "text": "quick", "max_tokens": 300, "logprobs": 0, "sampling": u.sampling(32)}
    with t.Daemon(args=["--limit=OutputHigh=64K", "--limit=SlowReaderTimeout=300s"]) as d:
        d.wait_model()
        connections = [d.connect() for _ in range(4)]
        with d.connect() as c:
            expected = u.whole(c.generate(120 * u.SCALE, model="nano", **asked))
            start = time.monotonic()
            alone = u.whole(c.generate(60 * u.SCALE, **other))
            took = time.monotonic() - start
            sessions = [c.open_session() for _ in connections]
            ids = [s.start(generate=pb.Generate(session=session, **asked)) for s, session in zip(connections, sessions)]
            # until nothing moves: all are paused
            engine = engine_of(d, "nano")
            u.wait_for(lambda: idle(engine), "the stopped readers' streams pause", 120 * u.SCALE)
            assert u.running(c) == len(ids)
            start = time.monotonic()
            assert u.whole(c.generate(60 * u.SCALE, **other)) == alone
            beside = time.monotonic() - start
            print(f"     {took:.2f} s alone, {beside:.2f} s beside {len(ids)} stopped readers")
            assert beside < 4 * took + 2 * u.SCALE
            assert u.whole(connections[0].until_end(ids[0], 120 * u.SCALE)) == expected
        for s in connections:
            s.close()


def idle(pid, seconds=0.3):
    """Does the process use (almost) no processor time?"""
    def ticks():
        with open(f"/proc/{pid}/stat") as f:
            return sum(map(int, f.read().rpartition(")")[2].split()[11:13]))
    before = ticks()
    time.sleep(seconds)
    return ticks() <= before + 1


if __name__ == "__main__":
    with t.Daemon(models=TWO_MODELS, args=["--threads", "2"]) as daemon:
        daemon.wait_model("nano"), daemon.wait_model("other")
        t.run_tests({k: v for k, v in list(globals().items())})
