"""How the agents of a system are loaded: options for all, or by role."""

from dataclasses import dataclass
from typing import Any

import torch

from .errors_recursivemas import InputError
from .fields_recursivemas import did_you_mean

Device = str | torch.device
ROLE_OPTIONS = (
    *("dtype", "device_map", "attn_implementation", "experts_implementation", "quantization_config"),
    *("max_memory", "offload_folder", "variant", "trust_remote_code"),
)
# Of these, whose value may be a table of something else than roles: of modules, of devices, of settings
TABLES = ("device_map", "quantization_config", "max_memory")


@dataclass(frozen=True)
class AgentOptions:
    """How the agents of a system are loaded; every value is one for all, or role -> value.

    Attributes:
        roles: the system's.
        device: where agents go.
        shared: out of `ROLE_OPTIONS`.
        agent_kwargs: further arguments for every agent's `from_pretrained`; role -> dict sets them per role.
        offload: "cpu" keeps only the working agent on its device.
        share_bases: whether roles of one base share one model, see `Bases`.

    Raises:
        InputError: an unknown role; no such device or dtype; or `offload` without a device, or beside a device map.
    """

    roles: tuple[str, ...]
    device: Device | dict[str, Device] | None
    shared: dict[str, Any]
    agent_kwargs: dict[str, Any]
    offload: str | None
    share_bases: bool = True

    def __post_init__(self) -> None:
        for where in ("device", "dtype"):
            given = self.device if where == "device" else self.shared.get("dtype")
            for value in given.values() if isinstance(given, dict) else [given]:
                validate_place(value, where)
        for where, value in (("device", self.device), *self.shared.items()):
            if isinstance(value, dict) and (wrong := self._no_roles(where, value)):
                found, expected = ", ".join(map(str, wrong)), ", ".join(self.roles)
                hint = did_you_mean(str(wrong[0]), self.roles)
                raise InputError("Unknown role.", where=where, found=found, expected=expected, hint=hint)
        for role in self.roles:
            if not isinstance(said := self.kwargs_of(role).get("trust_remote_code", False), bool):
                raise InputError(
                    "Trust is said or not.", where=f"trust_remote_code, {role}", found=said, expected="True or False"
                )
        mapped = "device_map" in self.shared
        if self.offload is not None and (self.offload != "cpu" or self.device is None or mapped):
            device_map = self.shared.get("device_map")
            raise InputError(
                "`offload` cannot be used like this.",
                where="offload",
                found=f"offload={self.offload!r}, device={self.device!r}, device_map={device_map!r}",
                expected='offload="cpu" together with a device, and no device_map',
            )

    def device_of(self, role: str) -> Device | None:
        """Where an agent works."""
        return self._of_role(self.device, role)

    def trusts(self, role: str) -> bool:
        """Whether code of an agent's own may run: only where the caller named the role, or `agent_kwargs` for all."""
        return self.kwargs_of(role).get("trust_remote_code", False)

    def kwargs_of(self, role: str) -> dict[str, Any]:
        """Arguments of an agent's `from_pretrained`."""
        kwargs = dict(self.agent_kwargs)
        own = {name: kwargs.pop(name) for name in self.roles if name in kwargs}
        options = {key: self._of_role(value, role) for key, value in self.shared.items()}
        return {key: value for key, value in {**options, **kwargs, **own.get(role, {})}.items() if value is not None}

    def _no_roles(self, where: str, value: dict[str, Any]) -> list[Any]:
        """The keys of a table that ought to be roles and are not; where no key is one, it may be another table."""
        wrong = [key for key in value if key not in self.roles]
        if len(wrong) < len(value) or where in ("device", "trust_remote_code"):
            return wrong
        # transformers' own form: "" is the whole model, others are parts of a multimodal one.
        return [] if where in TABLES else [key for key in wrong if key != "" and not str(key).endswith("_config")]

    def _of_role(self, value: Any, role: str) -> Any:
        by_role = isinstance(value, dict) and value and value.keys() <= set(self.roles)
        return value.get(role) if by_role else value


def validate_place(value: Any, where: str) -> None:
    """Raises InputError unless a device (`where="device"`) is there, or a dtype is one of floats; "auto" is none."""
    if value is None or (where == "dtype" and value == "auto"):
        return
    try:
        if where == "device":
            torch.empty(0, device=value)
            return
        dtype = value if isinstance(value, torch.dtype) else getattr(torch, str(value).removeprefix("torch."), None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return
        found = repr(value)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # as each kind of device has it
        found = f"{value!r}: {str(error).partition(chr(10))[0]}"
    expected = "cpu, or a device that this machine has (cuda, cuda:1, mps, …)"
    expected = expected if where == "device" else "auto, float32, bfloat16 or float16"
    raise InputError(f"`{where}` cannot be used.", where=where, found=found, expected=expected)
