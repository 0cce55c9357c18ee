"""Training-free start: links in closed form, so that any agents form a working system before any training.

Inner link: the agent's sharpened expected embedding under its own next-token distribution (kinds `expected_embedding`
and, over some of its tokens, `codebook`; no data), or a linear ridge regression from hidden states to the next token's
embedding over the agent's own samples.
Outer link: a ridge regression from the sender's token embeddings to the receiver's, over the tokens that both
vocabularies share.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..agent_recursivemas import RecursiveMASAgent
from ..errors_recursivemas import ConfigError
from ..links_recursivemas import (
    CACHE,
    OUTER_KINDS,
    RESAMPLER,
    SOFT_PROMPT,
    AnyInnerLink,
    AnyOuterLink,
    CacheLink,
    InnerLink,
    OuterLink,
    ResamplingLink,
    SoftPromptLink,
)
from ..mixtures_recursivemas import ExpectedEmbeddingLink
from ..prompts_recursivemas import MARKER

PENALTY = 1e-3  # of the ridge regressions, relative to the mean square of an input feature
TEMPERATURE = 0.3  # of an expected embedding: 0.2 is as good, 0.5 and more drift (docs/real-model.md)
CODEBOOK_SIZE = 2048
LEAST_SHARED = 16  # fewer shared tokens than this say nothing about a map between two spaces


# The printable characters that byte-level BPE writes for bytes (the table of GPT-2).
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    """What each ordinary token stands for, as bytes -> its id; special tokens are left out.

    Reads byte-level vocabularies (Qwen, Llama 3, GPT-2) and sentencepiece ones with `▁` for a space and `<0xNN>` for
    a byte (Llama 2, Mistral, Gemma). Where two ids stand for the same bytes, the one that is no byte token counts.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])
    added = tokenizer.added_tokens_decoder
    table: dict[bytes, int] = {}
    fallback: dict[bytes, int] = {}
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            if not added[index].special:
                table[token.encode()] = index
        elif byte_level:
            if all(character in BYTE_OF_CHARACTER for character in token):
                table[bytes(BYTE_OF_CHARACTER[character] for character in token)] = index
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            fallback[bytes([int(token[3:5], 16)])] = index
        else:
            table[token.replace("▁", " ").encode()] = index
    return fallback | table


def shared_tokens(source: RecursiveMASAgent, target: RecursiveMASAgent) -> tuple[list[int], list[int]]:
    """Ids of the tokens that two vocabularies share: equal bytes, and special tokens of equal function.

    Returns:
        Ids in the source's and in the target's vocabulary, in the same order.
    """
    ours, theirs = token_bytes(source.tokenizer), token_bytes(target.tokenizer)
    pairs = [(ours[text], theirs[text]) for text in sorted(ours.keys() & theirs.keys())]
    ends = [next(iter(agent.eos_token_ids), None) for agent in (source, target)]
    for a, b in (ends, (source.tokenizer.bos_token_id, target.tokenizer.bos_token_id)):
        if a is not None and b is not None and (a, b) not in pairs:
            pairs.append((a, b))
    sizes = [agent.get_input_embeddings().num_embeddings for agent in (source, target)]
    pairs = [(a, b) for a, b in pairs if a < sizes[0] and b < sizes[1]]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _last_layer(link: InnerLink | OuterLink) -> nn.Linear:
    """The layer that the residual path is added to."""
    return link.proj1 if link.proj2 is None else link.proj2


@torch.no_grad()
def _set_layer(layer: nn.Linear, weight: torch.Tensor | float, bias: torch.Tensor | float) -> None:
    layer.weight[:], layer.bias[:] = weight, bias


