# ruff: noqa: E501 - a program a line
"""Programs that do not solve "return x + 1" and try to pass, to break out, or to leave something behind.

``{marker}`` is a path outside the sandbox that must not come to exist, ``{port}`` a listening port of the host,
``{pid}`` the grader's own process.
"""

from lowrank_bench.evals.grading.sandbox.wire import encode

TRICKS = {
    "sys-exit": "import sys\nsys.exit(0)",
    "sys-exit-in-call": "import sys\ndef f(x): sys.exit(0)",
    "os-exit": "import os\nos._exit(0)",
    "os-exit-in-call": "import os\ndef f(x): os._exit(0)",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\nraise SystemExit",
    "abort": "import os\nos.abort()",
    "equal-to-all": "class E:\n    def __eq__(self, o): return True\n    def __bool__(self): return True\ndef f(x): return E()",
    "int-subclass": "class I(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return I(7)",
    "str-subclass": "class S(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef f(x): return S('2')",
    "list-subclass": "class L(list):\n    def __eq__(self, o): return True\ndef f(x): return L()",
    "false-class": "class E:\n    __class__ = int\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "arithmetic": "class E:\n    def __sub__(self, o): return 0.0\n    __rsub__ = __sub__\ndef f(x): return E()",
    "frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in list(frame.f_locals.values()):\n"
        "            if hasattr(value, 'append'): value.append('passed')\n"
        "            if isinstance(value, dict): value.update(passed=True, kind='passed')\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "constants": (
        "import gc, types\ndef f(x):\n    for o in gc.get_objects():\n        code = getattr(o, '__code__', None)\n"
        "        for c in getattr(code, 'co_consts', None) or ():\n"
        "            if isinstance(c, types.CodeType) and 'expected' in c.co_names: return c.co_consts[1]\n    return 0"
    ),
    "caller-constants": (
        "import sys\ndef f(x):\n    seen = [c for c in sys._getframe(1).f_code.co_consts if type(c) is int]\n"
        "    return seen[-1] if seen else 0"
    ),
    "builtins": "import builtins\nbuiltins.all = lambda x: True\nbuiltins.AssertionError = Warning\ndef f(x): return 0",
    "math-isclose": "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 0",
    "modules": "import sys\nfor m in list(sys.modules): sys.modules[m] = None\ndef f(x): return 0",
    "printed-verdict": "print('PASS', 'passed', flush=True)\ndef f(x):\n    print('PASS')\n    return 0",
    "forged-messages": (
        f"import os\nbody = {encode(('value', encode(2), None))!r}\n"
        "for fd in range(64):\n    try: os.write(fd, len(body).to_bytes(8, 'big') + body)\n"
        "    except OSError: pass\ndef f(x): return 0"
    ),
    "forged-verdict": (
        f"import os\nbody = {encode(('passed', ''))!r}\nfor fd in range(64):\n"
        "    try: os.write(fd, b'r' + len(body).to_bytes(8, 'big') + body)\n    except OSError: pass\ndef f(x): return 0"
    ),
    "read-open-files": (
        "import os\ndef f(x):\n    for fd in os.listdir('/proc/self/fd'):\n"
        "        try: text = open(f'/proc/self/fd/{fd}', 'rb', buffering=0).read(1)\n        except OSError: pass\n    return 0"
    ),
    "parent-memory": "import os\ndef f(x):\n    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)\n    return 2",
    "kill-parent": "import os, signal\nos.kill(os.getppid(), 9)\nos.kill({pid}, 9)\ndef f(x): return 0",
    "kill-all": "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\ndef f(x): return 0",
    "endless": "def f(x):\n    while True: pass",
    "ignores-signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ndef f(x):\n    while True: pass"
    ),
    "sleeps": "import time\ndef f(x): time.sleep(1000)",
    "c-loop": "import re\ndef f(x): re.match('(a+)+$', 'a' * 60 + 'b')",
    "huge-power": "def f(x): return 9 ** 9 ** 9",
    "recursion": "def f(x): return f(x)",
    "segfault": "import ctypes\nctypes.string_at(0)",
    "deep-c-recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "memory": "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 24))",
    "huge-value": "def f(x): return [0] * (1 << 26)",
    "endless-iterator": "import itertools\ndef f(x): return itertools.count()",
    "cyclic-value": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "unpicklable": "def f(x): return lambda: 2",
    "endless-output": "def f(x):\n    while True: print('x' * 100000)",
    "close-everything": "import os\nos.closerange(0, 256)\ndef f(x): return 0",
    "reads-input": "def f(x): return int(input())",
    "fork-bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": (
        "import threading, time\ntry:\n    for _ in range(10**6): threading.Thread(target=time.sleep, args=(99,)).start()\n"
        "except RuntimeError: pass\ndef f(x): return 0"
    ),
    "disk-fill": (
        "def f(x):\n    for n in range(10**6):\n        with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * (1 << 20))\n"
        "    return 0"
    ),
    "write-outside": "open({marker!r}, 'w').write('x')\ndef f(x): return 2",
    "symlink-out": "import os\nos.symlink({marker!r}, '/tmp/link')\nopen('/tmp/link', 'w').write('x')\ndef f(x): return 2",
    "remount": "import os\nos.system('mount -o remount,rw / ; touch /usr/escaped')\nopen('/usr/escaped')\ndef f(x): return 2",
    "chroot": "import os\nos.chroot('/tmp')\ndef f(x): return 2",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\ndef f(x): return 2",
    "abstract-socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0lowrank-bench-test')\ndef f(x): return 2",
    "become-root": "import os\nos.setuid(0)\ndef f(x): return 2",
    "raise-limits": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\ndef f(x): return 2"),
    "environment": "import os\nos.environ['HOME']\ndef f(x): return 2",
    "trace-parent": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.ptrace(16, os.getppid(), 0, 0) == 0\ndef f(x): return 2"
    ),
    "virtual-socket": "import socket\nsocket.socket(40, socket.SOCK_STREAM)\ndef f(x): return 2",
    "user-namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10020000) == 0\ndef f(x): return 2",
    "clone-namespace": "import os\nassert os.system('unshare --user --map-root-user true') == 0\ndef f(x): return 2",
    "second-tmpfs": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.unshare(0x10020000)\n"
        "assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, b'size=1g') == 0\ndef f(x): return 2"
    ),
    "system-v-memory": "import ctypes\nassert ctypes.CDLL(None).shmget(0, 1 << 28, 0o1600) >= 0\ndef f(x): return 2",
    "asynchronous-io": "import ctypes\ncontext = ctypes.c_ulong()\n"
    "assert ctypes.CDLL(None).syscall({'x86_64': 206, 'aarch64': 0}[__import__('os').uname().machine], 1024, "
    "ctypes.byref(context)) == 0\ndef f(x): return 2",
    "inotify": "import ctypes\nassert ctypes.CDLL(None).inotify_init() >= 0\ndef f(x): return 2",
    "inotify-1": "import ctypes\nassert ctypes.CDLL(None).inotify_init1(0) >= 0\ndef f(x): return 2",
    "huge-pages": "import mmap\ntry: mmap.mmap(-1, 1 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)\n"
    "except OSError as error: assert error.errno != 1\ndef f(x): return 2",
    "posix-timers": "import ctypes\nlibc, timer = ctypes.CDLL(None), ctypes.c_void_p()\n"
    "for _ in range(1000): assert libc.timer_create(1, None, ctypes.byref(timer)) == 0\ndef f(x): return 2",
    "terminals": "import os\nos.openpty()\ndef f(x): return 2",
    "terminal": "open('/dev/tty', 'rb', buffering=0)\ndef f(x): return 2",
    "large-pipes": "import fcntl, os\nassert fcntl.fcntl(os.pipe()[1], 1031, 1 << 20) >= 1 << 20\ndef f(x): return 2",
    "locked-memory": "import ctypes, mmap\npages = mmap.mmap(-1, 1 << 20)\n"
    "at = ctypes.addressof(ctypes.c_char.from_buffer(pages))\n"
    "assert ctypes.CDLL(None).mlock(ctypes.c_void_p(at), 1 << 20) == 0\ndef f(x): return 2",
    "memory-files": "import os\nfor _ in range(40): os.write(os.memfd_create('x'), bytes(1 << 24))\ndef f(x): return 2",
    "many-files": "for n in range(20000): open(f'/tmp/{n}', 'w').close()\ndef f(x): return 2",
    "keyring": (
        "import ctypes, os\nnumber = {'x86_64': 248, 'aarch64': 217}[os.uname().machine]\n"
        "assert ctypes.CDLL(None).syscall(number, b'user', b'lowrank-bench', b'x', 1, -2) > 0\ndef f(x): return 2"
    ),
    "first-process-memory": "open('/proc/1/mem', 'r+b')\ndef f(x): return 2",
    "interpreter-file": "import os\nos.chmod('/proc/self/exe', 0o755)\ndef f(x): return 2",
    "through-namespaces": "import os\nos.open('/proc/1/ns/mnt', os.O_RDONLY)\ndef f(x): return 2",
    "colliding-value": (
        "import sys\nspace = sys._getframe(1).f_globals\n"
        "items = space['encode'](tuple(n * (2**61 - 1) for n in range(1 << 17)))\n"
        "space['answer'] = lambda *a: ('value', b'S' + items[1:], None)\ndef f(x): return 0"
    ),
    "many-values": (
        "import sys\nspace = sys._getframe(1).f_globals\n"
        "items = space['encode']([()] * 5000000).replace(b't', b'S', 1)\n"
        "space['answer'] = lambda *a: ('value', items, None)\ndef f(x): return 0"
    ),
    "null-byte": "def f(x): return 2\0",
    "surrogate": "def f(x): return '\udc80'",
    "megabyte": "x = '" + "a" * (1 << 20) + "'\ndef f(x): return 0",
    "nested-source": "f = " + "(" * 5000 + ")" * 5000,
    "long-chain": "f = lambda x: " + "+".join(["x"] * 200000),
    "empty": "",
}
"""Name to program. Some end in ``return 2``, the right value: they fail because what comes before it must not work."""

MACHINE_TRICKS = (
    *(
        "parent-memory",
        "kill-parent",
        "kill-all",
        "ignores-signals",
        "memory",
        "close-everything",
        "fork-bomb",
        "threads",
    ),
    *("disk-fill", "write-outside", "symlink-out", "remount", "chroot", "network", "abstract-socket", "become-root"),
    *("raise-limits", "environment", "trace-parent", "virtual-socket", "user-namespace", "clone-namespace"),
    *("second-tmpfs", "system-v-memory", "memory-files", "many-files", "keyring", "first-process-memory"),
    *("interpreter-file", "through-namespaces", "huge-pages", "posix-timers", "terminals", "terminal", "large-pipes"),
    *("locked-memory", "asynchronous-io", "inotify", "inotify-1"),
)
"""Those that what isolates the program has to withstand; the others are the judge's."""

DAEMON = """
import os, sys
def spawn():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', {mark!r}])
        os._exit(0)
spawn()
def f(x): return {value}
"""
"""A daemon by double fork that outlives its program, right or wrong; it must not outlive the grader's verdict."""
