"""Encoders from a checkpoint of sentence-transformers: a folder, or an installed package."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.sbert.encoder import TextEncoder


def import_sentence_transformers() -> Any:
    """The module, or an error that says what to do."""
    try:
        import sentence_transformers
    except ImportError as error:
        raise ValueError(
            f"model: expected sentence-transformers to load it with ({error}); "
            "`pip install sentence-transformers`"
        ) from error
    return sentence_transformers


def find_model(name: str) -> Path:
    """The folder ``name``, or the one inside the installed package of that name.

    Raises:
        ValueError: There is neither, or no checkpoint of sentence-transformers in it.
    """
    folder = Path(name)
    if not folder.is_dir():
        package = name.replace("-", "_")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"model: expected a folder or an installed package, got {name!r}")
        folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.rglob("modules.json"), key=lambda path: len(path.parts))
    if not found:
        raise ValueError(f"model: expected a folder with modules.json in {folder}, found none")
    return found[0].parent


class PretrainedEncoder(TextEncoder):
    """A transformer model of sentence-transformers with its own tokenizer and pooling."""

    def __init__(self, model: Any) -> None:
        tokenizer: Any = getattr(model, "tokenizer", None)
        pad = getattr(tokenizer, "pad_token_id", None)
        if pad is None:
            raise ValueError("model: expected a tokenizer that pads, got none in this checkpoint")
        super().__init__(tokenizer, model, {})
        self.pad = pad

    @classmethod
    def load(cls, name: str, max_tokens: int | None = None) -> "PretrainedEncoder":
        """The checkpoint in a folder or an installed package; texts are cut at ``max_tokens``."""
        model = import_sentence_transformers().SentenceTransformer(
            str(find_model(name)), device="cpu", local_files_only=True
        )
        if max_tokens is not None:
            model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
        return cls(model)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        if not len(texts):
            return torch.full((0, 1), self.pad)
        tokenizer: Any = self.tokenizer
        return tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.network.max_seq_length,
            return_tensors="pt",
        )["input_ids"]

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != self.pad).long()
        longest = max(1, int(mask.sum(1).max()))
        ids, mask = ids[:, :longest], mask[:, :longest]
        return self.network({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]

    def _described(self) -> list[str]:
        return [f"at most {self.network.max_seq_length} tokens"]

    def save(self, folder: Path) -> None:
        self.network.save(str(folder), create_model_card=False)  # type: ignore[operator]
