#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""An engine without a model: it speaks the engine protocol and answers by rule, well or badly as $FAKE_ENGINE says.

The first word is how it behaves; key=value words set numbers. Generate answers with the words of the input text, or
with `deltas` deltas of `size` bytes where the text begins with "stream", or to "weight" with the weight that came along.
"""
import os
import select
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.environ["top_srcdir"], "tests", "integration"))
import dsv4test as t  # noqa: E402

e = t.engine_pb
pb = t.pb


class Engine:
    def __init__(self, options, mode, settings):
        self.mode, self.settings = mode, settings
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(options["--front"])
        self.name = options["--name"]
        self.data = b""
        self.sessions = {}
        self.streams = {}  # id -> [next delta, paused]
        self.draining = False
        self.out = b""

    def number(self, key, default):
        return type(default)(self.settings.get(key, default))

    def send(self, id, **event):
        data = e.EngineMessage(id=id, **event).SerializeToString()
        self.out += struct.pack("<I", len(data)) + data

    def error(self, id, code, text="no"):
        self.send(id, error=pb.Error(code=code, message=text))

    def greet(self):
        build = "other" if self.mode == "other-build" else t.package_version()
        name = "stranger" if self.mode == "other-name" else self.name
        self.send(0, register=e.Register(build=build, model=name, pid=os.getpid()))
        self.flush()

    def load(self):
        total = 1000
        for done in range(0, total, 100):
            self.send(0, loading=e.Loading(done_bytes=done, total_bytes=total))
            self.flush()
            time.sleep(self.number("load", 0.0) / 10)
        if self.mode == "failed":
            self.send(0, failed=e.Failed(error=pb.Error(code="MISSING_TENSOR", message="tensor embed is missing")))
            self.flush()
            sys.exit(1)
        self.send(0, ready=e.Ready(model=pb.Model(name=self.name, state=pb.READY, architecture="fake", context_tokens=1000,
                                                  vocabulary=100, weight_bytes=total, device="cpu")))

    def flush(self):
        self.sock.setblocking(True)
        self.sock.sendall(self.out)
        self.out = b""

    # -- requests
    def generate(self, id, work):
        g = work.generate
        text = g.text if g.WhichOneof("input") == "text" else ""
        if g.session and g.session not in self.sessions:
            return self.error(id, "NO_SUCH_SESSION")
        if text.startswith("stream"):
            self.send(id, prefill=pb.Prefill(done=1, total=2))
            self.streams[id] = [0, False]
            return None
        if self.mode == "die":
            os._exit(3)
        if self.mode == "hang":
            return None
        if self.mode == "garbage":
            self.out += struct.pack("<I", 5) + b"\xff\xff\xff\xff\xff"
            return None
        if self.mode == "huge-frame":
            self.out += struct.pack("<I", 0xFFFFFFFF)
            return None
        if self.mode == "unknown-id":
            return self.send(id + 1000, finished=pb.Finished(reason=pb.STOP))
        if self.mode == "wrong-kind":
            return self.send(id, tokens=pb.Tokens(id=[1]))
        self.send(id, prefill=pb.Prefill(done=1, total=2))
        if text == "weight":
            text = str(work.weight)
        for word in text.split():
            self.send(id, delta=pb.Delta(index=7, content=word))
        self.finish(id, pb.STOP, len(text.split()))
        if self.mode == "twice":
            self.finish(id, pb.STOP, 0)
        return None

    def finish(self, id, reason, n):
        self.streams.pop(id, None)
        self.send(id, finished=pb.Finished(reason=reason, counts=pb.TokenCounts(input_computed=3, input_cached=2, output=n)))

    def step(self):
        """One delta for each stream that runs."""
        for id, stream in list(self.streams.items()):
            if stream[1]:
                continue
            if stream[0] == self.number("deltas", 1000000):
                self.finish(id, pb.LENGTH, stream[0])
                continue
            self.send(id, delta=pb.Delta(index=0, content=f"{stream[0]:<{self.number('size', 8)}}"))
            stream[0] += 1

    def session(self, id, session):
        self.sessions[session] = True
        self.send(id, session=pb.SessionInfo(session=session, model=self.name, tokens=5, kv_bytes=100))

    def handle(self, m):
        kind = m.WhichOneof("operation")
        if kind == "session_new":
            self.session(m.id, m.session_new.session)
        elif kind == "session_fork":
            self.session(m.id, m.session_fork.new_session)
        elif kind == "session_trim":
            self.send(m.id, session=pb.SessionInfo(session="", model="", tokens=m.session_trim.tokens))
        elif kind == "session_close":
            self.sessions.pop(m.session_close.session, None)
            self.send(m.id, done=pb.Done())
        elif kind == "generate":
            self.generate(m.id, m.generate)
        elif kind == "cancel":
            if m.cancel.target in self.streams:
                self.finish(m.cancel.target, pb.CANCELLED, self.streams[m.cancel.target][0])
        elif kind == "pace":
            if m.pace.target in self.streams:
                self.streams[m.pace.target][1] = m.pace.paused
        elif kind == "tokenize":
            self.send(m.id, tokens=pb.Tokens(id=list(m.tokenize.text.encode())))
        elif kind == "detokenize":
            self.send(m.id, text=pb.Text(utf8=bytes(i % 256 for i in m.detokenize.id)))
        elif kind == "drain":
            self.draining = True

    def receive(self):
        """False at end of file."""
        more = self.sock.recv(1 << 16)  # a memfd that comes along is not looked at, and closed by the kernel
        if not more:
            return False
        self.data += more
        while len(self.data) >= 4:
            n, = struct.unpack("<I", self.data[:4])
            if len(self.data) < 4 + n:
                break
            m = e.FrontMessage()
            m.ParseFromString(self.data[4:4 + n])
            self.data = self.data[4 + n:]
            self.handle(m)
        return True

    def run(self):
        pace, due = self.number("pace", 0.0), 0.0
        while not (self.draining and not self.streams and not self.out):
            busy = any(not s[1] for s in self.streams.values())
            self.sock.setblocking(False)
            wait = max(0.0, due - time.monotonic()) if busy else 1
            readable, writable, _ = select.select([self.sock], [self.sock] if self.out else [], [], wait)
            if readable and not self.receive():
                return
            if writable:
                self.out = self.out[self.sock.send(self.out):]
            if len(self.out) < 1 << 16 and time.monotonic() >= due:
                self.step()
                due = time.monotonic() + pace


def main():
    words = os.environ.get("FAKE_ENGINE", "good").split()
    settings = dict(w.split("=", 1) for w in words[1:])
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    if words[0] == "exit":
        sys.exit(4)
    if "once" in settings:  # bad behaviour only the first time
        try:
            os.close(os.open(settings["once"], os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            words[0] = "good"
    engine = Engine(options, words[0], settings)
    engine.greet()
    if words[0] == "silent":
        time.sleep(1000)
    engine.load()
    engine.run()


if __name__ == "__main__":
    main()
