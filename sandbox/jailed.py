"""What runs between the walls: a program, one call of a function, or a test script behind a program.

A test script and the program that it tests are two processes, so that nothing that the program does (exits, patched
builtins, objects that equal everything) can pass a test: the script calls the program's functions over pipes and gets
plain values, as JSON. Only the script's process decides, by how it ends.
"""

import marshal
import os
import struct
import sys

TYPE_CHECKING = False  # `typing` is not imported here: it takes longer than all the rest
if TYPE_CHECKING:
    from typing import Any

PATH = "program.py"  # in the private folder: tracebacks show its lines
_script: dict[str, int] = {}  # of a test script: which process this is, and its ends of the pipes


def part(job: dict) -> None:
    """Makes two processes of a job with a test script, while processes can still be made."""
    if job["kind"] != "script":
        return
    (asked, ask), (told, tell) = os.pipe(), os.pipe()
    if os.fork():
        os.close(asked)
        os.close(tell)
        _script.update(judge=1, ask=ask, told=told)
    else:
        os.close(ask)
        os.close(told)
        job["test"] = None  # nothing of it in the program's memory
        _script.update(judge=0, asked=asked, tell=tell)


def run(job: dict, result_fd: int) -> None:
    """Runs the job; the interpreter then ends as it does behind any program."""
    if job["kind"] == "script":
        os.close(result_fd)
        if _script["judge"]:
            judge(job["test"], _script["ask"], _script["told"])
        else:
            answer(as_main(job["source"]), _script["asked"], _script["tell"])
    elif job["kind"] == "call":
        call(as_main(job["source"]), job["function"], job["arguments"], result_fd)
    else:
        os.close(result_fd)
        as_main(job["source"])


def as_main(source: str) -> dict:
    """Runs a text as `python program.py` does; returns its names."""
    with open(PATH, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(source)
    return execute(source, PATH)


def execute(source: str, path: str, names: dict | None = None) -> dict:
    main = type(sys)("__main__")
    main.__dict__.update(names or {}, __builtins__=__builtins__, __file__=path)
    sys.modules["__main__"] = main
    sys.argv[:] = [path]
    sys.orig_argv[:] = ["python", path]  # without the paths of outside
    try:
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        error.__traceback__ = trace and trace.tb_next  # without this function's own line
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    return main.__dict__


def call(names: dict, function: str, arguments: list, result_fd: int) -> None:
    """Writes the value of one call as JSON; `Class.method` is called of a new object of the class."""
    import json

    owner, _, method = function.rpartition(".")
    value = (getattr(names[owner](), method) if owner else names[method])(*arguments)
    with open(result_fd, "w") as file:
        json.dump({"value": value}, file, default=plain)


def plain(value: object) -> object:
    """For JSON, what stands for a number or list of another library."""
    for name in ("tolist", "item"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"{type(value).__name__} is no value of JSON")


# A test script and its program. Requests are marshalled, for the script is trusted; replies are JSON.


def send(fd: int, data: bytes) -> None:
    data = struct.pack("=Q", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> bytes:
    (size,) = struct.unpack("=Q", read(fd, 8))
    return read(fd, size)


def read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the program ended before its tests")
        data += piece
    return bytes(data)


def answer(names: dict, asked: int, tell: int) -> None:
    """The program's side: says which names it has, then makes the calls that it is asked for."""
    import json

    kinds: dict[str, list] = {}
    for name, value in list(names.items()):
        if not isinstance(name, str) or name.startswith("__"):
            continue
        elif isinstance(value, type(sys)):
            kinds[name] = ["module", value.__name__]
        elif callable(value):
            kinds[name] = ["function"]
        else:
            kinds[name] = ["value", encode(value)]
    sys.stdout.flush()
    send(tell, json.dumps(kinds).encode())
    while True:
        try:
            request = receive(asked)
        except EOFError:
            return
        try:
            name, arguments, keywords = marshal.loads(request)
            reply = {"value": encode(names[name](*decode(arguments), **decode(keywords)))}
        except Exception as error:
            reply = {"error": type(error).__name__, "text": str(error)[:1000]}
        send(tell, json.dumps(reply).encode())


def judge(test: str, ask: int, told: int) -> None:
    """The script's side: runs it, with the program's functions called from afar; ends with 0 if it passed."""
    import builtins
    import json

    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # not to be read by the program
    reading = json.loads(receive(told))

    def far(name: str) -> object:
        def function(*arguments: object, **keywords: object) -> "Any":
            send(ask, marshal.dumps((name, encode(arguments), encode(keywords))))
            reply = json.loads(receive(told))
            if "error" in reply:
                kind = getattr(builtins, str(reply["error"]), None)
                kind = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
                raise kind(str(reply.get("text")))
            return decode(reply["value"])

        function.__name__ = name
        return function

    names: dict[str, object] = {}
    for name, kind in reading.items():
        if kind[0] == "function":
            names[name] = far(name)
        elif kind[0] == "value":
            names[name] = decode(kind[1])
        elif kind[1].partition(".")[0] in sys.stdlib_module_names | {"numpy"}:
            names[name] = __import__(kind[1], fromlist=["*"])
    execute(test, "test.py", names)


class Foreign:
    """What stands for a value that is none of Python's plain ones: it equals nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<an object of class {self.kind}>"


def encode(value: "Any") -> "Any":
    """A plain value as JSON holds it: itself, or [its kind, what it is made of]."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int(value)
        return value if abs(value) < 1 << 63 else ["int", hex(value)]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return [bytes.__name__ if isinstance(value, bytes) else "bytearray", bytes(value).hex()]
    kind: Any
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(item) for item in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in dict.items(value)]]
    module, name = type(value).__module__, type(value).__name__
    if module == "numpy":
        return ["numpy", str(value.dtype), encode(value.tolist())]
    if (module, name) in (("decimal", "Decimal"), ("fractions", "Fraction")):
        return [name, str(value)]
    if (module, name) == ("collections", "deque"):
        return [name, [encode(item) for item in value]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if hasattr(value, "__next__"):
        return ["iterator", [encode(item) for item in value]]
    return ["object", name]


def decode(data: "Any") -> "Any":
    """The value of `encode`'s form, of the kinds that it names and no other."""
    if not isinstance(data, list):
        return data
    kind, made_of = data[0], data[1]
    if kind in ("list", "tuple", "set", "frozenset"):
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(decode, made_of))
    if kind == "dict":
        return {decode(key): decode(item) for key, item in made_of}
    if kind == "int":
        return int(made_of, 16)
    if kind == "complex":
        return complex(made_of, data[2])
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray).fromhex(made_of)
    if kind == "numpy":
        import numpy

        return numpy.array(decode(data[2]), dtype=made_of)[()]
    if kind in ("Decimal", "Fraction"):
        import decimal
        import fractions

        return decimal.Decimal(made_of) if kind == "Decimal" else fractions.Fraction(made_of)
    if kind == "deque":
        import collections

        return collections.deque(map(decode, made_of))
    if kind == "range":
        return range(*made_of)
    if kind == "iterator":
        return iter([decode(item) for item in made_of])
    return Foreign(str(made_of))
