"""The model under test: ours, or any causal language model of transformers, behind one interface.

Legend: B batch, T time, V vocabulary, C width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from fox.checkpoints import load_checkpoint
from fox.eval.store import fingerprint
from fox.files import read_json
from fox.formats import LLAMA, format_of, read_config
from fox.model import FoxForCausalLM

TOKENS_PER_HEAD = 4096  # logits of so many positions at once: (B, T, V) never exists


@dataclass
class EvalModel:
    """A causal language model with its tokenizer, ready to be asked.

    Attributes:
        path: where it came from: a folder, a .ckpt file or a name on the hub.
        name: the tail of the path, for tables and figures.
        device: where the weights are; ids may come from any device.
        tokenizer: a text that spells a special token out is text to it.
        vocab_size: logits per position, V.
        training_length: tokens of a training row, None if not known.
        max_length: tokens that learned position embeddings reach; None where nothing ends.
        bos: id that begins a text; None where the tokenizer has no such special token.
        eos: ids that end a text.
        network: the module, in eval mode.
        native: the same where it is ours, else None.
        body, head: (B, T) ids -> (B, T, C) features -> (B, T, V) logits.
    """

    path: str
    name: str
    device: torch.device
    tokenizer: Tokenizer
    vocab_size: int
    training_length: int | None
    max_length: int | None
    bos: int | None
    eos: list[int]
    network: nn.Module
    native: FoxForCausalLM | None
    body: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the config, the weights or the tokenizer."""
        return fingerprint(self.network, [self.tokenizer.to_str()])

    @torch.no_grad()
    def next_token_losses(self, ids: Tensor) -> Tensor:
        """-log p(token t + 1 | tokens 0..t): (B, T) ids -> (B, T - 1) float64, on the CPU."""
        features = self._features(ids[:, :-1]).flatten(0, 1)  # (B * (T - 1), C)
        targets = ids[:, 1:].flatten().to(self.device)
        losses = [
            F.cross_entropy(self.head(chunk).float(), target, reduction="none")
            for chunk, target in zip(
                features.split(TOKENS_PER_HEAD), targets.split(TOKENS_PER_HEAD), strict=True
            )
        ]
        return torch.cat(losses).double().cpu().view(len(ids), -1)

    @torch.no_grad()
    def next_token_log_probs(self, ids: Tensor) -> Tensor:
        """log p(next token | all tokens): (B, T) ids -> (B, V) float32, on the CPU."""
        return self.head(self._features(ids)[:, -1]).float().log_softmax(-1).cpu()

    @torch.no_grad()
    def answer_log_probs(self, ids: Tensor, answer_tokens: int) -> tuple[Tensor, Tensor]:
        """What the model thinks of the end of each row, given what stands before.

        Args:
            ids: (B, T) int64, texts of one length that end in the answer.
            answer_tokens: length n of the answer, less than T.

        Returns:
            log p(token | tokens before it), (B, n) float32, and whether no other token is
            likelier, (B, n) bool; on the CPU.
        """
        features = self._features(ids[:, :-1])[:, -answer_tokens:]
        log_probs = self.head(features).float().log_softmax(-1)  # (B, n, V)
        answer = ids[:, -answer_tokens:].to(self.device)
        chosen = log_probs.gather(-1, answer.unsqueeze(-1)).squeeze(-1)
        return chosen.cpu(), (log_probs.argmax(-1) == answer).cpu()

    @torch.no_grad()
    def continuation_log_probs(
        self, texts: Sequence[list[int]], lengths: Sequence[int]
    ) -> list[tuple[float, bool]]:
        """What the model thinks of the ends of texts of any lengths, all read at once.

        Args:
            texts: ids.
            lengths: tokens of each text's end; fewer than the text has.

        Returns:
            for each text, log p(end | what stands before it) and whether no token of the end has a
            likelier one.
        """
        longest = max(map(len, texts))  # the last token of a text is scored, but not read
        ids = torch.tensor([text[:-1] + [0] * (longest - len(text)) for text in texts])
        features = self._features(ids)  # what is padded on the right changes nothing before it
        results = []
        for row, text, length in zip(features, texts, lengths, strict=True):
            ends = torch.tensor(text[-length:], device=self.device)
            log_probs = self.head(row[len(text) - length - 1 : len(text) - 1]).float()
            log_probs = log_probs.log_softmax(-1)  # (length, V)
            total = log_probs.gather(-1, ends.unsqueeze(-1)).double().sum().item()
            results.append((total, torch.equal(log_probs.argmax(-1), ends)))
        return results

    @torch.no_grad()
    def generate(
        self,
        ids: list[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """Continues a text.

        Args:
            ids: of the text, at least one.
            max_new_tokens: at most so many.
            stop: texts that end the continuation; the token that completes one is its last.
            temperature: divides the logits before a token is drawn; 0 takes the likeliest.
            seed: of the draws.

        Returns:
            the new ids, without the one that ends a text.
        """
        prompt = torch.tensor([ids], device=self.device)
        self._check_length(len(ids) + max_new_tokens)
        if self.native is not None:
            tokens = self.native.generate(
                prompt,
                max_new_tokens,
                temperature=temperature,
                stop_token_ids=self.eos,
                stop_strings=list(stop),
                tokenizer=self.tokenizer,
                generator=torch.Generator(self.device).manual_seed(seed),
            )
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                tokens = self._generate(prompt, max_new_tokens, stop, temperature)
        new = tokens[0, len(ids) :].tolist()
        return new[:-1] if new and new[-1] in self.eos else new

    def _generate(
        self, prompt: Tensor, max_new_tokens: int, stop: Sequence[str], temperature: float
    ) -> Tensor:
        from transformers import StoppingCriteria, StoppingCriteriaList

        tokenizer, length = self.tokenizer, prompt.shape[1]

        class StopAtText(StoppingCriteria):
            def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
                text = tokenizer.decode(input_ids[0, length:].tolist(), skip_special_tokens=False)
                return torch.tensor([any(end in text for end in stop)], device=input_ids.device)

        network: Any = self.network
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
        return network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            stopping_criteria=StoppingCriteriaList([StopAtText()] if stop else []),
            **drawing,
        )

    def _features(self, ids: Tensor) -> Tensor:
        self._check_length(ids.shape[1])
        return self.body(ids.to(self.device))

    def _check_length(self, tokens: int) -> None:
        if self.max_length is not None and tokens > self.max_length:
            raise ValueError(
                f"{self.path} has learned positions for {self.max_length:,} tokens, "
                f"but got {tokens:,}: ask for shorter texts"
            )


def load_model(path: str) -> EvalModel:
    """A model in eval mode, on a GPU if there is one, with its tokenizer.

    Args:
        path: a folder in our, the official or fla's format, a .ckpt file of fox-train, or a folder
            or hub name of any causal language model that transformers can load.

    Raises:
        ValueError: there is no such model, it cannot be read, it lacks weights or a tokenizer, or
            its tokenizer has more tokens than it.
        ModuleNotFoundError: transformers is needed and not installed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _native(path, device) if _is_native(Path(path)) else _foreign(path, device)
    largest = max(model.tokenizer.get_vocab().values(), default=0)
    if largest >= model.vocab_size:
        raise ValueError(
            f"the tokenizer of {path} gives token {largest}, but the model has "
            f"{model.vocab_size}: put the tokenizer.json that its training used into the folder"
        )
    if model.bos not in model.tokenizer.get_added_tokens_decoder():
        model.bos = None  # a config's default, which means nothing to this tokenizer
    model.tokenizer.encode_special_tokens = True
    model.tokenizer.no_truncation()
    model.tokenizer.no_padding()
    return model


def tail_names(paths: Sequence[str]) -> list[str]:
    """Tails of the paths, of two parts or as many as tell the models apart.

    Raises:
        ValueError: a path comes twice.
    """
    parts = [Path(path).parts for path in paths]
    for count in range(2, max(map(len, parts)) + 2):
        tails = ["/".join(part[-count:]) for part in parts]
        if len(set(tails)) == len(tails):
            return tails
    raise ValueError(f"expected different models, but got {', '.join(paths)}")


def is_ours(fields: object) -> bool:
    """Whether our own reader is in charge of a config.json, also of telling what is wrong."""
    if not isinstance(fields, dict):
        return True
    try:
        # A Llama with options that our models lack is one of transformers' own.
        return format_of(fields) is not LLAMA or bool(read_config(fields))
    except ValueError:
        return False


def _is_native(path: Path) -> bool:
    config = path / "config.json"
    return is_ours(read_json(config)) if config.is_file() else path.exists()


def _native(path: str, device: torch.device) -> EvalModel:
    model, tokenizer = load_checkpoint(path, device)
    if tokenizer is None:
        raise ValueError(
            f"the checkpoint {path} has no tokenizer: put the tokenizer.json that its "
            "training used into the folder"
        )
    config = model.config
    return EvalModel(
        path=path,
        name=tail_names([path])[0],
        device=device,
        tokenizer=tokenizer,
        vocab_size=config.vocab_size,
        training_length=config.max_position_embeddings,
        max_length=None,
        bos=config.bos_token_id,
        eos=[] if config.eos_token_id is None else [config.eos_token_id],
        network=model,
        native=model,
        body=model.model,
        head=model.lm_head,
    )


def _foreign(path: str, device: torch.device) -> EvalModel:
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"no checkpoint of ours at {path}, and models of transformers need transformers: "
            "pip install 'fox-transformer[hf]'"
        ) from error
    from safetensors import SafetensorError

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        where = "cannot read the model" if Path(path).exists() else "no checkpoint at"
        raise ValueError(f"{where} {path}: {' '.join(str(error).split())}") from None
    network, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(f"the weights of {path} lack {', '.join(lacking[:3])} and would be random")
    network = network.to(device).eval()
    config = network.config.get_text_config()
    ends = network.generation_config.eos_token_id
    eos = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    # Greedy, whatever sampling the model's authors advise.
    network.generation_config = GenerationConfig(eos_token_id=eos or None, pad_token_id=0)
    body, head = _halves(network, device)
    return EvalModel(
        path=path,
        name=tail_names([path])[0],
        device=device,
        tokenizer=_foreign_tokenizer(path),
        vocab_size=config.vocab_size,
        training_length=getattr(config, "max_position_embeddings", None),
        max_length=learned_positions(network),
        bos=getattr(config, "bos_token_id", None),
        eos=eos,
        network=network,
        native=None,
        body=body,
        head=head,
    )


def _foreign_tokenizer(path: str) -> Tokenizer:
    file = Path(path) / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the tokenizer of {path}: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(backend := getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise ValueError(
            f"the tokenizer of {path} is a {type(tokenizer).__name__} without a tokenizer.json: "
            "save a fast one into its folder"
        )
    return backend


@torch.no_grad()
def _halves(
    network: Any, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Body and head, if the head is all that makes logits of features; else all is the body.

    Some models scale or cap their logits behind the output matrix: they are asked for all logits
    at once, which needs more memory.
    """
    body, head = network.base_model, network.get_output_embeddings()
    if body is not network and head is not None:

        def features(ids: Tensor) -> Tensor:
            return body(ids, use_cache=False).last_hidden_state

        ids = torch.arange(4, device=device).unsqueeze(0)
        if torch.equal(head(features(ids)), network(ids, use_cache=False).logits):
            return features, head
    return (lambda ids: network(ids, use_cache=False).logits), (lambda logits: logits)


def learned_positions(network: Any) -> int | None:
    """How far a table of learned positions reaches; None if the model has none."""
    length = getattr(network.config, "max_position_embeddings", None)
    tokens = network.get_input_embeddings()
    tables = [x for x in network.modules() if isinstance(x, nn.Embedding) and x is not tokens]
    # OPT's table has two rows more.
    found = length and any(0 <= table.num_embeddings - length <= 2 for table in tables)
    return length if found else None
