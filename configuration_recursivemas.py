"""Configuration of a composite system: agents, topology, prompts and defaults. All of it is plain JSON."""

import os
from dataclasses import replace
from functools import lru_cache

from transformers import PreTrainedConfig

from .chats_recursivemas import CONVERSATIONS
from .errors_recursivemas import ConfigError, InputError
from .fields_recursivemas import (
    NOTHING,
    OBJECT,
    TEXT,
    TRUTH,
    Kind,
    list_of,
    number,
    one_of,
    table_of,
    validate_field,
    validate_fields,
    whole,
)
from .folders_recursivemas import settle
from .links_recursivemas import ABLATION_KINDS, CACHE, INNER_KINDS, OUTER_KINDS, RESAMPLER, SOFT_PROMPT
from .mixtures_recursivemas import CODEBOOK, EXPECTED_EMBEDDING, MIXTURE_OPTIONS, mixture_options, validate_mixture
from .prompts_recursivemas import (
    TASKS,
    read_prompts,
    template_for,
    validate_prompts,
    validate_task,
)
from .runs_recursivemas import AUTO, CONTROLS, MODES, SIGNALS, RunSettings
from .tools_recursivemas import is_tag
from .topology_recursivemas import Link, Topology

AUTO_MAP = {
    "AutoConfig": "modeling_recursivemas.RecursiveMASConfig",
    "AutoModel": "modeling_recursivemas.RecursiveMASModel",
    "AutoModelForCausalLM": "modeling_recursivemas.RecursiveMASModel",
    # `transformers serve` asks for this one first, and else looks the class up among transformers' own.
    "AutoModelForDecision": "modeling_recursivemas.RecursiveMASModel",
}
# How agents are loaded: arguments of the system's `from_pretrained`, which transformers takes for the configuration's.
LOADING_OPTIONS = ("dtype", "torch_dtype", "attn_implementation", "experts_implementation")

FORMAT_VERSION = 1
LARGEST = 2**31 - 1  # of what has no meaning beyond: sizes, ids of tokens
MODE = one_of(MODES)
TASK = one_of(TASKS)
# What a configuration and a call have in common.
RUN_FIELDS = {
    "num_rounds": whole(1, 10_000) | one_of([AUTO]),
    "latent_steps": whole(0, 1_000_000),
    "message_tokens": whole(1, 1_000_000),
    "latent_halting": TRUTH,
    "control_tokens": TRUTH,
    "task": TASK,
}
SETTLING_FIELDS = {
    "signal": one_of(SIGNALS),
    "threshold": number(-1, 1e6),
    "max_rounds": whole(1, 1000),
    "calibrated": OBJECT,
}
SIZE, TOKEN = whole(1, LARGEST), whole(-1, LARGEST)
FIELDS: dict[str, Kind] = {
    **RUN_FIELDS,
    "settling": OBJECT | NOTHING,
    "style": TEXT | NOTHING,
    "agents": table_of(OBJECT),
    "stages": list_of(list_of(TEXT)),
    "links": list_of(OBJECT),
    "decoding_role": TEXT,
    "prompts": OBJECT,
    "tools": table_of(list_of(TEXT)) | NOTHING,
    "link_task": TEXT | NOTHING,
    "conversation": one_of(CONVERSATIONS),
    "chat_template_kwargs": OBJECT | NOTHING,
    "format_version": whole(1, LARGEST),
    "vocab_size": SIZE | NOTHING,
    "max_position_embeddings": SIZE | NOTHING,
    "bos_token_id": TOKEN | NOTHING,
    "eos_token_id": TOKEN | list_of(TOKEN) | NOTHING,
    "pad_token_id": TOKEN | NOTHING,
    "use_cache": TRUTH,
    "tie_word_embeddings": TRUTH,
}
# What of `apply_chat_template` is decided here.
RENDERING = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message", "padding", "truncation",
             "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
             "processor_kwargs")  # fmt: skip
