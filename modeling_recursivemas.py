"""The composite model: agents and links that answer as one causal language model; loading, saving, its parts.

`auto_map` points at this file for the configuration too, so that every class comes from one module copy.
"""

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from transformers import GenerationConfig, GenerationMixin

from .agent_options_recursivemas import ROLE_OPTIONS, AgentOptions, validate_place
from .agent_recursivemas import RecursiveMASAgent
from .answering_recursivemas import AnsweringSystem
from .bases_recursivemas import copy_tokenizer, refuse_unmerged
from .chats_recursivemas import CHAT_TEMPLATES
from .configuration_recursivemas import RecursiveMASConfig
from .engine_recursivemas import Residency
from .errors_recursivemas import ConfigError, InputError
from .handover_recursivemas import hand_over
from .links_recursivemas import AnyInnerLink, AnyOuterLink, InnerLink
from .loading_recursivemas import fill_config, load_system, read_configuration, validate_outer_link, validate_parts
from .mixtures_recursivemas import ExpectedEmbeddingLink
from .modules_recursivemas import Modules
from .prompts_recursivemas import PromptRenderer, read_prompts
from .pushing_recursivemas import push_folder, pushed, save_arguments
from .saving_recursivemas import (
    SYSTEM_FILES,
    adapter_writers,
    agent_writers,
    is_folder,
    pinned,
    save_system,
    saved_links,
)
from .settings_recursivemas import read_settings
from .sharing_recursivemas import shared_bases
from .solutions_recursivemas import Solution
from .sources_recursivemas import Source, split_arguments
from .thinking_recursivemas import Rollout
from .threads_recursivemas import one_at_a_time
from .tools_recursivemas import Tools


