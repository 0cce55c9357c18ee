"""Answering: from a caller's questions and arguments, by `solve` or `generate`, to runs and what they give."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .agent_recursivemas import RecursiveMASAgent
from .callers_recursivemas import infer_mask, is_assisted, judge_arguments, validate_ids
from .configuration_recursivemas import RecursiveMASConfig
from .depth_recursivemas import paced
from .engine_recursivemas import Residency, Run, solve_batch
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
from .links_recursivemas import AnyOuterLink
from .memory_recursivemas import free_memory
from .modules_recursivemas import Modules
from .positions_recursivemas import fit_positions
from .prompts_recursivemas import PromptRenderer, Question, as_text, input_fields, questions_of_ids
from .runs_recursivemas import RunSettings, validate_count
from .settings_recursivemas import read_settings, validate_arguments
from .solutions_recursivemas import Solution
from .tools_recursivemas import ToolBox, Tools, tools_of_roles
from .topology_recursivemas import Topology

RUN_ARGUMENTS = tuple(RunSettings.__dataclass_fields__)  # of `solve`, and of `generate` beside transformers' own


class AnsweringSystem(PreTrainedModel):
    """What questions are asked of a system's parts; `RecursiveMASModel` brings these."""

    config: RecursiveMASConfig
    agents: Modules[RecursiveMASAgent]
    outer_links: Modules[AnyOuterLink]
    topology: Topology
    tokenizer: Any
    renderers: dict[str, PromptRenderer]
    generation_config: GenerationConfig
    executor: Callable[..., Iterator[tuple[int, list[Solution]]]] | None
    residency: Residency | None
    tools: Tools | Sequence[Any] | None

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
                found = solve_batch(self, part, settings, answer, on_turn, on_step, paced)
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
        run = paced(Run(self, questions, settings, config, tools=self._message_tools(boxes)))
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