@torch.no_grad()
def ridge(inputs: torch.Tensor, outputs: torch.Tensor, penalty: float = PENALTY) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares with an L2 penalty on the weight, not on the bias; computed in float64.

    Args:
        inputs: (n, d_in).
        outputs: (n, d_out).
        penalty: relative to the mean square of an input feature, per sample.

    Returns:
        Weight (d_out, d_in) and bias (d_out,) of a linear layer, in float32.
    """
    x, y = inputs.double(), outputs.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram.diagonal().add_(penalty * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ y).T
    return weight.float(), (y_mean - weight @ x_mean).float()


def embedding_rms(embeddings: torch.Tensor) -> float:
    """The root mean square of an entry of a token embedding, (n, d) -> scale.

    Tokens count by their squared length, so that the many near-zero rows of tokens that a small model never saw do
    not pull it down.
    """
    energy = embeddings.detach().double().pow(2).mean(-1)
    return float((energy.pow(2).sum() / energy.sum()).sqrt())


def embedding_scale(agent: RecursiveMASAgent) -> float:
    """`embedding_rms` over an agent's vocabulary, as its layers see the embeddings."""
    embeddings = agent.get_input_embeddings()
    return embedding_rms(embeddings.weight) * float(getattr(embeddings, "embed_scale", 1.0))


def text_token_ids(agent: RecursiveMASAgent) -> torch.Tensor:
    """Ids (n,) of the tokens that are text, in order: all of the vocabulary but the special ones; on the CPU."""
    ids = torch.tensor(sorted(agent.tokenizer.get_vocab().values()))
    size = agent.get_input_embeddings().num_embeddings
    return ids[(ids < size) & ~torch.isin(ids, agent.control_token_ids)]


@torch.no_grad()
def mean_norm(agent: RecursiveMASAgent) -> float:
    """The mean L2 norm of the embeddings of an agent's text tokens, as its layers see them.

    Tokens count by their length, so that rows near zero of tokens that a small model never saw do not pull it down;
    where all lengths are alike this is the plain mean (SmolLM2-135M: 3.31, plain 3.20).
    """
    norms = agent.embed(text_token_ids(agent).to(agent.device)).double().norm(dim=-1)
    return float(norms.pow(2).sum() / norms.sum())


def start_mixture(
    agent: RecursiveMASAgent,
    temperature: float = TEMPERATURE,
    norm: float | str | None = "mean",
    token_ids: torch.Tensor | None = None,
) -> ExpectedEmbeddingLink:
    """A mixture of the agent's own text tokens that holds over many latent steps, without training.

    Args:
        agent: whose inner link it will be.
        temperature: of the softmax.
        norm: L2 norm of every latent; "mean" is `mean_norm`, `None` leaves the mixture as it is.
        token_ids: of a codebook, see `codebook`; default the whole vocabulary.
    """
    length = mean_norm(agent) if isinstance(norm, str) else norm
    return ExpectedEmbeddingLink(agent.hidden_size, temperature, length, special_tokens=False, token_ids=token_ids)


def texts_of(prompts: Mapping[str, Any]) -> list[str]:
    """The texts of a role's entry in a prompt set, without markers."""
    texts = [text for value in prompts.values() for text in (value.values() if isinstance(value, dict) else [value])]
    return [MARKER.sub("", text) for text in texts if text]


def codebook(agent: RecursiveMASAgent, size: int = CODEBOOK_SIZE, texts: Iterable[str] = ()) -> torch.Tensor:
    """Ids (n,) of the tokens that an agent needs to say: those of texts, then the most frequent ones; in order.

    Without a corpus the lowest ids are the most frequent tokens: BPE numbers bytes first, then merges as it finds
    them, from the most frequent pair on. No special token is among them.

    Args:
        agent: whose tokens these are.
        size: how many; all text tokens where the vocabulary has no more, and all those of the texts in any case.
        texts: what the agent says and reads.
    """
    known = text_token_ids(agent)
    said = {token for text in texts for token in agent.tokenizer(text, add_special_tokens=False)["input_ids"]}
    kept = torch.isin(known, torch.tensor(sorted(said), dtype=known.dtype))
    kept[torch.nonzero(~kept).flatten()[: max(0, size - int(kept.sum()))]] = True
    return known[kept]


