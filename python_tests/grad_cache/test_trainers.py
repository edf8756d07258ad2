"""GradCache as the loss of trainers: they train what they train with the loss of a whole batch."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import cl_kernels
from cl_kernels.grad_cache import GradCache
from python_tests.grad_cache.towers import batch, encoder

pytestmark = pytest.mark.slow  # imports alone take seconds

WORDS = [f"word{i}" for i in range(30)]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def info_nce(query, document, *negatives):
    return cl_kernels.multiple_negatives_ranking(query, [document, *negatives], scale=5.0)


def texts(count, seed):
    numbers = torch.randint(len(WORDS), (count, 6), generator=torch.Generator().manual_seed(seed))
    return [" ".join(WORDS[i] for i in row[: 1 + k % 6]) for k, row in enumerate(numbers)]


def check_same(*modules):
    weights = [dict(module.named_parameters()) for module in modules]
    torch.testing.assert_close(*weights, **CLOSE)


def common(folder, **options):
    return {
        "output_dir": str(folder), "learning_rate": 0.01, "max_steps": 3, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
        "per_device_train_batch_size": 12, "optim": "sgd",
    } | options  # fmt: skip


# sentence-transformers


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A small model of sentence-transformers, without dropout."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.sentence_transformer import losses, modules
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    model = sentence_transformers.SentenceTransformer(
        modules=[modules.Transformer(str(folder)), modules.Pooling(16)], device="cpu"
    )

    def train(make_loss, columns, **options):
        trained = copy.deepcopy(model)
        trainer = sentence_transformers.SentenceTransformerTrainer(
            model=trained,
            args=sentence_transformers.SentenceTransformerTrainingArguments(
                **common(folder, **options)
            ),
            train_dataset=datasets.Dataset.from_dict(columns),
            loss=make_loss(trained),
        )
        trainer.train()
        return trained, [x for x in trainer.state.log_history if "loss" in x]

    return SimpleNamespace(train=train, losses=losses, model=model)


PAIRS = {"anchor": texts(72, 1), "positive": texts(72, 2), "negative": texts(72, 3)}


@pytest.mark.parametrize(("name", "settings"), [
    ("MultipleNegativesRankingLoss", {"scale": 5.0}),
    ("CachedMultipleNegativesRankingLoss", {"scale": 5.0, "mini_batch_size": 5}),
])  # fmt: skip
def test_losses_under_the_names_of_sentence_transformers(sentences, name, settings):
    from cl_kernels.integrations import sentence_transformers as ours

    (expected, logged), (got, losses) = (
        sentences.train(lambda model, of=of: getattr(of, name)(model, **settings), PAIRS)
        for of in (sentences.losses, ours)
    )
    check_same(got, expected)
    for mine, theirs in zip(losses, logged, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize(("steps", "limit"), [(1, {"chunk_size": 5}), (2, {"max_tokens": 7})])
def test_sentence_transformers(sentences, limit, steps):
    expected, logged = sentences.train(
        lambda model: sentences.losses.MultipleNegativesRankingLoss(model, scale=5.0),
        PAIRS, gradient_accumulation_steps=steps,
    )  # fmt: skip
    got, losses = sentences.train(
        lambda model: GradCache.as_loss(info_nce, model, **limit),
        PAIRS, gradient_accumulation_steps=steps,
    )  # fmt: skip
    check_same(got, expected)
    assert len(losses) == 3
    for ours, theirs in zip(losses, logged, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_sentence_transformers_with_labels_and_a_loss_of_theirs(sentences):
    columns = {"a": texts(72, 1), "b": texts(72, 2), "label": torch.rand(72).tolist()}
    expected, _ = sentences.train(sentences.losses.CoSENTLoss, columns)
    ours, _ = sentences.train(
        lambda model: GradCache.as_loss(
            lambda a, b, labels: cl_kernels.cosent(a, b, labels), model, chunk_size=5
        ),
        columns,
    )
    check_same(ours, expected)

    def theirs(model):
        loss = sentences.losses.CoSENTLoss(model)
        return GradCache.as_loss(
            lambda *embeddings, labels: loss.compute_loss_from_embeddings(embeddings, labels),
            model, chunk_size=5,
        )  # fmt: skip

    check_same(sentences.train(theirs, columns)[0], expected)


def test_sentence_transformers_sums_up_named_losses(sentences):
    def parts(query, document, negative):
        return {"info_nce": info_nce(query, document, negative), "size": query.square().mean()}

    class Whole(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, features, labels):
            return parts(*(self.model(x)["sentence_embedding"] for x in features))

    expected, logged = sentences.train(Whole, PAIRS)
    got, losses = sentences.train(lambda m: GradCache.as_loss(parts, m, chunk_size=5), PAIRS)
    check_same(got, expected)
    assert losses[0]["size"] == pytest.approx(logged[0]["size"], rel=1e-4)


def test_sentence_transformers_evaluates_without_gradients(sentences):
    features = [sentences.model.preprocess(texts(9, seed)) for seed in (1, 2)]
    loss = GradCache.as_loss(info_nce, sentences.model, chunk_size=4)
    with torch.no_grad():
        value = loss(features, None)
    whole = sentences.losses.MultipleNegativesRankingLoss(sentences.model, scale=5.0)
    torch.testing.assert_close(value, whole(features, None).detach(), **CLOSE)


def test_losses_of_sentence_transformers_that_patch_a_forward_pass(sentences):
    """They know that the backward pass would come too late for them."""
    loss = GradCache.as_loss(info_nce, sentences.model, chunk_size=4)
    with pytest.raises(AttributeError, match="calculate_loss"):
        sentences.losses.MatryoshkaLoss(sentences.model, loss, [16, 8])


# Hugging Face


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip

    def embed(model, batch):
        mask = batch["attention_mask"][:, :, None]
        return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    def collate(rows):
        ids, lengths = (torch.stack([row[i] for row in rows]) for i in (0, 1))
        masks = (torch.arange(ids.shape[2]) < lengths[:, :, None]).long()
        names = ("query", "document")
        return {
            name: {"input_ids": ids[:, i], "attention_mask": masks[:, i]}
            for i, name in enumerate(names)
        }

    def train(loss):
        class Contrastive(transformers.Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                value = loss([inputs["query"], inputs["document"]], model=model)
                return (value, {}) if return_outputs else value

        rows = list(zip(
            torch.randint(30, (72, 2, 8), generator=torch.Generator().manual_seed(1)),
            torch.randint(1, 8, (72, 2), generator=torch.Generator().manual_seed(2)),
            strict=True,
        ))  # fmt: skip
        options = common(
            tmp_path, gradient_accumulation_steps=2, remove_unused_columns=False,
            eval_strategy="steps", eval_steps=2, prediction_loss_only=True,
        )  # fmt: skip
        trained = copy.deepcopy(model)
        trainer = Contrastive(
            trained, transformers.TrainingArguments(**options), collate, rows, rows[:12]
        )
        trainer.can_return_loss = True  # for evaluation: the loss needs no labels
        trainer.train()
        return trained

    def whole(batches, model):
        return info_nce(*(embed(model, batch) for batch in batches))

    got = train(GradCache.as_loss(info_nce, embed=embed, max_tokens=24))
    check_same(got, train(whole))


# Lightning


@pytest.fixture(scope="module")
def lightning():
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return pytest.importorskip(name)
        except pytest.skip.Exception:
            continue
    pytest.skip("needs lightning")


@pytest.mark.parametrize("named", [False, True])
def test_lightning(lightning, named):
    data = DataLoader([(batch().float(), batch().float()) for _ in range(6)], batch_size=None)

    def parts(x, y):
        value = info_nce(x, y)
        return {"loss": value + x.square().mean(), "info_nce": value.detach()} if named else value

    class Module(lightning.LightningModule):
        def __init__(self, module, loss):
            super().__init__()
            self.encoder, self.loss = module, loss

        def training_step(self, batch, _):
            return self.loss(batch, model=self.encoder)

        def validation_step(self, batch, _):
            self.log("val", self.loss(batch, model=self.encoder)["loss"] if named else 0.0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(loss):
        module = Module(copy.deepcopy(start), loss)
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, accumulate_grad_batches=2, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(module, data, data)
        assert set(module.state_dict()) == {f"encoder.{name}" for name in start.state_dict()}
        return module.encoder

    def whole(batches, model):
        return parts(*map(model, batches))

    start = encoder(dtype=torch.float32)
    check_same(train(GradCache.as_loss(parts, chunk_size=5)), train(whole))
