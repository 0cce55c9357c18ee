"""Laws of the sandbox: what programs try, and what happens; what is in force is said; nothing outlives a run."""

import json
import os
import socket
import sys
import threading

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.sandbox import run as sandbox
from recursivemas.sandbox.run import PROTECTIONS, Job, Limits, SandboxError, namespaces_here, run_many, run_python

walled = pytest.mark.skipif(not namespaces_here()[0], reason=f"no namespaces here: {namespaces_here()[1]}")
SHORT = Limits(seconds=1.5)
SECRET = "the-key-of-the-user"
C = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)\ndef say(r): print(r, os.strerror(ctypes.get_errno()))\n"
BEHIND = "assert f(2) == 4"  # a test script for programs that would pass it by other means

# name -> (what a program tries, what must stand in its output or error). Printing ESCAPED is what it may never reach.
ATTEMPTS = {
    # files and keys
    "home": ("import os; print(os.path.expanduser('~')); print(os.listdir({home!r}))", "No such file"),
    "a key in a file": ("print('ESCAPED', open({secret!r}).read())", "No such file"),
    "the working tree": ("import os; print('ESCAPED', os.listdir({cwd!r}))", "No such file"),
    "password files": ("open('/etc/passwd')", "No such file"),
    "up and out of the folder": ("import os; print(sorted(os.listdir('../../..')))", "['dev', 'lib'"),
    "everything there is": (
        "import os\nfor at, folders, names in os.walk('/'):\n"
        " if at == '/': folders.remove('usr')\n for n in names:\n"
        "  if {marker!r} in n: print('ESCAPED', at)\nprint('nothing')",
        "nothing",
    ),
    "a symlink to a key": ("import os; os.symlink({secret!r}, 'x'); print('ESCAPED', open('x').read())", "No such"),
    "a symlink out of the folder": ("import os; os.symlink('/', 'x'); os.mkdir('x/new')", "Read-only file system"),
    "a hard link to a key": ("import os; os.link({secret!r}, 'x')", "No such file"),
    "the machine's root through /proc": ("open('/proc/1/root' + {secret!r})", "No such file"),
    "a file handle": (C + "say(c.syscall(304, -100, b'', 0))", "not permitted"),
    "writing beside the folder": ("open('/new', 'w')", "Read-only file system"),
    "writing into Python's library": ("import os; open(os.__file__, 'a')", "Read-only file system|Permission denied"),
    "a module that all would import": (
        "import os, glob\nfor p in glob.glob('/python/lib/*/*-packages'): open(p + '/sitecustomize.py', 'w')\n"
        "open('/packages/numpy/x.py', 'w')",
        "Read-only file system|Permission denied",
    ),
    "packages of the user": ("import torch", "No module named"),
    "a device": ("import os, stat; os.mknod('x', stat.S_IFBLK | 0o600, os.makedev(8, 0))", "not permitted"),
    "memory as a device": ("open('/dev/mem', 'rb')", "No such file"),
    "the terminal": ("open('/dev/tty')", "No such file"),
    # the environment, and what the caller has open
    "keys in the environment": ("import os; print('is', dict(os.environ))", "is {{}}"),
    "keys in C's environment": (C + "c.getenv.restype = ctypes.c_char_p; print(c.getenv(b'SOME_API_KEY'))", "None"),
    "the caller's environment": ("print(open('/proc/{pid}/environ').read())", "No such file"),
    "its own /proc": ("print(open('/proc/self/environ').read())", "No such file"),
    "inherited descriptors": (
        "import os\nfound = []\nfor fd in range(3, 1024):\n try: os.fstat(fd); found.append(fd)\n"
        " except OSError: pass\nprint('open:', found)",
        "open: []",
    ),
    "a descriptor of the caller": ("import os; print('ESCAPED', os.pread({fd}, 99, 0))", "Bad file descriptor"),
    "standard input as a file to write": ("import os; os.write(0, b'x')", "Bad file descriptor"),
    "standard input that never comes": ("print(repr(input()))", "EOFError"),
    "paths of the caller in its own process": (
        "import sys; print(sys.argv, sys.orig_argv, sys.executable, sys.prefix, sys.path)",
        "'/python/lib/",
    ),
    "where its own mounts come from": (
        C + "import struct\nb = struct.pack('=IIQQ', 24, 0, 2 ** 64 - 1, 0)\nout = (ctypes.c_uint64 * 64)()\n"
        "say(c.syscall(458, b, out, 64, 0)); say(c.syscall(457, b, out, 512, 0))",
        "-1 Operation not permitted\n-1 Operation not permitted|not implemented",
    ),
    "another's working folder": ("import os; os.chdir('/proc/1/cwd')", "No such file"),
    "what is mounted": ("print('ESCAPED', open('/proc/self/mountinfo').read())", "No such file"),
    "a program that the kernel would run": ("open('/proc/sys/kernel/core_pattern', 'w')", "No such file"),
    # network
    "a service of this machine": (
        "import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('ESCAPED')",
        "not permitted",
    ),
    "a socket by number": (C + "say(c.syscall({socket}, 2, 1, 0))", "-1 Operation not permitted"),
    "a unix socket without a name": (
        "import socket; socket.socket(socket.AF_UNIX).connect({unix!r}); print('ESCAPED')",
        "not permitted",
    ),
    "a name server": ("import socket; print('ESCAPED', socket.getaddrinfo('example.com', 80))", "rror"),
    "the web": ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')", "not permitted"),
    "the host of a virtual machine": ("import socket; socket.socket(40, socket.SOCK_STREAM)", "not permitted"),
    "the kernel's ciphers": ("import socket; socket.socket(38, socket.SOCK_SEQPACKET)", "not permitted"),
    "netlink": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "not permitted"),
    # processes and signals
    "a fork bomb": ("import os\nwhile True: os.fork()", "temporarily unavailable"),
    "threads without end": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "can't start new thread",
    ),
    "a daemon that outlives": (
        "import os, time\nif not os.fork():\n os.setsid()\n if not os.fork(): time.sleep(60); print('ESCAPED')\n"
        " os._exit(0)\nprint('left')",
        "left",
    ),
    "children that nobody waits for": (
        "import os, time\nfor _ in range(5):\n if not os.fork(): os._exit(0)\ntime.sleep(.1); print('left')",
        "left",
    ),
    "killing the caller": ("import os; os.kill({pid}, 9)", "No such process"),
    "killing the parent": ("import os; os.kill(os.getppid(), 9); print('lives')", "lives"),
    "stopping the parent": ("import os; os.kill(1, 19); print('lives')", "lives"),
    "killing its group": ("import os; os.killpg(0, 9)", "SIGKILL"),
    "killing everybody": ("import os; os.kill(-1, 9); print('lives')", "lives"),
    "stopping itself": ("import os; os.kill(os.getpid(), 19)", "time limit"),
    "tracing the parent": (C + "say(c.ptrace(16, os.getppid(), 0, 0))", "-1 Operation not permitted"),
    "reading the parent's memory": (C + "say(c.process_vm_readv(1, 0, 0, 0, 0, 0))", "-1 Operation not permitted"),
    "another's descriptors": (C + "say(c.syscall(438, c.syscall(434, 1, 0), 0, 0))", "-1 Operation not permitted"),
    "a shell": ("import subprocess; subprocess.run(['/bin/sh', '-c', 'echo ESCAPED'])", "No such file"),
    "a shell by system": ("import os; print('status', os.system('echo ESCAPED'))", "status 32512"),
    "another Python": ("import sys, subprocess; subprocess.run([{python!r}, '-c', '0'])", "No such file"),
    # rights
    "becoming root": ("import os; os.setuid(0)", "not permitted"),
    "new namespaces": (C + "say(c.unshare(0x10000000))", "-1 Operation not permitted"),
    "new namespaces by clone": (C + "say(c.syscall({clone}, 0x10000011, 0, 0, 0, 0))", "-1 Operation not permitted"),
    "new namespaces by clone3": (C + "say(c.syscall(435, ctypes.create_string_buffer(88), 88))", "-1 Function not"),
    "somebody's namespace": (C + "say(c.setns(0, 0))", "-1 Operation not permitted"),
    "mounting": (C + "say(c.mount(b'x', b'/tmp', b'tmpfs', 0, None))", "-1 Operation not permitted"),
    "mounting to write": (C + "say(c.mount(None, b'/', None, 4128, None))", "-1 Operation not permitted"),
    "chroot": ("import os; os.chroot('/tmp')", "not permitted"),
    "keys of the kernel": (C + "say(c.syscall({keyctl}, 0, -3, 0))", "-1 Operation not permitted"),
    "programs in the kernel": (C + "say(c.syscall({bpf}, 0, 0, 0))", "-1 Operation not permitted"),
    "another ring of calls": (C + "say(c.syscall(425, 8, 0))", "-1 Operation not permitted"),
    "the clock": ("import time; time.clock_settime(time.CLOCK_REALTIME, 0)", "not permitted"),
    "the host's name": ("import socket; socket.sethostname('x')", "not permitted"),
    "the host's name, read": ("import os; print('on', os.uname().nodename)", "on sandbox"),
    "calls by the table of 32 bits": (
        "import ctypes, mmap, os\nassert os.uname().machine == 'x86_64', 'SIGSYS is of x86_64'\n"
        "m = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "print('ESCAPED', ctypes.CFUNCTYPE(ctypes.c_int)(at)())",
        "SIGSYS|SIGSEGV",
    ),
    "a clock that nobody interrupts": ("import os; os.sched_setscheduler(0, 1, os.sched_param(1))", "not permitted"),
    "faults that it handles itself": (C + "say(c.syscall({userfaultfd}, 0))", "-1 Operation not permitted"),
    "counters of the processor": (C + "say(c.syscall({perf}, 0, 0, 0, 0, 0))", "-1 Operation not permitted"),
    "being spared when memory is short": ("open('/proc/self/oom_score_adj', 'w')", "No such file"),
    "precedence": ("import os; os.nice(-5)", "not permitted"),
    # what there is a limit of
    "memory": ("x = b' ' * (4 << 30)", "MemoryError"),
    "memory of many": (
        "import os, time\nfor _ in range(6): os.fork() if os.getpid() == 2 else None\n"
        "x = bytearray(200 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(9)",
        "limit",
    ),
    "memory that is shared": ("import mmap; mmap.mmap(-1, 4 << 30)", "allocate memory"),
    "memory as a file": ("import os; os.memfd_create('x')", "not permitted"),
    "memory with a name": (
        "from multiprocessing.shared_memory import SharedMemory; SharedMemory(create=True, size=9)",
        "No such file",
    ),
    "memory of System V": (C + "say(c.shmget(0, 1 << 30, 0o1777))", "-1 Operation not permitted"),
    "a large file": ("f = open('x', 'wb')\nwhile True: f.write(b' ' * (1 << 20))", "File too large"),
    "a file full of holes": ("open('x', 'wb').truncate(10 ** 12)", "File too large"),
    "folders without end": ("import os\nwhile True: os.mkdir('d'); os.chdir('d')", "No space left"),
    "memory that stays": ("import mmap\nx = [mmap.mmap(-1, 1 << 30) for _ in range(8)]", "allocate memory"),
    "the whole disk": (
        "i = 0\nwhile True:\n i += 1\n open(f'{{i}}', 'wb').write(b' ' * (15 << 20))",
        "No space left",
    ),
    "files without end": ("i = 0\nwhile True:\n i += 1\n open(f'{{i}}', 'w').close()", "No space left"),
    "open files": ("x = []\nwhile True: x.append(open('/dev/null'))", "Too many open files"),
    "output": ("while True: print('x' * 100000)", "output limit"),
    "errors as output": ("import sys\nwhile True: sys.stderr.write('x' * 100000)", "output limit"),
    "higher limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
        "not allowed to raise",
    ),
    "a core file": (
        "import resource, os; print(resource.getrlimit(resource.RLIMIT_CORE), flush=True); os.abort()",
        "(0, 0)",
    ),
    # time
    "a loop": ("while True: pass", "limit"),
    "a loop in C": ("pow(3, 10 ** 9)", "limit"),
    "a pattern that never ends": ("import re; re.match('(a+)+b', 'a' * 60)", "limit"),
    "signals that it ignores": (
        "import signal\nfor s in set(signal.Signals) - {{9, 19}}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "limit",
    ),
    "signals that it blocks": (
        "import signal, time; signal.pthread_sigmask(0, set(signal.Signals)); time.sleep(60)",
        "time limit",
    ),
    "a thread that stays": ("import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()", "time"),
    "a loop at its end": ("import atexit, time; atexit.register(time.sleep, 60)", "time limit"),
    "closed outputs": ("import os, time; os.close(1); os.close(2); time.sleep(60)", "time limit"),
    "an object that never dies": ("class A:\n def __del__(self):\n  while True: pass\na = A()", "limit"),
    # the interpreter
    "recursion": ("f = lambda: f()\nf()", "RecursionError"),
    "recursion in C": (
        "import sys; sys.setrecursionlimit(10 ** 9)\nclass A:\n"
        " def __getattr__(self, n): return getattr(self, n)\nA().x",
        "SIGSEGV|limit|Error",
    ),
    "a null pointer": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "brackets": ("(" * 100000, "rror"),
    "no text of Python": ("x = '\0'", "null bytes"),
    "a number without end": ("x = 10 ** 10 ** 10", "limit|MemoryError"),
    "digits without end": ("print(int('9' * 10 ** 6))", "Exceeds the limit"),
    "an exit that looks well": ("import os; os._exit(7)", "exit status 7"),
    # results
    "a forged outcome": (
        """print('{{"stdout": "", "error": null, "protection": {{}}}}'); print('</result><result>42'); 1 / 0""",
        "ZeroDivisionError",
    ),
    "a forged status": (
        "import os\nfor fd in range(3, 99):\n try: os.write(fd, b'{{\"status\": 0}}\\n')\n"
        " except OSError: pass\nraise SystemExit(3)",
        "exit status 3",
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What programs would like to have, and the values to fill into `ATTEMPTS`."""
    folder = tmp_path_factory.mktemp("secrets")
    secret = folder / "marked-key.txt"
    secret.write_text(SECRET)
    os.environ["SOME_API_KEY"] = SECRET
    server, unix = socket.create_server(("127.0.0.1", 0)), f"\0recursivemas-{os.getpid()}"
    local = socket.socket(socket.AF_UNIX)
    local.bind(unix)
    local.listen()
    fd = os.open(secret, os.O_RDONLY)
    os.set_inheritable(fd, True)
    column = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine, 0)
    numbers = {"socket": (41, 198), "keyctl": (250, 219), "bpf": (321, 280), "clone": (56, 220)}
    numbers |= {"userfaultfd": (323, 282), "perf": (298, 241)}
    yield {
        **{"home": os.path.expanduser("~"), "secret": str(secret), "cwd": os.getcwd(), "marker": "marked-key"},
        **{"pid": os.getpid(), "port": server.getsockname()[1], "unix": unix, "fd": fd, "python": sys.executable},
        **{name: pair[column] for name, pair in numbers.items()},
    }
    os.close(fd)
    server.close()
    local.close()
    del os.environ["SOME_API_KEY"]


@pytest.fixture(scope="module")
def outcomes(world, request):
    """What came of every attempt whose test was chosen, side by side."""
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    names = [spec.params["attempt"] for spec in chosen if spec is not None and "attempt" in spec.params]
    short = Limits(seconds=3, memory=600 << 20)
    jobs = [Job(ATTEMPTS[name][0].format(**world), limits=short) for name in names]
    return dict(zip(names, run_many(jobs), strict=True))


@walled
@pytest.mark.parametrize(
    "attempt", [pytest.param(name, marks=[pytest.mark.slow] * (row % 2)) for row, name in enumerate(ATTEMPTS)]
)
def test_a_program_that_tries_to_get_out_stays_in(outcomes, attempt):
    outcome = outcomes[attempt]
    said = f"{outcome.stdout[-3000:]}\n{outcome.error or ''}"
    assert "ESCAPED" not in outcome.stdout and SECRET not in said
    assert any(text.replace("{{", "{").replace("}}", "}") in said for text in ATTEMPTS[attempt][1].split("|")), said
    assert outcome.protection == dict.fromkeys(PROTECTIONS, True)


@walled
def test_there_are_more_than_forty_attempts_and_ordinary_programs_run():
    assert len(ATTEMPTS) > 40
    programs = {
        "print(sum(map(int, input().split())))": "8\n",
        "import json, re, decimal, datetime, random, sqlite3, threading, asyncio; print('all')": "all\n",
        "import numpy; print(numpy.arange(3).sum())": "3\n",
        "import zoneinfo; print(zoneinfo.ZoneInfo('UTC'))": "UTC\n",
        "open('a.txt', 'w').write('kept'); print(open('/tmp/a.txt').read())": "kept\n",
        "import asyncio\nasync def f(): return 'event'\nprint(asyncio.run(f()))": "event\n",
        "import os\nif os.fork(): print(os.wait()[1])": "0\n",
        "if __name__ == '__main__': print('größer')": "größer\n",
        "import sys; sys.exit()": "",
    }
    outcomes = run_many([Job(source, stdin="3 5\n") for source in programs])
    assert [(outcome.stdout, outcome.error) for outcome in outcomes] == [(text, None) for text in programs.values()]


@walled
def test_memory_of_all_processes_counts():
    """Each of them stays below the limit; all together do not."""
    many = "import os, time\nfor _ in range(4):\n if os.fork() == 0: break\n"
    fill = "x = bytearray(120 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(60)"
    outcome = run_python(Job(many + fill, limits=Limits(seconds=20, memory=300 << 20)))
    assert outcome.error.startswith("memory limit")


@walled
def test_nothing_of_a_run_is_left(tmp_path, monkeypatch):
    """No process, no file, no descriptor; also where a program had to be ended."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sandbox.tempfile, "tempdir", None)

    def processes():
        with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
            return file.read().split()

    before = len(os.listdir("/proc/self/fd")), processes()
    daemon = "import os, time\nif os.fork() == 0:\n os.setsid()\nwhile True: time.sleep(1)"
    assert "time limit" in run_python(Job(daemon, limits=Limits(seconds=0.5))).error
    assert (len(os.listdir("/proc/self/fd")), processes()) == before and not list(tmp_path.iterdir())


def test_a_traceback_shows_the_program_and_nothing_of_the_sandbox():
    error = run_python("def f():\n    return 1 / 0\nf()").error
    assert error.startswith("Traceback") and "return 1 / 0" in error and "ZeroDivisionError" in error
    assert "jail" not in error


def test_a_call_gives_its_value_as_json_and_nothing_else():
    pickled = "class A:\n def __reduce__(self): return print, ('ESCAPED',)\n"
    written = "for fd in range(3, 99):\n try: os.write(fd, b'cos\\nsystem\\n')\n except OSError: pass\n"
    jobs = [
        Job("def f(a, b): return {'sum': a + b, 'both': (a, b)}", function="f", arguments=[1, 2]),
        Job("class S:\n def f(self, a): return a[::-1]", function="S.f", arguments=[[1, 2]]),
        Job(pickled + "def f(): return A()", function="f"),
        Job("import pickle\n" + pickled + "def f(): return pickle.dumps(A())", function="f"),
        Job("def f(): return 0\nimport os; os._exit(0)", function="f"),
        Job("x = 1", function="f"),
        Job("import os\n" + written + "f = int", function="f"),
    ]
    whole, method, *failed = run_many(jobs)
    assert whole.value == {"sum": 3, "both": [1, 2]} and method.value == [2, 1]
    assert all(outcome.value is None and outcome.error for outcome in failed)


PASSED = ["def f(x): return x * x", "f = lambda x: x + x", "print('a'); f = int(2).__mul__"]
FORGED = {
    "a wrong answer": "def f(x): return 5",
    "no function": "",
    "an exit": "import sys\ndef f(x): sys.exit(0)",
    "an exit at once": "import os; os._exit(0)",
    "an exit in the call": "import os\ndef f(x): os._exit(0)",
    "an object that equals all": "class A:\n def __eq__(self, o): return True\n __hash__ = None\ndef f(x): return A()",
    "a number that equals all": "class A(int):\n def __eq__(self, o): return True\ndef f(x): return A(5)",
    "another AssertionError": "import builtins\nbuiltins.AssertionError = Warning\ndef f(x): return 5",
    "another exit status": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): return 5",
    "the end of the judge": "import os\ndef f(x): os.kill(-1, 15)",
    "an interrupted judge": "import os\ndef f(x): os.kill(os.getppid(), 2); return 5",
    "the test's own text": (
        "import sys, gc\ntexts = [o for o in gc.get_objects() if isinstance(o, dict) and 'test' in o]\n"
        "seen = [d['test'] for d in texts if isinstance(d['test'], str)]\nf = lambda x: 4 if seen else 5"
    ),
    "replies written beforehand": (
        "import os, struct, json\nreply = json.dumps({'f': ['value', 4]}).encode()\nfor fd in range(3, 20):\n"
        " try: os.write(fd, struct.pack('=Q', len(reply)) + reply)\n except OSError: pass\nf = lambda x: 5"
    ),
    "a module in the folder": "open('json.py', 'w').write('import os; os._exit(0)')\ndef f(x): return 5",
    "silence": "import time\ndef f(x): time.sleep(60)",
}


