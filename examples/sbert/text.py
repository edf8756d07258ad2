"""Texts to token ids: words and parts of identifiers, then byte-pair encoding."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

PAD, UNKNOWN = 0, 1

# camelCase, HTTPServer, snake_case, digits; runs of letters that have no case of their own
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+")


def words(text: str) -> list[str]:
    """Lower-case words of a text; identifiers are taken apart, punctuation is dropped."""
    return [word.lower() for word in _WORD.findall(unicodedata.normalize("NFKD", text))]


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_tokens: int) -> Tokenizer:
    """Learns byte-pair encoding (Sennrich et al. 2016) of at most ``vocabulary`` tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=["[PAD]", "[UNK]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(words(text)) for text in texts), trainer)
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]")
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Shape [N, L] int64, padded with ``PAD``; L is the length of the longest, at least 1."""
    encoded = tokenizer.encode_batch([" ".join(words(text)) for text in texts])
    ids = torch.tensor([text.ids for text in encoded], dtype=torch.int64)
    return ids if ids.numel() else torch.full((len(texts), 1), PAD)
