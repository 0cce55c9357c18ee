"""Topology: who thinks when, and whose latent thoughts reach whom. A collaboration style is such a table."""

import itertools
import re
from dataclasses import dataclass

from .errors_recursivemas import ConfigError

ROLE_PATTERN = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Link:
    """A directed connection. A forward link delivers in the same round, a feedback link in the next one."""

    source: str
    target: str
    feedback: bool = False

    @property
    def name(self) -> str:
        return f"{self.source}_to_{self.target}"


@dataclass(frozen=True)
class Topology:
    """Stages run one after another, the roles of a stage side by side; the decoding role writes the text at the end.

    Raises:
        ConfigError: the table does not describe a system that can run.
    """

    stages: tuple[tuple[str, ...], ...]
    links: tuple[Link, ...]
    decoding_role: str

    def __post_init__(self) -> None:
        roles = self.roles
        if not roles:
            raise ConfigError("A topology needs at least one role.", where="stages", found=list(self.stages))
        for role in roles:
            if not ROLE_PATTERN.fullmatch(role) or "_to_" in role:
                raise ConfigError(
                    "A role has a name that cannot be used.",
                    where="stages",
                    found=repr(role),
                    expected="lower-case letters, digits and underscores, starting with a letter, without '_to_'",
                )
        self._reject_repeats("role", "stages", roles)
        self._reject_repeats("link", "links", [link.name for link in self.links])
        self._check_role(self.decoding_role, "decoding_role")
        for link in self.links:
            self._check_role(link.source, f"links, source of {link.name}")
            self._check_role(link.target, f"links, target of {link.name}")
            if not link.feedback and self.stage_of(link.source) >= self.stage_of(link.target):
                raise ConfigError(
                    "A forward link must lead to a later stage.",
                    where=f"links, {link.name}",
                    found=f"stage {self.stage_of(link.source)} -> stage {self.stage_of(link.target)}",
                    expected="a later stage as target",
                    hint='set "feedback": true, or move the target to a later stage',
                )
        idle = set(roles) - {role for _, role in self.schedule(len(roles) + 1)}
        if idle:
            raise ConfigError(
                "Nothing that a role thinks reaches the decoding role.",
                where="links",
                found=", ".join(sorted(idle)),
                expected=f"a path of links to {self.decoding_role}",
                hint="add a link or remove the role",
            )

    @staticmethod
    def _reject_repeats(what: str, where: str, names: list[str] | tuple[str, ...]) -> None:
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        if repeated:
            raise ConfigError(f"A {what} appears more than once.", where=where, found=", ".join(repeated))

    def _check_role(self, role: str, where: str) -> None:
        if role not in self.roles:
            raise ConfigError("Unknown role.", where=where, found=repr(role), expected=", ".join(self.roles))

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles in the order of their stages."""
        return tuple(role for stage in self.stages for role in stage)

    def link(self, name: str) -> Link:
        """The link of a name (`<source>_to_<target>`)."""
        return next(link for link in self.links if link.name == name)

    def stage_of(self, role: str) -> int:
        return next(index for index, stage in enumerate(self.stages) if role in stage)

    def by_stage(self, turns: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
        """(round, role) pairs in running order -> those that run side by side, together."""
        groups = itertools.groupby(turns, key=lambda turn: (turn[0], self.stage_of(turn[1])))
        return [list(group) for _, group in groups]

    def incoming(self, role: str, round_index: int) -> tuple[Link, ...]:
        """The links that fill slots of a role's prompt in a round (1 is the first, which has no feedback)."""
        return tuple(link for link in self.links if link.target == role and (round_index > 1 or not link.feedback))

    def outgoing(self, role: str) -> tuple[Link, ...]:
        return tuple(link for link in self.links if link.source == role)

    def receivers(self, role: str, round_index: int, num_rounds: int) -> tuple[Link, ...]:
        """The links along which what a role thinks in a round reaches somebody who contributes to the answer."""
        needed = set(self.schedule(num_rounds))
        return tuple(link for link in self.outgoing(role) if (round_index + link.feedback, link.target) in needed)

    def turns_up_to(self, num_rounds: int) -> list[tuple[int, str]]:
        """(round, role) pairs in running order that some number of rounds up to this one needs, see `schedule`."""
        needed = {turn for r in range(1, num_rounds + 1) for turn in self.schedule(r)}
        return [(r, role) for r in range(1, num_rounds + 1) for role in self.roles if (r, role) in needed]

    def schedule(self, num_rounds: int) -> list[tuple[int, str]]:
        """(round, role) pairs in running order, holding only those on whose thoughts the answer depends."""
        needed = {(num_rounds, self.decoding_role)}
        frontier = list(needed)
        while frontier:
            round_index, role = frontier.pop()
            for link in self.incoming(role, round_index):
                sender = (round_index - link.feedback, link.source)
                if sender not in needed:
                    needed.add(sender)
                    frontier.append(sender)
        # The decoding role of the last round ends the run, wherever its stage stands.
        return [(r, role) for r in range(1, num_rounds + 1) for role in self.roles if (r, role) in needed]
