"""The encoder and its heads: the only file with an nn.Module.

Shapes in comments and docstrings:
    B batch   T positions   D width        N heads   H = D / N
    F feed-forward          V vocabulary   C outputs   M masked positions

Source: Devlin et al. 2019, section 3 and google-research/bert `modeling.py`; parameter names are the left column of
the table in names.py.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_miniatures.config import ModelConfig
from bert_miniatures.fused import Settings, Sums, Tensors, draw
from bert_miniatures.fused import layer as fused_layer
from bert_miniatures.fused_ends import classifier as fused_classifier
from bert_miniatures.fused_ends import embedding as fused_embedding
from bert_miniatures.initial import initial
from bert_miniatures.masked_loss import masked_cross_entropy
from bert_miniatures.names import Weights, shapes
from bert_miniatures.noise import Noise
from bert_miniatures.places import barred, by_row

__all__ = ["Bert", "build", "twin"]

_Direct = tuple[Tensors, Tensors]  # weights of a part and their gradients, see `accumulate_in_place`

_TANH = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


class _Table(nn.Embedding):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width, _weight=torch.empty(rows, width))  # drawing it imports torch's compiler: 1.3 s


class _Embed(nn.Module):
    def __init__(self, c: ModelConfig, noise: Noise) -> None:
        super().__init__()
        self.word = _Table(c.vocab_size, c.hidden_size)
        self.position = _Table(c.max_position_embeddings, c.hidden_size)
        self.segment = _Table(c.type_vocab_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout, self.noise = c.hidden_dropout_prob, noise
        self.direct: _Direct | None = None
        self.looked_up: list[Tensor] = []  # pieces whose vectors' gradients were added in place; the caller empties it

    def forward(self, ids: Tensor, segments: Tensor | None, positions: Tensor | None, fused: bool) -> Tensor:
        if fused and self.direct is not None:
            drawn = self.noise.factors(self.dropout, *ids.shape, self.word.weight.shape[1]) if self.dropout else None
            self.looked_up.append(ids.view(-1))
            return fused_embedding(ids, segments, positions, drawn, self.norm.eps, self.word.weight, *self.direct)
        if positions is None:
            fixed = self.position.weight[: ids.shape[1]]  # T D
        else:
            fixed = F.embedding(positions, self.position.weight)  # B T D
        if segments is None:
            fixed = fixed + self.segment.weight[0]
        x = self.word(ids) + fixed  # B T D
        if segments is not None:
            x = x + F.embedding(segments, self.segment.weight)
        return self.noise.dropout(self.norm(x), self.dropout, self.training)


class _Layer(nn.Module):
    def __init__(self, c: ModelConfig, noise: Noise) -> None:
        super().__init__()
        width = c.hidden_size
        self.heads = c.num_attention_heads
        self.scale = (width // self.heads) ** -0.5
        self.tanh = _TANH[c.hidden_act]
        self.dropout, self.attention_dropout = c.hidden_dropout_prob, c.attention_probs_dropout_prob
        self.noise = noise
        self.settings = Settings(self.heads, self.tanh, c.layer_norm_eps)
        self.direct: tuple[Tensors, Sums] | None = None
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=c.layer_norm_eps)
        self.up = nn.Linear(width, c.intermediate_size)
        self.down = nn.Linear(c.intermediate_size, width)
        self.norm = nn.LayerNorm(width, eps=c.layer_norm_eps)

    def forward(
        self, x: Tensor, mask: Tensor | None, *, first_only: bool = False, picked: Tensor | None = None, fused: bool
    ) -> Tensor:
        """Map [B, T, D] to [B, T, D]; with `first_only` to [B, 1, D]; with `picked` to [B, M, D].

        Args:
            mask: added to the scores, 0 or -inf, [B, 1, 1, T], or [B, 1, Q, T] where Q positions ask.
            first_only: only the first position is wanted.
            picked: only these positions are wanted: places in the flattened [B T], [B, M].
            fused: record the layer as one node with its own backward pass; the numbers are the same.
        """
        if fused:
            return self._fused(x, mask, first_only, picked)
        if first_only:
            a, x = self._attend_first(x, mask), x[:, :1]
        elif picked is not None:
            asking = x.reshape(-1, x.shape[2])[picked]  # B M D
            a, x = self._attend_picked(x, asking, mask), asking
        else:
            a = self._attend(x, mask)
        x = self.attended_norm(x + self._drop(self.attended(a)))
        f = self.down(F.gelu(self.up(x), approximate=self.tanh))
        normed: Tensor = self.norm(x + self._drop(f))
        return normed

    def _fused(self, x: Tensor, mask: Tensor | None, first_only: bool, picked: Tensor | None) -> Tensor:
        (b, t, d), n = x.shape, self.heads
        asking = 1 if first_only else t if picked is None else picked.shape[1]
        probabilities = (self.attention_dropout, self.dropout) if self.training else (0.0, 0.0)
        drawn = draw(self.noise, *probabilities, (b, n, t) if first_only else (b, n, asking, t), (b * asking, d))
        weights, sums = self.direct or (_parameters(self.in_order()), None)
        return fused_layer(x, mask, drawn, self.settings, weights, first_only=first_only, picked=picked, sums=sums)

    def in_order(self) -> tuple[nn.Module, ...]:
        """Return the parts in the order in which fused.py takes their weights and biases."""
        return self.qkv, self.attended, self.attended_norm, self.up, self.down, self.norm

    def _drop(self, x: Tensor) -> Tensor:
        return self.noise.dropout(x, self.dropout, self.training)

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # B N T H
        return self._mix(q, k, v, mask)

    def _attend_picked(self, x: Tensor, asking: Tensor, mask: Tensor | None) -> Tensor:
        b, t, d = x.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(asking, weight[:d], bias[:d]).view(b, -1, self.heads, d // self.heads).transpose(1, 2)  # B N M H
        both = F.linear(x, weight[d:], bias[d:])
        k, v = both.view(b, t, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # B N T H
        return self._mix(q, k, v, mask)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return the joined heads [B, Q, D] of queries [B, N, Q, H] over keys and values [B, N, T, H]."""
        if self.training and self.attention_dropout and q.device.type == "cpu":
            scores = q @ k.transpose(2, 3) * self.scale  # B N T T
            a = self._shares(scores if mask is None else scores + mask) @ v
        else:
            dropout = self.attention_dropout if self.training else 0.0
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        joined: Tensor = a.transpose(1, 2).reshape(len(q), q.shape[2], -1)
        return joined

    def _shares(self, scores: Tensor) -> Tensor:
        return self.noise.dropout(scores.softmax(-1), self.attention_dropout, self.training)

    def _attend_first(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from the first position alone, [B, 1, D], without making keys and values.

        q . (K x + k) = (K' q) . x + q . k, and the sum of shares times (V x + v) is V (sum of shares times x) plus v
        times the sum of shares. Multiplying the one query and the one sum instead of every position is the same
        number with N times D multiplications a position instead of 2 D D.
        """
        b, _, d = x.shape
        query, key, value = self.qkv.weight.view(3, self.heads, d // self.heads, d)  # N H D each
        of_query, of_key, of_value = self.qkv.bias.view(3, self.heads, 1, d // self.heads)  # N 1 H each
        q = x[:, 0] @ query.transpose(1, 2) + of_query  # N B H
        scores = (q @ key).transpose(0, 1) @ x.transpose(1, 2)  # B N T
        scores = (scores + (q * of_key).sum(-1).t()[:, :, None]) * self.scale
        shares = self._shares(scores if mask is None else scores + mask[:, :, 0])
        mixed = (shares @ x).transpose(0, 1)  # N B D
        a = mixed @ value.transpose(1, 2) + shares.sum(-1).t()[:, :, None] * of_value  # N B H
        joined: Tensor = a.transpose(0, 1).reshape(b, 1, d)
        return joined


class _MaskedLM(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.tanh = _TANH[c.hidden_act]
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))

    def transform(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(F.gelu(self.dense(x), approximate=self.tanh))
        return normed

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return F.linear(self.transform(x), words, self.bias)  # M V; the projection is the word embedding's table

    def loss(self, x: Tensor, words: Tensor, targets: Tensor, frugal: bool) -> Tensor:
        if frugal:
            return masked_cross_entropy(self.transform(x), words, self.bias, targets)
        return F.cross_entropy(self(x, words).float(), targets, reduction="sum")


class Bert(nn.Module):
    """A BERT encoder with the heads that `groups` names.

    Args:
        config: sizes and constants.
        groups: any of pooler, mlm, nsp, head; the encoder is always there.
        classes: number of the classifier's outputs, where there is one.
        helpers: name -> outputs of linear layers on the pooled vector that are trained and not kept: `weights` leaves
            them out.

    Attributes:
        exact_speedups: leave out what the first position of the last layer does not need, and train with fused.py on
            a CPU; the numbers are the same but for rounding.

    Example:
        >>> config = ModelConfig(vocab_size=29, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        ...                      intermediate_size=20)
        >>> model = Bert(config, {"pooler", "head"}, classes=5).eval()
        >>> model.classify(torch.tensor([[2, 7, 3]])).shape
        torch.Size([1, 5])
    """

    def __init__(
        self,
        config: ModelConfig,
        groups: Iterable[str] = (),
        classes: int = 0,
        helpers: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.groups = {"encoder", *groups}
        self.classes = classes
        self.exact_speedups = True
        self.noise = Noise()
        self.embed = _Embed(config, self.noise)
        self.layers = nn.ModuleList([_Layer(config, self.noise) for _ in range(config.num_hidden_layers)])
        width = config.hidden_size
        if "pooler" in self.groups:
            self.pooler = nn.Linear(width, width)
        if "mlm" in self.groups:
            self.mlm = _MaskedLM(config)
        if "nsp" in self.groups:
            self.nsp = nn.Linear(width, 2)
        if "head" in self.groups:
            self.head = nn.Linear(width, classes)
        self.helper_outputs = dict(helpers or {})
        self.helpers = nn.ModuleDict({name: nn.Linear(width, n) for name, n in self.helper_outputs.items()})
        dropout = config.classifier_dropout
        self.head_dropout = config.hidden_dropout_prob if dropout is None else dropout
        self.direct: _Direct | None = None  # of pooler and head

    def forward(
        self,
        ids: Tensor,
        segments: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        groups: Tensor | None = None,
        first_only: bool = False,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Encode.

        Args:
            ids: word pieces, integers [B, T].
            segments: 0 or 1 per position [B, T]; None where all are 0.
            mask: true at real positions, bool [B, T]; None where nothing is padded.
            positions: of each piece in its text, [B, T]; None where rows hold one text each, from 0 on.
            groups: number of each position's text, [B, T], where rows hold several: none sees another. Replaces `mask`.
            first_only: return only the first position; the last layer does no other work.
            wanted: return only these places of the flattened [B T], ascending, [K]; the last layer does little else.

        Returns:
            Hidden states of the last layer, [B, T, D]; [B, 1, D] with `first_only`; [K, D] with `wanted`.
        """
        fused = self._fuses(ids)
        x: Tensor = self.embed(ids, segments, positions, self._fuses(ids, products=False))
        wide = None
        if groups is not None:
            wide = barred(groups[:, :, None] != groups[:, None, :], x)[:, None]  # B 1 T T
        elif mask is not None:
            wide = barred(~mask, x)[:, None, None]  # B 1 1 T
        *others, last = self.layers
        for layer in others:
            x = layer(x, wide, fused=fused)
        if wanted is None:
            encoded: Tensor = last(x, wide, first_only=first_only, fused=fused)
            return encoded
        if not self.exact_speedups:
            return last(x, wide, fused=fused).flatten(0, 1)[wanted]  # type: ignore[no-any-return]
        picked, where = by_row(wanted, *ids.shape)
        if groups is not None and wide is not None:
            wide = wide.flatten(0, 2)[picked][:, None]  # B 1 M T
        return last(x, wide, picked=picked, fused=fused).flatten(0, 1)[where]  # type: ignore[no-any-return]

    def pooled(self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return tanh of the pooler on the first position, [B, D]."""
        x = self(ids, segments, mask, first_only=self.exact_speedups)[:, 0]
        return torch.tanh(self.pooler(x))

    def classify(self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the classifier's outputs, [B, C]."""
        if self.direct is not None and self._fuses(ids):
            first = self(ids, segments, mask, first_only=True)[:, 0]
            drawn = self.noise.factors(self.head_dropout, *first.shape) if self.head_dropout else None
            return fused_classifier(first, drawn, *self.direct)
        x = self.noise.dropout(self.pooled(ids, segments, mask), self.head_dropout, self.training)
        logits: Tensor = self.head(x)
        return logits

    def masked(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits [M, V] of the hidden states [M, D] of the masked positions alone."""
        logits: Tensor = self.mlm(hidden, self.embed.word.weight)
        return logits

    def masked_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy of the pieces [M] behind the hidden states [M, D] of masked positions."""
        frugal = self.exact_speedups and self.training and hidden.device.type == "cpu"
        frugal = frugal and hidden.dtype == torch.float32
        loss: Tensor = self.mlm.loss(hidden, self.embed.word.weight, targets, frugal)
        return loss

    def next_sentence(self, first: Tensor) -> Tensor:
        """Return the two logits "b follows a" and "b is from elsewhere", [I, 2], from first positions [I, D]."""
        logits: Tensor = self.nsp(torch.tanh(self.pooler(first)))
        return logits

    def accumulate_in_place(self) -> None:
        """Have fused parts add to the gradients of their weights where they are, instead of autograd.

        Each weight must have one already, and weights and gradients must stay where they are in memory.
        """
        embed = self.embed
        embed.direct = _direct((embed.word, embed.position, embed.segment, embed.norm))
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            weights, gradients = _direct(layer.in_order())
            sums = Sums(gradients)
            layer.direct = weights, sums
            for weight in layer.parameters():
                if weight.dim() == 2:  # an objective may use a matrix on its own
                    weight.register_hook(sums.before_others)  # type: ignore[no-untyped-call]
        if "head" in self.groups:
            self.direct = _direct((self.pooler, self.head))

    def layer_sums(self) -> list[Sums]:
        """Return where each layer adds its gradients; none before `accumulate_in_place`."""
        return [layer.direct[1] for layer in self.layers if isinstance(layer, _Layer) and layer.direct is not None]

    def _fuses(self, ids: Tensor, products: bool = True) -> bool:
        """Tell whether a part has a backward pass of its own; those with products have it in float32 and one thread."""
        here = self.exact_speedups and self.training and ids.device.type == "cpu"
        if not here or not products:
            return here
        single = self.embed.word.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return single and torch.get_num_threads() == 1

    def weights(self) -> Weights:
        """Return the weights as float32 arrays under our names, without helpers."""
        kept = {name: p for name, p in self.state_dict().items() if not name.startswith("helpers.")}
        return {name: p.detach().float().cpu().numpy().copy() for name, p in kept.items()}


def build(
    config: ModelConfig,
    weights: Weights | None = None,
    *,
    groups: Iterable[str] = (),
    classes: int = 0,
    helpers: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Bert:
    """Make a model; what `weights` lacks is drawn from `seed` (truncated normal, as in google-research/bert).

    Args:
        weights: our name -> array; names of groups that are not asked for are left aside.
        groups: the heads that the model has.
        classes: outputs of the classifier.
        helpers: see `Bert`; always drawn, after everything else.
        seed: decides the new weights, whatever was drawn before.
    """
    with torch.device("meta"):
        model = Bert(config, groups, classes, helpers)
    drawn = np.random.default_rng(seed)
    state = {}
    wanted = shapes(config, [g for g in _ORDER if g in model.groups], classes)
    for name, layer in model.helpers.items():
        wanted |= {f"helpers.{name}.{key}": tuple(p.shape) for key, p in layer.named_parameters()}
    for name, shape in wanted.items():
        array = (weights or {}).get(name)
        if array is not None and array.shape != shape and not name.startswith("head."):
            raise ValueError(f"{name} has shape {array.shape}, the configuration asks for {shape}")
        if array is None or array.shape != shape:  # a classifier for other labels is made anew
            array = initial(name, shape, config.initializer_range, drawn)
        state[name] = torch.from_numpy(np.array(array, dtype=np.float32))
    model.load_state_dict(state, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def twin(model: Bert) -> Bert:
    """Make a model whose weights are the same memory, and whose gradients and dropout are its own."""
    with torch.device("meta"):
        other = Bert(model.config, model.groups, model.classes, model.helper_outputs)
    other.load_state_dict({name: p.data for name, p in model.named_parameters()}, strict=True, assign=True)
    other.exact_speedups = model.exact_speedups
    return other


def _parameters(parts: Iterable[nn.Module]) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for part in parts for parameter in part.parameters())


def _direct(parts: Iterable[nn.Module]) -> _Direct:
    """Return the weights of some parts, none of which asks for a gradient, and the gradients that they have."""
    parameters = _parameters(parts)
    gradients = tuple(parameter.grad for parameter in parameters if parameter.grad is not None)
    return tuple(parameter.detach() for parameter in parameters), gradients


_ORDER = ("encoder", "pooler", "mlm", "nsp", "head")
