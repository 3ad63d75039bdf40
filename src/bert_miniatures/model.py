"""The encoder and its heads: the only file with an nn.Module.

Shapes in comments and docstrings:
    B batch   T positions   D width        N heads   H = D / N
    F feed-forward          V vocabulary   C outputs   M masked positions

Source: Devlin et al. 2019, section 3 and google-research/bert `modeling.py`; parameter names are the left column of
the table in names.py.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_miniatures.config import ModelConfig
from bert_miniatures.names import Weights, shapes

__all__ = ["Bert", "build"]

_TANH = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


class _Embed(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(c.vocab_size, c.hidden_size)
        self.position = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.segment = nn.Embedding(c.type_vocab_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = c.hidden_dropout_prob

    def forward(self, ids: Tensor, segments: Tensor | None) -> Tensor:
        fixed = self.position.weight[: ids.shape[1]]  # T D
        if segments is None:
            fixed = fixed + self.segment.weight[0]
        x = self.word(ids) + fixed  # B T D
        if segments is not None:
            x = x + self.segment(segments)
        return F.dropout(self.norm(x), self.dropout, self.training)


class _Layer(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        width = c.hidden_size
        self.heads = c.num_attention_heads
        self.tanh = _TANH[c.hidden_act]
        self.dropout, self.attention_dropout = c.hidden_dropout_prob, c.attention_probs_dropout_prob
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=c.layer_norm_eps)
        self.up = nn.Linear(width, c.intermediate_size)
        self.down = nn.Linear(c.intermediate_size, width)
        self.norm = nn.LayerNorm(width, eps=c.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None, first_only: bool) -> Tensor:
        """Map [B, T, D] to [B, T, D]; with `first_only` to [B, 1, D], the first position alone.

        Keys and values are needed of every position; query, attention output and feed-forward are not, when only the
        first position is read afterwards. The numbers are the same, the work of the layer is about a third.
        """
        q, k, v = self._query_key_value(x, first_only)
        dropout = self.attention_dropout if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # B N T|1 H
        if first_only:
            x = x[:, :1]
        a = self.attended(a.transpose(1, 2).reshape(x.shape))
        x = self.attended_norm(x + F.dropout(a, self.dropout, self.training))
        f = self.down(F.gelu(self.up(x), approximate=self.tanh))
        normed: Tensor = self.norm(x + F.dropout(f, self.dropout, self.training))
        return normed

    def _query_key_value(self, x: Tensor, first_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        b, t, d = x.shape
        if not first_only:
            q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            return q, k, v  # B N T H
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, :1], weight[:d], bias[:d]).view(b, 1, self.heads, d // self.heads).transpose(1, 2)
        k, v = F.linear(x, weight[d:], bias[d:]).view(b, t, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v


class _MaskedLM(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.tanh = _TANH[c.hidden_act]
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x = self.norm(F.gelu(self.dense(x), approximate=self.tanh))
        return F.linear(x, words, self.bias)  # M V; the projection is the word embedding's table


class Bert(nn.Module):
    """A BERT encoder with the heads that `groups` names.

    Args:
        config: sizes and constants.
        groups: any of pooler, mlm, nsp, head; the encoder is always there.
        classes: number of the classifier's outputs, where there is one.

    Example:
        >>> config = ModelConfig(vocab_size=29, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        ...                      intermediate_size=20)
        >>> model = Bert(config, {"pooler", "head"}, classes=5).eval()
        >>> model.classify(torch.tensor([[2, 7, 3]])).shape
        torch.Size([1, 5])
    """

    def __init__(self, config: ModelConfig, groups: Iterable[str] = (), classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.groups = {"encoder", *groups}
        self.classes = classes
        self.first_only = True  # the exact speed-up of the last layer; switched off by exact_speedups = false
        self.embed = _Embed(config)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])
        width = config.hidden_size
        if "pooler" in self.groups:
            self.pooler = nn.Linear(width, width)
        if "mlm" in self.groups:
            self.mlm = _MaskedLM(config)
        if "nsp" in self.groups:
            self.nsp = nn.Linear(width, 2)
        if "head" in self.groups:
            self.head = nn.Linear(width, classes)
        dropout = config.classifier_dropout
        self.head_dropout = config.hidden_dropout_prob if dropout is None else dropout

    def forward(
        self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None, *, first_only: bool = False
    ) -> Tensor:
        """Encode.

        Args:
            ids: word pieces, integers [B, T].
            segments: 0 or 1 per position [B, T]; None where all are 0.
            mask: true at real positions, bool [B, T]; None where nothing is padded.
            first_only: return only the first position; the last layer does no other work.

        Returns:
            Hidden states of the last layer, [B, T, D] or [B, 1, D].
        """
        wide = None if mask is None else mask[:, None, None, :]  # B 1 1 T
        x: Tensor = self.embed(ids, segments)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, wide, first_only and i == last)
        return x

    def pooled(self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return tanh of the pooler on the first position, [B, D]."""
        x = self(ids, segments, mask, first_only=self.first_only)[:, 0]
        return torch.tanh(self.pooler(x))

    def classify(self, ids: Tensor, segments: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the classifier's outputs, [B, C]."""
        x = F.dropout(self.pooled(ids, segments, mask), self.head_dropout, self.training)
        logits: Tensor = self.head(x)
        return logits

    def masked(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits [M, V] of the hidden states [M, D] of the masked positions alone."""
        logits: Tensor = self.mlm(hidden, self.embed.word.weight)
        return logits

    def next_sentence(self, hidden: Tensor) -> Tensor:
        """Return the two logits "b follows a" and "b is from elsewhere", [B, 2], from hidden states [B, T, D]."""
        logits: Tensor = self.nsp(torch.tanh(self.pooler(hidden[:, 0])))
        return logits

    def weights(self) -> Weights:
        """Return the weights as float32 arrays under our names."""
        return {name: p.detach().float().cpu().numpy().copy() for name, p in self.state_dict().items()}


def build(
    config: ModelConfig,
    weights: Weights | None = None,
    *,
    groups: Iterable[str] = (),
    classes: int = 0,
    seed: int = 0,
) -> Bert:
    """Make a model; what `weights` lacks is drawn from `seed` (truncated normal, as in google-research/bert).

    Args:
        weights: our name -> array; names of groups that are not asked for are left aside.
        groups: the heads that the model has.
        classes: outputs of the classifier.
        seed: decides the new weights, whatever was drawn before.
    """
    with torch.device("meta"):
        model = Bert(config, groups, classes)
    drawn = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes(config, [g for g in _ORDER if g in model.groups], classes).items():
        array = (weights or {}).get(name)
        if array is None or array.shape != shape:
            array = _initial(name, shape, config.initializer_range, drawn)
        state[name] = torch.from_numpy(np.array(array, dtype=np.float32))
    model.load_state_dict(state, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


_ORDER = ("encoder", "pooler", "mlm", "nsp", "head")


def _initial(name: str, shape: tuple[int, ...], deviation: float, drawn: np.random.Generator) -> np.ndarray:
    if name.endswith("bias"):
        return np.zeros(shape)
    if "norm" in name:
        return np.ones(shape)
    values = drawn.standard_normal(shape)
    while (far := np.abs(values) > 2).any():  # truncated at two deviations
        values[far] = drawn.standard_normal(int(far.sum()))
    return values * deviation
