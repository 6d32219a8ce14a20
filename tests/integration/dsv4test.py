# SPDX-License-Identifier: MIT
"""What integration tests share: a private daemon in a temporary directory, and the protocol spoken from Python.

Everything has a time limit. Classes are generated from the .proto files by protoc each time, so they cannot be stale.
"""
import array
import contextlib
import importlib
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

# Sanitizers and valgrind hold on to freed memory: growth means nothing under them.
KEEPS_FREED_MEMORY = "DSV4_TEST_WRAPPER" in os.environ or os.environ.get("DSV4_TEST_SANITIZERS") == "yes"

TOP_SRC = os.path.abspath(os.environ.get("top_srcdir") or os.path.join(os.path.dirname(__file__), "..", ".."))
TOP_BUILD = os.path.abspath(os.environ.get("top_builddir") or os.path.join(TOP_SRC, "build"))
HERE = os.path.join(TOP_SRC, "tests", "integration")
NANO = os.path.join(TOP_SRC, "models", "nano")
SANITIZER_REPORT = re.compile(r"^.*((Address|Leak|UndefinedBehavior)Sanitizer:|runtime error:).*$", re.MULTILINE)
TIMEOUT = float(os.environ.get("DSV4_TEST_TIMEOUT", "30"))  # seconds, for one answer
FRAME_MAX = 4 << 20
SKIP = 77


def skip(why):
    print("SKIP:", why)
    sys.exit(SKIP)


def load_protocol():
    """dsv4_pb2 and engine_pb2, generated into a temporary directory that goes at exit."""
    if "/usr/lib/python3/dist-packages" not in sys.path:
        sys.path.append("/usr/lib/python3/dist-packages")  # where Debian keeps python3-protobuf, for a venv's python
    try:
        importlib.import_module("google.protobuf")
    except ImportError:
        skip("python3-protobuf is not installed")
    if not shutil.which("protoc"):
        skip("protoc (protobuf-compiler) is not installed")
    with tempfile.TemporaryDirectory(prefix="dsv4-proto-") as out:
        subprocess.run(["protoc", "-I" + TOP_SRC, "--python_out=" + out, "proto/dsv4.proto", "proto/engine.proto"],
                       cwd=TOP_SRC, check=True, timeout=60)
        sys.path.insert(0, out)
        try:
            return importlib.import_module("proto.dsv4_pb2"), importlib.import_module("proto.engine_pb2")
        finally:
            sys.path.remove(out)


pb, engine_pb = load_protocol()


def package_version():
    with open(os.path.join(TOP_BUILD, "config.h")) as f:
        return re.search(r'#define PACKAGE_VERSION "(.*)"', f.read()).group(1)


class Closed(Exception):
    """The other side closed the connection."""


class DaemonError(Exception):
    def __init__(self, error):
        super().__init__(f"{error.code}: {error.message}")
        self.error = error
        self.code = error.code


