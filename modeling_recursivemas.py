"""The composite model: agents and links that answer as one causal language model.

`auto_map` points at this file for the configuration too, so that every class comes from one module copy.
"""

import contextlib
import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import ModelOutput, logging

from .agent_recursivemas import RecursiveMASAgent
from .answers_recursivemas import OPENINGS, extract_answer
from .configuration_recursivemas import RecursiveMASConfig, check_numbers
from .engine_recursivemas import MODES, Prompt, Residency, Run, embed_rows, generate_from, single_sequence, trim
from .errors_recursivemas import ArgumentError, CheckpointError, ConfigError, InputError
from .links_recursivemas import EXPECTED_EMBEDDING, build_link
from .prompts_recursivemas import PromptRenderer, check_prompts, check_task
from .sources_recursivemas import (
    SMALL_FILES,
    WEIGHT_FILES,
    Source,
    build_empty_model,
    link_filename,
    load_base_model,
    load_model_config,
    load_tokenizer,
    read_link,
    split_arguments,
    write_tensors,
)
from .tools_recursivemas import Tools, check_tools, generate_with_tools

# Passes the user's text through: the agents' own chat templates do the rest. Content may be a list of parts.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set content = message['content'] if message['content'] is string "
    "else message['content'] | map(attribute='text') | join('') -%}"
    "{{- content ~ ('\\n' if message['role'] != 'assistant' and not loop.last else '') -}}"
    "{%- endfor -%}"
)
AUTO_MAP = {
    "AutoConfig": "modeling_recursivemas.RecursiveMASConfig",
    "AutoModel": "modeling_recursivemas.RecursiveMASModel",
    "AutoModelForCausalLM": "modeling_recursivemas.RecursiveMASModel",
}
METHOD_KEYS = ("num_rounds", "latent_steps", "task", "mode")


@dataclass
class Solution(ModelOutput):
    """The result for one question.

    Attributes:
        text: what the decoding agent wrote.
        answer: the answer in that text, or `None` where there is none (see `extract_answer`).
        usage: `prompt_tokens`, `latent_positions`, `new_tokens` of this question, and `seconds` by stage for the
            batch that it was part of.
        messages: (round, role) -> the text handed over, in `mode="text"`.
        latents: (round, source, target) -> what travelled, (latent steps, width of the target), if asked for.
    """

    text: str | None = None
    answer: str | None = None
    usage: dict | None = None
    messages: dict | None = None
    latents: dict | None = None


