"""One agent thinks and hands over, another one answers: this engine against the public `avp` package, same models.

Needs `pip install avp`. Between two agents of one model avp hands over keys and values, so that the second agent need
not read what the first one read; here latents travel, and the second agent reads its whole prompt.
"""

import argparse
from typing import Any

import torch

from .harness import Option, chosen, in_turn, ratio_row
from .systems import random_base, random_questions, random_system

OPTIONS = {
    "question_tokens": Option("tokens of the question", 256, 16),
    "latent_steps": Option("steps of the rollout", 32, 4),
    "new_tokens": Option("tokens of the answer", 32, 4),
}


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    from avp import HuggingFaceConnector

    steps, new_tokens = arguments.latent_steps, arguments.new_tokens
    mas = random_system([arguments.shape] * 2, arguments.dtype, arguments.device)
    (question,) = random_questions(arguments.question_tokens)
    model, tokenizer = random_base(arguments.shape, arguments.dtype, arguments.device)
    connector = HuggingFaceConnector(model=model, tokenizer=tokenizer, device=arguments.device)
    agent = mas.agents["agenta"]
    chat: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    chat = chat.to(arguments.device)
    embeds = agent.embed(chat["input_ids"])

    def think_here() -> None:
        agent.rollout(embeds, chat["attention_mask"], steps + 1)  # avp's steps come after the prompt's own state

    def think_avp() -> None:
        connector.think(question, steps=steps)

    def run_here() -> None:
        mas.solve([question], num_rounds=1, latent_steps=steps + 1, max_new_tokens=new_tokens)

    def run_avp() -> None:
        context = connector.think(question, steps=steps)
        lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        connector.generate(question, context=context, do_sample=False, **lengths)

    both = {
        f"thinking {steps} steps": {"avp": think_avp, "here": think_here},
        "thinking, hand-over and answer": {"avp": run_avp, "here": run_here},
    }
    rows = [ratio_row(name, in_turn(ways, arguments.repeats), "avp", "here") for name, ways in both.items()]
    return chosen(arguments, "latent_steps", "new_tokens", "question_tokens"), rows
