#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The daemon as a system service, without systemd: its sockets are handed over as a service manager does, its models come
from a configuration, and their engines register by themselves. Who may use which model, and what each user's limits are."""
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
from dsv4test import pb  # noqa: E402

ROOT = os.getuid() == 0
ANN, BOB, RESEARCH, STAFF = 61001, 61002, 62001, 62002  # nobody needs to know of these numbers
DSV4D = os.path.join(t.TOP_BUILD, "dsv4d")
daemon = None


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)


class SystemDaemon(t.Daemon):
    """dsv4d under a service manager of three lines. files: configuration, by path below its directory."""

    def __init__(self, files, args=()):
        self.dir = tempfile.mkdtemp(prefix="dsv4-test-")
        os.chmod(self.dir, 0o755)
        self.socket, self.engine_socket = (os.path.join(self.dir, n) for n in ("clients", "engines"))
        self.log_path = os.path.join(self.dir, "log")
        self.engines = []
        for name, text in files.items():
            write(os.path.join(self.dir, "etc", name), text)
        ready_r, ready_w = os.pipe()
        fds = [fcntl.fcntl(ready_w, fcntl.F_DUPFD, 50)]
        os.close(ready_w)
        for path in (self.socket, self.engine_socket):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
                s.bind(path)
                s.listen(100)
                s.setblocking(False)
                fds.append(fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 50))
            os.chmod(path, 0o666)  # the engines' too: this is about what the daemon refuses by itself
        ready, clients, engines = fds
        become = f'export LISTEN_PID=$$; exec "$@" 3<&{clients} 4<&{engines} {clients}<&- {engines}<&-'
        wrapper = os.environ.get("DSV4_TEST_WRAPPER", "").split()
        command = [DSV4D, "--config", os.path.join(self.dir, "etc", "dsv4d.conf"), "--ready-fd", str(ready)] + list(args)
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(["bash", "-c", become, "bash"] + wrapper + command, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, pass_fds=fds,
                                            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "clients:engine"})
        for fd in fds:
            os.close(fd)
        said = os.read(ready_r, 6)
        os.close(ready_r)
        if said != b"READY\n":
            self.process.kill()
            self.process.wait()
            raise RuntimeError("dsv4d did not become ready:\n" + self.log())

    def run_engine(self, name, stderr=None):
        """As a unit of the service manager would."""
        env = {**os.environ, **t.fake()["env"]}
        p = subprocess.Popen([sys.executable, t.fake()["engine"], "--front", self.engine_socket, "--name", name], env=env,
                             stdin=subprocess.DEVNULL, stderr=stderr)
        self.engines.append(p)
        return p

    def __exit__(self, *exc):
        try:
            return super().__exit__(*exc)
        finally:
            for p in self.engines:
                p.kill()
                p.wait()