WEIGHTS = TEXT | OBJECT | NOTHING
AGENT_FIELDS = {
    "source": TEXT,
    "revision": TEXT | NOTHING,
    "gguf_file": TEXT,
    "adapter": OBJECT | NOTHING,
    "model_type": TEXT,
    "hidden_size": SIZE,
    "inner_link": OBJECT | NOTHING,
}
KINDS_OF_INNER_LINKS = one_of((*INNER_KINDS, EXPECTED_EMBEDDING, CODEBOOK, *ABLATION_KINDS))
KINDS_OF_OUTER_LINKS = one_of((*OUTER_KINDS, RESAMPLER, SOFT_PROMPT, CACHE, *ABLATION_KINDS))
INNER_LINK_FIELDS = {"kind": KINDS_OF_INNER_LINKS | NOTHING, "weights": WEIGHTS}
LINK_FIELDS = {
    "source": TEXT,
    "target": TEXT,
    "feedback": TRUTH,
    "kind": KINDS_OF_OUTER_LINKS | NOTHING,
    "weights": WEIGHTS,
    "legacy_key": TEXT | NOTHING,
    "snap": TRUTH,
}
ADAPTER_FIELDS = {"source": TEXT, "revision": TEXT | NOTHING}
WEIGHTS_FIELDS = {"source": TEXT, "revision": TEXT | NOTHING, "filename": TEXT}


@lru_cache
def foreign_fields() -> set[str]:
    """What transformers writes into a configuration beside a model's own fields."""
    more = ("auto_map", "custom_pipelines", "model_type", "name_or_path", "num_labels", "torch_dtype")
    private = ("_commit_hash", "_attn_implementation_autoset")
    properties = (name for name in dir(PreTrainedConfig) if isinstance(getattr(PreTrainedConfig, name), property))
    return {*vars(PreTrainedConfig()), *properties, *more, *private}


