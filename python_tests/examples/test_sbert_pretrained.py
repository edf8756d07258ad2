"""The text example beside sentence-transformers: its trainer with our loss, its checkpoints."""

import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("datasets")
pytest.importorskip("sentence_transformers")

import datasets
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from examples.sbert.__main__ import main
from examples.sbert.encoder import load_encoder
from examples.sbert.pretrained import PretrainedEncoder, find_model
from examples.sbert.sentence_transformers_loss import InfoNCE
from python_tests.examples.test_sbert import WORDS, texts, write_pairs

pytestmark = pytest.mark.slow  # the import alone takes seconds


def word_tokenizer():
    vocabulary = ["[PAD]", "[UNK]", *WORDS, *(word[::-1] + "zz" for word in WORDS)]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def static_model():
    return SentenceTransformer(
        modules=[StaticEmbedding(word_tokenizer(), embedding_dim=16)], device="cpu"
    )


@pytest.fixture
def tiny_bert(tmp_path):
    """The folder of a checkpoint as sentence-transformers writes them, with random weights."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="[PAD]", unk_token="[UNK]"
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    parts = tmp_path / "parts"
    BertModel(config).save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    model = SentenceTransformer(modules=[Transformer(str(parts)), Pooling(16)], device="cpu")
    folder = tmp_path / "checkpoint"
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("columns", [2, 4])
def test_our_loss_is_multiple_negatives_ranking(columns):
    """Values and gradients, with in-batch negatives alone and with two given ones a text."""
    model = static_model()
    queries, documents = texts(40)
    some = [queries[:8], documents[:8], documents[8:16], documents[16:24]][:columns]
    results = []
    for loss in (InfoNCE(model, 0.05), MultipleNegativesRankingLoss(model, scale=20.0)):
        model.zero_grad()
        value = loss([model.preprocess(column) for column in some], None)
        value.backward()
        results.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_their_trainer_trains_with_our_loss(tmp_path):
    model = static_model()
    queries, documents = texts(200)
    columns = {"anchor": queries, "positive": documents}
    options = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=50,
        num_train_epochs=10,
        learning_rate=0.05,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=options,
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=InfoNCE(model),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 40 and losses[-1] < losses[0] - 2


def test_a_checkpoint_trains_and_is_exported_as_one(tmp_path, tiny_bert, capsys):
    write_pairs(tmp_path / "pairs.tsv", 150)
    first = PretrainedEncoder.load(str(tiny_bert))
    model = SentenceTransformer(str(tiny_bert), device="cpu")
    queries, _ = texts(9)
    mixed = [*queries, "one"]
    ours = first.encode(mixed)
    theirs = model.encode(mixed, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    options = {"dataset": tmp_path / "pairs.tsv", "model": tiny_bert, "out": tmp_path / "run"}
    options |= {"batch-size": 64, "chunk": 20, "device": "cpu", "learning-rate": 1e-2}
    given = [x for name, value in options.items() for x in ("--" + name, str(value))]
    assert main(["train", *given]) == 0
    assert "mined negatives" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "report.json").read_text())
    assert record["settings"]["encoder"] == "pretrained" and len(record["history"]) == 2
    trained = load_encoder(tmp_path / "run" / "encoder").encode(mixed)
    assert not torch.allclose(trained, ours, atol=1e-3)


def test_checkpoints_are_found_by_folder_and_by_package(tmp_path, monkeypatch):
    inside = tmp_path / "carries_a_model" / "model"
    inside.mkdir(parents=True)
    (tmp_path / "carries_a_model" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("carries-a-model", str(tmp_path / "carries_a_model")):
        with pytest.raises(ValueError, match=r"a folder with modules\.json"):
            find_model(name)
    (inside / "modules.json").touch()
    for name in ("carries-a-model", str(tmp_path / "carries_a_model"), str(inside)):
        assert find_model(name) == inside
    with pytest.raises(ValueError, match="a folder or an installed package, got 'no/such'"):
        find_model("no/such")