def as_user(uid, gid, groups, fn):
    """Run fn in a child that is somebody else, and pass its AssertionErrors on."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            fn()
            status = 0
        except BaseException as e:  # the child must not return into the test
            print(repr(e), flush=True)
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def names(c):
    listed = [m.name for m in c.ask(list_models=pb.ListModels())[-1].models.model]
    assert listed == [m.name for m in c.ask(get_status=pb.GetStatus())[-1].status.model]
    return listed


def assert_absent(c, name):
    """It answers as a model does that is not configured at all."""
    for operation in (lambda m: {"open_session": pb.OpenSession(model=m)},
                      lambda m: {"generate": pb.Generate(model=m, text="x")},
                      lambda m: {"tokenize": pb.Tokenize(model=m, text="x")},
                      lambda m: {"detokenize": pb.Detokenize(model=m, id=[1])}):
        e, same = c.refused(**operation(name)), c.refused(**operation("nothing"))
        assert e.code == "NO_SUCH_MODEL", e
        e.message = e.message.replace(name, "nothing")
        assert e == same, (e, same)


def assert_works(c, name):
    assert t.text_of(c.generate(model=name, text="it works")) == "itworks"


def limits(c):
    return {q.name: q.limit for q in c.ask(get_usage=pb.GetUsage())[-1].usage.quota}


def weight(c):
    return int(t.text_of(c.generate(model="open", text="weight")))


def test_requests_work():
    with daemon.connect() as c:
        assert c.hello.uid == os.getuid()
        assert_works(c, "open")
        session = c.open_session(model="open-alias")
        assert t.text_of(c.generate(session=session, text="a b")) == "ab"
        c.ask(close_session=pb.CloseSession(session=session))


def test_lists_of_users():
    with daemon.connect() as c:
        if ROOT:  # may always
            assert names(c) == ["ann", "open", "research", "root"]
            return
        assert "root" not in names(c) and "open" in names(c)
        assert_absent(c, "root")
        assert_absent(c, "root-alias")


def test_models_of_users_and_groups():
    if not ROOT:
        print("     (not root: no other user to be)")
        return

    def sees(*wanted):
        def look():
            with daemon.connect() as c:
                assert names(c) == list(wanted), names(c)
                for name in ("ann", "open", "research", "root"):
                    assert_works(c, name) if name in wanted and name != "root" else assert_absent(c, name)
                if "research" not in wanted:
                    assert_absent(c, "research-alias")
        return look
    as_user(ANN, 100, [], sees("ann", "open"))
    as_user(ANN, 100, [STAFF, RESEARCH], sees("ann", "open", "research"))
    as_user(BOB, 100, [STAFF], sees("open"))
    as_user(BOB, 100, [STAFF, RESEARCH], sees("open", "research"))
    as_user(BOB, RESEARCH, [], sees("open", "research"))


def test_sessions_of_a_model_one_may_not_use():
    """The same user's, from a process that is not in the group."""
    if not ROOT:
        return

    def open_one():
        with daemon.connect() as c:
            messages = c.generate(model="research", text="a b", resume_seconds=60)
            write(os.path.join(daemon.dir, "open", "id"),
                  c.open_session(model="research") + " " + messages[0].accepted.resume_token)

    def look():
        with open(os.path.join(daemon.dir, "open", "id")) as f:
            session, token = f.read().split()
        with daemon.connect() as c:
            assert not c.ask(list_sessions=pb.ListSessions())[-1].sessions.session
            assert c.ask(get_status=pb.GetStatus())[-1].status.sessions == 0
            assert c.refused(generate=pb.Generate(session=session, text="x")).code == "NO_SUCH_SESSION"
            assert c.refused(close_session=pb.CloseSession(session=session)).code == "NO_SUCH_SESSION"
            assert c.refused(resume=pb.Resume(resume_token=token, next_index=0)).code == "RESUME_GONE"

    def close():
        with daemon.connect() as c:
            s, = c.ask(list_sessions=pb.ListSessions())[-1].sessions.session
            c.ask(close_session=pb.CloseSession(session=s.session))
    os.makedirs(os.path.join(daemon.dir, "open"))
    os.chmod(os.path.join(daemon.dir, "open"), 0o777)
    as_user(BOB, 100, [RESEARCH], open_one)
    as_user(BOB, 100, [], look)
    as_user(BOB, 100, [RESEARCH], close)


def test_quotas():
    with daemon.connect() as c:
        mine = limits(c)
        assert (mine["Sessions"], mine["Resumes"], mine["TokensPerDay"]) == (4, 5, 1000000), mine  # file, --limit, drop-in
        assert weight(c) == 100
    if not ROOT:
        return

    def has(expected_weight, **expected):
        def look():
            with daemon.connect() as c:
                found = limits(c)
                assert {k: found[k] for k in expected} == expected, found
                assert weight(c) == expected_weight
                sessions = [c.open_session(model="open") for _ in range(expected["Sessions"])]
                e = c.refused(open_session=pb.OpenSession(model="open"))
                assert (e.code, e.field, e.limit) == ("QUOTA", "Sessions", expected["Sessions"]), e
                for s in sessions:
                    c.ask(close_session=pb.CloseSession(session=s))
        return look
    as_user(BOB, 100, [], has(100, Sessions=4))
    as_user(BOB, 100, [RESEARCH], has(300, Sessions=6, TokensPerDay=(1 << 64) - 1))
    as_user(BOB, STAFF, [RESEARCH], has(300, Sessions=9))
    as_user(BOB, STAFF, [], has(50, Sessions=9))
    as_user(ANN, STAFF, [RESEARCH], has(7, Sessions=2))


def test_engine_socket_is_not_for_everyone():
    if not ROOT:
        return

    def try_it():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(t.TIMEOUT)
            s.connect(daemon.engine_socket)
            register = t.engine_pb.Register(build=t.package_version(), model="root", pid=os.getpid())
            data = t.engine_pb.EngineMessage(id=0, register=register).SerializeToString()
            try:
                s.sendall(len(data).to_bytes(4, "little") + data)
                assert s.recv(100) == b""
            except (BrokenPipeError, ConnectionResetError):
                pass
    as_user(ANN, 100, [RESEARCH], try_it)
    assert f"uid {ANN} may not run engines" in daemon.log()
    with daemon.connect() as c:
        assert_works(c, "open")


