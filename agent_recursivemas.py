"""One agent: a frozen causal language model, its tokenizer and its inner link; its own repository."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .adapters_recursivemas import is_adapted
from .bases_recursivemas import (
    MODEL_FILES,
    SMALL_FILES,
    WEIGHT_FILES,
    base_place,
    load_base_model,
    load_tokenizer,
    refuse_unmerged,
    save_base_model,
)
from .errors_recursivemas import CheckpointError, ConfigError, InputError
from .folders_recursivemas import replacing
from .kernels_recursivemas import use_fast_linear
from .link_building_recursivemas import build_link
from .link_files_recursivemas import link_filename, read_link
from .links_recursivemas import AnyInnerLink
from .mixtures_recursivemas import ExpectedEmbeddingLink, mixture_options
from .probe_recursivemas import probe
from .pushing_recursivemas import push_folder, pushed, save_arguments
from .sources_recursivemas import Source, split_arguments, write_code, write_tensors
from .stamps_recursivemas import validate_stamp, write_stamp
from .thinking_recursivemas import ThinkingAgent
from .threads_recursivemas import one_at_a_time

# An agent's repository is its base model's, and `AutoModel` gives the agent; `AutoModelForCausalLM` the base model.
AUTO_MAP = {"AutoModel": "agent_recursivemas.RecursiveMASAgent"}
# Patterns of what a save of an agent writes
AGENT_FILES = ("config.json", "weights.json", "inner_link*.safetensors", "*_recursivemas.py", *MODEL_FILES)


class RecursiveMASAgent(ThinkingAgent):
    """A frozen causal language model that can think in latent steps.

    Args:
        model: the base causal language model (`.model`).
        inner_link: last hidden state -> next input embedding (`.inner_link`).
        tokenizer: the base model's tokenizer, padding on the left (`.tokenizer`).
        role: the agent's name in its system.

    Raises:
        CheckpointError: the model cannot be an agent, see `probe`.
    """

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        model: PreTrainedModel,
        inner_link: AnyInnerLink,
        tokenizer: PreTrainedTokenizerBase,
        role: str = "agent",
    ) -> None:
        super().__init__(copy.deepcopy(model.config))
        self.model, self.tokenizer, self.role = model, tokenizer, role
        self.post_init()
        use_fast_linear(self.model)
        self.inner_link = inner_link
        self.traits = probe(self)
        self.set_inner_link(inner_link)

    def set_inner_link(self, inner_link: AnyInnerLink) -> None:
        """Puts an inner link in the place of the present one.

        Raises:
            ConfigError: it has another width than the agent.
        """
        if inner_link.in_features != self.hidden_size:
            raise ConfigError(
                "An inner link does not fit its agent.",
                where=f"agent {self.role}",
                found=f"width {inner_link.in_features}",
                expected=f"width {self.hidden_size}, the agent's",
            )
        if isinstance(inner_link, ExpectedEmbeddingLink):
            if not self.traits.plain_head:
                raise CheckpointError(
                    "A model's logits are more than its vocabulary projection, which an inner link mixes tokens by.",
                    where=f"agent {self.role}, {type(self.model).__name__}",
                    found=f"inner link {inner_link.kind}",
                    expected="an inner link that is trained, or a model of another architecture",
                )
            inner_link.bind(self.model, self.control_token_ids)
        use_fast_linear(inner_link)
        self.inner_link = inner_link
        if self._compiled_steps is not None:
            self.compile_steps()  # the graphs hold the link that was there

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # as with attention above: the base model knows, and has decided already

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing is ever re-initialised: all weights come from checkpoints."""

    @classmethod
    @one_at_a_time()
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        subfolder: str = "",
        task: str | None = None,
        role: str = "agent",
        **kwargs: Any,
    ) -> "RecursiveMASAgent":
        """Loads an agent's repository: a base model and its tokenizer, with inner links beside them.

        config.json is the base model's with an entry `inner_link`: `{"kind", "weights", "task"}`. `weights` is a file
        of the repository (none where the kind has no parameters) or `{"tasks": {task: file}}`, of which `task` is the
        one that is loaded by default. With an entry `base_model`, `{"source", "revision"}`, the base model and its
        tokenizer are that repository's on the Hub; `trust_remote_code` does not speak of that one's code.

        Args:
            pretrained_model_name_or_path: local folder or Hub repository.
            config: replaces the base model's configuration (Auto classes pass it).
            revision: branch, tag or commit.
            subfolder: folder inside the repository.
            task: which inner link to take, where there is one per task.
            role: the agent's name, for error messages.
            kwargs: Hub arguments (cache_dir, token, local_files_only, …), and those of the base model's
                `from_pretrained` (dtype, device_map, attn_implementation, …).

        Raises:
            CheckpointError: a file is missing, broken or does not fit; or there is no inner link for the task.
        """
        trusted = kwargs.get("trust_remote_code") is True
        hub, options = split_arguments(kwargs)
        source = Source(str(pretrained_model_name_or_path), subfolder, revision, hub)
        content = source.json("config.json")
        entry, base = content.get("inner_link"), content.get("base_model")
        if not isinstance(entry, dict) or "kind" not in entry:
            raise ConfigError(
                "The repository holds no agent: its configuration has no inner link.",
                where=f"{source}, config.json, inner_link",
                found=entry,
                expected='{"kind": …, "weights": …}',
                hint="a base model alone is loaded with AutoModelForCausalLM",
            )
        place, trusted = base_place(source, base), trusted and base is None
        source, place = (each.fetch((*SMALL_FILES, *WEIGHT_FILES)) for each in (source, place))
        tokenizer, options["trust_remote_code"] = load_tokenizer(place, role, trusted), trusted
        model = load_base_model(place, role, **options, **({} if config is None else {"config": config}))
        embeddings = cast(torch.nn.Embedding, model.get_input_embeddings())
        tensors: dict[str, torch.Tensor] = {}
        where = str(source)
        if entry.get("weights") is not None:
            tensors, where, _ = read_link(source, entry["weights"], role, task or entry.get("task"))
        validate_stamp(source, [""])
        width, options = embeddings.embedding_dim, mixture_options(entry)
        link = build_link(tensors, where=where, in_features=width, kind=entry["kind"], options=options)
        agent = cls(model, link.to(embeddings.weight.device), tokenizer, role)
        return agent.requires_grad_(False).eval()

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        *,
        inner_links: Mapping[str, AnyInnerLink] | None = None,
        task: str | None = None,
        base_model: Mapping[str, Any] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Writes the agent as a repository of its own, in one step; see `from_pretrained`.

        Args:
            save_directory: folder, created if need be; an agent in it is replaced.
            inner_links: task -> inner link, all of one kind, in place of the agent's own.
            task: which of them is loaded by default.
            base_model: where the base model is on the Hub, `{"source", "revision"}`: it is named, and not written.
            is_main_process: `False` writes nothing.
            kwargs: of the base model's `save_pretrained` (max_shard_size, …); `push_to_hub` and its arguments, see
                `Push`: the repository is private unless `private=False`.

        Returns:
            The commit, where it was pushed.
        """
        weights, push = save_arguments(kwargs, save_directory, "save_pretrained")
        if not is_main_process:
            return None
        refuse_unmerged(self)
        if is_adapted(self.model):
            raise InputError(
                "An agent with an adapter is no folder of its own: its base may be others' too.",
                where=f"save_pretrained, agent {self.role}",
                hint="save the system, which writes both",
            )
        with replacing(save_directory, {"": MODEL_FILES}) as folder:
            config = copy.deepcopy(self.model.config)
            config.auto_map = dict(AUTO_MAP)
            if base_model is None:
                save_base_model(self.model, folder, **weights)
                self.tokenizer.save_pretrained(folder)
            else:  # no model that tools could take it for
                config.base_model, config.architectures = dict(base_model), [type(self).__name__]
            if inner_links is None:
                link = self.inner_link
                config.inner_link = {"kind": link.kind, **link.options, "weights": self._save_link(folder, link)}
            else:
                files = {name: self._save_link(folder, link, name) for name, link in inner_links.items()}
                options = next(iter(inner_links.values())).options
                config.inner_link = {
                    "kind": self.inner_link.kind,
                    **options,
                    "weights": {"tasks": files},
                    "task": task,
                }
            config.save_pretrained(folder)
            write_code(folder, "agent_recursivemas.py")
            write_stamp(folder)
        if push is None:
            return None
        what = "A frozen language model and its inner link: an agent of a system that hands over latent thoughts."
        return push_folder(Path(save_directory), push, AGENT_FILES, what, [])

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:  # type: ignore[override]
        """Pushes the agent to the Hub as `save_pretrained` writes it; arguments as there, and as in `Push`."""
        return pushed(self, repo_id, kwargs)

    def _save_link(self, folder: Path, link: AnyInnerLink, task: str | None = None) -> str | None:
        """Writes an inner link; returns the file's name, or `None` for a kind without parameters."""
        weights = link.state_dict()
        if not weights:
            return None
        write_tensors(weights, folder / link_filename("inner_link", task))
        return link_filename("inner_link", task)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """There is none: an agent thinks, and its base model writes.

        Raises:
            InputError: always; it names what to use.
        """
        hint = "use `agent.think` for latent steps, and `agent.model` for logits and `generate`"
        raise InputError("An agent has no forward pass.", where="RecursiveMASAgent.forward", hint=hint)

    def train(self, mode: bool = True) -> "RecursiveMASAgent":
        """As of every module, but a frozen base model stays as it answers: without dropout, with its cache."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        return self

    @property
    def inner_adapter(self) -> AnyInnerLink:
        """The inner link, by its name in the public release."""
        return self.inner_link