class Connection:
    """One client connection; greet=False leaves Hello to the test."""

    def __init__(self, path, greet=True):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(path)
        self.next_id = 1
        self.kept = []  # messages read while waiting for another request's
        if greet:
            self.hello = self.ask(hello=pb.Hello(version_min=1, version_max=1, client="dsv4test"))[-1].hello

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    # -- raw
    def send_bytes(self, data, fds=()):
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        n = self.sock.sendmsg([data], extra)
        if n < len(data):
            self.sock.sendall(data[n:])

    def send_frame(self, data, fds=()):
        self.send_bytes(struct.pack("<I", len(data)) + data, fds)

    def send(self, message, fds=()):
        self.send_frame(message.SerializeToString(), fds)

    def read_exactly(self, n):
        data = b""
        while len(data) < n:
            try:
                more = self.sock.recv(n - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                raise Closed()
            data += more
        return data

    def receive(self, timeout=None):
        """The next message, whatever it is about."""
        if self.kept:
            return self.kept.pop(0)
        self.sock.settimeout(timeout or TIMEOUT)
        length, = struct.unpack("<I", self.read_exactly(4))
        assert 1 <= length <= FRAME_MAX, length
        message = pb.ServerMessage()
        message.ParseFromString(self.read_exactly(length))
        return message

    def silent(self, seconds=0.2):
        """Is there nothing to read for a while?"""
        return not self.kept and not select.select([self.sock], [], [], seconds)[0]

    # -- requests
    def start(self, fds=(), request_id=None, **operation):
        """Send ClientMessage{operation}; returns its id."""
        if request_id is None:
            request_id = self.next_id
            self.next_id += 1
        self.send(pb.ClientMessage(request_id=request_id, **operation), fds)
        return request_id

    ENDS = {"error", "hello", "models", "session", "sessions", "done", "finished", "tokens", "text", "usage", "status",
            "exported"}

    def until_end(self, request_id, timeout=None):
        """All messages of one request until its end; others are kept for later."""
        messages, others, deadline = [], [], time.monotonic() + (timeout or TIMEOUT)
        try:
            while time.monotonic() < deadline:
                m = self.receive(max(0.01, deadline - time.monotonic()))
                if m.request_id != request_id:
                    others.append(m)
                    continue
                messages.append(m)
                if m.WhichOneof("event") in self.ENDS:
                    return messages
        finally:
            self.kept = others + self.kept
        raise TimeoutError(f"request {request_id} did not end: {messages[-3:]}")

    def ask(self, fds=(), timeout=None, **operation):
        messages = self.until_end(self.start(fds, **operation), timeout)
        if messages[-1].HasField("error"):
            raise DaemonError(messages[-1].error)
        return messages

    def refused(self, fds=(), timeout=None, **operation):
        """The error that ends the request; it must be one."""
        m = self.until_end(self.start(fds, **operation), timeout)[-1]
        assert m.HasField("error"), m
        return m.error

    def open_session(self, model="nano", **fields):
        return self.ask(open_session=pb.OpenSession(model=model, **fields))[-1].session.session

    def generate(self, timeout=None, **fields):
        return self.ask(timeout=timeout, generate=pb.Generate(**fields))


def text_of(messages):
    return "".join(m.delta.content for m in messages if m.HasField("delta"))


class Daemon:
    """dsv4d --private in a temporary directory. stop() says how it ended."""
    expected_status = 0  # a test that kills it says so

    def __init__(self, engine=None, models=("nano=" + NANO,), args=(), env=None):
        self.dir = tempfile.mkdtemp(prefix="dsv4-test-")
        self.socket = os.path.join(self.dir, "run", "dsv4d.sock")
        self.log_path = os.path.join(self.dir, "log")
        ready_r, ready_w = os.pipe()
        command = [os.path.join(TOP_BUILD, "dsv4d"), "--private", os.path.join(self.dir, "run"), "--ready-fd", str(ready_w)]
        command += [f"--model={m}" for m in models] + (["--engine", engine] if engine else []) + list(args)
        wrapper = os.environ.get("DSV4_TEST_WRAPPER", "").split()  # e.g. valgrind
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(wrapper + command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            pass_fds=(ready_w,), env={**os.environ, **(env or {})})
        os.close(ready_w)
        ready = b""
        if select.select([ready_r], [], [], TIMEOUT)[0]:
            ready = os.read(ready_r, 6)
        os.close(ready_r)
        if ready != b"READY\n":
            self.process.kill()
            self.process.wait()
            raise RuntimeError("dsv4d did not become ready:\n" + self.log())

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def connect(self, greet=True):
        return Connection(self.socket, greet)

    def wait_model(self, name="nano", state=None, timeout=None):
        """Wait for a state of the model (READY unless told); its row."""
        wanted = pb.READY if state is None else state
        deadline = time.monotonic() + (timeout or TIMEOUT)
        with self.connect() as c:
            while time.monotonic() < deadline:
                row = [m for m in c.ask(list_models=pb.ListModels())[-1].models.model if m.name == name][0]
                if row.state == wanted:
                    return row
                time.sleep(0.02)
        raise TimeoutError(f"model {name} is in state {row.state}, not {wanted}:\n{self.log()}")

    def engine_pids(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
            return [int(p) for p in f.read().split()]

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rss_kib(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))

    def alive(self):
        return self.process.poll() is None

    def stop(self, sig=signal.SIGTERM, timeout=None):
        """Exit status; negative for a signal."""
        if self.alive():
            self.process.send_signal(sig)
        try:
            return self.process.wait(timeout or TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError("dsv4d did not stop:\n" + self.log())

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        status = None
        if kind is SystemExit and not value.code:
            kind = None
        try:
            status = self.stop()
            if kind is None:
                assert status == self.expected_status, f"dsv4d ended with {status}:\n{self.log()}"
            # the daemon's own would be its exit status; those of its engines are only told
            report = SANITIZER_REPORT.search(self.log())
            if report:
                status = report[0]
            assert not report or kind, f"an engine had: {report[0]}"
        finally:
            if kind is not None or status != self.expected_status:
                print("---- log of dsv4d\n" + self.log()[-6000:] + "----")
            shutil.rmtree(self.dir, ignore_errors=True)


def fake(mode="good", **options):
    """Arguments of Daemon for the fake engine in one of its modes."""
    env = {"FAKE_ENGINE": " ".join([mode] + [f"{k}={v}" for k, v in options.items()]), "top_srcdir": TOP_SRC,
           "top_builddir": TOP_BUILD}
    return {"engine": os.path.join(HERE, "fake_engine.py"), "env": env}


def run_tests(namespace):
    """Run every test_* of a module, or those named on the command line; exit status for automake."""
    names = sys.argv[1:] or [n for n in namespace if n.startswith("test_")]
    failed = []
    for name in names:
        start = time.monotonic()
        try:
            namespace[name]()
            print(f"ok   {name} ({time.monotonic() - start:.1f} s)", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"FAIL {name}", flush=True)
            failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} passed")
    sys.exit(1 if failed or not names else 0)


@contextlib.contextmanager
def sealed_memfd(data, seals=0x0F):
    fd = os.memfd_create("text", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        import fcntl
        fcntl.fcntl(fd, 1033, seals)  # F_ADD_SEALS
        yield fd
    finally:
        os.close(fd)
