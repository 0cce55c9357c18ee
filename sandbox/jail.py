"""The walls, seen from inside: a process that gives away what it may do, for good, before it runs a foreign program.

`run.py` starts this file's `main` in a fresh `python -I -S`, which becomes three processes:

    guard     stays outside, waits, and kills `init` when it is told to stop
    init      first process of its own namespaces: builds the root folder, drops every right, waits, reports the status
    program   sets its limits and its filter of system calls, then runs the job (jailed.py)

When `init` ends, the kernel ends everything that `program` left behind. Only the standard library is used, and little
of it: every test pays for what is imported here.
"""

import ctypes
import marshal
import os
import resource
import struct
import sys
import time
from _signal import SIG_DFL, SIGINT, SIGKILL, SIGTERM, signal  # `signal` itself takes 5 ms to import

import jailed  # beside this file, which is no module of the package here

LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NEW_ANY = 0x7E020080  # every kind of namespace, in the flags of clone
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 22, 38, 47
PR_SET_CHILD_SUBREAPER = 36
# System calls of one number everywhere: of mounts, and of Landlock.
MOUNT_SETATTR, CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 442, 444, 445, 446
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version of Landlock -> rights that it knows, the first so many bits
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
IN_FOLDER = 0b0111_0001_1011_1110  # all but executing, and making devices, sockets and pipes
UID_INSIDE = 1000
FIRST_PRIVATE_UID = 0x60000000  # where we are root, a program gets a user of its own, by its process id
HOME = "/tmp"  # the private folder in which a program starts
LIBRARIES = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/share/zoneinfo", "nix/store")
DEVICES = ("null", "zero", "full", "random", "urandom")

# System calls that no program needs: name -> number on (x86_64, aarch64). Network, foreign processes, mounts,
# memory that no limit counts, paths of the caller, and the parts of the kernel that were broken most often.
REFUSED = {
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "personality": (135, 92), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89),
    "quotactl": (179, 60), "syslog": (103, 116), "vhangup": (153, 58), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "fanotify_init": (300, 262),
    "statmount": (457, 457), "listmount": (458, 458), "modify_ldt": (154, None),
}  # fmt: skip
# Where no namespace holds a program's processes together, it gets none and reaches nobody else's.
ALONE = {
    "fork": (57, None), "vfork": (58, None), "setsid": (112, 157), "setpgid": (109, 154), "tkill": (200, 130),
    "pidfd_send_signal": (424, 424), "sched_setaffinity": (203, 122), "setpriority": (141, 140),
    "ioprio_set": (251, 30),
}  # fmt: skip
OWN_ID_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)}
PRLIMIT, PRCTL, CLONE, CLONE3 = (302, 261), (157, 167), (56, 220), (435, 435)
CLONE_THREAD = 0x10000
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # -> column above, the kernel's own number


def call(name: str, *arguments: object) -> int:
    """A function of the C library; raises OSError, with its name, where it fails."""
    result = getattr(LIBC, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: object) -> None:
    call("prctl", option, *(arguments + (0,) * (4 - len(arguments))))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def become(uid: int) -> None:
    """Gives up root for a user that owns nothing."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def enter_namespaces(private_uid: int) -> None:
    """Leaves the common view of files, network and processes (of these, the children only)."""
    flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    if os.geteuid() == 0:
        try:
            call("unshare", flags)
            return
        except OSError:  # root of a container without the right: like any other user
            become(private_uid)
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", flags | NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{UID_INSIDE} {uid} 1"),
        ("gid_map", f"{UID_INSIDE} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def show(source: str, target: str) -> None:
    """Puts a folder or file of the machine into the new root, to be read only."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT))
    mount(source, target, "", MS_BIND | MS_REC)
    attributes = struct.pack("=4Q", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)  # set, clear, propagation, namespace
    recursive = 0x8000
    done = LIBC.syscall(MOUNT_SETATTR, -1, target.encode(), recursive, attributes, ctypes.c_size_t(len(attributes)))
    if done == -1:  # a kernel before 5.12; flags that are locked must be said again
        mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | os.statvfs(target).f_flag)


