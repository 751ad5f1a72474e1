"""HanabiNet: texts of views and moves to Q values, with FoX as the encoder and as the memory.

Legend: R texts, T words of a text, C clauses of a text, d width, S seats, L own turns of a seat, A
moves.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fox.agents.hanabi.encoder import ClauseVectors, LastFeature, WordVectors
from fox.agents.hanabi.memory import FoxMemory, LSTMMemory, Memory, NoMemory, small_fox
from fox.agents.hanabi.text import VOCABULARY, WORD_IDS, Style, Texts
from fox.agents.ranges import at_least, one_of
from fox.layers import ForgettingAttention
from fox.policy import FoxPolicy

Unit = Literal["clause", "token"]
Recall = Literal["fox", "lstm", "none"]
# What a language model must share with the blocks that start from it.
_SHAPE: tuple[str, ...] = ("hidden_size", "num_hidden_layers", "num_heads", "num_kv_heads")
_SHAPE += ("intermediate_size", "fgate_type", "use_rope", "use_k_shift", "use_v_shift", "qk_norm")
_SHAPE += ("use_output_norm", "use_output_gate", "qkv_bias")


@dataclass(frozen=True)
class NetworkConfig:
    """The shape and the parts of a HanabiNet.

    Args:
        hidden_size: d.
        num_hidden_layers: FoX blocks that read a text.
        num_heads: of every FoX block; a divisor of hidden_size.
        unit: what those blocks read before the sum of a text's clauses: "clause", a vector for each
            of these, or "token", one for each word.
        memory: over a seat's own turns: "fox" (FoX blocks), "lstm", or "none".
        memory_layers: of either.
        centre: whether advantages are counted from their mean over the legal moves.
        style: of the texts, as in fox.agents.hanabi.text.
        pretrained: folder of a FoX language model over VOCABULARY, whose embedding and blocks the
            tokens start from; None draws them.

    Raises:
        ValueError: a value is out of its range, or two do not fit together.
    """

    hidden_size: int = 64
    num_hidden_layers: int = 1
    num_heads: int = 2
    unit: Unit = "clause"
    memory: Recall = "fox"
    memory_layers: int = 1
    centre: bool = False
    style: Style = "full"
    pretrained: str | None = None

    def __post_init__(self) -> None:
        one_of("network", self, unit=get_args(Unit), memory=get_args(Recall), style=get_args(Style))
        at_least("network", self, hidden_size=1, num_hidden_layers=1, num_heads=1, memory_layers=1)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                "network.hidden_size must be a multiple of num_heads, "
                f"but got {self.hidden_size} and {self.num_heads}"
            )
        if self.pretrained is not None and self.unit != "token":
            raise ValueError(
                f"a pretrained language model reads tokens: set unit='token', but got {self.unit!r}"
            )


class HanabiNet(nn.Module):
    """Values of moves, both told in words: the same weights for every number of players.

    x_t = encode(view at one's own turn t), h_t = memory(x_0, ..., x_t), o_t = x_t + h_t,
    e = encode(move), Q(o_t, e) = V(o_t) + A(o_t, e).

    Args:
        config: its shape and parts.

    Attributes:
        config: as given.
        memory: from encoded views to what is remembered, whole or turn by turn.
        head: from x + h and encoded moves to the values of all moves.

    Example:
        >>> x = net.encode(collate(views, places))
        >>> o = x + net.memory(x[None])[0]  # the own turns of one seat in one game
        >>> Q = net.head(o, net.encode(action_texts(rules.moves)))

    Source: the idea of texts for both, A Generalist Hanabi Agent, ICLR 2025.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.clauses = ClauseVectors(d)
        self.words: WordVectors | None = None
        self.reader = LastFeature(
            FoxPolicy(small_fox(d, config.num_hidden_layers, config.num_heads))
        )
        if config.unit == "token":
            self.words = WordVectors(d)
            if config.pretrained is not None:
                self._start_from(Path(config.pretrained), self.words)
        self.memory: Memory
        if config.memory == "fox":
            self.memory = FoxMemory(small_fox(d, config.memory_layers, config.num_heads))
        elif config.memory == "lstm":
            self.memory = LSTMMemory(d, config.memory_layers)
        else:
            self.memory = NoMemory()
        self.head = DuelingHead(d, config.centre)
        for module in self.modules():
            if isinstance(module, ForgettingAttention):
                # For 475 sequences of 5 on a CPU "blocked" takes 50 times as long where their
                # lengths differ, and 2 times as long where they do not.
                module.backend = "reference"

    def encode(self, texts: Texts) -> Tensor:
        """Texts -> (R, d); nothing depends on padding, or on the other texts."""
        clauses = self.clauses(texts)
        read = clauses if self.words is None else self.words(texts)
        # What the blocks make of the sum of all clauses, which they read last, is the text's
        # vector. From its last clause or word one seed learnt several times slower (LOG.md).
        return self.reader(read.then(clauses.sums()))

    def _start_from(self, folder: Path, words: WordVectors) -> None:
        """The language model reads as it did: fields and offsets begin at 0."""
        from fox.checkpoints import load_checkpoint  # needs tokenizers, which a network does not

        model, tokenizer = load_checkpoint(folder)
        blocks = self.reader.trunk.config
        needed = {"vocab_size": len(VOCABULARY)} | {name: getattr(blocks, name) for name in _SHAPE}
        found = {name: getattr(model.config, name) for name in needed}
        if found != needed:
            wrong = [f"{name}={found[name]}" for name in needed if found[name] != needed[name]]
            right = [f"{name}={needed[name]}" for name in needed if found[name] != needed[name]]
            raise ValueError(
                f"the language model in {folder} has {', '.join(wrong)}, but the network needs "
                f"{', '.join(right)}: train another, or change the network's sizes"
            )
        if tokenizer is not None and tokenizer.get_vocab() != WORD_IDS:
            raise ValueError(
                f"the tokenizer in {folder} has other words or numbers them otherwise than the "
                "network: train a language model on what fox-hanabi transcripts writes now"
            )
        self.reader = LastFeature(FoxPolicy.from_checkpoint(folder).float())
        with torch.no_grad():
            words.word.weight.copy_(model.model.embeddings.weight)
            words.field.weight.zero_()
            words.offset.weight.zero_()


def blank_net(config: NetworkConfig) -> HanabiNet:
    """A network whose weights will be loaded: what it was pretrained from need not be there."""
    return HanabiNet(replace(config, pretrained=None))


class DuelingHead(nn.Module):
    """Q(o, e) = V(o) + A(o, e), A(o, e) = w . silu(W (W_o o * W_a e)), V of two layers.

    Args:
        d: width.
        centre: whether the mean of A over the legal moves is taken off.
    """

    def __init__(self, d: int, centre: bool) -> None:
        super().__init__()
        self.centre = centre
        self.state = nn.Linear(d, d)
        self.action = nn.Linear(d, d)
        self.mixed = nn.Linear(d, d)
        self.advantage = nn.Linear(d, 1, bias=False)
        self.value = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 1))

    def forward(self, o: Tensor, e: Tensor, legal: Tensor | None = None) -> Tensor:
        """Q of every move in every state, (R, A).

        Args:
            o: (R, d), x + h.
            e: (A, d), encoded moves.
            legal: (R, A) bool, which the mean of a centred head needs.
        """
        # W (s * u) = (W diag(u)) s: a matrix for each move, side by side in one product, takes two
        # thirds of the time of the products s * u of all states and moves.
        moves = self.mixed.weight * self.action(e).unsqueeze(1)  # (A, d, d)
        bias = self.mixed.bias.repeat(len(e))
        mixed = torch.addmm(bias, self.state(o), moves.flatten(0, 1).t())
        advantage = F.silu(mixed).unflatten(1, (len(e), -1)) @ self.advantage.weight[0]
        if self.centre:
            if legal is None:
                raise ValueError(
                    "with centre the values of moves depend on which are legal: pass legal (R, A)"
                )
            mean = (advantage * legal).sum(1, keepdim=True) / legal.sum(1, keepdim=True)
            advantage = advantage - mean
        return self.value(o) + advantage
