"""Kills, full disks, read-only folders and two writers at once, at every command that writes: old or new, always.

Every case starts from an old state, lets a process write the new one, disturbs it, and looks at what is there: the old
state, the new one, or a mixture. Then the same is written again, undisturbed, which must give the new one.

    python tests/faults.py [--kills 200] [--seed 0] [--only save convert …]
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from recursivemas import cli
from recursivemas.errors_recursivemas import RecursiveMASError
from recursivemas.evaluation.results import read_results, write_results
from recursivemas.system_loader import load_mas_system
from recursivemas.upload.files import PUSHED, fingerprint
from recursivemas.upload.plan import load_plan
from released import build_clones
from tiny import tiny_chain
from tqdm import tqdm

# What a process does to files; it is killed in front of one of these.
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "fcntl.flock"}
DISTURBED, NOTHING = "a mixture", "nothing"


@dataclass
class Work:
    """Something that writes.

    Attributes:
        place: the folder or file that is written.
        prepare: puts the old state there; its place is free before.
        write: writes the new state.
        look: what is there, as a text; `None` where it is neither whole nor nothing.
    """

    place: Path
    prepare: Callable[[], None]
    write: Callable[[], object]
    look: Callable[[], str | None]  # is called in another process

    def start(self) -> None:
        """The old state, and nothing of earlier tries."""
        for path in (self.place, *self.place.parent.glob(".saving*")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.prepare()


def digest(folder: Path) -> str | None:
    """A system's weights and settings; `NOTHING` where it says that there is none."""
    if not (folder / "config.json").exists() and not (folder / ".saving").exists():
        return NOTHING
    try:
        mas = load_mas_system(str(folder))
    except RecursiveMASError:
        return None
    found = hashlib.sha256(f"{mas.config.num_rounds} {mas.config.latent_steps}".encode())
    for name, tensor in sorted(mas.state_dict().items()):
        found.update(name.encode() + tensor.float().numpy().tobytes())
    return found.hexdigest()[:12]


def staged_digest(folder: Path) -> str | None:
    """What is staged in a folder, with the record of what was pushed."""
    if not folder.exists() or not any(not path.name.startswith(".saving-") for path in folder.iterdir()):
        return NOTHING
    try:
        prints = {each.name: fingerprint(folder / each.name) for each in load_plan(folder).repositories}
    except RecursiveMASError:
        return None
    record = (folder / PUSHED).read_text() if (folder / PUSHED).exists() else "no record"
    return hashlib.sha256(json.dumps([prints, record], sort_keys=True).encode()).hexdigest()[:12]


def works(folder: Path) -> dict[str, Work]:
    """Everything that writes, by name; the systems that it needs are made in a folder."""
    tqdm.monitor_interval = 0  # its thread may hold a lock that a fork would wait for
    old, new = tiny_chain(num_rounds=2, latent_steps=3), tiny_chain(num_rounds=3, latent_steps=2)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    old.save_pretrained(folder / "old")
    new.save_pretrained(folder / "new")
    place = folder / "place"

    def copy() -> None:
        shutil.copytree(folder / "old", place / "system")

    def command(*words: object) -> Callable[[], int]:
        return lambda: cli.main([*map(str, words)])

    system = place / "system"
    of_system = {"place": system, "prepare": copy, "look": lambda: digest(system)}
    agents = [word for role in old.agents for word in ("--agent", f"{role}={folder / 'new' / 'agents' / role}")]
    init = ("init-links", "--style", "sequential", *agents, "--copy-agents", "--no-probe", "--output", system)
    clones = build_clones(folder / "clones", ("sequential_light",))
    convert = ("convert", "sequential_light", system, "--clones", clones, "--copy-agents")
    names = ("--namespace", "org", "--name", "Tiny", "--output", place / "staged", "--question", "Why?")

    def stage_old() -> None:
        if not (folder / "staged-old").exists():
            assert in_a_process(command("publish", "stage", folder / "old", *names)) == 0
            (place / "staged" / PUSHED).write_text("{}")
            shutil.copytree(place / "staged", folder / "staged-old")
        else:
            shutil.copytree(folder / "staged-old", place / "staged")

    row = {"mode": "latent", "num_rounds": 1, "accuracy": 1.0, "interval": [0.5, 1.0], "by_group": {}, "seconds": 1.0}
    row |= dict.fromkeys(("prompt_tokens", "latent_positions", "slot_positions", "new_tokens"), 1.0)
    row["answers"] = ["x"] * 5000
    results = [{"date": date, "settings": {}, "figures": [row]} for date in ("old", "new")]
    file = place / "results.json"

    def look_at_results() -> str | None:
        try:
            return str(read_results(file)["date"])
        except RecursiveMASError:
            return None

    return {
        "save": Work(write=lambda: new.save_pretrained(system), **of_system),
        "first-save": Work(system, lambda: None, lambda: new.save_pretrained(system), lambda: digest(system)),
        "init-links": Work(write=command(*init, "--replace"), **of_system),
        "convert": Work(write=command(*convert, "--replace"), **of_system),
        "first-convert": Work(system, lambda: None, command(*convert), lambda: digest(system)),
        "stage": Work(
            place / "staged",
            stage_old,
            command("publish", "stage", folder / "new", *names, "--replace"),
            lambda: staged_digest(place / "staged"),
        ),
        "results": Work(
            file, lambda: write_results(results[0], file), lambda: write_results(results[1], file), look_at_results
        ),
    }


