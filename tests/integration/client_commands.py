#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""dsv4 and dsv4ctl as a user runs them, against a small service written here: it does what the prompt says, so that
every answer, error and pause can be had at will. The real service is for the other integration tests."""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

TOP = os.environ.get("top_srcdir", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.environ.get("top_builddir", os.path.join(TOP, "build"))
DSV4, DSV4CTL = os.path.join(BUILD, "dsv4"), os.path.join(BUILD, "dsv4ctl")
TIMEOUT = 30

work = tempfile.mkdtemp(prefix="dsv4-client-")
try:
    subprocess.run(["protoc", f"-I{TOP}/proto", f"--python_out={work}", f"{TOP}/proto/dsv4.proto"], check=True)
    sys.path.insert(0, work)
    import dsv4_pb2 as pb
except (ImportError, OSError) as e:
    print(f"protoc and Python's protobuf are needed: {e}")
    sys.exit(77)


class Service(threading.Thread):
    """Accepts connections; each has its own thread. What clients asked is kept in .asked."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.asked, self.models_asked = path, [], 0
        self.loading_polls, self.greeting_error = 0, None
        self.models = [dict(name="nano", alias=["default", "n"], state=pb.READY, context_tokens=4096,
                            vocabulary=512, weight_bytes=4_800_000, device="cpu", reasoning=True)]
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen(16)
        self.start()

    def run(self):
        while True:
            try:
                c, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve_and_close, args=(c,), daemon=True).start()

    def stop(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        os.unlink(self.path)

    def serve_and_close(self, c):
        with c:
            self.serve(c)

    def serve(self, c):
        data, fds, lock, cancelled = b"", [], threading.Lock(), set()

        def say(request_id, **event):
            m = pb.ServerMessage(request_id=request_id, **event)
            raw = m.SerializeToString()
            with lock:
                try:
                    c.sendall(struct.pack("<I", len(raw)) + raw)
                except OSError:
                    pass  # it went away, as clients do

        while True:
            try:
                more, got, _, _ = socket.recv_fds(c, 1 << 16, 4)
            except OSError:
                return
            if not more:
                return
            data, fds = data + more, fds + list(got)
            while len(data) >= 4 and len(data) >= 4 + struct.unpack("<I", data[:4])[0]:
                n = struct.unpack("<I", data[:4])[0]
                m = pb.ClientMessage.FromString(data[4:4 + n])
                data = data[4 + n:]
                if m.WhichOneof("operation") == "generate" and m.generate.WhichOneof("input") == "memfd":
                    with os.fdopen(fds.pop(0), "rb") as f:
                        f.seek(0)
                        m.generate.chat.ParseFromString(f.read()) if m.generate.memfd.is_chat else None
                    m.generate.max_tokens = 77  # a mark: it came as a memfd
                self.asked.append(m)
                if m.WhichOneof("operation") == "generate":
                    threading.Thread(target=self.generate, args=(c, m, say, cancelled), daemon=True).start()
                else:
                    self.answer(m, say, cancelled)

    def list_of_models(self):
        self.models_asked += 1
        models = [dict(m) for m in self.models]
        if self.loading_polls > 0:
            self.loading_polls -= 1
            models[0].update(state=pb.LOADING, loaded_bytes=1_200_000)
        return [pb.Model(**m) for m in models]

    def answer(self, m, say, cancelled):
        kind, i = m.WhichOneof("operation"), m.request_id
        if kind == "hello" and self.greeting_error:
            say(i, error=pb.Error(code=self.greeting_error, message="not you"))
        elif kind == "hello":
            say(i, hello=pb.HelloReply(version=1, server="fake", max_frame_bytes=4 << 20, uid=os.getuid()))
        elif kind == "list_models":
            say(i, models=pb.ModelList(model=self.list_of_models()))
        elif kind == "cancel":
            cancelled.add(m.cancel.target)
            say(i, done=pb.Done())
        elif kind == "tokenize":
            say(i, tokens=pb.Tokens(id=m.tokenize.text.encode() + (b"\x01" if m.tokenize.special else b"")))
        elif kind == "detokenize":
            say(i, text=pb.Text(utf8=bytes(m.detokenize.id)))
        elif kind == "list_sessions":
            now = int(time.time() * 1e6)
            say(i, sessions=pb.SessionList(session=[pb.SessionInfo(
                session="s-1", model="nano", label="mine\x1b[31m", tokens=12, kv_bytes=3 << 20, place=pb.HOST,
                created_usec=now - 120_000_000, used_usec=now - 65_000_000)]))
        elif kind == "get_status":
            say(i, status=pb.Status(version="0.1.0", started_usec=int(time.time() * 1e6) - 7_200_000_000, running=1,
                                    queued=2, sessions=1, model=self.list_of_models()))
        else:
            say(i, error=pb.Error(code="UNSUPPORTED", message="not here"))

    def generate(self, c, m, say, cancelled):
        g, i = m.generate, m.request_id
        prompt = g.text if g.WhichOneof("input") == "text" else g.chat.message[-1].content
        if prompt.startswith("error "):
            say(i, error=pb.Error(code=prompt.split()[1], message="as you wish", retry_after_ms=1500))
            return
        say(i, accepted=pb.Accepted())
        say(i, prefill=pb.Prefill(done=1, total=2))
        if prompt == "drop":
            say(i, delta=pb.Delta(index=0, content="part"))
            time.sleep(0.1)
            c.shutdown(socket.SHUT_RDWR)
            return
        if prompt == "gone":
            say(i, delta=pb.Delta(index=0, content="part"))
            say(i, error=pb.Error(code="ENGINE_GONE", message="the engine stopped"))
            return
        reason = pb.STOP
        if prompt == "slow":
            for k in range(200):
                if i in cancelled:
                    reason = pb.CANCELLED
                    break
                say(i, delta=pb.Delta(index=k, content="tick "))
                time.sleep(0.05)
        elif prompt == "evil":
            say(i, delta=pb.Delta(index=0, content="a\x1b]0;owned\x07b\x9bc\u202ed\n"))
        elif prompt == "think":
            say(i, delta=pb.Delta(index=0, reasoning="hm"))
            say(i, delta=pb.Delta(index=1, content="yes"))
        else:
            for k, piece in enumerate(["you ", "said: ", prompt[:40]]):
                say(i, delta=pb.Delta(index=k, content=piece))
        say(i, finished=pb.Finished(reason=reason, seed=2 ** 64 - 1, prefill_usec=10_000, decode_usec=500_000,
                                    counts=pb.TokenCounts(input_computed=3, input_cached=128, output=10)))


class Terminal:
    """A command with a terminal for everything."""

    def __init__(self, *args, env=None):
        self.out, self.seen = b"", 0
        pid, self.fd = pty.fork()
        if pid == 0:
            try:
                os.execve(args[0], args, dict(env or os.environ, TERM="dumb"))
            finally:
                os._exit(127)
        self.pid = pid

    def until(self, pattern, timeout=TIMEOUT):
        """Wait for text that comes after what was waited for before."""
        end = time.time() + timeout
        while True:
            found = re.search(pattern, self.out.decode(errors="replace")[self.seen:])
            if found:
                self.seen += found.end()
                return
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.time()))
            try:
                more = os.read(self.fd, 4096) if ready else b""
            except OSError:
                more = b""
            if not more:
                raise AssertionError(f"{pattern!r} did not come: {self.out!r}")
            self.out += more

    def send(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        try:
            while True:
                if not select.select([self.fd], [], [], TIMEOUT)[0]:
                    os.kill(self.pid, signal.SIGKILL)
                    raise AssertionError(f"it does not end: {self.out!r}")
                more = os.read(self.fd, 4096)
                if not more:
                    break
                self.out += more
        except OSError:
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


class Commands(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(work, "s.sock")
        self.service = Service(self.path)
        self.env = dict(os.environ, DSV4_SOCKET=self.path, LC_ALL="C.UTF-8")

    def tearDown(self):
        self.service.stop()

    def run_(self, *args, stdin="", program=DSV4, env=None):
        p = subprocess.run([program, *args], input=stdin.encode() if isinstance(stdin, str) else stdin,
                           capture_output=True, timeout=TIMEOUT, env=env or self.env)
        return p.returncode, p.stdout.decode(errors="replace"), p.stderr.decode(errors="replace")

    def generated(self):
        return [m.generate for m in self.service.asked if m.WhichOneof("operation") == "generate"]

    # ---- run

    def test_prompt_from_everywhere(self):
        self.assertEqual(self.run_("run", "hi", "there"), (0, "you said: hi there", ""))
        self.assertEqual(self.run_("run", stdin="from stdin")[1], "you said: from stdin")
        self.assertEqual(self.run_("run", "-", stdin="dash")[1], "you said: dash")
        name = os.path.join(work, "prompt")
        with open(name, "w") as f:
            f.write("from a file")
        self.assertEqual(self.run_("run", "--file", name)[1], "you said: from a file")
        self.assertEqual(self.run_("run", "--file", name, "and", "arguments")[0], 64)
        self.assertEqual(self.run_("run", "--file", name + "-not")[0], 1)
        self.assertEqual(self.run_("run", stdin="")[0], 64)
        code, out, err = self.run_("run", stdin=b"\xff")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("byte 0", err)

    def test_long_prompts(self):
        code, out, _ = self.run_("run", stdin="x" * (3 << 20))
        self.assertEqual((code, out), (0, "you said: " + "x" * 40))
        self.assertEqual(self.generated()[0].max_tokens, 77)
        self.assertEqual(len(self.generated()[0].chat.message[-1].content), 3 << 20)

    def test_options_arrive(self):
        self.run_("run", "-s", "be brief", "-r", "max", "-n", "5", "-t", "0.5", "--top-p=0.9", "--top-k=40",
                  "--min-p=0.25", "--seed=18446744073709551615", "--stop=a", "--stop=b", "--resume=7", "hi")
        g = self.generated()[0]
        self.assertEqual([m.role for m in g.chat.message], [pb.SYSTEM, pb.USER])
        self.assertEqual(g.chat.reasoning, pb.MAX)
        self.assertEqual((g.model, g.max_tokens, list(g.stop), g.resume_seconds), ("nano", 5, ["a", "b"], 7))
        s = g.sampling
        self.assertEqual((s.temperature, s.top_k, s.min_p, s.seed), (0.5, 40, 0.25, 2 ** 64 - 1))
        self.run_("run", "--raw", "hi")
        g = self.generated()[1]
        self.assertEqual(g.text, "hi")
        for field in ("sampling", "max_tokens", "resume_seconds"):
            self.assertFalse(g.HasField(field), field)
        for bad in ("--temperature=3", "--temperature=nan", "--top-p=0", "--max-tokens=-1", "--seed=x",
                    "--reasoning=much", "--nonsense"):
            code, out, err = self.run_("run", bad, "hi")
            self.assertEqual((code, out), (64, ""), bad)
            self.assertTrue(err)
        self.assertEqual(self.run_("run", "--raw", "-s", "x", "hi")[0], 64)
        self.assertEqual(len(self.generated()), 2)

    def test_json_lines(self):
        code, out, _ = self.run_("run", "--json", "think")
        events = [json.loads(line) for line in out.splitlines()]
        self.assertEqual(code, 0)
        self.assertEqual([e["event"] for e in events], ["accepted", "prefill", "delta", "delta", "finished"])
        self.assertEqual((events[2]["reasoning"], events[3]["content"]), ("hm", "yes"))
        self.assertEqual(events[4]["counts"], {"input_computed": 3, "input_cached": 128, "output": 10, "reasoning": 0})
        self.assertEqual((events[4]["reason"], events[4]["seed"]), ("stop", str(2 ** 64 - 1)))
        code, out, _ = self.run_("run", "--json", "error QUOTA")
        self.assertEqual(code, 75)
        self.assertEqual(json.loads(out), {"event": "error", "code": "QUOTA", "message": "as you wish",
                                           "retry_after_ms": 1500})

    def test_pipe_gets_the_answer_only(self):
        self.assertEqual(self.run_("run", "think")[1], "yes")
        self.assertEqual(self.run_("run", "evil")[1], "a\x1b]0;owned\x07b\x9bc\u202ed\n")
        code, _, err = self.run_("run", "--stats", "hi")
        self.assertIn("10 tokens in 0.50 s (20.0 tokens/s); prompt 131 tokens, 128 of them cached", err)

    def test_terminal_is_safe(self):
        t = Terminal(DSV4, "run", "evil", env=self.env)
        self.assertEqual(t.end(), 0)
        out = t.out.decode()
        self.assertIn("a^[]0;owned^Gb<U+009B>c<U+202E>d\r\n", out)
        self.assertNotIn("\x1b]", out)
        self.assertIn("tokens/s", out)
        t = Terminal(DSV4, "run", "--no-stats", "think", env=self.env)
        self.assertEqual(t.end(), 0)
        self.assertIn("\x1b[2mhm\x1b[0m\r\n\r\nyes\r\n", t.out.decode())
        self.assertNotIn("tokens/s", t.out.decode())
        t = Terminal(DSV4, "run", "--no-reasoning", "think", env=self.env)
        self.assertEqual(t.end(), 0)
        self.assertNotIn("hm", t.out.decode())

    def test_interrupt_cancels(self):
        p = subprocess.Popen([DSV4, "run", "slow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.env)
        first = os.read(p.stdout.fileno(), 100)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=TIMEOUT)
        self.assertEqual((p.returncode, err), (130, b""))
        self.assertTrue((first + out).startswith(b"tick "))
        self.assertEqual([m.WhichOneof("operation") for m in self.service.asked].count("cancel"), 1)

    def test_exit_codes(self):
        for code, exit_code in (("QUOTA", 75), ("ENGINE_GONE", 75), ("KV_FULL", 75), ("DENIED", 77),
                                ("PROMPT_TOO_LONG", 1), ("NEW_CODE_OF_A_LATER_SERVER", 1), ("NO_SUCH_MODEL", 1)):
            r, out, err = self.run_("run", "error " + code)
            self.assertEqual((r, out), (exit_code, ""), code)
            self.assertIn(f"as you wish ({code})", err)
        self.assertIn("Try again in 1.5 s", err)
        self.assertEqual(self.run_("run", "gone")[:2], (75, "part"))
        self.assertEqual(self.run_("run", "drop")[:2], (69, "part"))
        nowhere = dict(self.env, DSV4_SOCKET=os.path.join(work, "nobody"))
        for program, *args in ((DSV4, "run", "hi"), (DSV4, "chat"), (DSV4, "tokenize", "hi"), (DSV4, "models"),
                               (DSV4CTL,), (DSV4CTL, "sessions")):
            r, out, err = self.run_(*args, program=program, env=nowhere)
            self.assertEqual((r, out), (69, ""), args)
            self.assertIn("no such socket", err)
        self.service.greeting_error = "DENIED"
        self.assertEqual(self.run_("run", "hi")[0], 77)
        for args in ((), ("nonsense",), ("models", "x"), ("models", "--json=yes"), ("run", "--file")):
            self.assertEqual(self.run_(*args)[0], 64, args)

    def test_which_model(self):
        self.service.models.append(dict(name="flash", state=pb.READY))
        self.run_("run", "hi")
        self.run_("run", "-m", "flash", "hi")
        self.assertEqual([g.model for g in self.generated()], ["nano", "flash"])
        del self.service.models[0]["alias"]
        code, _, err = self.run_("run", "hi")
        self.assertEqual(code, 64)
        self.assertIn("nano, flash", err)
        self.service.models = []
        self.assertEqual(self.run_("run", "hi")[0], 1)

    def test_waits_while_loading(self):
        self.service.loading_polls = 4
        t = Terminal(DSV4, "run", "hi", env=self.env)
        self.assertEqual(t.end(), 0)
        self.assertRegex(t.out.decode(), r"Loading the model \[#+\.+\]  25 % 1.1M of 4.6M")
        self.assertIn("you said: hi", t.out.decode())
        self.service.models[0].update(state=pb.FAILED, detail="it has the wrong shape")
        code, _, err = self.run_("run", "hi")
        self.assertEqual(code, 1)
        self.assertIn("it has the wrong shape", err)
        self.assertEqual(self.run_("run", "--no-wait", "error MODEL_LOADING")[0], 75)

    # ---- chat

    def test_chat_in_a_pipe(self):
        code, out, _ = self.run_("chat", "-s", "sys", stdin="one\n\ntwo\n/new is text here\n")
        self.assertEqual((code, out), (0, "you said: one\nyou said: two\nyou said: /new is text here\n"))
        self.assertEqual([(m.role, m.content) for m in self.generated()[1].chat.message],
                         [(pb.SYSTEM, "sys"), (pb.USER, "one"), (pb.ASSISTANT, "you said: one"), (pb.USER, "two")])
        self.assertEqual(self.run_("chat", stdin="error QUOTA\nhi\n")[0], 75)

    def test_chat_on_a_terminal(self):
        t = Terminal(DSV4, "chat", env=self.env)
        t.until("> ")
        t.send("slow\n")
        t.until("tick tick")
        t.send("\x03")
        t.until(r"\n> ")
        t.send("half a li")
        t.until("half a li")
        t.send("\x03")
        t.until(r"\n> ")
        t.send("grüße\n")
        t.until("you said: grüße")
        t.send("error QUOTA\n")
        t.until("as you wish")
        t.send("/reasoning high\n")
        t.send("more\n")
        t.until("you said: more")
        t.send("/model other\n")
        t.send("/new\n")
        t.send("last\n")
        t.until("you said: last")
        t.send("/quit\n")
        self.assertEqual(t.end(), 0)
        texts = [[m.content.split(" ")[0] for m in g.chat.message] for g in self.generated()]
        self.assertEqual(texts, [["slow"], ["slow", "tick", "grüße"],
                                 ["slow", "tick", "grüße", "you", "error"],
                                 ["slow", "tick", "grüße", "you", "more"], ["last"]])
        self.assertEqual([g.chat.reasoning for g in self.generated()][3:], [pb.HIGH, pb.HIGH])
        self.assertEqual(self.generated()[-1].model, "other")
        t = Terminal(DSV4, "chat", env=self.env)
        t.until("> ")
        t.send("\x04")
        self.assertEqual(t.end(), 0)

    # ---- the rest

    def test_tokenize(self):
        self.assertEqual(self.run_("tokenize", "ab")[:2], (0, "97 98\n"))
        self.assertEqual(self.run_("tokenize", "--special", "--json", stdin="ab")[:2], (0, "[97,98,1]\n"))
        self.assertEqual(self.run_("tokenize", stdin="")[:2], (0, "\n"))
        self.assertEqual(self.run_("tokenize", "--decode", "104 105")[:2], (0, "hi"))
        self.assertEqual(self.run_("tokenize", "-d", "--json", stdin="104\n34")[:2], (0, '"h\\""\n'))
        self.assertEqual(self.run_("tokenize", "-d", "--json", "255")[0], 1)
        self.assertEqual(self.run_("tokenize", "-d", "12x")[0], 64)

    def test_tables(self):
        for program, verb in ((DSV4, "models"), (DSV4CTL, "list-models")):
            code, out, _ = self.run_(verb, program=program)
            self.assertEqual(code, 0)
            self.assertEqual(out.splitlines()[0].split(), ["NAME", "STATE", "CONTEXT", "WEIGHTS", "DEVICE", "ALIASES",
                                                           "DETAIL"])
            self.assertEqual(out.splitlines()[1].split(), ["nano", "ready", "4096", "4.6M", "cpu", "default", "n", "-"])
            self.assertEqual(len(self.run_(verb, "--no-legend", program=program)[1].splitlines()), 1)
            for mode, lines in (("pretty", 10), ("short", 1)):
                out = self.run_(verb, "--json=" + mode, program=program)[1]
                self.assertGreaterEqual(len(out.splitlines()), lines)
                self.assertEqual(json.loads(out)[0]["aliases"], ["default", "n"])
        code, out, _ = self.run_("sessions", "--no-pager", program=DSV4CTL)
        self.assertNotIn("\x1b", out)
        self.assertRegex(out, r"s-1 +nano +mine.*12 +3.0M +host +1 min ago")
        self.assertEqual(json.loads(self.run_("sessions", "--json=short", program=DSV4CTL)[1])[0]["tokens"], 12)

    def test_status(self):
        for args in ((), ("status",)):
            code, out, _ = self.run_(*args, program=DSV4CTL)
            self.assertEqual(code, 0)
            self.assertIn("(2 h)", out)
            self.assertIn("Requests: 1 running, 2 waiting\nSessions: 1 of yours", out)
            self.assertIn("nano", out)
        s = json.loads(self.run_("--json=pretty", program=DSV4CTL)[1])
        self.assertEqual((s["running"], s["queued"], s["sessions"], s["models"][0]["name"]), (1, 2, 1, "nano"))

    def test_help_and_version(self):
        for program in (DSV4, DSV4CTL):
            self.assertEqual(self.run_("--help", program=program)[0], 0)
            self.assertRegex(self.run_("--version", program=program)[1], r"^dsv4d \d")
        self.assertIn("--top-k", self.run_("run", "--help")[1])


if __name__ == "__main__":
    try:
        unittest.main()
    finally:
        shutil.rmtree(work, ignore_errors=True)