def reference_link(agent: RecursiveMASAgent) -> ExpectedEmbeddingLink:
    """What a trained inner link should make of a state: the agent's own mixture, or a sharpened one; bound to it.

    Special tokens have a share, so that where a text ends the reference says so.
    """
    own: AnyInnerLink = agent.inner_link
    if isinstance(own, ExpectedEmbeddingLink):
        link = ExpectedEmbeddingLink(agent.hidden_size, own.temperature, own.norm)
    else:
        link = ExpectedEmbeddingLink(agent.hidden_size, TEMPERATURE, mean_norm(agent))
    link.bind(agent.model, agent.control_token_ids)
    return link


@torch.no_grad()
def start_inner_link(agent: RecursiveMASAgent, kind: str) -> InnerLink:
    """A trainable inner link at its starting point: a last LayerNorm at the scale of the embeddings.

    The cosine loss leaves the length of the output free, so that it must start right. The update is zero at the
    start where there is a residual path.
    """
    link = InnerLink(kind, agent.hidden_size)
    if link.residual:
        _set_layer(_last_layer(link), 0, 0)
    if link.post_ln is not None:
        link.post_ln.weight.fill_(embedding_scale(agent))
    if link.residual_proj is not None:
        _set_layer(_last_layer(link), 0, 0)
        link.norm.fill_(mean_norm(agent))
    return link


@torch.no_grad()
def fit_linear_path(link: InnerLink, hidden_states: torch.Tensor, targets: torch.Tensor) -> None:
    """Sets the linear path of a `rescaled_adapter` by ridge regression, (n, d) -> (n, d)."""
    assert link.residual_proj is not None
    _set_layer(link.residual_proj, *ridge(hidden_states, targets))


@torch.no_grad()
def extended(link: AnyOuterLink) -> AnyOuterLink:
    """A linear outer link as `outer_res_adapter`, which starts as the same and can learn more; others as they are."""
    if not isinstance(link, OuterLink) or link.kind != "outer_linear_adapter":
        return link
    longer = OuterLink("outer_res_adapter", link.in_features, link.out_features, link.snap)
    _set_layer(_last_layer(longer), 0, 0)
    _set_layer(cast(nn.Linear, longer.residual_proj), link.proj1.weight, link.proj1.bias)
    return longer


