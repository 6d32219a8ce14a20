#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bad inputs and their answers: every one gets a stable code, and the daemon and the other clients go on."""
import os
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
from dsv4test import pb  # noqa: E402

daemon = None


def varint(v):
    out = b""
    while True:
        out += bytes([v & 0x7F | (0x80 if v > 0x7F else 0)])
        v >>= 7
        if not v:
            return out


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(operation, data, request_id=9):
    return b"\x08" + varint(request_id) + field(operation, data)


def next_error(c):
    m = c.receive()
    assert m.HasField("error"), m
    return m


def assert_closed(c):
    try:
        m = c.receive()
    except t.Closed:
        return
    raise AssertionError(f"still open: {m}")


def assert_usable(c):
    assert c.ask(list_models=pb.ListModels())[-1].models.model[0].name == "nano"


def refused(data, code, id=9, fds=()):
    """This frame gets this code, with its request's id, and the connection goes on."""
    with daemon.connect() as c:
        c.send_frame(data, fds)
        m = next_error(c)
        assert m.error.code == code, m
        assert m.request_id == id, m
        assert len(m.error.message) > 10
        c.next_id = 100
        assert_usable(c)
        return m.error


def test_empty_frame():
    with daemon.connect() as c:
        c.send_bytes(b"\0\0\0\0")
        m = next_error(c)
        assert m.error.code == "FRAME_EMPTY" and m.request_id == 0
        assert_closed(c)


def test_frame_too_large():
    rss = daemon.rss_kib()
    connections = [daemon.connect() for _ in range(20)]
    for length in (0xFFFFFFFF, t.FRAME_MAX + 1):
        c = connections.pop()
        c.send_bytes(struct.pack("<I", length) + b"x" * 1000)
        m = next_error(c)
        assert m.error.code == "FRAME_TOO_LARGE" and m.request_id == 0
        assert m.error.limit == t.FRAME_MAX and m.error.value == length
        assert_closed(c)
    for c in connections:  # announced and not sent: nothing is allocated for it
        c.send_bytes(struct.pack("<I", t.FRAME_MAX) + b"x")
    time.sleep(0.1)
    assert daemon.rss_kib() < rss + 20 * 1024 or t.KEEPS_FREED_MEMORY
    for c in connections:
        c.close()


def test_half_a_frame():
    with daemon.connect() as silent, daemon.connect() as slow, daemon.connect() as good:
        start = time.monotonic()
        silent.send_bytes(b"\x40\0\0\0abc")
        slow.send_bytes(b"\x40")
        try:
            for _ in range(20):  # more bytes do not buy more time
                time.sleep(0.1)
                slow.send_bytes(b"\0")
                assert_usable(good)
        except (BrokenPipeError, ConnectionResetError):
            pass
        for c in (silent, slow):
            m = next_error(c)
            assert m.error.code == "TIMEOUT" and m.request_id == 0, m
        assert_closed(silent)
        assert time.monotonic() - start < 8


def test_nesting():
    data = b""
    for _ in range(9000):
        data = field(3, data)
    assert refused(b"\x08\x09" + data, "NESTING").limit == 16


def test_too_many_items():
    chat = field(4, field(1, b"\x08\x01") * 1000000)
    assert len(chat) < t.FRAME_MAX
    assert refused(message(9, chat), "TOO_MANY_ITEMS").limit == 4096
    refused(message(9, field(9, b"") * 1000000), "TOO_MANY_ITEMS")
    refused(message(9, field(77, b"") * 1000000), "TOO_MANY_ITEMS")


def test_malformed():
    assert refused(b"\x08\x09\x18" + b"\x80" * 10 + b"\x01", "MALFORMED").value == 2
    assert refused(b"\x08\x09\x4a\x02" + b"\x40\x80", "MALFORMED").value == 5
    refused(b"\x08\x09\x4b\x4c", "MALFORMED")
    refused(b"\xff", "MALFORMED", id=0)
    refused(os.urandom(0) + b"\x00", "MALFORMED", id=0)


def test_unknown_operation():
    refused(b"\x08\x09" + field(999, b"new"), "UNKNOWN_OPERATION")
    refused(b"\x08\x09", "UNKNOWN_OPERATION")


def test_missing_fields():
    assert refused(message(4, b""), "MISSING_FIELD").field == "open_session.model"
    refused(field(3, b""), "MISSING_FIELD", id=0)
    with daemon.connect() as c:
        assert c.refused(generate=pb.Generate(text="x")).code == "MISSING_FIELD"
        assert c.refused(generate=pb.Generate(model="nano")).field == "input"
        assert c.refused(tokenize=pb.Tokenize(model="nano")).code == "MISSING_FIELD"
        assert c.refused(request_id=0, list_models=pb.ListModels()).code == "RANGE"