def test_engines_come_and_go():
    """One that no model is configured for is refused; one that ends is replaced by the next that registers."""
    assert daemon.run_engine("stranger", stderr=subprocess.DEVNULL).wait(t.TIMEOUT) != 0
    assert daemon.run_engine("open", stderr=subprocess.DEVNULL).wait(t.TIMEOUT) != 0  # has one already
    old = daemon.engines[0]
    with daemon.connect() as c:
        id = c.start(generate=pb.Generate(model="open", text="stream"))
        while not c.receive().HasField("delta"):
            pass
        old.send_signal(signal.SIGKILL)
        assert c.until_end(id)[-1].error.code == "ENGINE_GONE"
        waits = c.start(generate=pb.Generate(model="open", text="later"))
        daemon.engines[0] = daemon.run_engine("open")
        assert t.text_of(c.until_end(waits)) == "later"


def check(*args):
    r = subprocess.run([DSV4D, "--check-config", *args], capture_output=True, text=True, timeout=t.TIMEOUT)
    return r.returncode, r.stderr


def test_check_config():
    """Of an installed tree: what is wrong is said with file and line, and 78."""
    with tempfile.TemporaryDirectory() as d:
        assert check("--root", d) == (0, "")
        with open(os.path.join(t.TOP_BUILD, "Makefile")) as f:
            variables = dict(line.rstrip("\n").split(" = ", 1) for line in f if line.startswith(("prefix = ", "sysconfdir = ")))
        etc = d + variables["sysconfdir"].replace("${prefix}", variables["prefix"]) + "/dsv4d"
        lib = d + variables["prefix"] + "/lib/dsv4d"
        part = os.path.join(lib, "dsv4d.conf.d", "50-research.conf")
        write(part, "[Quota gid:root]\nWeight=300\nSessions=many\n")
        status, said = check("--root", d)
        assert status == 78 and f'{part}:3: Sessions is "many"; expected' in said, said
        write(os.path.join(d, "run", "dsv4d", "dsv4d.conf.d", "50-research.conf"), "[Quota gid:root]\nWeight=300\n")
        assert check("--root", d) == (0, "")
        model = os.path.join(etc, "models.d", "flash.model")
        for line in ("AllowUsers=root nobody-like-this", "AllowGroups=nobody-like-this", "AllowUser=root", "Context=-1", "x"):
            write(model, f"[Model]\nPath=/srv/flash\n{line}\n")
            status, said = check("--root", d)
            assert status == 78 and f"{model}:3: " in said and line.split("=")[0] in said, said
        write(model, "[Model]\nPath=/srv/flash\nAllowUsers=root\nKVBytes=1G\nTopP=1\n")
        status, said = check("--root", d)
        assert status == 0 and f"{model}:5: TopP= in [Model] has no effect" in said, said
        assert check("--root", d, "--config", part)[0] == 78
        assert check("--config", os.path.join(d, "not-there"))[0] == 78


def test_it_leaves_the_sockets():
    """They are the service manager's."""
    with SystemDaemon({"dsv4d.conf": "", "models.d/open.model": "[Model]\nPath=/srv/open\n"}) as d:
        engine = d.run_engine("open")
        d.wait_model("open")
        assert d.stop() == 0 and engine.wait(t.TIMEOUT) is not None
        assert os.path.exists(d.socket) and os.path.exists(d.engine_socket)


CONFIGURATION = {
    "dsv4d.conf": "[Daemon]\nLogLevel=info\n[Quota]\nSessions=4\nResumes=1\nTokensPerDay=1\n",
    "dsv4d.conf.d/10-users.conf": f"[Quota]\nTokensPerDay=1M\n[Quota gid:{RESEARCH}]\nWeight=300\nSessions=6\n"
                                  f"TokensPerDay=infinity\n[Quota gid:{STAFF}]\nWeight=50\nSessions=9\n"
                                  f"[Quota uid:{ANN}]\nWeight=7\nSessions=2\n",
    "models.d/open.model": "[Model]\nPath=/srv/open\nAliases=open-alias\n",
    "models.d/ann.model": f"[Model]\nPath=/srv/ann\nAllowUsers={ANN} 1\n",
    "models.d/research.model": f"[Model]\nPath=/srv/research\nAliases=research-alias\nAllowUsers=\nAllowGroups={RESEARCH}\n",
    "models.d/root.model": "[Model]\nPath=/srv/root\nAliases=root-alias\nAllowUsers=root\n",
}

if __name__ == "__main__":
    with SystemDaemon(CONFIGURATION, ["--limit", "Resumes=5"]) as daemon:
        for name in ("open", "ann", "research"):
            daemon.run_engine(name)
        daemon.wait_model("open")
        if ROOT:
            daemon.wait_model("ann")
            daemon.wait_model("research")
        t.run_tests({k: v for k, v in list(globals().items())})