def _same_space(source: RecursiveMASAgent, target: RecursiveMASAgent) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The identity as weight and bias, where two agents have the same token embeddings."""
    ours, theirs = (agent.get_input_embeddings().weight.cpu() for agent in (source, target))
    if ours.shape != theirs.shape or not torch.equal(ours, theirs):
        return None
    return torch.eye(ours.shape[1]), torch.zeros(ours.shape[1])


def fit_inner_link(hidden_states: torch.Tensor, embeddings: torch.Tensor) -> InnerLink:
    """Inner link of kind `linear_adapter` by ridge regression.

    Args:
        hidden_states: (n, hidden_size), last hidden states of the agent.
        embeddings: (n, hidden_size), embeddings of the tokens that follow.
    """
    link = InnerLink("linear_adapter", hidden_states.shape[-1])
    _set_layer(link.proj1, *ridge(hidden_states, embeddings))
    return link


@torch.no_grad()
def fit_outer_link(
    source: RecursiveMASAgent,
    target: RecursiveMASAgent,
    kind: str = "outer_linear_adapter",
    tokens: tuple[list[int], list[int]] | None = None,
    positions: int = 4,
) -> AnyOuterLink:
    """Outer link in closed form: ridge regression between the embeddings of the tokens that two agents share.

    Between agents of one base the map is the identity. `outer_linear_adapter` holds the map itself. A kind with
    `residual_proj` holds it there, with its other path at zero, so that training goes on from it; a last LayerNorm
    starts with the gain and bias that fit the target's embeddings best (tokens weighted by their squared length).

    Args:
        source, target: the agents at the ends of the link.
        kind: any outer kind that has a linear path, or `cache`.
        tokens: ids in the source's and in the target's vocabulary that stand for the same; default `shared_tokens`.
        positions: how many a link of kind `outer_resampler` or `outer_soft_prompt` hands over.

    Raises:
        ConfigError: the kind has no linear path, or the vocabularies share too few tokens.
    """
    if kind == CACHE:
        return CacheLink(source.hidden_size, target.hidden_size)
    source_ids, target_ids = shared_tokens(source, target) if tokens is None else tokens
    if len(source_ids) < LEAST_SHARED:
        raise ConfigError(
            "Two vocabularies share too few tokens for an outer link in closed form.",
            where=f"{source.role} -> {target.role}",
            found=f"{len(source_ids)} shared tokens",
            expected=f"at least {LEAST_SHARED}",
            hint="start the link at random (`outer_start=random`) and train it",
        )
    inputs = source.embed(torch.tensor(source_ids, device=source.device)).float().cpu()
    outputs = target.embed(torch.tensor(target_ids, device=target.device)).float().cpu()
    if kind == SOFT_PROMPT:
        prompt = SoftPromptLink(source.hidden_size, target.hidden_size, positions)
        prompt.vectors.copy_(outputs[torch.randperm(len(outputs))[:positions]])
        return prompt
    mapping = _same_space(source, target) or ridge(inputs, outputs)
    if kind == RESAMPLER:
        resampler = ResamplingLink(source.hidden_size, target.hidden_size, positions)
        resampler.start(*mapping)
        return resampler
    link = OuterLink(kind, source.hidden_size, target.hidden_size)
    if link.residual_proj is None and link.proj2 is not None:
        fitting = ", ".join(name for name, shape in OUTER_KINDS.items() if shape.residual or shape.layers == 1)
        raise ConfigError(
            "A kind of outer link without a linear path has no start in closed form.",
            where="kind", found=link.kind, expected=fitting,
        )  # fmt: skip
    if link.residual_proj is not None:
        _set_layer(_last_layer(link), 0, 0)
    _set_layer(link.residual_proj or link.proj1, *mapping)
    if link.ln_target is not None:
        link.ln_target.reset_parameters()
        normalised = link(inputs)
        weights = outputs.pow(2).sum(-1, keepdim=True)
        weights = weights / weights.sum()
        mean_in, mean_out = (weights * normalised).sum(0), (weights * outputs).sum(0)
        covariance = (weights * (normalised - mean_in) * (outputs - mean_out)).sum(0)
        gain = covariance / (weights * (normalised - mean_in).pow(2)).sum(0).clamp_min(1e-12)
        link.ln_target.weight.copy_(gain)
        link.ln_target.bias.copy_(mean_out - gain * mean_in)
    return link


@torch.no_grad()
def random_outer_link(source: RecursiveMASAgent, target: RecursiveMASAgent, kind: str) -> OuterLink:
    """An outer link of random weights whose output has the scale of the target's embeddings.

    torch's own initialisation gives outputs of scale 1 behind a LayerNorm; the embeddings of a model are often ten to
    fifty times smaller, and what is so much larger than them drowns everything else that the target reads.
    """
    link = OuterLink(kind, source.hidden_size, target.hidden_size)
    scale = embedding_scale(target)
    if link.ln_target is not None:
        link.ln_target.weight.fill_(scale)
        return link
    embeddings = source.get_input_embeddings()
    inputs = embeddings.weight.detach().float().cpu() * float(getattr(embeddings, "embed_scale", 1.0))
    factor = scale / embedding_rms(link(inputs))
    for layer in (_last_layer(link), link.residual_proj):
        if layer is not None:
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
    return link