class RecursiveMASModel(PreTrainedModel, GenerationMixin):
    """Frozen agents that collaborate over latent thoughts; only the last agent of the last round writes text.

    Attributes:
        agents: role -> `RecursiveMASAgent`.
        outer_links: `<source>_to_<target>` -> outer link.
        tokenizer: the decoding agent's, with a chat template that passes text through.

    Args:
        config: the system's configuration, checked here.
        agents: role -> agent, one for each role.
        outer_links: link name -> outer link, one for each link.

    Raises:
        ConfigError: the configuration is wrong, or agents and links do not fit it.
    """

    config_class = RecursiveMASConfig
    main_input_name = "input_ids"

    def __init__(
        self,
        config: RecursiveMASConfig,
        agents: dict[str, RecursiveMASAgent] | None = None,
        outer_links: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(config)
        if agents is None:
            raise ConfigError(
                "A composite is built around its agents.",
                where="RecursiveMASModel",
                hint="load it with from_pretrained or load_mas_system, or pass `agents` and `outer_links`",
            )
        self.topology = config.validate_system()
        self.agents, self.outer_links = nn.ModuleDict(agents), nn.ModuleDict(outer_links or {})
        self.post_init()
        self._check_parts()
        decoder = self.agents[config.decoding_role]
        self.tokenizer = copy.deepcopy(decoder.tokenizer)
        self.tokenizer.chat_template = CHAT_TEMPLATE
        self.generation_config = copy.deepcopy(decoder.model.generation_config)
        text_config = decoder.model.config.get_text_config()
        for field in ("vocab_size", "max_position_embeddings"):
            setattr(config, field, getattr(text_config, field, None))
        config.eos_token_id, config.pad_token_id = decoder.eos_token_ids, decoder.pad_token_id
        config.bos_token_id = decoder.tokenizer.bos_token_id
        config.architectures, config.auto_map = ["RecursiveMASModel"], dict(AUTO_MAP)
        self.generation_config.pad_token_id = decoder.pad_token_id
        self.renderers = {
            role: PromptRenderer(agent.tokenizer, role, config.chat_template_kwargs)
            for role, agent in self.agents.items()
        }
        # Solves batches in place of `solve_batches`, see there; elsewhere, for agents that have no weights here.
        self.executor: Callable[..., Iterator[tuple[int, list[Solution]]]] | None = None
        self.residency: Residency | None = None
        self.requires_grad_(False).eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is ever re-initialised: all weights come from checkpoints."""

    def _check_parts(self) -> None:
        names = {"agents": (self.topology.roles, self.agents)}
        names["outer_links"] = ([link.name for link in self.topology.links], self.outer_links)
        for what, (expected, found) in names.items():
            if set(expected) != set(found):
                raise ConfigError(
                    f"The {what} and the topology differ.",
                    where=what,
                    found=", ".join(sorted(found)) or "none",
                    expected=", ".join(sorted(expected)),
                )
        for role, agent in self.agents.items():
            entry = self.config.agents[role]
            check_architecture(entry, agent.model.config, agent.hidden_size, role)
            entry["inner_link"] = {**entry.get("inner_link", {}), "kind": agent.inner_link.kind}
        for link, entry in zip(self.topology.links, self.config.links, strict=True):
            module = self.outer_links[link.name]
            found = (module.in_features, module.out_features)
            expected = (self.agents[link.source].hidden_size, self.agents[link.target].hidden_size)
            if found != expected:
                raise ConfigError(
                    "An outer link does not fit its agents.",
                    where=f"links, {link.name}",
                    found=f"{found[0]} -> {found[1]}",
                    expected=f"{expected[0]} -> {expected[1]}",
                )
            entry["kind"] = module.kind

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: RecursiveMASConfig | None = None,
        revision: str | None = None,
        subfolder: str = "",
        clones: str | os.PathLike | None = None,
        device: str | torch.device | dict[str, str | torch.device] | None = None,
        dtype: str | torch.dtype | None = "auto",
        outer_dtype: str | torch.dtype | None = "auto",
        task: str | None = None,
        agents: dict[str, RecursiveMASAgent] | None = None,
        agent_kwargs: dict | None = None,
        only: Collection[str] | None = None,
        generation_config: GenerationConfig | None = None,
        offload: str | None = None,
        **kwargs,
    ) -> "RecursiveMASModel":
        """Loads a system: its configuration, its agents and its links, wherever each of them lives.

        Args:
            pretrained_model_name_or_path: local folder or Hub repository with the system's config.json.
            config: replaces that file.
            revision: of that repository; agents have their own pinned revisions in the configuration.
            clones: folder with local clones of the agents' repositories, preferred to the Hub.
            device: where the agents go: one device, or role -> device.
            dtype: of the agents, one for all or role -> dtype; "auto" keeps the checkpoints'.
            outer_dtype: of all links; "auto" keeps the checkpoints' (float32 is exact, bfloat16 loses early rounds).
            task: default task, which chooses the prompts, and the links where these are per task.
            agents: role -> agent already built; replaces loading it.
            only: the roles whose weights are loaded; the others' agents are there, but cannot run (default: all).
            agent_kwargs: further arguments for every agent's `from_pretrained`; role -> dict sets them per role.
            offload: "cpu" keeps only the working agent on its device, and the others in CPU memory.
            generation_config: settings laid over the decoding agent's, in place of the system's own file.
            kwargs: Hub arguments (cache_dir, token, local_files_only, …); `device_map`, `attn_implementation`,
                `quantization_config` for every agent or as role -> value; or fields of the configuration, which they
                override.

        Raises:
            ConfigError: the configuration is wrong, or parts do not fit together.
            CheckpointError: a file is missing, broken or does not fit.
            ArgumentError: an unknown keyword argument.
        """
        hub, kwargs = split_arguments(kwargs)
        dtype = kwargs.pop("torch_dtype", dtype)
        shared = {"dtype": dtype or "auto"}
        for key in ("device_map", "attn_implementation", "quantization_config"):
            if (value := kwargs.pop(key, None)) is not None:
                shared[key] = value
        source = Source(
            str(pretrained_model_name_or_path), subfolder, revision, hub, None if clones is None else str(clones)
        )
        if config is None:
            config = RecursiveMASConfig.from_dict(source.json("config.json"), name_or_path=source.repository)
        config = copy.deepcopy(config)
        if isinstance(kwargs.get("prompts"), str | os.PathLike):
            kwargs["prompts"] = read_prompts(kwargs["prompts"])
        for key, value in kwargs.items():
            if key not in RecursiveMASConfig().to_dict():
                raise ArgumentError(
                    "Unknown argument.",
                    where="RecursiveMASModel.from_pretrained",
                    found=key,
                    hint="pass arguments for the agents' models as `agent_kwargs`",
                )
            setattr(config, key, value)
        if task is not None:
            config.task = task
            config.link_task = task if task in config.link_tasks else config.link_task
        topology = config.validate_system()
        if isinstance(device, dict) and not device.keys() <= set(topology.roles):
            raise InputError(
                "Unknown role.", where="device", found=", ".join(device), expected=", ".join(topology.roles)
            )

        if offload is not None and (offload != "cpu" or device is None or "device_map" in shared):
            raise InputError(
                "`offload` cannot be used like this.",
                where="offload",
                found=f"offload={offload!r}, device={device!r}, device_map={shared.get('device_map')!r}",
                expected='offload="cpu" together with a device, and no device_map',
            )
        link_dtype = None if outer_dtype in (None, "auto") else getattr(torch, str(outer_dtype).removeprefix("torch."))
        built = dict(agents or {})
        places = {
            role: source.other(config.agents[role]["source"], config.agents[role].get("revision"))
            for role in topology.roles
            if role not in built
        }
        widths = {role: agent.hidden_size for role, agent in built.items()}
        tokenizers, empty = {}, {}
        # Files are fetched side by side, agents built one after another: `from_pretrained` sets the default dtype and
        # initialisers of the whole process (in four threads 38 of 42 models came out in another agent's dtype or
        # without weights), and it reads the weights of one model in threads already.
        pool = ThreadPoolExecutor()
        try:
            # Everything small is read and checked before the first weight of an agent.
            small = pool.map(lambda place: place.fetch(SMALL_FILES), places.values())
            for role, place in zip(places, small, strict=True):
                agent_config = load_model_config(place, role)
                widths[role] = agent_config.get_text_config().hidden_size
                check_architecture(config.agents[role], agent_config, widths[role], role)
                tokenizers[role] = load_tokenizer(place, role)
                _check_tokenizer(tokenizers[role], agent_config, role, config.chat_template_kwargs)
                if only is not None and role not in only:
                    empty[role] = build_empty_model(place, agent_config)
            inner_links, outer_links = load_links(source, config, widths, link_dtype, skip=tuple(built))
            wanted = {role: place for role, place in places.items() if role not in empty}
            complete = pool.map(lambda place: place.fetch(WEIGHT_FILES), wanted.values())
            for role in _progress(tuple(places), "Loading agents"):
                options = {key: _of_role(value, role, topology.roles) for key, value in shared.items()}
                options |= _for_role(agent_kwargs, role, topology.roles)
                if role in empty:
                    model = empty[role]
                else:
                    place = None if offload else _of_role(device, role, topology.roles)
                    model = _load_model(next(complete), role, place, options)
                inner_link = inner_links[role].to(model.get_input_embeddings().weight.device)
                built[role] = RecursiveMASAgent(model, inner_link, tokenizers[role], role)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        devices = {
            role: (offload and _of_role(device, role, topology.roles)) or built[role].device for role in topology.roles
        }
        for link in topology.links:
            outer_links[link.name].to(devices[link.source])
        model = cls(config, built, outer_links)
        model.residency = Residency(built, devices) if offload else None
        if generation_config is not None:
            model.generation_config.update(**generation_config.to_diff_dict())
        elif (saved := source.json("generation_config.json", required=False)) is not None:
            model.generation_config = GenerationConfig.from_dict(saved)
        model.config.name_or_path = source.repository
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        copy_agents: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> None:
        """Writes the system as a repository: config.json, tokenizer, remote code, `links/` and `agents/`.

        Agents that came from another repository are referenced, not copied, unless asked.

        Args:
            save_directory: folder, created if need be.
            copy_agents: write every agent, so that the folder needs nothing else.
            state_dict: weights of the links to write instead of the current ones (keys as in `state_dict()`).
            kwargs: `push_to_hub` and its arguments are not taken here; use `recursivemas publish`.
        """
        if kwargs.pop("push_to_hub", False):
            raise ArgumentError("Saving does not push.", where="save_pretrained", hint="use `push_to_hub(repo_id)`")
        folder = Path(save_directory)
        state = self.state_dict() if state_dict is None else state_dict
        config = copy.deepcopy(self.config)
        for role, agent in self.agents.items():
            entry = config.agents[role]
            if agent.inner_link.kind != EXPECTED_EMBEDDING:
                _save_link(state, f"agents.{role}.inner_link.", folder / "links" / link_filename(role))
            entry["inner_link"].pop("weights", None)
            if copy_agents or entry["source"].startswith(("agents/", "./")):
                origin = Path(config.name_or_path, entry["source"])
                entry["source"], entry["revision"] = f"agents/{role}", None
                target = folder / "agents" / role
                in_place = config.name_or_path and origin.resolve() == target.resolve() and target.is_dir()
                if not in_place:  # else the weights would be written onto the files they are mapped from
                    agent.model.save_pretrained(target)
                    agent.tokenizer.save_pretrained(target)
        for entry, link in zip(config.links, self.topology.links, strict=True):
            _save_link(state, f"outer_links.{link.name}.", folder / "links" / link_filename(link.name))
            entry.pop("weights", None)
        config.link_task = None
        config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        with contextlib.suppress(shutil.SameFileError):  # saved into the repository that the code came from
            custom_object_save(self, folder)

    # Parts

    def transfer(self, source: str, target: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """What travels along a link: outer(inner(hidden_states)).

        Args:
            source, target: roles, connected by a link.
            hidden_states: latent thoughts of the source (`think`), (batch, steps, width of the source).

        Returns:
            (batch, steps, width of the target), in the outer link's dtype.
        """
        name = f"{source}_to_{target}"
        if name not in self.outer_links:
            raise InputError("No such link.", where="transfer", found=name, expected=", ".join(self.outer_links))
        return self.outer_links[name](self.agents[source].inner_link(hidden_states))

    @property
    def outer_adapters(self) -> dict[str, nn.Module]:
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
    def init_continuous_batching(self):
        """Hidden, because continuous batching would bypass the recursion."""
        raise AttributeError("a recursive system cannot be batched continuously")

    # Answering

    def compile_steps(self, enabled: bool = True) -> None:
        """Lets all agents' latent steps run as compiled graphs, see `RecursiveMASAgent.compile_steps`."""
        for agent in self.agents.values():
            agent.compile_steps(enabled)

    def check_inputs(
        self,
        questions: list[str],
        num_rounds: int | None = None,
        latent_steps: int | None = None,
        task: str | None = None,
        prompts: dict | str | os.PathLike | None = None,
        mode: str = "latent",
    ) -> dict:
        """The one check of a call's arguments, before any compute.

        Returns:
            The arguments with the configuration's defaults filled in.

        Raises:
            InputError: an argument cannot be used.
            ConfigError: the prompt set does not fit the topology.
        """
        if isinstance(questions, str) or not isinstance(questions, list | tuple) or not questions:
            raise InputError(
                "There is no question.", where="questions", found=repr(questions)[:80], expected="a list of texts"
            )
        for index, question in enumerate(questions):
            if not isinstance(question, str) or not question.strip():
                raise InputError(
                    "A question is empty or no text.",
                    where=f"questions, number {index + 1} of {len(questions)}",
                    found=repr(question)[:80],
                    expected="a text that says something",
                )
        num_rounds = self.config.num_rounds if num_rounds is None else num_rounds
        latent_steps = self.config.latent_steps if latent_steps is None else latent_steps
        check_numbers(num_rounds, latent_steps, InputError)
        if mode not in MODES:
            raise InputError("Unknown mode.", where="mode", found=repr(mode), expected=", ".join(MODES))
        if prompts is None:
            prompts = self.config.prompts
        else:
            prompts = prompts if isinstance(prompts, dict) else read_prompts(prompts)
            check_prompts(prompts, self.topology)
        task = check_task(self.config.task if task is None else task)
        return {
            "num_rounds": num_rounds, "latent_steps": latent_steps, "task": task, "prompts": prompts, "mode": mode
        }  # fmt: skip

    def new_run(
        self,
        questions: list[str],
        config: GenerationConfig,
        arguments: dict,
        latent_halting: bool | None = None,
        message_tokens: int | None = None,
    ) -> Run:
        """A run over a batch, with arguments that `check_inputs` has checked."""
        message_config = copy.deepcopy(config)
        message_config.max_new_tokens = message_tokens or self.config.message_tokens
        for field in ("max_length", "min_length", "min_new_tokens", "stop_strings", "num_return_sequences"):
            setattr(message_config, field, None)
        return Run(
            agents=dict(self.agents.items()),
            outer_links=dict(self.outer_links.items()),
            renderers=self.renderers,
            topology=self.topology,
            questions=questions,
            halting=self.config.latent_halting if latent_halting is None else latent_halting,
            message_config=message_config,
            residency=self.residency,
            **arguments,
        )

    @torch.no_grad()
    def solve(
        self,
        questions: list[str] | str,
        *,
        num_rounds: int | None = None,
        latent_steps: int | None = None,
        task: str | None = None,
        prompts: dict | str | os.PathLike | None = None,
        mode: str = "latent",
        latent_halting: bool | None = None,
        message_tokens: int | None = None,
        batch_size: int = 32,
        complete_answer: bool = False,
        return_latents: bool = False,
        tools: Tools | None = None,
        on_progress: Callable[[int], None] | None = None,
        **generation_kwargs,
    ) -> list[Solution]:
        """Answers questions.

        Args:
            questions: texts (one text is taken as a list of one).
            num_rounds: recursion rounds (>= 1); default from the configuration, as for the next three.
            latent_steps: latent steps of each rollout (>= 0; 0 sends nothing).
            task: chooses the prompts: default, math, choice, code or reasoning.
            prompts: a prompt set, or a JSON file with one, instead of the configuration's.
            mode: "latent", "text" (the same agents hand over generated text) or "alone" (the decoding agent only).
            latent_halting: end each row's latent steps where its agent has finished.
            message_tokens: most new tokens of a message in `mode="text"`.
            batch_size: questions that run side by side; rows of a batch do not influence each other.
            complete_answer: where an answer lacks its box (math, choice) or its block (code), write the line that
                opens it and continue once, as the public release does.
            return_latents: keep what travelled along every link of every round.
            tools: tag -> function from text to text; what the decoding agent writes between `<TAG>` and `</TAG>` in
                its answer is handed to it, and decoding goes on after `<result>…</result>`, which becomes part of the
                text (see tools_recursivemas.py). Messages and latents use no tools.
            on_progress: called with the number of questions finished since the last call.
            generation_kwargs: transformers' own, for the answer (and its sampling settings for messages).

        Returns:
            One `Solution` per question, in order.

        Raises:
            InputError, ConfigError: see `check_inputs`.
        """
        questions = [questions] if isinstance(questions, str) else questions
        arguments = self.check_inputs(questions, num_rounds, latent_steps, task, prompts, mode)
        for name, value in (("batch_size", batch_size), ("message_tokens", message_tokens)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"`{name}` cannot be used.", where=name, found=repr(value), expected=">= 1")
        if tools is not None:
            check_tools(tools)
        given = generation_kwargs.pop("generation_config", None)
        for settings in (generation_kwargs, given.to_dict() if given else {}):
            if settings.get("num_return_sequences") not in (None, 1):
                raise InputError(
                    "`solve` returns one result per question.",
                    where="num_return_sequences",
                    found=settings["num_return_sequences"],
                    hint="use `generate`, or repeat the question",
                )
        config, rest = self._generation_config(given, generation_kwargs, 0)
        # Questions of like length share a batch, so that little of it is padding.
        lengths = [len(ids) for ids in self.tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
        order = sorted(range(len(questions)), key=lengths.__getitem__)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        solve_batches = self.executor or self.solve_batches
        solutions: dict[int, Solution] = {}
        for index, solved in solve_batches(
            [[questions[row] for row in rows] for rows in batches],
            config=config,
            rest=rest,
            arguments=arguments,
            latent_halting=latent_halting,
            message_tokens=message_tokens,
            return_latents=return_latents,
            tools=tools,
            complete_answer=complete_answer,
        ):
            solutions.update(zip(batches[index], solved, strict=True))
            if on_progress:
                on_progress(len(solved))
        return [solutions[index] for index in range(len(questions))]

    @torch.no_grad()
    def solve_batches(
        self,
        batches: list[list[str]],
        *,
        config: GenerationConfig,
        rest: dict,
        return_latents: bool,
        tools: Tools | None,
        complete_answer: bool,
        **settings,
    ) -> Iterator[tuple[int, list[Solution]]]:
        """Solves batches one after another; yields each one's index and solutions. An executor does the same."""
        for index, questions in enumerate(batches):
            run = self.new_run(questions, config, **settings)
            # What goes on after a first answer reads the whole prompt again.
            prompt = run.decoder_prompt(reuse=not tools and not complete_answer and single_sequence(config))
            yield index, self.answer(run, prompt, config, rest, return_latents, tools, complete_answer)

    @torch.no_grad()
    def answer(
        self,
        run: Run,
        prompt: Prompt,
        config: GenerationConfig,
        rest: dict,
        return_latents: bool = False,
        tools: Tools | None = None,
        complete_answer: bool = False,
    ) -> list[Solution]:
        """The decoding agent's answers to a batch, from its last prompt."""
        role = self.config.decoding_role
        decoder = self.agents[role]
        started = time.perf_counter()
        if tools:
            answers, read = generate_with_tools(decoder, self.renderers[role], prompt, tools, config, **rest)
        else:
            ids = generate_from(decoder, prompt, generation_config=config, **rest)
            answers = trim(ids, decoder.eos_token_ids)
            read = [0] * len(answers)
        if complete_answer and run.task in OPENINGS:
            opened = self._complete(prompt, answers, run.task, config, rest)
            read = [count + more for count, more in zip(read, opened, strict=True)]
        run.lap("answer", started, role)
        solutions = []
        for row, (new_ids, read_tokens) in enumerate(zip(answers, read, strict=True)):
            text = decoder.decode(new_ids)
            usage = {
                "prompt_tokens": run.usage.prompt_tokens[row] + read_tokens,
                "latent_positions": run.usage.latent_positions[row],
                "new_tokens": run.usage.new_tokens[row] + len(new_ids) - read_tokens,
                "seconds": dict(run.usage.seconds),
            }
            messages = {key: texts[row] for key, texts in run.texts.items()} or None
            latents = {key: sent[row] for key, sent in run.latents.items()} if return_latents else None
            solutions.append(Solution(text, extract_answer(text, run.task), usage, messages, latents))
        return solutions

    def _complete(
        self, prompt: Prompt, answers: list[list[int]], task: str, config: GenerationConfig, rest: dict
    ) -> list[int]:
        """Continues, in place, the answers that lack what the task asks for.

        Args:
            prompt: what the answers were generated from, without a cache.
            answers: each row's ids.

        Returns:
            For each row, how many ids were put there by this method, as the line that opens the answer.
        """
        decoder, renderer = self.agents[self.config.decoding_role], self.renderers[self.config.decoding_role]
        sign, line, new_tokens = OPENINGS[task]
        opening = renderer.message_ids(line)
        rows = [row for row, ids in enumerate(answers) if sign not in decoder.decode(ids)]
        if not rows:
            return [0] * len(answers)
        pieces = []
        for row in rows:
            answers[row] = [*(token for token in answers[row] if token not in decoder.eos_token_ids), *opening]
            pieces.append([prompt.inputs_embeds[row][prompt.attention_mask[row].bool()], answers[row]])
        config = copy.deepcopy(config)
        config.max_new_tokens, config.min_new_tokens = new_tokens, None
        ids = generate_from(decoder, Prompt(*embed_rows(decoder, pieces)), generation_config=config, **rest)
        for row, new_ids in zip(rows, trim(ids, decoder.eos_token_ids), strict=True):
            answers[row] += new_ids
        return [len(opening) * (row in rows) for row in range(len(answers))]

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        attention_mask: torch.Tensor | None = None,
        streamer=None,
        **kwargs,
    ):
        """Answers a batch of tokenized questions, with the interface of transformers' `generate`.

        Args:
            inputs: `input_ids`, (batch, length), in the decoding agent's vocabulary.
            generation_config: settings; attributes `num_rounds`, `latent_steps`, `task`, `mode` on it count too.
            attention_mask: (batch, length), zeros on padding.
            streamer: gets the question's ids, then the new ids.
            kwargs: generation arguments, and the method's own `num_rounds`, `latent_steps`, `task`, `mode`,
                `prompts`, `latent_halting`, `message_tokens`.

        Returns:
            (batch, length + new) ids: the question's and the answer's; or what `return_dict_in_generate` asks for.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None or input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise InputError(
                "There is no question.",
                where="generate, input_ids",
                found=None if input_ids is None else tuple(input_ids.shape),
                expected="ids of a text, (batch, length >= 1)",
            )
        if self.executor is not None:
            raise InputError(
                "`generate` needs the agents in this process.", where="generate", hint="use `solve`, or no executor"
            )
        own = {key: getattr(generation_config, key, None) for key in METHOD_KEYS}
        own |= {key: kwargs.pop(key) for key in (*METHOD_KEYS, "prompts") if kwargs.get(key) is not None}
        settings = {key: kwargs.pop(key, None) for key in ("latent_halting", "message_tokens")}
        questions = self._questions(input_ids, attention_mask)
        own = {key: value for key, value in own.items() if value is not None}
        arguments = self.check_inputs(questions, **own)
        config, rest = self._generation_config(generation_config, kwargs, input_ids.shape[1])
        decoder = self.agents[self.config.decoding_role]
        # With the question's ids beside the embeddings, what comes back (and every criterion on the way) sees
        # question and answer, while the first forward pass reads the embeddings.
        prompt = self.new_run(questions, config, arguments, **settings).decoder_prompt(reuse=single_sequence(config))
        return generate_from(
            decoder,
            prompt,
            input_ids=input_ids.to(decoder.device),
            generation_config=config,
            streamer=streamer,
            **rest,
        )

    def _questions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[str]:
        """Token ids -> texts. What the tokenizer adds by itself is dropped, special tokens in the text are not."""
        added = self.tokenizer("")["input_ids"]
        questions = []
        for row, ids in enumerate(input_ids.tolist()):
            if attention_mask is not None:
                ids = [token for token, seen in zip(ids, attention_mask[row].tolist(), strict=True) if seen]
            if added and ids[: len(added)] == added:
                ids = ids[len(added) :]
            text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            questions.append(text)
        return questions

    def _generation_config(
        self, given: GenerationConfig | None, kwargs: dict, prompt_length: int
    ) -> tuple[GenerationConfig, dict]:
        """Merges settings; lengths that count the caller's prompt become lengths of the answer.

        Returns:
            The settings, and the arguments that are none (stopping criteria, tokenizer, …).
        """
        config = copy.deepcopy(given or self.generation_config)
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        if "max_length" in kwargs and "max_new_tokens" not in kwargs:
            config.max_new_tokens = None  # what the caller says beats what a file says
        rest = config.update(**kwargs)
        for key in METHOD_KEYS:
            rest.pop(key, None)
        if config.max_new_tokens is None:
            longest = self.config.message_tokens if config.max_length is None else config.max_length - prompt_length
            config.max_new_tokens = max(1, longest)
        if config.min_new_tokens is None and config.min_length:
            config.min_new_tokens = max(0, config.min_length - prompt_length)
        config.max_length = config.min_length = None
        if not config.do_sample:
            config.temperature = config.top_p = config.top_k = config.min_p = None  # unused, and warned about
        if config.eos_token_id is None:
            config.eos_token_id = self.agents[self.config.decoding_role].eos_token_ids
        if config.pad_token_id is None:
            config.pad_token_id = self.agents[self.config.decoding_role].pad_token_id
        return config, rest


def read_prompts(path: str | os.PathLike) -> dict:
    """A prompt set from a JSON file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "A prompt set cannot be read.", where=f"prompts, {path}", found=error, expected="a JSON file"
        ) from error