def test_greeting():
    with daemon.connect(greet=False) as c:
        assert c.refused(list_models=pb.ListModels()).code == "NOT_GREETED"
        e = c.refused(hello=pb.Hello(version_min=2, version_max=7))
        assert e.code == "VERSION" and e.limit == 1 and e.value == 2 and "2 to 7" in e.message
        assert c.refused(hello=pb.Hello(version_min=0, version_max=0)).code == "VERSION"
        assert c.refused(hello=pb.Hello(version_min=1, version_max=1, client="x" * 65)).code == "RANGE"
        reply = c.ask(hello=pb.Hello(version_min=1, version_max=9))[-1].hello
        assert reply.version == 1 and reply.max_frame_bytes == t.FRAME_MAX and reply.uid == os.getuid()
        assert c.refused(hello=pb.Hello(version_min=1, version_max=1)).code == "ALREADY_GREETED"
        assert_usable(c)


def test_duplicate_request():
    with daemon.connect() as c:
        c.start(request_id=5, generate=pb.Generate(model="nano", text="stream"))
        while not c.receive().HasField("delta"):
            pass
        c.start(request_id=5, list_models=pb.ListModels())
        while True:
            m = c.receive()
            if m.HasField("error"):
                break
        assert m.error.code == "DUPLICATE_REQUEST" and m.request_id == 5
        while not c.receive().HasField("delta"):  # the first goes on
            pass
        c.next_id = 10
        c.ask(cancel=pb.Cancel(target=5))
        assert c.until_end(5)[-1].finished.reason == pb.CANCELLED
        c.ask(request_id=None, generate=pb.Generate(model="nano", text="a"))


def generate_error(**fields):
    with daemon.connect() as c:
        e = c.refused(generate=pb.Generate(model="nano", text="x", **fields))
        assert_usable(c)
        return e


def test_ranges():
    tokens = field(5, b"")
    for value in (1 << 63, (1 << 64) - 1, 1 << 32):  # max_tokens -1 is the second
        e = refused(message(9, field(2, b"nano") + field(3, b"x") + varint(8 << 3) + varint(value)), "RANGE")
        assert e.field == "generate.max_tokens" and e.limit == 0xFFFFFFFF
    assert refused(message(9, tokens + varint(10 << 3) + varint(1 << 35)), "RANGE").field == "generate.logprobs"
    assert generate_error(max_tokens=0).code == "RANGE"
    for value in (float("nan"), float("inf"), -0.1, 2.1):
        e = generate_error(sampling=pb.Sampling(temperature=value))
        assert e.code == "RANGE" and e.field == "sampling.temperature" and "[0, 2]" in e.message, e
    for name, value in (("top_p", 0.0), ("top_p", 1.5), ("min_p", 1.0), ("presence_penalty", 3.0),
                        ("frequency_penalty", float("nan"))):
        assert generate_error(sampling=pb.Sampling(**{name: value})).field == "sampling." + name
    assert generate_error(sampling=pb.Sampling(bias=[pb.LogitBias(id=1, bias=101)])).field == "sampling.bias[0].bias"
    assert generate_error(sampling=pb.Sampling(bias=[pb.LogitBias(id=1, bias=1)] * 1025)).limit == 1024
    assert generate_error(logprobs=21).limit == 20
    assert generate_error(stop=["x"] * 17).limit == 16
    assert generate_error(stop=["ok", ""]).field == "stop[1]"
    assert generate_error(stop=["x" * 257]).limit == 256
    assert generate_error(resume_seconds=3601).limit == 3600
    assert generate_error(response_format=pb.ResponseFormat(json=True)).code == "UNSUPPORTED"
    with daemon.connect() as c:
        assert c.refused(open_session=pb.OpenSession(model="nano", label="é" * 33)).field == "label"
        chat = field(4, field(1, b"\x08\x63"))  # a role that is none
    assert refused(message(9, field(2, b"nano") + chat), "RANGE").field == "chat.message[0].role"


def test_bad_text():
    e = refused(message(9, field(2, b"nano") + field(3, b"abc\xff")), "BAD_UTF8")
    assert e.field == "generate.text" and e.value == 3
    assert refused(message(9, field(2, b"nano") + field(3, b"a\0b")), "BAD_UTF8").value == 1
    refused(message(4, field(1, b"nano") + field(2, b"\xed\xa0\x80")), "BAD_UTF8")


def test_unsupported():
    with daemon.connect() as c:
        for operation in ({"freeze_session": pb.FreezeSession(session="x")}, {"thaw_session": pb.ThawSession(session="x")},
                          {"export_session": pb.ExportSession(session="x")},
                          {"import_session": pb.ImportSession(model="nano")}):
            assert c.refused(**operation).code == "UNSUPPORTED"