class RecursiveMASConfig(PreTrainedConfig):
    """Configuration of a `RecursiveMASModel`.

    Args:
        style: name of the collaboration style, for people.
        agents: role -> `{"source", "revision", "gguf_file", "adapter": {"source", "revision"}, "model_type",
            "hidden_size", "inner_link": {"kind", "weights"}}`. `source` is a folder of this repository
            (`agents/planner`), another repository (`org/name`, with a pinned `revision`) or an absolute path;
            `gguf_file` is a file in there that the agent is made of (in bfloat16, converted once; needs
            `recursivemas[gguf]`); `adapter` is a LoRA in PEFT's files, on a base that other roles may have too, a
            place likewise (`./adapters/critic`). `model_type` and `hidden_size` are filled in and checked when the
            agent is loaded.
        stages: lists of roles; stages run in order, the roles of a stage side by side.
        links: `{"source", "target", "feedback", "kind", "weights", "legacy_key", "snap"}`, roles as ends; `legacy_key`
            is the link's name in the public release (`outer_12`); `snap` (default false) see `hand_over`.
        decoding_role: the role that writes the text in the last round.
        prompts: prompt set, see prompts_recursivemas.py.
        tools: role -> tags of the tools that its prompts tell it to use, in its messages too, see `tools_of_roles`.
        num_rounds: default number of recursion rounds (>= 1), or "auto".
        settling: what "auto" means: `{"signal", "threshold", "max_rounds", "calibrated"}`, which
            `recursivemas calibrate` writes, with what it was calibrated on; see `RunSettings`.
        latent_steps: default number of latent steps of a rollout (>= 0; 0 sends nothing).
        latent_halting: stop a row's latent steps where its next embedding is nearest to an end-of-sequence token.
        control_tokens: whether latents that say a special token count, and travel. The release knows no other way; a
            system of `init-links` says no: a row's thoughts end before its first special token, and what a receiver
            would read as one is left out.
        message_tokens: most new tokens of a message in `mode="text"`.
        task: default task, which chooses the prompts.
        link_task: the task that the loaded links were trained for, where `weights` are per task.
        conversation: what a chat of several turns asks: "whole" or "last", see chats_recursivemas.py.
        chat_template_kwargs: passed to every agent's chat template.
        format_version: version of this format; a newer one is refused.

    `kind` is one of links_recursivemas.py; an inner link of kind `expected_embedding` has no weights, and it and
    `codebook` take `temperature`, `norm` and `special_tokens` beside `kind` (see `ExpectedEmbeddingLink`).
    `weights` is a safetensors file of this repository (default `links/<name>.safetensors`, the name being the role
    or `<source>_to_<target>`), or `{"source", "revision", "filename"}` for another repository, where without
    `filename` the release's own rules find the file (see `read_link`), or
    `{"tasks": {task: weights}}`.

    The remaining arguments mirror the decoding agent, because tools read them from the composite.

    Raises:
        ConfigError: see `validate`.
    """

    model_type = "recursivemas"

    def __init__(
        self,
        style: str | None = None,
        agents: dict | None = None,
        stages: list[list[str]] | None = None,
        links: list[dict] | None = None,
        decoding_role: str | None = None,
        prompts: dict | None = None,
        tools: dict[str, list[str]] | None = None,
        num_rounds: int | str = 3,
        latent_steps: int = 32,
        latent_halting: bool = False,
        control_tokens: bool = True,
        message_tokens: int = 256,
        settling: dict | None = None,
        task: str = "default",
        link_task: str | None = None,
        conversation: str = "whole",
        chat_template_kwargs: dict | None = None,
        format_version: int = FORMAT_VERSION,
        vocab_size: int | None = None,
        max_position_embeddings: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        **kwargs,
    ) -> None:
        # A file's wrong values are refused here, before transformers trips over them.
        given = {name: value for name, value in locals().items() if name in FIELDS and value is not None}
        where = kwargs.get("name_or_path") or "config.json"
        validate_fields(given | dict.fromkeys(kwargs), FIELDS, where, ConfigError, also=foreign_fields())
        self.style = style
        self.agents = {} if agents is None else agents
        self.stages = [] if stages is None else stages
        self.links = [] if links is None else links
        self.decoding_role: str = decoding_role  # type: ignore[assignment]  # `validate_system` wants one
        self.prompts = {} if prompts is None else prompts
        self.tools = tools
        self.num_rounds = num_rounds
        self.settling = settling
        self.latent_steps = latent_steps
        self.latent_halting = latent_halting
        self.control_tokens = control_tokens
        self.message_tokens = message_tokens
        self.task = task
        self.link_task = link_task
        self.conversation = conversation
        self.chat_template_kwargs = (
            {"enable_thinking": False} if chat_template_kwargs is None else chat_template_kwargs
        )
        self.format_version = format_version
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """Reads a folder as it is when a save of it that was interrupted is finished."""
        if os.path.isdir(pretrained_model_name_or_path):
            settle(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: Auto classes call it, and a save would name another entry file than `AUTO_MAP` does."""

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """A configuration of a file's content; how agents are loaded stays for the system's `from_pretrained`."""
        options = {name: kwargs.pop(name) for name in LOADING_OPTIONS if name in kwargs}
        loaded = super().from_dict(config_dict, **kwargs)
        if not kwargs.get("return_unused_kwargs"):
            return loaded
        config, unused = loaded
        return config, {**unused, **options}

    @property
    def link_tasks(self) -> set[str]:
        """The tasks that some link has weights of its own for."""
        entries = [*self.links, *(agent.get("inner_link") or {} for agent in self.agents.values())]
        weights = [entry.get("weights") for entry in entries]
        return {task for w in weights if isinstance(w, dict) for task in w.get("tasks", ())}

    @property
    def most_rounds(self) -> int:
        """The default number of recursion rounds; of "auto", the most."""
        return self.settling["max_rounds"] if self.num_rounds == AUTO else self.num_rounds  # type: ignore

    @property
    def topology(self) -> Topology:
        """The stages, links and decoding role as a checked table."""
        links = tuple(Link(link["source"], link["target"], bool(link.get("feedback", False))) for link in self.links)
        return Topology(tuple(tuple(stage) for stage in self.stages), links, self.decoding_role)

    def run_settings(
        self,
        *,
        num_rounds: int | str | None = None,
        latent_steps: int | None = None,
        mode: str | None = None,
        task: str | None = None,
        prompts: dict | str | os.PathLike | None = None,
        latent_halting: bool | None = None,
        control_tokens: bool | None = None,
        message_tokens: int | None = None,
        control: str | None = None,
        settling: dict | None = None,
    ) -> RunSettings:
        """The arguments of a call, with this configuration's defaults for what is `None`.

        Args: see `RunSettings`; `num_rounds` may be "auto", for which `settling` replaces entries of the
            configuration's; `prompts` may be a JSON file with a prompt set.

        Raises:
            InputError: an argument cannot be used.
            ConfigError: the prompt set does not fit the topology.
        """
        if prompts is None:
            prompt_set = self.prompts
        else:
            prompt_set = prompts if isinstance(prompts, dict) else read_prompts(prompts)
            validate_prompts(prompt_set, self.topology)
        task = self.task if task is None else task
        rounds = self.num_rounds if num_rounds is None else num_rounds
        validate_field(rounds, RUN_FIELDS["num_rounds"], "num_rounds", InputError)
        settled = self._settled({} if settling is None else settling) if rounds == AUTO else None
        settings = RunSettings(
            num_rounds=settled["max_rounds"] if settled else rounds,  # type: ignore[arg-type]  # checked above
            latent_steps=self.latent_steps if latent_steps is None else latent_steps,
            mode="latent" if mode is None else mode,
            task=task,
            prompts=prompt_set,
            latent_halting=self.latent_halting if latent_halting is None else latent_halting,
            control_tokens=self.control_tokens if control_tokens is None else control_tokens,
            message_tokens=self.message_tokens if message_tokens is None else message_tokens,
            control=control,
            settling=settled,
        )
        if not MODE.holds(settings.mode):
            raise InputError("Unknown mode.", where="mode", found=repr(mode), expected=", ".join(MODES))
        validate_task(settings.task)
        for name, kind in RUN_FIELDS.items():
            validate_field(getattr(settings, name), kind, name, InputError)
        if control is not None and control not in CONTROLS:
            raise InputError("Unknown control.", where="control", found=repr(control), expected=", ".join(CONTROLS))
        if control is not None and not settings.thinks:
            raise InputError(
                "A control stands in for latents, and in this mode there are none.",
                where="control",
                found=f"{control!r} in mode {settings.mode!r}",
                expected="mode 'latent'",
            )
        if settings.settling and settings.silent:  # there is nothing that could settle
            settings = replace(settings, num_rounds=1, settling=None)
        if settings.settling and control is not None:
            raise InputError(
                "With what stands in for latents, nobody can see whether these have settled.",
                where="num_rounds",
                found=f"{AUTO!r} with control {control!r}",
                expected="a number",
            )
        for role in {role for _, role in settings.turns(self.topology)}:
            template_for(prompt_set, role, task, "first")  # a role without one is an error now, not later
        return settings

    def _settled(self, given: dict) -> dict:
        """What "auto" means in a call: its own entries, then the configuration's."""
        validate_fields(given, SETTLING_FIELDS, "settling", InputError)
        settling = {**(self.settling or {}), **given}
        if missing := [name for name in ("signal", "threshold", "max_rounds") if name not in settling]:
            raise InputError(
                "Nobody has said when the recursion of this system has settled.",
                where=f"num_rounds={AUTO!r}",
                found=f"no {', '.join(missing)} in the configuration's `settling`",
                hint="`recursivemas calibrate --system … --data …` finds and stores it; or give a number",
            )
        return settling

    def validate_system(self) -> Topology:
        """The one check of the configuration.

        Returns:
            The topology.

        Raises:
            ConfigError: names field, value, what was expected and what to do.
        """
        place = self.name_or_path or "config.json"
        optional = {name for name in FIELDS if getattr(self, name) is None} - {*RUN_FIELDS, "agents", "decoding_role"}
        given = {name: getattr(self, name) for name in FIELDS if name not in optional}
        validate_field(self.format_version, FIELDS["format_version"], f"{place}, format_version", ConfigError)
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(
                "The configuration was written by a newer version of this software.",
                where=f"{place}, format_version",
                found=self.format_version,
                expected=f"at most {FORMAT_VERSION}",
                hint="update recursivemas",
            )
        if not self.agents:
            raise ConfigError("The configuration names no agent.", where=place)
        validate_fields(given, FIELDS, place, ConfigError)
        for name in self.chat_template_kwargs or {}:
            if name in RENDERING:
                raise ConfigError("A chat is rendered in one way.", where="chat_template_kwargs", found=name)
        if self.settling is not None:
            required = ("signal", "threshold", "max_rounds")
            validate_fields(self.settling, SETTLING_FIELDS, f"{place}, settling", ConfigError, required=required)
        elif self.num_rounds == AUTO:
            hint = "`recursivemas calibrate` finds and stores it; until then a number of rounds"
            raise ConfigError(
                "Nobody has said when the recursion has settled.", where=f"{place}, settling", found=None, hint=hint
            )
        for link in self.links:
            where = f"links, {link.get('source')} -> {link.get('target')}"
            validate_fields(link, LINK_FIELDS, where, ConfigError, required=("source", "target"))
            _validate_weights(link.get("weights"), where)
        topology = self.topology
        continuing = [link["target"] for link in self.links if link.get("kind") == CACHE]
        if repeated := sorted({role for role in continuing if continuing.count(role) > 1}):
            found, expected = f"two links of kind {CACHE} to {', '.join(repeated)}", "one for each role at most"
            raise ConfigError("A role goes on from one working memory.", where="links", found=found, expected=expected)
        if set(self.agents) != set(topology.roles):
            raise ConfigError(
                "The agents and the roles of the stages differ.",
                where="agents",
                found=", ".join(sorted(self.agents)),
                expected=", ".join(topology.roles),
            )
        for role, agent in self.agents.items():
            validate_fields(agent, AGENT_FIELDS, f"agents, {role}", ConfigError, required=("source",))
            if (adapter := agent.get("adapter")) is not None:
                validate_fields(adapter, ADAPTER_FIELDS, f"agents, {role}, adapter", ConfigError, required=("source",))
            inner_link = agent.get("inner_link") or {}
            where = f"agents, {role}, inner_link"
            validate_fields(inner_link, INNER_LINK_FIELDS, where, ConfigError, also=MIXTURE_OPTIONS)
            _validate_weights(inner_link.get("weights"), where)
            mixture = mixture_options(inner_link)
            if mixture and inner_link.get("kind") not in (EXPECTED_EMBEDDING, CODEBOOK):
                raise ConfigError(
                    "An inner link of this kind has no such options.",
                    where=where,
                    found=f"{', '.join(mixture)} for {inner_link.get('kind')}",
                    expected=f"only for {EXPECTED_EMBEDDING} and {CODEBOOK}",
                )
            validate_mixture(mixture, where)
        validate_prompts(self.prompts, topology)
        for role, tags in (self.tools or {}).items():
            if role not in topology.roles or not all(map(is_tag, tags)):
                found, expected = f"{role}: {tags}", f"{', '.join(topology.roles)}, each with names of tools"
                raise ConfigError("A tool is declared that cannot be.", where="tools", found=found, expected=expected)
        return topology


def _validate_weights(weights: object, where: str) -> None:
    if weights is None or isinstance(weights, str):
        return
    where = f"{where}, weights"
    if isinstance(weights, dict) and "tasks" in weights:
        validate_fields(weights, {"tasks": table_of(WEIGHTS)}, where, ConfigError)
        for task, entry in weights["tasks"].items():
            _validate_weights(entry, f"{where}, tasks, {task}")
    else:
        validate_fields(weights, WEIGHTS_FIELDS, where, ConfigError, required=("source",))