@walled
@pytest.mark.parametrize("source", PASSED)
def test_a_test_script_passes_what_is_right(source):
    assert run_python(Job(source, test=BEHIND)).passed


@walled
@pytest.mark.parametrize("name", FORGED)
def test_no_program_passes_a_test_script_but_by_right_values(name):
    assert not run_python(Job(FORGED[name], test=BEHIND, limits=Limits(seconds=3))).passed


def test_values_that_a_test_script_compares_arrive_as_they_were():
    source = (
        "import collections, decimal, math\nLIMIT = 3\n"
        "def same(x): return x\ndef count(x): return collections.Counter(x)\n"
        "def lazy(n): return (i for i in range(n))\ndef bad(): raise KeyError('k')\ndef odd(): return print\n"
    )
    test = """
import math
plain = None, True, 7, 1 << 80, -2.5, float("inf"), "é\\ud800", b"x", 1j
for value in (*plain, [1, (2, {3})], {(1, 2): [None]}, frozenset("a")):
    got = same(value)
    assert got == value and type(got) is type(value), value
assert math.isnan(same(float("nan"))) and LIMIT == 3 and same(x=1) == 1
assert count("aab") == {"a": 2, "b": 1} and lazy(3) != [0, 1, 2] and list(lazy(3)) == [0, 1, 2]
assert odd() != print and type(same([1])) is list
try:
    bad()
except KeyError:
    pass
else:
    raise AssertionError
"""
    outcome = run_python(Job(source, test=test))
    assert outcome.passed, outcome.error


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("print('runs')", "runs"),
        ("import socket; socket.socket()", "not permitted"),
        ("import os; os.fork()", "not permitted"),
        ("import os; os.kill(os.getppid(), 9)", "not permitted"),
        ("import os; os.setsid()", "not permitted"),
        ("import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", "not permitted"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("while True: pass", "limit"),
    ],
)
def test_without_namespaces_less_is_in_force_and_said(source, said):
    outcome = sandbox._run(Job(source, limits=SHORT), namespaces=False)
    assert said in outcome.stdout + (outcome.error or "")
    assert {**outcome.protection, "files": True} == dict.fromkeys(PROTECTIONS, True)


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        pytest.param("import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass", marks=pytest.mark.slow),
        "import ctypes; print(ctypes.CDLL(None).prctl(1, 0, 0, 0, 0), flush=True)\nwhile True: pass",
    ],
)
@pytest.mark.parametrize("test", [None, pytest.param("f()", marks=pytest.mark.slow)])
def test_without_namespaces_a_program_ends_with_its_run(source, test):
    said = "import os; print(os.getpid(), flush=True)\n"
    job = Job(
        said + (f"def f():\n {source.replace(chr(10), chr(10) + ' ')}" if test else source), test=test, limits=SHORT
    )
    outcome = sandbox._run(job, namespaces=False)
    pid, *prctl = map(int, outcome.stdout.split())
    assert "limit" in outcome.error and prctl in ([], [-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_without_namespaces_files_are_closed_or_said_to_be_open(world):
    closed = sandbox._run(Job(""), namespaces=False).protection["files"]
    jobs = {
        f"print('ESCAPED', open({world['secret']!r}).read())": "Permission denied",
        f"import os; print('ESCAPED', os.listdir({world['home']!r}))": "Permission denied",
        f"print('ESCAPED', open('/proc/{world['pid']}/environ').read())": "Permission denied",
        f"print('ESCAPED', open({world['cwd']!r} + '/new', 'w'))": "Permission denied",
        f"import os; os.symlink({world['secret']!r}, 'x'); print('ESCAPED', open('x').read())": "Permission denied",
        "import os, json, re, ctypes, numpy; open('x', 'w').write('a'); os.mkdir('y'); print(os.listdir('.'))": "'y'",
    }
    for source, said in jobs.items():
        outcome = sandbox._run(Job(source), namespaces=False)
        if closed or "'y'" in said:
            assert said in f"{outcome.stdout}{outcome.error}" and "ESCAPED" not in outcome.stdout
        assert outcome.protection["files"] is closed


def test_a_caller_can_refuse_less(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sandbox, "namespaces_here", lambda: (False, "none here"))
    monkeypatch.setattr(sandbox, "protection_here", lambda: {**dict.fromkeys(PROTECTIONS, True), "files": False})
    ran = tmp_path / "ran"
    program = tmp_path / "program.py"
    program.write_text(f"open({str(ran)!r}, 'w')")
    for require in ("all", "files", ["network", "files"]):
        with pytest.raises(SandboxError, match=r"without files \(none here\)"):
            run_python(program.read_text(), require=require)
    assert cli.main(["sandbox", str(program), "--require", "all"]) == 2
    assert "without files" in capsys.readouterr().err and not ran.exists()
    assert run_python("print(1)", require="network").stdout == "1\n"
    with pytest.raises(InputError, match="unknown"):
        run_python("", require="everything")


def test_the_command_prints_what_a_program_did(tmp_path, capsys, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text("print('größer')\n1 / 0")
    assert cli.main(["sandbox", str(program)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == ["stdout", "error", "seconds", "protection"]
    assert shown["stdout"] == "größer\n" and "ZeroDivisionError" in shown["error"] and shown["seconds"] > 0
    assert set(shown["protection"]) == set(PROTECTIONS)
    assert cli.main(["sandbox", str(tmp_path / "none.py")]) == 2
    assert "none.py" in capsys.readouterr().err