def test_names():
    with daemon.connect() as c:
        for name in ("", "nan", "nano/../nano", "NANO", "x" * 5000):
            assert c.refused(open_session=pb.OpenSession(model=name)).code == "NO_SUCH_MODEL"
        for id in ("", "0" * 32, "x" * 100000, "../x"):
            assert c.refused(close_session=pb.CloseSession(session=id)).code == "NO_SUCH_SESSION"
            assert c.refused(generate=pb.Generate(session=id, text="x")).code == "NO_SUCH_SESSION"
            assert c.refused(resume=pb.Resume(resume_token=id, next_index=0)).code == "RESUME_GONE"
        assert c.refused(cancel=pb.Cancel(target=12345)).code == "NO_SUCH_REQUEST"


def test_unexpected_fds():
    before = daemon.fds()
    with open("/dev/null") as f, daemon.connect() as c:
        for n in (1, 4, 5, 100):
            e = c.refused(fds=[f.fileno()] * n, list_models=pb.ListModels())
            assert e.code == "UNEXPECTED_FDS", e
        assert c.refused(fds=[f.fileno()], generate=pb.Generate(model="nano", text="x")).code == "UNEXPECTED_FDS"
        assert_usable(c)
        assert daemon.fds() <= before + 1


def test_memfds():
    memfd = pb.MemfdText(is_chat=False)
    with daemon.connect() as c, open("/dev/null") as null:
        ask = {"generate": pb.Generate(model="nano", memfd=memfd)}
        assert c.refused(**ask).code == "BAD_MEMFD"
        assert c.refused(fds=[null.fileno()], **ask).code == "BAD_MEMFD"
        for seals in (0, 0x02, 0x06, 0x0A):  # not against everything
            with t.sealed_memfd(b"text", seals) as fd:
                assert c.refused(fds=[fd], **ask).code == "BAD_MEMFD"
        with t.sealed_memfd(b"text") as fd:
            assert c.refused(fds=[fd, fd], **ask).code == "UNEXPECTED_FDS"
            c.ask(fds=[fd], **ask)
        with t.sealed_memfd(b"x" * (1 << 20) + b"y") as fd:
            e = c.refused(fds=[fd], **ask)
            assert e.code == "BAD_MEMFD" and e.limit == 1 << 20 and e.value == (1 << 20) + 1


def test_connections_quota():
    before = daemon.fds()
    connections = []
    for _ in range(30):
        c = daemon.connect(greet=False)
        connections.append(c)
    refused_ones = []
    for c in connections:
        try:
            c.ask(hello=pb.Hello(version_min=1, version_max=1))
        except (TimeoutError, t.Closed, BrokenPipeError, AssertionError):
            refused_ones.append(c)
    assert len(refused_ones) == 10, len(refused_ones)
    for c in refused_ones:
        error = c.kept[0].error if c.kept else next_error(c).error
        assert error.code == "QUOTA" and error.field == "Connections" and error.limit == 20 and error.value == 20
        assert error.retry_after_ms > 0
    for c in connections:
        c.close()
    time.sleep(0.2)
    assert daemon.fds() <= before + 1
    with daemon.connect() as c:
        assert_usable(c)


def test_slow_reader():
    with daemon.connect() as stuck, daemon.connect() as good:
        stuck.start(generate=pb.Generate(model="nano", text="stream"))
        deadline = time.monotonic() + 1.5  # ended after 1 s; it gets as long again to read why
        while time.monotonic() < deadline:
            start = time.monotonic()
            good.generate(model="nano", text="a b c")
            assert time.monotonic() - start < 1
        codes = []
        try:
            while True:
                m = stuck.receive()
                if m.HasField("error"):
                    codes.append((m.request_id, m.error.code))
        except t.Closed:
            pass
        assert codes == [(2, "SLOW_READER")], codes
        assert good.ask(get_status=pb.GetStatus())[-1].status.running == 0


def test_a_thousand_bad_ones():
    """Nothing is left behind."""
    time.sleep(0.3)
    fds, rss = daemon.fds(), daemon.rss_kib()
    for i in range(1000):
        c = socket.socket(socket.AF_UNIX)
        c.connect(daemon.socket)
        try:
            c.sendall(struct.pack("<I", 20) + bytes([i & 255]) * (i % 30))
        except BrokenPipeError:
            pass  # one connection too many
        c.close()
    time.sleep(0.3)
    with daemon.connect() as c:
        assert_usable(c)
    time.sleep(0.3)
    assert daemon.fds() <= fds, (daemon.fds(), fds)
    assert daemon.rss_kib() < rss + 4096 or t.KEEPS_FREED_MEMORY


if __name__ == "__main__":
    limits = ["FrameTimeout=1s", "MemfdMax=1M", "Connections=20", "SlowReaderTimeout=1s"]
    with t.Daemon(args=[f"--limit={x}" for x in limits], **t.fake(size=2000)) as daemon:
        daemon.wait_model()
        t.run_tests({k: v for k, v in list(globals().items())})