def _progress(items: tuple, description: str) -> Iterator:
    """One progress bar over the items, in place of transformers' own bar for each of them."""
    enabled = logging.is_progress_bar_enabled()
    bar = logging.tqdm(items, desc=description, unit="agent", leave=False, delay=2)
    logging.disable_progress_bar()
    try:
        yield from bar
    finally:
        if enabled:
            logging.enable_progress_bar()


def _for_role(agent_kwargs: dict | None, role: str, roles: tuple[str, ...]) -> dict:
    """Arguments for one agent out of a dict for all, in which role -> dict sets them per role."""
    kwargs = dict(agent_kwargs or {})
    own = {name: kwargs.pop(name) for name in roles if name in kwargs}
    return {**kwargs, **own.get(role, {})}


def _of_role(value: object, role: str, roles: tuple[str, ...]) -> object:
    """An argument for one agent: the value for all, or the role's entry where the value is a dict by role."""
    by_role = isinstance(value, dict) and value and value.keys() <= set(roles)
    return value.get(role) if by_role else value


def _load_model(place: Source, role: str, device: str | torch.device | None, options: dict) -> PreTrainedModel:
    options = {key: value for key, value in options.items() if value is not None}
    if device is not None and "quantization_config" in options:
        options.setdefault("device_map", {"": device})  # quantized weights cannot be moved afterwards
    model = load_base_model(place, role, **options)
    return model if device is None or "device_map" in options else model.to(device)


