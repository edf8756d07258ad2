"""A text encoder: tokenizer and network together, from texts to unit vectors and to disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from examples.common.fingerprint import fingerprint
from examples.common.guards import one_line
from examples.sbert.config import Config
from examples.sbert.networks import Bag, Transformer, occurrences
from examples.sbert.text import PAD, token_ids, train_tokenizer

WEIGHTS, SETTINGS, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


class EncoderError(Exception):
    """An encoder on disk is missing or damaged; the message says which."""


class TextEncoder(nn.Module):
    """What training, evaluation and search need of an encoder.

    Args:
        tokenizer: Cuts texts into tokens.
        network: Maps ids [N, L] to embeddings [N, dim].
        settings: What ``load_encoder`` makes the network from.
    """

    pad = PAD

    def __init__(self, tokenizer: Tokenizer, network: nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.network = network
        self.settings = settings

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [N, L], padded with ``pad``."""
        return token_ids(self.tokenizer, texts)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [N, dim] of token ids [N, L]; columns that are all padding cost nothing."""
        longest = int((ids != self.pad).sum(1).max()) if len(ids) else 1
        return self.network(ids[:, : max(1, longest)])

    @torch.no_grad()
    def encode(self, texts: Sequence[str] | Tensor, batch_size: int = 512) -> Tensor:
        """Unit vectors [N, dim] in float32, on the CPU, of texts or of their token ids."""
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        parts = [self(part.to(device)).float().cpu() for part in ids.split(batch_size)]
        self.train(training)
        return F.normalize(torch.cat(parts), dim=1)

    def fingerprint(self) -> str:
        """Of all that its embeddings depend on; the same before ``save`` and after loading."""
        weights = sorted(self.network.state_dict().items())
        return fingerprint([*self._described(), *(part for pair in weights for part in pair)])

    def _described(self) -> list[str]:
        return [json.dumps(self.settings, sort_keys=True), self.tokenizer.to_str()]

    def save(self, folder: Path) -> None:
        """Weights as safetensors, settings and tokenizer as JSON; nothing of the training."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: w.detach().cpu() for name, w in self.network.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(self.settings, indent=2) + "\n")
        self.tokenizer.save(str(folder / TOKENIZER))


def make_encoder(config: Config, texts: Sequence[str]) -> TextEncoder:
    """The untrained encoder: always the same weights for the same seed and training ``texts``."""
    torch.manual_seed(config.seed)
    if config.encoder == "pretrained":
        from examples.sbert.pretrained import PretrainedEncoder

        return PretrainedEncoder.load(config.model, config.max_tokens).to(config.device)
    tokenizer = train_tokenizer(texts, config.vocabulary, config.max_tokens)
    settings: dict[str, Any] = {
        "encoder": config.encoder,
        "vocabulary": tokenizer.get_vocab_size(),
        "dim": config.dim,
        "dropout": config.dropout,
    }
    if config.encoder == "transformer":
        settings |= {name: getattr(config, name) for name in ("layers", "heads", "max_tokens")}
        network = _network(settings)
    else:
        ids = token_ids(tokenizer, texts)
        network = _network(settings, _inverse_document_frequency(ids, settings["vocabulary"]))
    return TextEncoder(tokenizer, network, settings).to(config.device)


def load_encoder(folder: Path) -> TextEncoder:
    """Reads what ``save`` wrote.

    Raises:
        EncoderError: No encoder is there, or a damaged one.
    """
    try:
        if (folder / "modules.json").exists():
            from examples.sbert.pretrained import PretrainedEncoder

            return PretrainedEncoder.load(str(folder))
        if not (folder / WEIGHTS).exists():
            raise EncoderError(f"{folder} holds no encoder; `train` writes one")
        settings = json.loads((folder / SETTINGS).read_text())
        network = _network(settings)
        network.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except EncoderError:
        raise
    except Exception as error:  # each of the formats has its own
        raise EncoderError(
            f"{folder} holds a damaged encoder ({one_line(error)}); `train` writes it anew"
        ) from error
    return TextEncoder(tokenizer, network, settings).eval()


def _network(settings: dict[str, Any], idf: Tensor | None = None) -> nn.Module:
    made_of = {name: value for name, value in settings.items() if name != "encoder"}
    if settings["encoder"] == "transformer":
        return Transformer(**made_of)
    vocabulary = made_of.pop("vocabulary")
    return Bag(torch.ones(vocabulary) if idf is None else idf, **made_of)


def _inverse_document_frequency(ids: Tensor, vocabulary: int) -> Tensor:
    """``1 + log((1 + N) / (1 + df))`` of each token, as in scikit-learn."""
    _, tokens, _ = occurrences(ids, vocabulary)
    frequency = tokens.bincount(minlength=vocabulary)
    return 1 + ((1 + len(ids)) / (1 + frequency)).log()