def in_a_process(work: Callable[[], object], before: Callable[[], None] = lambda: None, limit: float = 300) -> int:
    """Runs something in a fork, killed after `limit` seconds; returns its exit status, -9 where it was killed."""
    sys.stdout.flush()
    if (process := os.fork()) == 0:
        status = 1
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            torch.set_num_threads(1)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            before()
            status = int(work() or 0)
        except RecursiveMASError:
            status = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + limit
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def seen_by_a_process(look: Callable[[], str | None]) -> str | None:
    """What a fork sees: this process loads nothing, since loading leaves threads that a fork would wait for."""
    read, write = os.pipe()
    status = in_a_process(lambda: os.write(write, (look() or "").encode()) * 0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        found = stream.read().decode()
    return found or None if status == 0 else f"exit {status}"


def count_events(place: Path, number: int | None, report: int | None = None) -> None:
    """Kills this process in front of its `number`-th event at a place; `report` gets a byte for each event."""
    seen, where = 0, str(place.parent)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in EVENTS or (event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            return
        if event != "fcntl.flock" and not str(arguments[0]).startswith(where) and not isinstance(arguments[0], int):
            return
        seen += 1
        if report is not None:
            os.write(report, b".")
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@dataclass
class Faults:
    """Disturbs one kind of work, and counts what comes of it."""

    name: str
    work: Work

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.work.start()
        self.old = seen_by_a_process(self.work.look)
        read, write = os.pipe()
        begin = time.monotonic()
        status = in_a_process(self.work.write, lambda: count_events(self.work.place, None, write))
        self.seconds = time.monotonic() - begin
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            self.events = len(stream.read())
        self.new = seen_by_a_process(self.work.look)
        assert status == 0 and self.events and self.new not in (self.old, None, NOTHING), (self.name, status, self.new)

    @property
    def state(self) -> str:
        found = seen_by_a_process(self.work.look)
        return {self.old: "old", self.new: "new"}.get(found, DISTURBED)

    def note(self, fault: str, rerun: bool = True) -> None:
        """Counts what is there, and what it is after the same again."""
        text = f"{self.name}, {fault}: {self.state}"
        if rerun:
            again = in_a_process(self.work.write)
            text += f"; again: {self.state}" + (f" ({again})" if again else "")
        self.counts[text] += 1

    def kill(self, chance: random.Random) -> None:
        """One kill: three of four in front of a random event, the others at a random time."""
        self.work.start()
        if chance.random() < 0.75:
            number = chance.randint(1, self.events)
            status = in_a_process(self.work.write, lambda: count_events(self.work.place, number))
        else:
            status = in_a_process(self.work.write, limit=chance.uniform(0, self.seconds))
        self.note("killed" if status == -signal.SIGKILL else f"finished ({status})", rerun=chance.random() < 0.34)

    def fill_disk(self, size: int) -> None:
        """No file may become larger than so many bytes."""
        self.work.start()
        status = in_a_process(self.work.write, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
        self.note(f"files end at {size} bytes (exit {status})")

    def write_twice(self) -> None:
        """Two processes write the new state at once."""
        self.work.start()
        statuses = []
        if (process := os.fork()) == 0:
            os._exit(in_a_process(self.work.write) % 256)
        statuses.append(in_a_process(self.work.write))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        self.note(f"two writers (exits {sorted(statuses)})")


@contextlib.contextmanager
def mounted(place: Path, *options: str):
    """A mount at a folder; gives whether this process may mount at all."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def full_and_read_only(faults: Faults) -> None:
    """The same work in a file system that is full, and in one that cannot be written, where one can be mounted."""
    place = faults.work.place.parent
    for fault, size in (("read-only", "64m"), ("full disk", "64m")):
        shutil.rmtree(place, ignore_errors=True)
        with mounted(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as there:
            if not there:
                faults.counts[f"{faults.name}, {fault}: not tried, mounting is not allowed"] += 1
                continue
            faults.work.start()
            if fault == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            else:
                with contextlib.suppress(OSError), open(place / "ballast", "wb", buffering=0) as ballast:
                    while True:
                        ballast.write(bytes(1 << 14))
            status = in_a_process(faults.work.write)
            faults.note(f"{fault} (exit {status})", rerun=False)
    shutil.rmtree(place, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=210, help="how many in all (default: 210)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", nargs="+", help="names of works (default: all)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    chance, counts, kills = random.Random(arguments.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as scratch:
        chosen = {name: work for name, work in works(Path(scratch)).items() if name in (arguments.only or (name,))}
        for name, work in chosen.items():
            faults = Faults(name, work)
            while sum(count for text, count in faults.counts.items() if ", killed" in text) < arguments.kills / len(
                chosen
            ):
                faults.kill(chance)
            for size in (0, 100, 5_000, 100_000):
                faults.fill_disk(size)
            faults.write_twice()
            full_and_read_only(faults)
            print("\n".join(f"{count:4}  {text}" for text, count in sorted(faults.counts.items())), flush=True)
            counts += faults.counts
            kills += sum(count for text, count in faults.counts.items() if ", killed" in text)
    mixtures = sum(count for text, count in counts.items() if DISTURBED in text)
    unfinished = sum(count for text, count in counts.items() if "again" in text and "again: new" not in text)
    print(f"{kills} kills; {mixtures} mixtures; {unfinished} that the same command did not finish")
    return int(bool(mixtures or unfinished))


if __name__ == "__main__":
    raise SystemExit(main())
