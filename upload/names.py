"""How the public release spells the names of roles and links: pure functions."""

from ..system_loader import Topology


def release_title(role: str) -> str:
    """`tool_caller` -> `ToolCaller`, as the release writes roles in names of files and repositories."""
    return "".join(part[:1].upper() + part[1:] for part in role.split("_"))


def release_filename(name: str, task: str | None = None) -> str:
    """`adapter.pt`, per task `adapter(math).pt`."""
    return f"{name}.pt" if task is None else f"{name}({task}).pt"


def release_outer_name(source: str, target: str) -> str:
    """`Planner-Critic-Outerlink`, the name of an outer link's file but for task and suffix."""
    return f"{release_title(source)}-{release_title(target)}-Outerlink"


def release_labels(topology: Topology) -> dict[str, str]:
    """Role -> its label in the release's keys (`outer_12`, `outer_1s`, `outer_el`): source's, then target's.

    A chain counts its roles, a pair has initials; roles side by side are counted, the others have initials. Where two
    keys would be the same (two roles with one initial; `1` and `11` in `outer_111`), all roles are counted, with the
    same number of digits.
    """
    roles = topology.roles
    side_by_side = [role for stage in topology.stages if len(stage) > 1 for role in stage]
    counted = [] if len(roles) == 2 else side_by_side or list(roles)
    labels = {role: str(counted.index(role) + 1) if role in counted else role[0] for role in roles}
    if len({a + b for a in labels.values() for b in labels.values()}) < len(roles) ** 2:
        labels = {role: str(number).zfill(len(str(len(roles)))) for number, role in enumerate(roles, start=1)}
    return labels
