"""The composite model: agents and links that answer as one causal language model, and its doors.

`auto_map` points at this file for the configuration too, so that every class comes from one module copy.
"""

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .agent_options_recursivemas import ROLE_OPTIONS, AgentOptions, validate_place
from .agent_recursivemas import RecursiveMASAgent
from .bases_recursivemas import copy_tokenizer, refuse_unmerged
from .callers_recursivemas import infer_mask, is_assisted, judge_arguments, validate_ids
from .chats_recursivemas import CHAT_TEMPLATES
from .configuration_recursivemas import RecursiveMASConfig, validate_count
from .depth_recursivemas import kind_of_run
from .engine_recursivemas import Residency, fit_positions, solve_batch
from .errors_recursivemas import CheckpointError, ConfigError, InputError
from .generation_recursivemas import (
    AnswerSettings,
    answer_config,
    continues_cache,
    ends_of,
    generate_from,
    generate_with_tools,
    validate_one_text,
)
from .handover_recursivemas import hand_over
from .links_recursivemas import AnyInnerLink, AnyOuterLink, InnerLink
from .loading_recursivemas import fill_config, load_system, read_configuration, validate_outer_link, validate_parts
from .memory_recursivemas import free_memory
from .mixtures_recursivemas import ExpectedEmbeddingLink
from .modules_recursivemas import Modules
from .prompts_recursivemas import PromptRenderer, Question, as_text, input_fields, questions_of_ids, read_prompts
from .pushing_recursivemas import push_folder, pushed, save_arguments
from .runs_recursivemas import RunSettings
from .saving_recursivemas import (
    SYSTEM_FILES,
    adapter_writers,
    agent_writers,
    is_folder,
    pinned,
    save_system,
    saved_links,
)
from .settings_recursivemas import read_settings, validate_arguments
from .sharing_recursivemas import shared_bases
from .solutions_recursivemas import Solution
from .sources_recursivemas import Source, split_arguments
from .thinking_recursivemas import Rollout
from .threads_recursivemas import one_at_a_time
from .tools_recursivemas import ToolBox, Tools, tools_of_roles

RUN_ARGUMENTS = tuple(RunSettings.__dataclass_fields__)  # of `solve`, and of `generate` beside transformers' own


