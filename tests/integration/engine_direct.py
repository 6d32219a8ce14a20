#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The real engine on models/nano, with this script in the front's place: sessions, requests, their ends, and that one
request never depends on another."""
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.environ.get("top_srcdir", "."), "tests", "integration"))
import dsv4test as t  # noqa: E402

e, pb = t.engine_pb, t.pb
ENGINE = os.path.join(t.TOP_BUILD, "dsv4d-engine")
ENDS = {"error", "session", "done", "finished", "tokens", "text"}
SCALE = int(os.environ.get("DSV4_TEST_SCALE", "1"))  # > 1 under valgrind: fewer repetitions


class Engine:
    def __init__(self, *args, checkpoint=t.NANO, welcome=True, ready=True):
        self.dir = tempfile.TemporaryDirectory(prefix="dsv4-engine-")
        path = os.path.join(self.dir.name, "engine.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        self.log_path = os.path.join(self.dir.name, "log")
        wrapper = os.environ.get("DSV4_TEST_WRAPPER", "").split()
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(wrapper + [ENGINE, "--name", "nano", "--checkpoint", checkpoint, "--front", path,
                                                       "--threads", "2", *args], stdout=log, stderr=log)
        self.listener.settimeout(t.TIMEOUT)
        self.sock = self.listener.accept()[0]
        self.sock.settimeout(t.TIMEOUT)
        self.kept, self.next_id = [], 1
        self.register = self.receive().register
        if welcome:
            self.send(id=0, welcome=e.Welcome())
        if welcome and ready:
            self.loading, self.ready = 0, None
            while not self.ready:
                m = self.receive()
                assert not m.HasField("failed"), m
                self.loading += m.HasField("loading")
                self.ready = m.ready if m.HasField("ready") else None

    def send(self, fds=(), **fields):
        data = e.FrontMessage(**fields).SerializeToString()
        data = struct.pack("<I", len(data)) + data
        n = socket.send_fds(self.sock, [data], fds) if fds else 0
        self.sock.sendall(data[n:])

    def exactly(self, n):
        data = bytearray()
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            if not more:
                raise t.Closed(self.log())
            data += more
        return bytes(data)

    def receive(self):
        m = e.EngineMessage()
        m.ParseFromString(self.exactly(struct.unpack("<I", self.exactly(4))[0]))
        return m

    def start(self, owner=1, fds=(), **operation):
        i = self.next_id
        self.next_id += 1
        self.send(fds, id=i, owner=owner, **operation)
        return i

    def until_end(self, i):
        got, others = [], []
        pending = self.kept
        self.kept = []
        while True:
            m = pending.pop(0) if pending else self.receive()
            if m.id != i:
                if m.id:
                    others.append(m)
                continue
            got.append(m)
            if m.WhichOneof("event") in ENDS:
                self.kept = others + pending
                return got

    def ask(self, **operation):
        return self.until_end(self.start(**operation))

    def generate(self, owner=1, fds=(), weight=None, **fields):
        return self.start(owner, fds, generate=e.Work(generate=pb.Generate(**fields), weight=weight))

    def answer(self, owner=1, fds=(), **fields):
        return self.until_end(self.generate(owner, fds, **fields))

    def refused(self, code, **operation):
        m = self.ask(**operation)
        assert len(m) == 1 and m[0].error.code == code, m
        return m[0].error

    def refused_work(self, code, owner=1, fds=(), **fields):
        m = self.answer(owner, fds, **fields)
        assert m[-1].error.code == code, m
        return m[-1].error

    def session(self, name, owner=1):
        m = self.ask(owner=owner, session_new=e.SessionNew(session=name))[0]
        assert m.HasField("session"), m
        return m.session

    def tokens_of(self, name, owner=1):
        """By trimming at an impossible place, whose answer tells."""
        return self.refused("RANGE", owner=owner, session_trim=e.SessionTrim(session=name, tokens=1 << 30)).limit

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def stat(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            rss = [int(line.split()[1]) for line in f if line.startswith("VmRSS")][0]
        return rss, len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self, expected=0):
        try:
            status = self.process.wait(t.TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        log = self.log()
        assert status == expected, (status, log)
        return log

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        self.sock.close()
        if kind is not None:
            self.process.terminate()
            print(self.log()[-6000:])
        try:
            self.end() if kind is None else self.process.wait(t.TIMEOUT)
        finally:
            self.process.poll() is None and self.process.kill()
            self.listener.close()
            self.dir.cleanup()


def finished(messages):
    assert messages[-1].HasField("finished"), messages[-1]
    return messages[-1].finished


def deltas(messages):
    return [m.delta for m in messages if m.HasField("delta")]


def text(messages):
    return "".join(d.content for d in deltas(messages))


def ids(messages):
    return [p.id for d in deltas(messages) for p in d.logprob]


def sampling(seed, temperature=1.0, **more):
    return pb.Sampling(seed=seed, temperature=temperature, **more)


def user(content):
    return pb.Chat(message=[pb.ChatMessage(role=pb.USER, content=content)])


def test_life():
    with Engine() as n:
        assert n.register.model == "nano" and n.register.build == t.package_version()
        assert n.loading > 0
        row = n.ready.model
        assert (row.state, row.vocabulary, row.architecture, len(row.digest)) == (pb.READY, 512, "deepseek_v4", 32), row
        m = n.answer(text="Once upon a time", max_tokens=20, logprobs=3, sampling=sampling(7))
        f = finished(m)
        assert [d.index for d in deltas(m)] == list(range(len(deltas(m))))
        assert f.counts.output == len(ids(m)) and f.counts.input_cached == 0 and f.seed == 7 and len(f.model_digest) == 32
        assert f.reason in (pb.LENGTH, pb.STOP) and (f.reason == pb.STOP or f.counts.output == 20)
        for d in deltas(m):
            for p in d.logprob:
                assert len(p.top) == 3 and p.logprob <= p.top[0].logprob <= 0 and p.top[0].logprob >= p.top[1].logprob
        prefill = [x.prefill for x in m if x.HasField("prefill")]
        assert prefill[-1].done == prefill[-1].total == f.counts.input_computed
        kinds = [x.WhichOneof("event") for x in m]
        assert kinds.index("prefill") < kinds.index("delta") and kinds[-1] == "finished"
        n.send(id=0, drain=e.Drain())
        n.end()


def test_drain_waits():
    with Engine() as n:
        i = n.generate(tokens=pb.TokenIds(id=[5, 6, 7]), max_tokens=200, sampling=sampling(1, bias=[pb.LogitBias(id=1, bias=-100)]))
        n.send(id=0, drain=e.Drain())
        late = n.generate(text="x")
        assert n.until_end(late)[-1].error.code == "SHUTTING_DOWN"
        assert finished(n.until_end(i)).counts.output == 200
        n.end()


def test_same_seed_same_text_in_company():
    """Eight at once, and other work besides, get the ids that each gets alone."""
    prompts = [[10 * k + j % (k + 3) for j in range(3 + 40 * k)] for k in range(8)]
    with Engine() as n:
        def go(k):
            return n.generate(owner=k % 3, tokens=pb.TokenIds(id=prompts[k]), max_tokens=40, logprobs=0, sampling=sampling(k + 1))
        alone = [ids(n.until_end(go(k))) for k in range(8)]
        assert len({tuple(a) for a in alone}) == 8 and min(map(len, alone)) > 0
        other = [n.generate(owner=9, text="noise " * 300, max_tokens=50) for _ in range(4)]
        together = [ids(n.until_end(i)) for i in [go(k) for k in range(8)]]
        assert together == alone, [(a[:5], b[:5]) for a, b in zip(alone, together) if a != b]
        for i in other:
            finished(n.until_end(i))
        # greedy does not depend on the seed
        greedy = [ids(n.answer(text="abc", max_tokens=10, logprobs=0, sampling=sampling(s, 0.0))) for s in (1, 2)]
        assert greedy[0] == greedy[1]


def test_sessions_continue_exactly():
    """What a session computes in parts is what one request computes at once; also after losing its KV."""
    no_eos = [pb.LogitBias(id=1, bias=-100)]
    greedy = sampling(1, 0.0, bias=no_eos)
    with Engine() as n:
        whole = ids(n.answer(tokens=pb.TokenIds(id=range(2, 302)), max_tokens=30, logprobs=0, sampling=greedy))
        assert len(whole) == 30
        n.session("a")
        m = n.answer(session="a", tokens=pb.TokenIds(id=range(2, 202)), append_only=True)
        assert finished(m).reason == pb.PREFILLED and finished(m).session == "a" and finished(m).counts.output == 0
        m = n.answer(session="a", tokens=pb.TokenIds(id=range(202, 302)), max_tokens=10, logprobs=0, sampling=greedy)
        first = ids(m)
        assert finished(m).counts.input_cached == 199 and finished(m).counts.input_computed == 101
        fork = n.ask(owner=1, session_fork=e.SessionFork(session="a", new_session="b", label="copy"))[0].session
        assert (fork.session, fork.label, fork.tokens) == ("b", "copy", 310) and fork.created_usec > 1.6e15
        m = n.answer(session="a", text="", max_tokens=20, logprobs=0, sampling=greedy)
        assert first + ids(m) == whole and finished(m).counts.input_cached == 309
        trimmed = n.ask(owner=1, session_trim=e.SessionTrim(session="b", tokens=302))[0].session
        assert trimmed.tokens == 302
        m = n.answer(session="b", tokens=pb.TokenIds(), max_tokens=28, logprobs=0, sampling=greedy)
        assert ids(m) == whole[2:] and finished(m).counts.input_cached == 0, "trimmed, all is computed again"
        # 70 sessions on 64 states: idle ones lose their KV and go on from their tokens
        for k in range(70):
            n.session(f"s{k}")
            finished(n.answer(session=f"s{k}", tokens=pb.TokenIds(id=[3 + k, 4, 5]), max_tokens=2, sampling=greedy))
        m = n.answer(session="a", text="", max_tokens=1, logprobs=0, sampling=greedy)
        assert finished(m).counts.input_cached == 0 and finished(m).counts.input_computed == 330


def test_session_rules():
    with Engine() as n:
        n.session("a", owner=1)
        n.refused("NO_SUCH_SESSION", owner=2, session_trim=e.SessionTrim(session="a", tokens=0))
        n.refused("NO_SUCH_SESSION", owner=2, session_close=e.SessionRef(session="a"))
        n.refused_work("NO_SUCH_SESSION", owner=2, session="a", text="x", max_tokens=1)
        n.refused_work("EMPTY_INPUT", session="a", text="")
        n.refused_work("EMPTY_INPUT", tokens=pb.TokenIds())
        n.refused_work("EMPTY_INPUT")
        i = n.generate(session="a", text="go on and on", max_tokens=5000, sampling=sampling(1, bias=[pb.LogitBias(id=1, bias=-100)]))
        n.refused_work("SESSION_BUSY", session="a", text="x")
        n.refused("SESSION_BUSY", owner=1, session_trim=e.SessionTrim(session="a", tokens=0))
        n.refused("SESSION_BUSY", owner=1, session_fork=e.SessionFork(session="a", new_session="b"))
        c = n.start(owner=1, session_close=e.SessionRef(session="a"))
        assert finished(n.until_end(i)).reason == pb.CANCELLED
        assert n.until_end(c)[-1].HasField("done")
        n.refused("NO_SUCH_SESSION", owner=1, session_close=e.SessionRef(session="a"))


def test_cancel_keeps_what_was_done():
    no_eos = [pb.LogitBias(id=1, bias=-100)]
    with Engine() as n:
        n.session("a")
        i = n.generate(session="a", tokens=pb.TokenIds(id=[5] * 100), max_tokens=100000, sampling=sampling(3, bias=no_eos))
        while not n.receive().HasField("delta"):
            pass
        n.send(id=0, cancel=e.Cancel(target=i))
        f = finished(n.until_end(i))
        assert f.reason == pb.CANCELLED and f.counts.output > 0
        assert n.tokens_of("a") == 100 + f.counts.output
        # during prefill: within a step, and what was read stays
        i = n.generate(session="a", tokens=pb.TokenIds(id=[6] * 200000), max_tokens=1)
        while True:
            m = n.receive()
            if m.HasField("prefill"):
                assert m.prefill.done < m.prefill.total
                break
        before = time.monotonic()
        n.send(id=0, cancel=e.Cancel(target=i))
        f2 = finished(n.until_end(i))
        assert time.monotonic() - before < 2 * SCALE
        assert f2.reason == pb.CANCELLED and 0 < f2.counts.input_computed < 200000
        assert n.tokens_of("a") == 100 + f.counts.output + f2.counts.input_computed - 1  # one of them was its last output
        m = n.answer(session="a", text="", max_tokens=1, sampling=sampling(1))
        assert finished(m).counts.output == 1, "it goes on from there"
        # queued or being tokenised: at once
        i = n.generate(text="word " * 200000, max_tokens=1)
        n.send(id=0, cancel=e.Cancel(target=i, quiet=True))
        f = finished(n.until_end(i))
        assert f.reason == pb.CANCELLED and f.counts.input_computed == 0
        n.send(id=0, cancel=e.Cancel(target=i))  # of something that is over: nothing
        n.send(id=0, cancel=e.Cancel(target=12345))
        finished(n.answer(text="still there", max_tokens=1))


def test_pace():
    with Engine() as n:
        no_eos = [pb.LogitBias(id=1, bias=-100)]
        slow = n.generate(text="slow", max_tokens=1000, logprobs=0, sampling=sampling(5, bias=no_eos))
        while not n.receive().HasField("delta"):
            pass
        n.send(id=0, pace=e.Pace(target=slow, paused=True))
        finished(n.answer(text="other", max_tokens=50))
        n.kept.clear()  # what came before it paused
        finished(n.answer(text="other", max_tokens=100, sampling=sampling(5, bias=no_eos)))
        assert not [m for m in n.kept if m.id == slow], "it is paused"
        n.send(id=0, pace=e.Pace(target=slow, paused=False))
        assert finished(n.until_end(slow)).counts.output == 1000


def test_queue_positions():
    """More requests than slots: each waiting one hears its place, and all end."""
    with Engine() as n:
        no_eos = [pb.LogitBias(id=1, bias=-100)]
        all_ids = [n.generate(owner=k % 2, text="abc", max_tokens=30, sampling=sampling(k, bias=no_eos)) for k in range(44)]
        answers = [n.until_end(i) for i in all_ids]
        assert all(finished(a).counts.output == 30 for a in answers)
        queued = [a[0].queued.position for a in answers if a[0].HasField("queued")]
        assert len(queued) >= 8 and min(queued) >= 1 and max(queued) <= 12, queued


def test_lengths():
    with Engine("--context", "256", "--kv-bytes", "8M") as n:
        err = n.refused_work("PROMPT_TOO_LONG", tokens=pb.TokenIds(id=[3] * 300))
        assert (err.limit, err.value) == (256, 300)
        err = n.refused_work("CONTEXT_FULL", tokens=pb.TokenIds(id=[3] * 200), max_tokens=57)
        assert (err.limit, err.value) == (256, 257)
        err = n.refused_work("CONTEXT_FULL", tokens=pb.TokenIds(id=[3] * 200), max_tokens=0xFFFFFFFF)
        no_eos = sampling(1, bias=[pb.LogitBias(id=1, bias=-100)])
        assert finished(n.answer(tokens=pb.TokenIds(id=[3] * 200), max_tokens=56, sampling=no_eos)).counts.output == 56
        f = finished(n.answer(tokens=pb.TokenIds(id=[3] * 200), sampling=no_eos))  # what fits
        assert f.reason == pb.LENGTH and f.counts.output == 56
        n.refused_work("RANGE", text="x", max_tokens=0)
        n.session("a")
        assert finished(n.answer(session="a", tokens=pb.TokenIds(id=[3] * 250), append_only=True)).reason == pb.PREFILLED
        n.refused_work("CONTEXT_FULL", session="a", text="much more text than fits there")
        assert n.tokens_of("a") == 250


def test_kv_full():
    with Engine("--kv-bytes", "300K") as n:
        no_eos = sampling(1, bias=[pb.LogitBias(id=1, bias=-100)])
        err = n.refused_work("KV_FULL", text="x", max_tokens=100000)
        assert err.value > err.limit
        f = finished(n.answer(text="x", sampling=no_eos))  # without max_tokens: as much as there is
        assert f.reason == pb.LENGTH and f.counts.output > 100
        n.session("a")
        finished(n.answer(session="a", text="x", max_tokens=100, sampling=no_eos))
        f = finished(n.answer(text="x", max_tokens=int(f.counts.output) - 2, sampling=no_eos))  # takes the idle one's
        assert f.reason == pb.LENGTH


def test_bad_input_harms_nobody():
    with Engine() as n:
        no_eos = [pb.LogitBias(id=1, bias=-100)]
        good = n.generate(text="the good one", max_tokens=300, logprobs=0, sampling=sampling(4, bias=no_eos))
        err = n.refused_work("BAD_TOKEN", tokens=pb.TokenIds(id=[1, 2, 512]))
        assert (err.limit, err.value) == (511, 512) and "token 2" in err.message
        n.refused_work("RANGE", text="x", sampling=pb.Sampling(temperature=float("nan")))
        n.refused_work("RANGE", text="x", sampling=pb.Sampling(temperature=3))
        n.refused_work("RANGE", text="x", logprobs=21)
        n.refused_work("RANGE", text="x", stop=["a"] * 17)
        n.refused_work("RANGE", text="x", stop=["a" * 257])
        n.refused_work("RANGE", text="x", stop=[""])
        n.refused_work("UNSUPPORTED", text="x", response_format=pb.ResponseFormat(json=True))
        n.refused_work("BAD_MEMFD", memfd=pb.MemfdText(is_chat=False))
        for data, is_chat, code in ((b"abc \xff\xfe", False, "BAD_UTF8"), (b"\x0a\xff\xff\xff\xff\x0f", True, "MALFORMED"),
                                    (b"", False, "EMPTY_INPUT")):
            with t.sealed_memfd(data) as fd:
                n.refused_work(code, fds=[fd], memfd=pb.MemfdText(is_chat=is_chat))
        with t.sealed_memfd(b"abc", seals=0x02) as fd:
            n.refused_work("BAD_MEMFD", fds=[fd], memfd=pb.MemfdText(is_chat=False))
        m = n.answer(chat=pb.Chat(message=[pb.ChatMessage(role=pb.TOOL, content="out of nowhere", task="nonsense")]))
        assert m[-1].error.code in ("BAD_CHAT", "EMPTY_INPUT"), m
        n.refused("BAD_TOKEN", detokenize=pb.Detokenize(model="nano", id=[1, 100000]))
        n.refused("UNKNOWN_OPERATION")
        together = ids(n.until_end(good))
        alone = ids(n.answer(text="the good one", max_tokens=300, logprobs=0, sampling=sampling(4, bias=no_eos)))
        assert together == alone and len(alone) == 300


def test_memfd_is_the_same_text():
    with Engine() as n:
        inline = ids(n.answer(text="Guten Tag", max_tokens=8, logprobs=0, sampling=sampling(4)))
        with t.sealed_memfd(b"Guten Tag") as fd:
            memfd = ids(n.answer(fds=[fd], memfd=pb.MemfdText(is_chat=False), max_tokens=8, logprobs=0, sampling=sampling(4)))
        assert inline == memfd and inline
        inline = ids(n.answer(chat=user("Guten Tag"), max_tokens=8, logprobs=0, sampling=sampling(4)))
        with t.sealed_memfd(user("Guten Tag").SerializeToString()) as fd:
            memfd = ids(n.answer(fds=[fd], memfd=pb.MemfdText(is_chat=True), max_tokens=8, logprobs=0, sampling=sampling(4)))
        assert inline == memfd and inline


def test_text_operations():
    with Engine() as n:
        some = "Grüße, 世界! <｜User｜>"
        plain = n.ask(tokenize=pb.Tokenize(model="nano", text=some))[0].tokens.id
        special = n.ask(tokenize=pb.Tokenize(model="nano", text=some, special=True))[0].tokens.id
        assert len(special) < len(plain), "a control token counts as one only where it was asked for"
        for got in (plain, special):
            back = n.ask(detokenize=pb.Detokenize(model="nano", id=got))[0].text.utf8
            assert back.decode() == some
        chat = n.ask(tokenize=pb.Tokenize(model="nano", chat=user("hi")))[0].tokens.id
        assert chat[0] == 0 and len(chat) > 3
        assert n.ask(detokenize=pb.Detokenize(model="nano"))[0].text.utf8 == b""


def test_stop():
    with Engine() as n:
        whole = n.answer(text="Hello", max_tokens=60, sampling=sampling(11))
        out = text(whole)
        assert len(out) > 12
        stop = out[5:8]
        cut = n.answer(text="Hello", max_tokens=60, sampling=sampling(11), stop=[stop])
        assert text(cut) == out[:out.index(stop)] and finished(cut).reason == pb.STOP
        # the end-of-sentence token ends the output and is not shown
        m = n.answer(text="Hello", max_tokens=60, logprobs=0, sampling=sampling(1, bias=[pb.LogitBias(id=1, bias=100)]))
        assert finished(m).reason == pb.STOP and finished(m).counts.output == 1 and text(m) == "" and ids(m) == [1]


def test_chat_keeps_what_fits():
    force_eos = sampling(1, bias=[pb.LogitBias(id=1, bias=100)])
    with Engine() as n:
        n.session("a")
        first = user("What is the capital of France?")
        f = finished(n.answer(session="a", chat=first, max_tokens=5, sampling=force_eos))
        assert f.reason == pb.STOP and f.counts.input_cached == 0
        held = f.counts.input_computed
        second = pb.Chat(message=[*first.message, pb.ChatMessage(role=pb.ASSISTANT, content=""),
                                  pb.ChatMessage(role=pb.USER, content="And of Italy?")])
        f = finished(n.answer(session="a", chat=second, max_tokens=5, sampling=force_eos))
        assert f.counts.input_cached == held and f.counts.input_computed > 0, f
        f = finished(n.answer(session="a", chat=user("Something else"), max_tokens=5, sampling=force_eos))
        assert f.counts.input_cached == 0, "another conversation starts anew"
        think = user("hi")
        think.reasoning = pb.HIGH
        m = n.answer(chat=think, max_tokens=12, sampling=sampling(3, bias=[pb.LogitBias(id=1, bias=-100)]))
        f = finished(m)
        assert f.counts.reasoning == f.counts.output == 12 and text(m) == ""
        assert "".join(d.reasoning for d in deltas(m)) != ""


def test_nothing_grows():
    """1,000 requests, every other one cancelled, with sessions come and gone: memory and fds stay."""
    with Engine() as n:
        def cycle(k):
            i = n.generate(owner=k % 5, text=f"request {k}", max_tokens=4, sampling=sampling(k), stop=["zzz"])
            if k % 2:
                n.send(id=0, cancel=e.Cancel(target=i, quiet=bool(k % 4 == 1)))
            if k % 10 == 0:
                n.session(f"s{k}")
                finished(n.answer(session=f"s{k}", chat=user("x"), max_tokens=2))
                n.ask(owner=1, session_close=e.SessionRef(session=f"s{k}"))
            finished(n.until_end(i))
        for k in range(200 // SCALE):
            cycle(k)
        rss, fds = n.stat()
        for k in range(1000 // SCALE):
            cycle(k)
        rss2, fds2 = n.stat()
        print(f"     rss {rss} -> {rss2} KiB, fds {fds} -> {fds2}")
        assert fds2 == fds and (t.KEEPS_FREED_MEMORY or rss2 - rss < 1024)


def test_front_that_does_not_read():
    """When more than 8 MiB wait for the front, nothing more is computed; when it reads, all goes on."""
    with Engine() as n:
        def busy_seconds():
            with open(f"/proc/{n.process.pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        big = [n.start(tokenize=pb.Tokenize(model="nano", text="\u4e16" * 300000)) for _ in range(8)]
        stream = n.generate(text="on", max_tokens=200000, sampling=sampling(1, bias=[pb.LogitBias(id=1, bias=-100)]))
        before, deadline = busy_seconds(), time.monotonic() + t.TIMEOUT
        while True:  # until it has stopped
            time.sleep(1)
            now = busy_seconds()
            if now - before < 0.1:
                break
            assert time.monotonic() < deadline, "it goes on though nobody reads"
            before = now
        sizes = [len(n.until_end(i)[-1].tokens.id) for i in big]
        assert len(set(sizes)) == 1 and sizes[0] * 8 > 5 << 20, sizes
        n.kept.clear()
        while not n.receive().HasField("delta"):
            pass
        n.send(id=0, cancel=e.Cancel(target=stream))
        assert finished(n.until_end(stream)).reason == pb.CANCELLED


def test_front_goes_while_loading_and_while_busy():
    n = Engine(ready=False)
    n.sock.close()
    n.end(0)
    n = Engine()
    for _ in range(4):
        n.generate(text="abc " * 5000, max_tokens=1000)
    n.sock.close()
    before = time.monotonic()
    n.end(0)
    assert time.monotonic() - before < 5 * SCALE
    n = Engine()
    n.process.send_signal(signal.SIGTERM)
    n.end(0)


def test_bad_checkpoint():
    with tempfile.TemporaryDirectory() as empty:
        n = Engine(checkpoint=empty, ready=False)
        while True:
            m = n.receive()
            if m.HasField("failed"):
                break
        assert m.failed.error.code == "NOT_FOUND" and "config.json" in m.failed.error.message
        log = n.end(78)
        assert "NOT_FOUND" in log


def test_command_line():
    def run(*args):
        return subprocess.run([ENGINE, *args], capture_output=True, text=True, timeout=t.TIMEOUT)
    assert run("--help").returncode == 0 and "--kv-bytes" in run("--help").stdout
    assert run("--version").stdout.split() == ["dsv4d-engine", t.package_version()]
    assert run().returncode == 64 and run("--nonsense").returncode == 64
    r = run("--name", "a", "--checkpoint", "/x", "--front", "/x", "--threads", "-1")
    assert r.returncode == 78 and "--threads" in r.stderr
    assert run("--name", "a", "--checkpoint", "/x", "--front", "/nonexistent/socket").returncode == 1


def test_logs_hold_no_text():
    with Engine() as n:
        finished(n.answer(text="xylophone", max_tokens=3))
        n.refused_work("BAD_CHAT", chat=pb.Chat(message=[pb.ChatMessage(role=pb.USER, content="xylophone", task="xylophone")]))
        n.send(id=0, drain=e.Drain())
        assert "xylophone" not in n.end()


if __name__ == "__main__":
    t.run_tests(globals())