class RecursiveMASModel(AnsweringSystem, GenerationMixin):  # named here, or transformers makes a class of its own
    """Frozen agents that collaborate over latent thoughts; only the last agent of the last round writes text.

    Attributes:
        agents: role -> `RecursiveMASAgent`.
        outer_links: `<source>_to_<target>` -> outer link.
        tokenizer: the decoding agent's, with a chat template of its own (see chats_recursivemas.py).
        tools: of `solve` and `generate` where a call brings none, for tools that call them (pipelines).

    Args:
        config: the system's configuration, checked here.
        agents: role -> agent, one for each role.
        outer_links: link name -> outer link, one for each link.

    Raises:
        ConfigError: the configuration is wrong, or agents and links do not fit it.
    """

    config_class = RecursiveMASConfig
    config: RecursiveMASConfig
    main_input_name = "input_ids"

    def __init__(
        self,
        config: RecursiveMASConfig,
        agents: Mapping[str, RecursiveMASAgent] | None = None,
        outer_links: Mapping[str, AnyOuterLink] | None = None,
    ) -> None:
        super().__init__(config)
        if agents is None:
            raise ConfigError(
                "A composite is built around its agents.",
                where="RecursiveMASModel",
                hint="load it with from_pretrained or load_mas_system, or pass `agents` and `outer_links`",
            )
        self.topology = config.validate_system()
        self.agents: Modules[RecursiveMASAgent] = Modules(agents)
        self.outer_links: Modules[AnyOuterLink] = Modules(outer_links)
        self.post_init()
        validate_parts(config, self.agents, self.outer_links)
        fill_config(config, self.agents, self.outer_links)
        decoder = self.agents[config.decoding_role]
        self.tokenizer = copy_tokenizer(decoder.tokenizer, config.decoding_role)
        self.tokenizer.chat_template = CHAT_TEMPLATES[config.conversation]
        self.generation_config: GenerationConfig = copy.deepcopy(decoder.model.generation_config)
        self.generation_config.pad_token_id = decoder.pad_token_id
        self.renderers = {
            role: PromptRenderer(agent.tokenizer, role, config.chat_template_kwargs)
            for role, agent in self.agents.items()
        }
        for role, renderer in self.renderers.items():
            renderer.validate(config.prompts[role])
        # Solves batches in place of `solve_batches`, see there; elsewhere, for agents that have no weights here.
        self.executor: Callable[..., Iterator[tuple[int, list[Solution]]]] | None = None
        self.residency: Residency | None = None
        self.tools: Tools | Sequence[Any] | None = None
        self.requires_grad_(False).eval()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing is ever re-initialised: all weights come from checkpoints."""

    # Loading and saving

    @classmethod
    @one_at_a_time()
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: RecursiveMASConfig | None = None,
        revision: str | None = None,
        subfolder: str = "",
        clones: str | os.PathLike | None = None,
        device: str | torch.device | dict[str, str | torch.device] | None = None,
        dtype: str | torch.dtype | dict[str, str | torch.dtype] | None = "auto",
        outer_dtype: str | torch.dtype | None = "auto",
        task: str | None = None,
        agent_kwargs: dict | None = None,
        only: Collection[str] | None = None,
        generation_config: GenerationConfig | None = None,
        offload: str | None = None,
        share_bases: bool = True,
        trust_remote_code: bool | dict[str, bool] | None = None,
        **kwargs: Any,
    ) -> "RecursiveMASModel":
        """Loads a system: its configuration, its agents and its links, wherever each of them lives.

        Args:
            pretrained_model_name_or_path: local folder or Hub repository with the system's config.json.
            config: replaces that file.
            revision: of that repository; agents have their own pinned revisions in the configuration.
            clones: folder with local clones of the agents' repositories, preferred to the Hub.
            device: where the agents go: one device, or role -> device.
            dtype: of the agents, one for all or role -> dtype; "auto" keeps the checkpoints', but computes in
                float32 on a processor without bfloat16 instructions (twice the memory, up to six times the speed).
            outer_dtype: of all links; "auto" keeps the checkpoints' (float32 is exact, bfloat16 loses early rounds).
            task: default task, which chooses the prompts, and the links where these are per task.
            only: the roles whose weights are loaded; the others' agents are there, but cannot run (default: all).
            agent_kwargs: further arguments for every agent's `from_pretrained`; role -> dict sets them per role.
            offload: "cpu" keeps only the working agent on its device, and the others in CPU memory.
            share_bases: roles of one base (the same files, dtype, device and settings) share one model and tokenizer;
                `False` loads one for each.
            generation_config: settings laid over the decoding agent's, in place of the system's own file.
            trust_remote_code: role -> whether code that the agent's repository brings may run (in `agent_kwargs`, for
                one role or all). A plain value speaks of the system's own code, which Auto classes run, not of agents.
            kwargs: Hub arguments (cache_dir, token, local_files_only, …); `device_map`, `attn_implementation`,
                `quantization_config` and the other `ROLE_OPTIONS` for every agent or as role -> value; or fields of
                the configuration, which they override.

        Raises:
            ConfigError: the configuration is wrong, or parts do not fit together.
            CheckpointError: a file is missing, broken or does not fit.
            ArgumentError: an unknown keyword argument.
        """
        hub, kwargs = split_arguments(kwargs)
        if trust_remote_code and isinstance(trust_remote_code, dict):
            kwargs["trust_remote_code"] = trust_remote_code
        kwargs["dtype"] = kwargs.pop("torch_dtype", dtype) or "auto"
        shared = {key: kwargs.pop(key) for key in ROLE_OPTIONS if kwargs.get(key) is not None}
        if isinstance(kwargs.get("prompts"), str | os.PathLike):
            kwargs["prompts"] = read_prompts(kwargs["prompts"])
        place = None if clones is None else str(clones)
        source = Source(str(pretrained_model_name_or_path), subfolder, revision, hub, place)
        config = read_configuration(source, config, task, kwargs)
        options = AgentOptions(config.topology.roles, device, shared, agent_kwargs or {}, offload, share_bases)
        validate_place(outer_dtype, "dtype")
        link_dtype = None if outer_dtype in (None, "auto") else getattr(torch, str(outer_dtype).removeprefix("torch."))
        loaded = load_system(source, config, options, link_dtype, only)
        model = cls(loaded.config, loaded.agents, loaded.outer_links)
        model.residency = loaded.residency
        if generation_config is not None:
            model.generation_config.update(**generation_config.to_diff_dict())
        elif (saved := source.find_json("generation_config.json")) is not None:
            model._read_generation_config(saved, f"{source}, generation_config.json")
        model.config.name_or_path = source.repository
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        *,
        copy_agents: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
        files: Mapping[str, str] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Writes the system as a repository: config.json, tokenizer, remote code, `links/` and `agents/`.

        Agents that came from another repository are referenced, not copied, unless asked. It is one step: whatever
        happens meanwhile, the folder holds the system that was there before, or this one. With `push_to_hub=True`
        the folder's system is pushed, too, all of it in one commit.

        Args:
            save_directory: folder, created if need be; a system in it is replaced.
            copy_agents: write every agent, so that the folder needs nothing else.
            state_dict: weights of the links to write instead of the current ones (keys as in `state_dict()`).
            files: name -> text of further files that belong to the save.
            is_main_process: `False` writes nothing.
            kwargs: `max_shard_size`, `variant` and their like for the agents that are written; `push_to_hub` and its
                arguments, see `Push`: the repository is private unless `private=False`. Agents from folders of this
                machine are written into a system that is pushed.

        Returns:
            The commit, where it was pushed.

        Raises:
            ArgumentError, InputError: an argument is unknown, or cannot be used; before anything is written.
            CheckpointError: the disk is full, or the folder cannot be written; or the Hub refuses.
        """
        options, push = save_arguments(kwargs, save_directory, "save_pretrained")
        if not is_main_process:
            return None
        refuse_unmerged(self)
        read_settings(
            self.generation_config.to_diff_dict(), "generation_config", self._known_names()
        )  # as a load will
        self._judge_settings()
        state = self.state_dict() if state_dict is None else state_dict
        links: dict[str, AnyInnerLink | AnyOuterLink] = {
            **{role: agent.inner_link for role, agent in self.agents.items()}, **dict(self.outer_links.items())
        }  # fmt: skip
        folder = Path(save_directory)
        elsewhere = push is not None
        written = [
            role for role, entry in self.config.agents.items() if copy_agents or is_folder(entry["source"], elsewhere)
        ]
        config = save_system(
            folder,
            self.config if push is None else pinned(self.config, self.agents),
            saved_links(links, state),
            tokenizer=self.tokenizer,
            generation_config=self.generation_config,
            write_agents=agent_writers(self.agents, self.config, folder, written, options),
            write_adapters=adapter_writers(self.agents, self.config, copy_agents, elsewhere),
            files=files,
        )
        if push is None:
            return None
        sources = dict.fromkeys(entry["source"] for entry in config.agents.values() if not is_folder(entry["source"]))
        what = f"A system of {len(config.agents)} frozen language models that hand over latent thoughts."
        return push_folder(folder, push, SYSTEM_FILES, what, [*sources])

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:  # type: ignore[override]
        """Pushes the system to the Hub as `save_pretrained` writes it; arguments as there, and as in `Push`."""
        return pushed(self, repo_id, kwargs)

    # Parts

    def set_link(self, name: str, link: AnyInnerLink | AnyOuterLink) -> None:
        """Puts a link in, frozen and on its agent's device: the one way to replace a link.

        Args:
            name: a role for its inner link, `<source>_to_<target>` for an outer link.
            link: the new link.

        Raises:
            InputError: there is no such role or link, or the link is of the other sort.
            ConfigError: it does not fit its agents.
        """
        if self.executor is not None:
            raise InputError("The agents are in other processes.", where="set_link", hint="save and load the system")
        if name in self.agents and isinstance(link, InnerLink | ExpectedEmbeddingLink):
            agent = self.agents[name]
            agent.set_inner_link(link.to(agent.device).requires_grad_(False).eval())
            self.config.agents[name]["inner_link"] = {}
        elif name in self.outer_links and isinstance(link, AnyOuterLink):
            ends = self.topology.link(name)
            validate_outer_link(ends, link, self.agents)
            device = self.residency.devices[ends.source] if self.residency else self.agents[ends.source].device
            self.outer_links[name] = link.to(device).requires_grad_(False).eval()
            self.config.links[self.topology.links.index(ends)].pop("weights", None)
        else:
            names = f"an inner link for {', '.join(self.agents)}; an outer link for {', '.join(self.outer_links)}"
            raise InputError(
                "There is no such link, or it is of another sort.",
                where="set_link",
                found=f"{name}: {type(link).__name__} of {type(link).__module__}",
                expected=f"{names}; of the code that this system runs on ({__name__.rpartition('.')[0]})",
            )
        fill_config(self.config, self.agents, self.outer_links)

    def transfer(self, source: str, target: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """What travels along a link: outer(inner(hidden_states)), or what the kind of link makes of them.

        Args:
            source, target: roles, connected by a link.
            hidden_states: of the source's latent steps (`think`), (batch, steps, width of the source).

        Returns:
            (batch, steps, width of the target) in the outer link's dtype; a resampling link's own number of positions
            in place of the steps.
        """
        name = f"{source}_to_{target}"
        if name not in self.outer_links:
            raise InputError("No such link.", where="transfer", found=name, expected=", ".join(self.outer_links))
        agent, (batch, steps) = self.agents[source], hidden_states.shape[:2]
        lengths = torch.full((batch,), steps, device=hidden_states.device)
        rollout = Rollout(hidden_states, agent.inner_link(hidden_states), lengths)
        return torch.stack(hand_over(agent, self.outer_links[name], rollout))

    @property
    def shared_bases(self) -> list[tuple[str, ...]]:
        """The roles of each base that several roles share, in the order of their stages."""
        return shared_bases((role, self.agents[role]) for role in self.topology.roles)

    def extra_repr(self) -> str:
        """What `print` says beside the parts, which it shows for every role."""
        return "\n".join(f"one base: {', '.join(roles)}" for roles in self.shared_bases)

    @property
    def outer_adapters(self) -> dict[str, AnyOuterLink]:
        """The outer links by their names in the public release (`outer_12`), or their own where they have none."""
        return {
            entry.get("legacy_key") or link.name: self.outer_links[link.name]
            for link, entry in zip(self.topology.links, self.config.links, strict=True)
        }

    @property
    def device(self) -> torch.device:
        """Where `generate` takes its inputs: the decoding agent's device."""
        return self.agents[self.config.decoding_role].device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoding agent (links keep their own)."""
        return self.agents[self.config.decoding_role].dtype

    @property
    def init_continuous_batching(self) -> None:  # type: ignore[override]
        """Hidden, because continuous batching would bypass the recursion."""
        raise AttributeError("a recursive system cannot be batched continuously")
