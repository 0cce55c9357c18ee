"""One agent: a frozen causal language model, its tokenizer and its inner link, and the latent rollout."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import CommitInfo
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.utils import logging

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
from .caches_recursivemas import cache_argument, can_crop, new_cache, past_length
from .errors_recursivemas import CheckpointError, ConfigError, InputError
from .folders_recursivemas import replacing
from .kernels_recursivemas import use_fast_linear
from .limits_recursivemas import position_limit
from .link_files_recursivemas import link_filename, read_link
from .links_recursivemas import AnyInnerLink, ExpectedEmbeddingLink, build_link, mixture_options, vocabulary_logits
from .probe_recursivemas import probe
from .pushing_recursivemas import push_folder, pushed, save_arguments
from .sources_recursivemas import Source, split_arguments, write_code, write_tensors
from .stamps_recursivemas import validate_stamp, write_stamp
from .steps_recursivemas import CompiledSteps
from .threads_recursivemas import one_at_a_time

logger = logging.get_logger(__name__)
HALTING_CHECK = 8  # latent steps between two looks at whether all rows have ended, on an accelerator
# An agent's repository is its base model's, and `AutoModel` gives the agent; `AutoModelForCausalLM` the base model.
AUTO_MAP = {"AutoModel": "agent_recursivemas.RecursiveMASAgent"}
# Patterns of what a save of an agent writes
AGENT_FILES = ("config.json", "weights.json", "inner_link*.safetensors", "*_recursivemas.py", *MODEL_FILES)


@dataclass
class Rollout:
    """What an agent thought, for a batch.

    Attributes:
        hidden_states: last-layer hidden states h_1 … h_m after the final norm, (batch, steps, hidden_size).
        latents: inner(h_1) … inner(h_m), (batch, steps, hidden_size), in the inner link's dtype.
        lengths: how many leading steps of each row count, (batch,); less than `steps` only with halting.
    """

    hidden_states: torch.Tensor
    latents: torch.Tensor
    lengths: torch.Tensor


class RecursiveMASAgent(PreTrainedModel):
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
        self._half_norms: torch.Tensor | None = None
        self._control_token_ids: torch.Tensor | None = None
        self._compiled_steps: CompiledSteps | None = None
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
    def hidden_size(self) -> int:
        """Width of the embedding space that latents of this agent live in."""
        return self.get_input_embeddings().embedding_dim

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base model (links keep their own)."""
        return self.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Where inputs of the base model go."""
        return self.get_input_embeddings().weight.device

    @property
    def decoder(self) -> PreTrainedModel:
        """The text model under the vocabulary projection (inside a multimodal model, its language part)."""
        decoder = self.model.get_decoder()
        if decoder is not self.model and isinstance(decoder, PreTrainedModel):
            return decoder
        return self.model.model  # transformers does not find Llama 4's, and takes ModernBERT's head for one

    @property
    def position_limit(self) -> int | None:
        """Most positions of a prompt with all that follows it; `None` where nothing limits them."""
        return position_limit(self.decoder.config)

    @property
    def inner_adapter(self) -> AnyInnerLink:
        """The inner link, by its name in the public release."""
        return self.inner_link

    @property
    def eos_token_ids(self) -> list[int]:
        """End-of-sequence ids: those of the generation config, else the tokenizer's."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return [ids] if isinstance(ids, int) else list(ids or [])

    @property
    def control_token_ids(self) -> torch.Tensor:
        """Ids (n,) of the tokens that are no text: the special ones, and those that end a sequence; on the CPU."""
        if self._control_token_ids is None:
            ids = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
            ids |= {*self.tokenizer.all_special_ids, *self.eos_token_ids}
            size = self.get_input_embeddings().num_embeddings
            self._control_token_ids = torch.tensor(sorted(i for i in ids if i < size), dtype=torch.long)
        return self._control_token_ids

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows; masked wherever it stands."""
        pad = self.tokenizer.pad_token_id
        return self.eos_token_ids[0] if pad is None else pad

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return cast(torch.nn.Embedding, self.model.get_input_embeddings())

    def new_cache(self) -> DynamicCache:
        """An empty cache that knows the layer types (sliding window, linear attention)."""
        return new_cache(self.decoder.config)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) ids -> (batch, length, hidden_size) embeddings, scaled where the model scales them."""
        return self.get_input_embeddings()(input_ids)

    def decode(self, token_ids: list[int]) -> str:
        """Generated ids -> text, without special tokens and otherwise unchanged."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def encode(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs the decoder over new positions, without the vocabulary projection.

        Args:
            inputs_embeds: embeddings of the new positions, (batch, new, hidden_size).
            attention_mask: over past and new positions, (batch, past + new); `None` where nothing is masked.
            past_key_values: cache, extended in place; `None` computes without one.
            position_ids: of the new positions, (batch, new), where they are known already.

        Returns:
            Hidden states after the final norm, (batch, new, hidden_size).
        """
        new = inputs_embeds.shape[1]
        past = 0 if past_key_values is None else past_length(past_key_values)
        if past is None:  # a recurrent state alone masks what it reads, not what it has read
            past, attention_mask = 0, None if attention_mask is None else attention_mask[:, -new:]
        if position_ids is not None:
            pass
        elif attention_mask is None:
            position_ids = torch.arange(past, past + new, device=inputs_embeds.device)[None]
        else:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        decoder = self.decoder
        return decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=past_key_values is not None,
            **cache_argument(decoder.forward, past_key_values),
        ).last_hidden_state

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm (…, hidden_size) -> next-token logits (…, vocabulary)."""
        return vocabulary_logits(self.model, hidden_states)

    def rollout(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        latent_steps: int,
        past_key_values: Cache | None = None,
        halting: bool = False,
        control_tokens: bool = True,
        on_step: Callable[[], object] | None = None,
    ) -> Rollout:
        """Thinks: the last hidden state, through the inner link, becomes the next input embedding.

        `latent_steps` steps need the prompt and `latent_steps` - 1 single positions (the release's semantics).

        Args:
            inputs_embeds: the prompt, or what of it is not in `past_key_values` yet, (batch, new, hidden_size).
            attention_mask: over the whole prompt, (batch, length); zeros on padding, which stands on the left.
            latent_steps: number of steps m >= 0.
            past_key_values: cache that holds the head of the prompt; extended in place (not by compiled steps).
            halting: a row ends before the first step that says an end-of-sequence token: the one that is nearest to
                its latent, or where the inner link mixes the agent's own tokens, the likeliest one.
            control_tokens: whether steps count that say a special token; if not, a row ends before the first.
            on_step: called before each step; what it raises ends the rollout.
        """
        cache = self.new_cache() if past_key_values is None else past_key_values
        batch, length = attention_mask.shape
        hidden_states, latents = [], []
        lengths = torch.zeros(batch, dtype=torch.long, device=inputs_embeds.device)
        finished = torch.zeros(batch, dtype=torch.bool, device=inputs_embeds.device)
        # All masks and positions are slices of these; nothing is rebuilt, and nothing waits for the device, in a step.
        whole_mask = torch.cat([attention_mask, attention_mask.new_ones(batch, max(0, latent_steps - 1))], dim=1)
        position_ids = (whole_mask.cumsum(-1) - 1).clamp(min=0)
        mask: torch.Tensor | None = whole_mask
        step_mask = mask
        plain = can_crop(cache) and self.decoder.config._attn_implementation == "sdpa"
        if bool(attention_mask.all()):
            mask = step_mask = None
        elif plain:
            step_mask = whole_mask[:, None, None].bool()  # what the model would make of `mask`, again and again
        compiled = plain and not torch.is_grad_enabled()
        ending = None
        if halting or not control_tokens:
            ending = torch.tensor(self.eos_token_ids) if control_tokens else self.control_token_ids
            ending = ending.to(finished.device)
        new = inputs_embeds.shape[1]
        for step in range(latent_steps):
            if on_step:
                on_step()
            end = length + step
            seen = mask if step == 0 else step_mask
            seen = None if seen is None else seen[..., :end]
            positions = position_ids[:, end - new : end]
            if step == 1 and compiled and self._compiled_steps is not None:
                self._compiled_steps.start(cache, whole_mask)
            taken = self._take_compiled_step(inputs_embeds, positions) if step and compiled else None
            if taken is None:
                state = self.encode(inputs_embeds, seen, cache, positions)[:, -1]
                taken = state, *self.inner_link.step(state)
            hidden_states.append(taken[0])
            latents.append(taken[1])
            if ending is not None:
                said = self.nearest_token_ids(taken[1]) if taken[2] is None else taken[2]
                finished = finished | self._is_end(said, ending)
                # An accelerator must finish all its work to answer, so it is asked now and then only.
                if (finished.is_cpu or step % HALTING_CHECK == 0) and bool(finished.all()):
                    break
            lengths = lengths + ~finished
            inputs_embeds, new = latents[-1][:, None].to(inputs_embeds.dtype), 1
        if not hidden_states:
            empty = inputs_embeds.new_zeros(batch, 0, self.hidden_size)
            return Rollout(empty, empty, lengths)
        return Rollout(torch.stack(hidden_states, dim=1), torch.stack(latents, dim=1), lengths)

    def compile_steps(self, enabled: bool = True) -> None:
        """Lets latent steps run as compiled graphs (or no more): slow at first for each batch size, then faster.

        Where a graph cannot be made, steps run as ever, after one warning. Not to be used by two threads at a time.
        """
        self._compiled_steps = CompiledSteps(self.decoder, self.inner_link) if enabled else None

    def _take_compiled_step(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
        if self._compiled_steps is None:
            return None
        try:
            return self._compiled_steps(inputs_embeds, position_ids)
        except Exception as error:  # a compiler fails in many ways
            if self._compiled_steps.steps_taken:
                raise  # the cache that steps without a graph would need ends at the prompt
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            logger.warning_once(f"Latent steps cannot be compiled and run without ({reason}).")
            self._compiled_steps = None
            return None

    def think(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, latent_steps: int) -> torch.Tensor:
        """Hidden states of latent steps over a prompt.

        Args:
            inputs_embeds: (batch, length, hidden_size).
            attention_mask: (batch, length), zeros on padding, which stands on the left.
            latent_steps: number of steps m >= 0.

        Returns:
            The hidden states h_1 … h_m (before the inner link), (batch, latent_steps, hidden_size).

        Raises:
            InputError: shapes do not fit, or padding stands on the right.
        """
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != self.hidden_size:
            raise InputError(
                "`inputs_embeds` does not fit the agent.",
                where=f"think, agent {self.role}",
                found=tuple(inputs_embeds.shape),
                expected=f"(batch, length, {self.hidden_size})",
            )
        if attention_mask.shape != inputs_embeds.shape[:2] or not bool(attention_mask[:, -1].all()):
            raise InputError(
                "`attention_mask` does not fit `inputs_embeds`, or padding stands on the right.",
                where=f"think, agent {self.role}",
                found=tuple(attention_mask.shape),
                expected=f"{tuple(inputs_embeds.shape[:2])}, with ones in the last column",
                hint="pad on the left",
            )
        return self.rollout(inputs_embeds, attention_mask, latent_steps).hidden_states

    def _is_end(self, token_ids: torch.Tensor, ending: torch.Tensor) -> torch.Tensor:
        """(batch,) said ids -> (batch,): are they among those that end a row?"""
        return torch.isin(token_ids, ending)

    def without_control_tokens(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Rows of received latents (n, hidden_size), without the positions whose nearest token is no text."""
        control = self.control_token_ids.to(self.device)
        read = self.nearest_token_ids(torch.cat(rows)).split(list(map(len, rows)))
        return [row[~torch.isin(ids, control)] for row, ids in zip(rows, read, strict=True)]

    def snap(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (…, hidden_size) -> the embeddings of their nearest tokens that are text, (…, hidden_size)."""
        return self.embed(self.nearest_token_ids(latents, control_tokens=False))

    def read_out(self, latents: torch.Tensor) -> str:
        """What latents (n, hidden_size) that this agent received say: the text of their nearest tokens."""
        return self.decode(self.nearest_token_ids(latents).tolist())

    def read_out_rows(self, rows: list[torch.Tensor]) -> list[str]:
        """`read_out` of each row."""
        read = self.nearest_token_ids(torch.cat(rows)).split(list(map(len, rows)))
        return [self.decode(ids.tolist()) for ids in read]

    def nearest_token_ids(self, vectors: torch.Tensor, control_tokens: bool = True) -> torch.Tensor:
        """Vectors in this agent's embedding space (…, hidden_size) -> ids of the nearest (L2) embeddings (…).

        `control_tokens=False` looks among the tokens that are text only.

        |v - e|^2 is smallest where v e - |e|^2 / 2 is largest; costs one vocabulary projection.
        """
        embeddings = self.get_input_embeddings()
        weight = embeddings.weight
        scale: Any = getattr(embeddings, "embed_scale", 1.0)  # Gemma scales inside its embedding module
        if self._half_norms is None or self._half_norms.device != weight.device:
            self._half_norms = (weight.float() * scale).pow(2).sum(-1) / 2
        closeness = (vectors.to(weight) @ weight.T).float() * scale - self._half_norms
        if not control_tokens:
            closeness[..., self.control_token_ids.to(weight.device)] = -torch.inf
        return closeness.argmax(-1)