def load_links(
    source: Source,
    config: RecursiveMASConfig,
    widths: dict[str, int],
    dtype: torch.dtype | None = None,
    skip: tuple[str, ...] = (),
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Reads the links of a system.

    Args:
        source: the system's own repository.
        config: the system's configuration; its `link_task` chooses among weights per task.
        widths: role -> hidden size of its agent.
        dtype: of the links; `None` keeps the stored one.
        skip: roles that need no inner link.

    Returns:
        Role -> inner link, and link name -> outer link.
    """
    inner_links, outer_links = {}, {}
    for role, entry in config.agents.items():
        if role not in skip:
            inner = entry.get("inner_link") or {}
            if inner.get("kind") == EXPECTED_EMBEDDING:  # has no weights of its own
                tensors, where, stated = {}, f"{source}, link {role}", EXPECTED_EMBEDDING
            else:
                tensors, where, stated = read_link(source, inner.get("weights"), role, config.link_task)
            kind = inner.get("kind") or stated
            inner_links[role] = build_link(tensors, where=where, in_features=widths[role], kind=kind, dtype=dtype)
    for link, entry in zip(config.topology.links, config.links, strict=True):
        tensors, where, stated = read_link(
            source, entry.get("weights"), link.name, config.link_task, entry.get("legacy_key")
        )
        outer_links[link.name] = build_link(
            tensors,
            where=where,
            in_features=widths[link.source],
            out_features=widths[link.target],
            kind=entry.get("kind") or stated,
            dtype=dtype,
        )
    return inner_links, outer_links


def check_architecture(entry: dict, agent_config: PreTrainedConfig, hidden_size: int, role: str) -> None:
    """Holds an agent against its entry of the configuration, and fills in what the entry leaves open.

    `gemma3` and `gemma3_text` are the same for this: a multimodal checkpoint, and its language part alone.
    """
    for field, value in {"hidden_size": hidden_size, "model_type": agent_config.model_type}.items():
        stated = entry.setdefault(field, value)
        if str(stated).removesuffix("_text") != str(value).removesuffix("_text"):
            raise ConfigError(
                f"An agent's {field} is not what the configuration says.",
                where=f"agents, {role}, {entry['source']}",
                found=value,
                expected=stated,
                hint="check that `source` names the right repository for this role",
            )


def _check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, agent_config: PreTrainedConfig, role: str, chat_template_kwargs: dict
) -> None:
    """Checks that the model knows every token, and that the chat template can be rendered."""
    if len(tokenizer) > agent_config.get_text_config().vocab_size:
        raise CheckpointError(
            "A tokenizer has more tokens than its model has embeddings.",
            where=f"agent {role}, {tokenizer.name_or_path}",
            found=f"{len(tokenizer)} tokens",
            expected=f"at most {agent_config.get_text_config().vocab_size} (vocab_size in config.json)",
            hint="check that tokenizer and model belong together",
        )
    PromptRenderer(tokenizer, role, chat_template_kwargs).render(None, "")


def _save_link(state: dict[str, torch.Tensor], prefix: str, path: Path) -> None:
    tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not tensors:
        raise CheckpointError("There are no weights to save.", where=f"save_pretrained, {path}", expected=f"{prefix}*")
    write_tensors(tensors, path)