def build_root(job: dict) -> None:
    """A new root folder: the system's libraries, Python's own, chosen packages, a few devices and a private /tmp.

    There is no /proc, no home, no program and no site-packages. Python's paths are renamed to what they are inside.
    """
    stage, stdlib = job["stage"], os.path.dirname(os.path.realpath(os.__file__))
    call("sethostname", b"sandbox", 7)
    mount("", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.chdir(stage)
    for folder in ("old", "tmp", "dev"):
        os.mkdir(folder)
    call("pivot_root", b".", b"old")
    os.chdir("/")
    for name in LIBRARIES:
        old = f"/old/{name}"
        if os.path.islink(old):
            os.symlink(os.readlink(old), f"/{name}")
        elif os.path.isdir(old):
            show(old, f"/{name}")
    for name in DEVICES:
        os.close(os.open(f"/dev/{name}", os.O_CREAT))
        mount(f"/old/dev/{name}", f"/dev/{name}", "", MS_BIND)
    inside = f"/python/lib/{os.path.basename(stdlib)}"
    if os.path.dirname(os.path.dirname(stdlib)) in ("/usr", "/usr/local"):
        show(f"/old{stdlib}", inside)
    else:  # an installation of its own brings shared libraries beside its modules
        show(f"/old{os.path.dirname(stdlib)}", "/python/lib")
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{inside}/{name}"):
            mount("tmpfs", f"{inside}/{name}", "tmpfs", MS_RDONLY, "size=4k")
    for path in job["packages"]:
        show(f"/old{path}", f"/packages/{os.path.basename(path)}")
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={job['limits']['disk']},nr_inodes=4096")
    call("umount2", b"/old", 2)  # detached: nothing of it can be reached any more
    os.rmdir("/old")
    mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(HOME)
    old_stdlib = os.path.dirname(os.__file__)

    def moved(path: str) -> str:
        return inside + path[len(old_stdlib) :] if path.startswith(old_stdlib) else path

    sys.path[:] = [*(moved(path) for path in sys.path if path.startswith(old_stdlib)), "/packages"]
    sys.prefix = sys.base_prefix = sys.exec_prefix = sys.base_exec_prefix = "/python"
    sys.executable = ""
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [moved(path) for path in module.__path__]
        if file := getattr(module, "__file__", None):
            module.__file__ = moved(file)
    sys.path_importer_cache.clear()


def confine(job: dict) -> bool:
    """Without namespaces: closes all files but those that `build_root` would show. Whether the kernel can (Landlock).

    Names and sizes of what is closed can still be asked for, where its path is known.
    """
    version = LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = (1 << RIGHTS.get(version, 16)) - 1
    try:
        rules = call("syscall", CREATE_RULESET, struct.pack("=Q", handled), ctypes.c_size_t(8), 0)
        reading = EXECUTE | READ_FILE | READ_DIR
        shown = {f"/{name}": reading for name in LIBRARIES}
        shown |= {f"/dev/{name}": READ_FILE | WRITE_FILE for name in DEVICES}
        shown |= {os.path.dirname(path): READ_DIR for path in job["packages"]}
        shown |= {path: reading for path in (os.path.dirname(os.__file__), *job["packages"])}
        if os.path.realpath(sys.base_prefix) not in ("/usr", "/usr/local"):
            shown[f"{os.path.realpath(sys.base_prefix)}/lib"] = reading
        for path, rights in {**shown, job["folder"]: IN_FOLDER}.items():
            if os.path.exists(path):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rule = struct.pack("=Qi", rights & handled, fd)
                call("syscall", ADD_RULE, rules, 1, rule, 0)
                os.close(fd)
        call("syscall", RESTRICT_SELF, rules, 0)
        os.close(rules)
    except OSError:
        return False
    return True


def drop_rights(private_uid: int) -> None:
    """No capability now, and none ever again."""
    if os.geteuid() == 0:
        for uid in (private_uid, 65534):  # a container knows few users
            try:
                os.seteuid(uid)
                reads_python = os.access(os.__file__, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
                os.seteuid(0)
            except OSError:
                continue
            if reads_python:  # else Python lies in root's own home, and nothing hides that here
                become(uid)
                break
    if LINUX:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_CAP_AMBIENT, 4)
        call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))