class RecursiveMASModel(PreTrainedModel, GenerationMixin):
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

    # Answering

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """There is none: an answer takes several models and rounds.

        Raises:
            InputError: always; it names what to use.
        """
        raise InputError(
            "A system has no forward pass.",
            where="RecursiveMASModel.forward",
            hint="use `generate` or `solve` for answers, `mas.agents[role].model` for one agent's logits, and"
            " `recursivemas train` to train the links",
        )

    @property
    def input_fields(self) -> list[str]:
        """The fields of a question that the system's prompts name, `question` first; most systems have no other."""
        return input_fields(self.config.prompts)

    def compile_steps(self, enabled: bool = True) -> None:
        """Lets all agents' latent steps run as compiled graphs, see `RecursiveMASAgent.compile_steps`."""
        for agent in self.agents.values():
            agent.compile_steps(enabled)

    @torch.no_grad()
    def solve(
        self,
        questions: Sequence[Question] | Question,
        *,
        num_rounds: int | str | None = None,
        latent_steps: int | None = None,
        task: str | None = None,
        prompts: dict | str | os.PathLike | None = None,
        mode: str | None = None,
        latent_halting: bool | None = None,
        control_tokens: bool | None = None,
        message_tokens: int | None = None,
        control: str | None = None,
        settling: dict | None = None,
        batch_size: int = 32,
        complete_answer: bool = False,
        return_latents: bool = False,
        tools: Tools | Sequence[Any] | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_turn: Callable[[int, str], None] | None = None,
        on_step: Callable[[], object] | None = None,
        on_solutions: Callable[[list[int], list[Solution]], None] | None = None,
        keep_order: bool = False,
        **generation_kwargs: Any,
    ) -> list[Solution]:
        """Answers questions.

        Args:
            questions: texts, or mappings of fields to texts (`{"question": ..., "facts": ...}`) where the prompts name
                fields: those that the prompts of this run name, and no field that none names. One is a list of one.
            num_rounds: recursion rounds (>= 1), or "auto": for each question, until its recursion has settled; default
                from the generation config, which may hold every field of `RunSettings`, else from the configuration,
                as for the next three.
            latent_steps: latent steps of each rollout (>= 0; 0 sends nothing).
            task: chooses the prompts: default, math, choice, code or reasoning.
            prompts: a prompt set, or a JSON file with one, instead of the configuration's.
            mode: "latent" (the default), "text" (the same agents hand over generated text) or "alone" (the decoding
                agent only).
            latent_halting: end each row's latent steps where its agent has finished.
            control_tokens: whether latents that say a special token count, and travel.
            message_tokens: most new tokens of a message in `mode="text"`.
            control: what stands in the slots in place of the latents, to see what these carry, see `RunSettings`.
            settling: entries that replace the configuration's (`signal`, `threshold`, `max_rounds`) with "auto".
            batch_size: questions that run side by side; rows of a batch do not influence each other (but where
                another question's latents are asked for: batches keep the order of the questions then).
            complete_answer: where an answer lacks its box (math, choice) or its block (code), write the line that
                opens it and continue once, as the public release does.
            return_latents: keep what travelled along every link of every round.
            tools: tag -> function from text to text, or a list of functions or schemas, or a `ToolBox` with limits of
                its own; what the decoding agent writes between `<TAG>` and `</TAG>` in its answer is handed to it,
                and decoding goes on after `<result>…</result>`, which becomes part of the text (see
                tools_recursivemas.py). Roles that the configuration declares tools for have these, in messages too;
                latents use none. Default: the attribute `tools`; `{}` for none.
            on_progress: called with the number of questions finished since the last call.
            on_turn: called with round and role after each turn of each batch, the answer's too; what it raises ends
                the call.
            on_step: called at each latent step and each token of each batch (not over Ray); what it raises ends the
                call there.
            on_solutions: called with the indices of a batch's questions and their solutions, as it is finished.
            keep_order: batches take the questions as they come, not by length.
            generation_kwargs: transformers' own, for the answer (and its sampling settings for messages).

        Returns:
            One `Solution` per question, in order.

        Raises:
            InputError, ConfigError: an argument cannot be used; before any compute.
        """
        questions = [questions] if isinstance(questions, str | Mapping) else questions
        given = generation_kwargs.get("generation_config")
        validate_arguments(generation_kwargs, self._known_names())
        settings = self._run_settings(
            given,
            num_rounds=num_rounds,
            latent_steps=latent_steps,
            mode=mode,
            task=task,
            prompts=prompts,
            latent_halting=latent_halting,
            control_tokens=control_tokens,
            message_tokens=message_tokens,
            control=control,
            settling=settling,
        )
        settings.validate_questions(questions, self.topology)
        if self.executor is not None and settings.settling:
            raise InputError(
                "Agents in other processes take a number of rounds.", where="num_rounds", found="auto", hint="a number"
            )
        swaps = settings.control == "other_question"
        validate_count("batch_size", batch_size, 2 if swaps else 1)
        boxes = self._tools_of_roles(tools)
        sequences = generation_kwargs.get("num_return_sequences")
        for saved in (given, self.generation_config):
            sequences = getattr(saved, "num_return_sequences", None) if sequences is None else sequences
        if sequences not in (None, 1):
            raise InputError(
                "`solve` returns one result per question.",
                where="num_return_sequences",
                found=sequences,
                hint="use `generate`, or repeat the question",
            )
        config, model_kwargs = self._answer_config(generation_kwargs, prompt_length=0)
        if is_assisted(config, model_kwargs) and not swaps:
            batch_size = 1  # candidates are drafted for one row at a time
        judge_arguments(self._decoder, config, model_kwargs, min(batch_size, len(questions)))
        self._fit_positions(questions, settings, config, generation_kwargs)
        box = boxes.get(self.config.decoding_role)
        answer = AnswerSettings(config, model_kwargs, box, self._message_tools(boxes), complete_answer, return_latents)
        # Questions of like length share a batch, so that little of it is padding; who gets what was sent for the next
        # question chooses the order.
        texts = list(map(as_text, questions))
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        in_order = swaps or keep_order
        order = list(range(len(questions))) if in_order else sorted(range(len(questions)), key=lengths.__getitem__)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if swaps and len(batches[-1]) == 1:
            single = batches.pop()
            batches[-1] += single
        solutions: dict[int, Solution] = {}
        solve_batches = self.executor or partial(self.solve_batches, on_step=on_step)
        asked = [[questions[row] for row in rows] for rows in batches]
        for index, solved in solve_batches(asked, settings, answer, on_turn):
            solutions.update(zip(batches[index], solved, strict=True))
            if on_solutions:
                on_solutions(batches[index], solved)
            if on_progress:
                on_progress(len(solved))
        return [solutions[index] for index in range(len(questions))]

    @torch.no_grad()
    def solve_batches(
        self,
        batches: list[list[Question]],
        settings: RunSettings,
        answer: AnswerSettings,
        on_turn: Callable[[int, str], None] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Iterator[tuple[int, list[Solution]]]:
        """Solves batches one after another; yields each one's index and solutions. An executor does the same.

        Where memory does not suffice for a batch, it is solved in halves (of halves), and so are those that follow.
        """
        most = max(map(len, batches))  # that memory holds
        for index, questions in enumerate(batches):
            solved: list[Solution] = []
            while len(solved) < len(questions):
                part = questions[len(solved) : len(solved) + most]
                found = solve_batch(self, part, settings, answer, on_turn, on_step, kind_of_run(settings))
                if found is None:
                    most = len(part) // 2
                    free_memory()
                solved += found or []
            yield index, solved

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | Sequence[Question] | Question | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[Callable] | None = None,
        stopping_criteria: Sequence[Callable] | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        streamer: Any = None,
        tools: Tools | Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | ModelOutput:
        """Answers a batch of questions, with the interface of transformers' `generate`.

        Args:
            inputs: `input_ids`, (batch, length), in the decoding agent's vocabulary; or questions as `solve` takes
                them, which are tokenized here (the fields of a mapping one a line). Ids of a chat may hold the start
                of the answer, see chats_recursivemas.py.
            generation_config: settings; the fields of `RunSettings` count on it too.
            logits_processor, stopping_criteria: functions of the caller's, which see the question's ids and the new
                ones; transformers' own, and settings like `repetition_penalty`, read the decoding agent's prompt.
            attention_mask: (batch, length), zeros on padding; inferred as transformers does where it is not given.
            streamer: gets the question's ids, then the new ids (with tools, when the answers are whole).
            tools: answer the calls in what is written, as in `solve`; results are among the new ids.
            kwargs: transformers' generation arguments, and the fields of `RunSettings`.

        Returns:
            (batch, length + new) ids: the question's and the answer's; or what `return_dict_in_generate` asks for.

        Raises:
            InputError, ConfigError, ArgumentError: an argument cannot be used; before any compute.
        """
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise InputError("The question was given twice.", where="generate", found="`inputs` and `input_ids`")
        given = kwargs.pop("input_ids", None) if inputs is None else inputs
        kwargs.pop("input_ids", None)
        own = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria, "streamer": streamer}
        kwargs |= {name: value for name, value in own.items() if value is not None}
        validate_arguments({**kwargs, "generation_config": generation_config}, self._known_names())
        if isinstance(given, torch.Tensor):
            validate_ids(given, attention_mask, self._decoder.get_input_embeddings().num_embeddings)
        elif attention_mask is not None:
            raise InputError("Texts have no mask.", where="generate, attention_mask", expected="only beside ids")
        boxes = self._tools_of_roles(tools)
        box = boxes.get(self.config.decoding_role)
        if self.executor is not None:
            raise InputError(
                "`generate` needs the agents in this process.", where="generate", hint="use `solve`, or no executor"
            )
        settings = self._run_settings(generation_config, **{name: kwargs.pop(name, None) for name in RUN_ARGUMENTS})
        questions: Sequence[Question]  # with the starts of answers, which `Run` tells apart
        if isinstance(given, torch.Tensor):
            input_ids = given
        else:
            questions = [given] if isinstance(given, str | Mapping) else given
            settings.validate_questions(questions, self.topology)
            input_ids = self._ids_of(questions)
        kwargs["generation_config"] = generation_config
        config, model_kwargs = self._answer_config(kwargs, prompt_length=input_ids.shape[1])
        if box:
            validate_one_text(config)
        if isinstance(given, torch.Tensor):
            mask = infer_mask(given, config, ends_of(config)) if attention_mask is None else attention_mask
            questions = questions_of_ids(self.tokenizer, given, mask)
            settings.validate_questions(questions, self.topology)
        judge_arguments(self._decoder, config, model_kwargs, len(questions))
        self._fit_positions(questions, settings, config, kwargs)
        input_ids = input_ids.to(self._decoder.device)
        if streamer is not None:
            copies = max(config.num_beams or 1, config.num_return_sequences or 1)
            try:
                streamer.put(input_ids.cpu().repeat_interleave(copies, dim=0))
            except ValueError as error:
                raise InputError("The streamer refuses this batch.", where="streamer", found=error) from error
        reuse = continues_cache(config, model_kwargs) and not box
        run = kind_of_run(settings)(self, questions, settings, config, tools=self._message_tools(boxes))
        prompt = run.decoder_prompt(reuse)
        if box:
            renderer = self.renderers[self.config.decoding_role]
            return generate_with_tools(self._decoder, renderer, prompt, box, config, model_kwargs, input_ids)
        return generate_from(self._decoder, prompt, config, model_kwargs, input_ids)

    def _tools_of_roles(self, tools: Tools | Sequence[Any] | None) -> dict[str, ToolBox]:
        """Role -> its tools in a call: of the call's own, else the attribute's."""
        tools = self.tools if tools is None else tools
        return tools_of_roles(tools, self.config.tools, self.config.decoding_role)

    def _message_tools(self, boxes: dict[str, ToolBox]) -> dict[str, ToolBox]:
        """Those of roles that use theirs in messages: that declare them. None of these ends a message."""
        return {role: box.only(box) for role, box in boxes.items()} if self.config.tools else {}

    @property
    def _decoder(self) -> RecursiveMASAgent:
        return self.agents[self.config.decoding_role]

    def _fit_positions(
        self,
        questions: Sequence[Question],
        settings: RunSettings,
        config: GenerationConfig,
        kwargs: Mapping[str, Any],
    ) -> None:
        """Every prompt of the run has room for what a door's generation arguments ask for, see `fit_positions`."""
        names, given = ("max_new_tokens", "max_length"), (kwargs.get("generation_config"), self.generation_config)
        said = any(kwargs.get(name) or any(getattr(each, name, None) for each in given) for name in names)
        fit_positions(self, questions, settings, config, said)

    def _ids_of(self, questions: Sequence[Question]) -> torch.Tensor:
        """Token ids of questions as texts, padded on the left, (batch, length)."""
        rows = self.tokenizer(list(map(as_text, questions)))["input_ids"]
        longest, padding = max(map(len, rows)), self._decoder.pad_token_id
        return torch.tensor([[padding] * (longest - len(row)) + row for row in rows])

    def _known_names(self) -> set[str]:
        """Names beside transformers' own that generation settings may have: ours, and those of the agent's files."""
        own = {*vars(self.generation_config), *vars(self._decoder.model.generation_config)}
        return {*RUN_ARGUMENTS, *(name for name in own if not name.startswith("_"))}

    def _run_settings(self, generation_config: GenerationConfig | None, **arguments: Any) -> RunSettings:
        """What a call asks for: its arguments, before a `generation_config`'s, before the system's own."""
        for name in RUN_ARGUMENTS:
            for config in (generation_config, self.generation_config):
                if arguments.get(name) is None:
                    arguments[name] = getattr(config, name, None)
        return self.config.run_settings(**arguments)

    def _read_generation_config(self, content: dict[str, Any], where: str) -> None:
        """Takes over a generation_config.json; CheckpointError where something in it cannot be used."""
        self.generation_config = read_settings(content, where, self._known_names())
        if isinstance(content.get("prompts", {}), dict):
            try:
                return self._judge_settings()
            except (InputError, ConfigError) as error:
                raise CheckpointError("Settings of a file cannot be used.", where=where, found=error) from error
        raise CheckpointError(
            "A prompt set is an object.", where=f"{where}, prompts", found=repr(content["prompts"])[:200]
        )

    def _judge_settings(self) -> None:
        """Raises InputError or ConfigError where the system's own generation settings cannot be used."""
        self._run_settings(None)
        config, arguments = self._answer_config({}, prompt_length=0)
        judge_arguments(self._decoder, config, arguments, 1)

    def _answer_config(self, kwargs: dict[str, Any], prompt_length: int) -> tuple[GenerationConfig, dict[str, Any]]:
        """Settings of the answer and the rest of a door's generation arguments, see `answer_config`."""
        kwargs = {name: value for name, value in kwargs.items() if name not in ("token_type_ids", *RUN_ARGUMENTS)}
        return answer_config(
            self._decoder,
            self.generation_config,
            kwargs,
            kwargs.pop("generation_config", None),
            prompt_length=prompt_length,
            default_new_tokens=self.config.message_tokens,
        )
