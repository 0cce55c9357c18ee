"""The slow oracle: the method written out plainly. No cache, one sample, every position recomputed every step."""

import torch
from recursivemas.prompts_recursivemas import Slot, template_for


@torch.no_grad()
def reference_prompt(mas, role, phase, question, task, received):
    """Embeddings (1, length, width) of one prompt; `received` is source role -> (n, width)."""
    agent = mas.agents[role]
    system, template = template_for(mas.config.prompts, role, task, phase)
    parts = []
    for piece in mas.renderers[role].pieces(system, template, question):
        if isinstance(piece, Slot):
            parts.append(received[piece.role].to(agent.dtype))
        else:
            parts.append(agent.model.get_input_embeddings()(torch.tensor(piece)))
    return torch.cat(parts)[None]


@torch.no_grad()
def reference_think(agent, embeds, latent_steps):
    """(1, length, width) -> hidden states (latent_steps, width), each from a forward pass over everything."""
    hidden_states = []
    for _ in range(latent_steps):
        output = agent.model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        hidden_states.append(output.hidden_states[-1][0, -1])
        thought = agent.inner_link(hidden_states[-1])
        embeds = torch.cat([embeds, thought[None, None].to(embeds.dtype)], dim=1)
    return torch.stack(hidden_states) if hidden_states else torch.zeros(0, agent.hidden_size)


@torch.no_grad()
def reference_solve(mas, question, num_rounds, latent_steps, max_new_tokens, task="default"):
    """Returns (greedy ids, {(round, source, target): latents})."""
    topology, latents = mas.topology, {}
    for round_index in range(1, num_rounds + 1):
        for role in topology.roles:
            agent = mas.agents[role]
            phase = "first" if round_index == 1 else "feedback"
            received = {
                link.source: latents[round_index - link.feedback, link.source, role]
                for link in topology.incoming(role, round_index)
            }
            embeds = reference_prompt(mas, role, phase, question, task, received)
            if role == topology.decoding_role and round_index == num_rounds:
                ids = []
                while len(ids) < max_new_tokens and (not ids or ids[-1] not in agent.eos_token_ids):
                    ids.append(int(agent.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
                    new = agent.model.get_input_embeddings()(torch.tensor([[ids[-1]]]))
                    embeds = torch.cat([embeds, new], dim=1)
                return ids, latents
            hidden_states = reference_think(agent, embeds, latent_steps)
            for link in topology.outgoing(role):
                outer = mas.outer_links[link.name]
                latents[round_index, role, link.target] = outer(agent.inner_link(hidden_states))
    raise AssertionError("the decoder never ran")