def filter_of(column: int, machine: int, alone: bool) -> bytes:
    """A seccomp filter, as the kernel's array of instructions (code, jump if true, if false, value)."""
    load, equal, at_least, any_bit, leave = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # EPERM, ENOSYS
    rows = [(load, 0, 0, 4), (equal, 1, 0, machine), (leave, 0, 0, kill), (load, 0, 0, 0)]
    rows += [(at_least, 0, 1, 0x40000000), (leave, 0, 0, refuse)]  # x32, a second table of numbers
    for numbers in [*REFUSED.values(), *(ALONE.values() if alone else ())]:
        if numbers[column] is not None:
            rows += [(equal, 0, 1, numbers[column]), (leave, 0, 0, refuse)]
    rows += [(equal, 0, 1, CLONE3[column]), (leave, 0, 0, unknown)]  # its flags lie in memory; clone follows
    rows += [(equal, 0, 5 if alone else 3, CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, NEW_ANY)]
    rows += [(leave, 0, 0, refuse)]
    if alone:
        rows += [(any_bit, 1, 0, CLONE_THREAD), (leave, 0, 0, refuse)]
        rows += [(load, 0, 0, 0)]
        for numbers in OWN_ID_ONLY.values():
            rows += [(equal, 0, 4, numbers[column]), (load, 0, 0, 16), (equal, 1, 0, os.getpid())]
            rows += [(leave, 0, 0, refuse), (load, 0, 0, 0)]
        rows += [(equal, 0, 3, PRLIMIT[column]), (load, 0, 0, 16), (equal, 1, 0, 0), (leave, 0, 0, refuse)]
        rows += [(load, 0, 0, 0), (equal, 0, 3, PRCTL[column]), (load, 0, 0, 16)]
        rows += [(equal, 0, 1, PR_SET_PDEATHSIG), (leave, 0, 0, refuse)]
    rows += [(leave, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


def filter_calls(alone: bool) -> None:
    """Refuses the system calls above from now on, for this process and what it starts."""
    column, machine = MACHINES[os.uname().machine]
    rows = filter_of(column, machine, alone)
    buffer = ctypes.create_string_buffer(rows, len(rows))
    program = struct.pack("@HP", len(rows) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, 2, program)


def set_limits(limits: dict) -> None:
    """Limits of the program and of every process that it starts; nobody inside can raise them."""
    for name, amount in (
        ("CPU", limits["cpu_seconds"]),
        ("AS", limits["memory"]),
        ("FSIZE", limits["file_bytes"]),
        ("NOFILE", limits["open_files"]),
        ("NPROC", limits["processes"]),
        ("STACK", limits["stack"]),
        *((name, 0) for name in ("CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE")),
    ):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (amount, amount))


def say(status_fd: int, text: str) -> None:
    os.write(status_fd, text.encode() + b"\n")


def truth(value: bool) -> str:
    return "true" if value else "false"  # JSON, without the module


def main(job_fd: int, status_fd: int, result_fd: int) -> None:
    """Runs the job of a file (marshalled by run.py, which is trusted); returns only as the program, at its end."""
    sys.dont_write_bytecode = True
    sys.path.pop(0)  # this folder
    private_uid = FIRST_PRIVATE_UID + os.getpid()  # nobody else's, so that its processes can be counted
    with open(job_fd, "rb") as file:
        job = marshal.load(file)
    if LINUX:
        prctl(PR_SET_PDEATHSIG, SIGKILL)  # with the caller
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")  # the first to go where memory is short
        except OSError:  # a container's own choice
            pass
    try:
        if job["namespaces"]:
            enter_namespaces(private_uid)
        init = os.fork()
    except OSError as error:
        return give_up(status_fd, error)
    if init:
        guard(init, (status_fd, result_fd), SIGKILL if job["namespaces"] else SIGTERM)
    if LINUX:
        prctl(PR_SET_PDEATHSIG, SIGKILL)  # with the guard
    os.setsid()  # out of the guard's group, which `killpg` would reach
    signal(SIGINT, SIG_DFL)
    try:
        if job["namespaces"]:
            build_root(job)
        else:
            os.chdir(job["folder"])
            sys.path += [os.path.dirname(path) for path in job["packages"]]
        drop_rights(private_uid)
    except OSError as error:
        return give_up(status_fd, error)
    if LINUX:
        prctl(PR_SET_PDEATHSIG, SIGKILL)  # a change of user takes it away
    filtered = LINUX and os.uname().machine in MACHINES
    namespaces = job["namespaces"]
    held = {"files": namespaces or (LINUX and confine(job))}
    held |= {"network": namespaces or filtered, "processes": namespaces or filtered}
    held |= {"system_calls": filtered, "limits": True}
    ready, go = os.pipe()
    start, program = time.monotonic(), 0
    if not namespaces:  # nobody but this process ends the program then, and its group is all there is of it
        signal(SIGTERM, lambda *_: os.killpg(program, SIGKILL) if program else os._exit(1))
        if LINUX:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
    program = os.fork()
    if not program:
        signal(SIGTERM, SIG_DFL)
        if LINUX:
            prctl(PR_SET_PDEATHSIG, SIGKILL)  # with this process
        os.setsid()
        os.close(ready)
        os.close(status_fd)
        return run_program(job, result_fd, go, filtered)
    os.close(go)
    os.close(result_fd)
    refused = os.read(ready, 200).decode()  # the walls stand, or a text says why they do not
    if refused:
        say(status_fd, f'{{"failed": "{refused}"}}')
        os._exit(1)
    words = ", ".join(f'"{name}": {truth(value)}' for name, value in held.items())
    say(status_fd, f'{{"protection": {{{words}}}}}')
    status = None
    while status is None:
        ended, ending = os.wait()  # also whom the program left behind
        status = ending if ended == program else None
    seconds = time.monotonic() - start
    if not namespaces:
        end_group(program)
    say(status_fd, f'{{"status": {os.waitstatus_to_exitcode(status)}, "seconds": {seconds:f}}}')
    os._exit(0)


def end_group(program: int) -> None:
    """Ends what a program left in its group, and waits for it."""
    try:
        os.killpg(program, SIGKILL)
        while True:
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        pass


def plain(error: Exception) -> str:
    """An error's text that can stand in JSON."""
    return str(error).replace("\\", "/").replace('"', "'")


def give_up(status_fd: int, error: OSError) -> None:
    say(status_fd, f'{{"failed": "{plain(error)}"}}')
    os._exit(1)


def guard(init: int, fds: tuple, how: int) -> None:
    """Waits for the first process inside; SIGTERM ends it by the signal `how`, and so everything inside."""
    signal(SIGTERM, lambda *_: os.kill(init, how))
    for fd in (0, 1, 2, *fds):
        os.close(fd)
    os.waitpid(init, 0)
    os._exit(0)


def run_program(job: dict, result_fd: int, go: int, filtered: bool) -> None:
    """The last steps that need a right, then the job; ends as the program ends."""
    os.environ.clear()
    os.putenv("OPENBLAS_NUM_THREADS", "1")  # for libraries; os.environ stays empty
    try:
        set_limits(job["limits"])
        jailed.part(job)
        if filtered:
            filter_calls(alone=not job["namespaces"])
    except (OSError, ValueError) as error:
        os.write(go, plain(error).encode()[:200])
        os._exit(1)
    os.close(go)
    jailed.run(job, result_fd)
