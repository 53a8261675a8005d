"""What large models are made of: fused attention, checkpointed activations, bfloat16, adapters; Hugging Face."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_sanity import SaliencySanityCallback, parameter_randomization_test, targets
from lightning_sanity.attribution import integrated_gradients, resolve
from lightning_sanity.explanation import Tokens
from lightning_sanity.explanation.tokens import token_scores

WORDS, LENGTH = 40, 10
METHODS = ("gradient", integrated_gradients(3, tolerance=10.0), "gradcam")


class Block(nn.Module):
    """Attention by one fused call, and an adapter of low rank on a frozen projection."""

    def __init__(self, width=16):
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.project.requires_grad_(False)
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, 3 * width, bias=False)

    def forward(self, x, mask):
        normed = self.norm(x)
        q, k, v = (self.project(normed) + self.up(self.down(normed))).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(WORDS, 16), nn.ModuleList([Block(), Block()])
        self.head, self.checkpointed = nn.Linear(16, 3), checkpointed

    def forward(self, ids, mask):
        x = self.embedding(ids)
        for block in self.blocks:
            x = checkpoint(block, x, mask, use_reentrant=False) if self.checkpointed else block(x, mask)
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.fixture
def batch():
    lengths = torch.tensor([[10], [8], [6], [9], [7], [5]])
    mask = torch.arange(LENGTH) < lengths
    return {"ids": torch.randint(1, WORDS, (6, LENGTH)) * mask, "mask": mask}


SETTINGS = {"methods": METHODS, "trials": 1, "granularity": "block"}


def test_the_low_rank_adapters_of_a_fused_encoder_and_its_frozen_base_are_randomised(batch):
    result = parameter_randomization_test(Encoder(), batch, 0, explain="ids", **SETTINGS)
    assert result.coverage.share == 1.0
    assert {name for name, measure in result.curves if measure == "cosine_signed"} > {"gradient", "gradcam"}


def test_checkpointed_activations_change_no_score(batch):
    plain = Encoder()
    saving = Encoder(checkpointed=True)
    saving.load_state_dict(plain.state_dict())
    inputs = (batch["ids"], batch["mask"])
    for method in ("gradient", "integrated_gradients_local"):
        scores = [token_scores(model, inputs, method=method)[0] for model in (plain, saving)]
        assert torch.allclose(*scores, atol=1e-6)


def test_a_bfloat16_encoder_has_finite_curves(batch):
    result = parameter_randomization_test(Encoder().to(torch.bfloat16), batch, 0, explain="ids", **SETTINGS)
    assert result.coverage.share == 1.0
    assert result.curves["gradient", "cosine_signed"].values.isfinite().all()
    assert result.curves["integrated_gradients", "spearman"].values.isfinite().all()


# -------------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture
def encoded(batch):
    transformers = pytest.importorskip("transformers")
    return transformers.BatchEncoding({"input_ids": batch["ids"], "attention_mask": batch["mask"].long()})


def test_a_hugging_face_classifier_runs_unchanged(bert, encoded):
    result = parameter_randomization_test(bert, encoded, tokens=Tokens(ignore=[0]), **SETTINGS)
    assert result.settings["explained"] == "input_ids"
    assert result.coverage.share == 1.0
    assert result.units[0] == "classifier"
    assert ("integrated_gradients", "euclidean_signed") in result.curves


def test_scores_of_a_hugging_face_classifier_are_those_of_inputs_embeds(bert, encoded):
    mask = encoded["attention_mask"]
    embedded = bert.get_input_embeddings()(encoded["input_ids"]).detach().requires_grad_()
    outputs = bert(inputs_embeds=embedded, attention_mask=mask).logits
    target = outputs.argmax(1)
    (slope,) = torch.autograd.grad(outputs.gather(1, target[:, None]).sum(), embedded)
    expected = F.normalize(slope.norm(dim=2) * mask, dim=1)
    found, kept = token_scores(bert, encoded, method="gradient", tokens=Tokens())
    assert torch.allclose(found, expected * kept, atol=1e-5)


def test_a_hugging_face_language_model_is_explained_at_a_position(encoded):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    last = encoded["attention_mask"].sum(1) - 1
    result = parameter_randomization_test(
        model, dict(encoded), targets.position(last), methods="gradient", trials=1, granularity="block"
    )
    assert result.coverage.share == 1.0
    assert "transformer.wte" in {name.rpartition(".")[0] for unit in result.coverage.units for name in unit.parameters}


@pytest.fixture(scope="module")
def adapted(bert):
    """An encoder tuned with the adapters of peft: a frozen base, low ranks beside it, a head of its own."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(copy.deepcopy(bert), config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    ids = torch.randint(1, WORDS, (6, LENGTH))
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=torch.arange(6) % 3).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
def test_an_encoder_tuned_by_peft_is_randomised_with_its_base_and_its_adapters(adapted, encoded):
    result = parameter_randomization_test(adapted, encoded, 1, **SETTINGS)
    assert result.coverage.share == 1.0
    changed = {name for unit in result.coverage.units for name in unit.parameters}
    spared = {name for name, _ in adapted.named_parameters()} - changed
    assert spared == set(result.coverage.unused)
    assert all("original_module" in name for name in spared)  # the head that the tuned one has replaced
    query = "layer.1.attention.self.query."
    steps = [{n.split(query)[1] for n in unit.parameters if query in n} for unit in result.coverage.units]
    assert {"base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"} <= max(steps, key=len)
    assert result.curves["gradient", "cosine_signed"].values.isfinite().all()
    assert result.settings["engine"].keys() >= {"gradient", "integrated_gradients"}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_scores_of_a_tuned_encoder_are_those_of_its_merged_weights(adapted, encoded):
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    for method in ("gradient", "integrated_gradients_local", "feature_ablation"):
        settings = {"method": method, "tokens": Tokens(reduce="norm")}
        scores = [token_scores(model, encoded, **settings)[0] for model in (adapted, merged)]
        assert torch.allclose(*scores, atol=1e-4), method


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_tuned_encoder_in_bfloat16_has_finite_curves(adapted, encoded):
    result = parameter_randomization_test(copy.deepcopy(adapted).to(torch.bfloat16), encoded, **SETTINGS)
    assert result.coverage.share == 1.0
    assert result.curves["gradient", "spearman"].values.isfinite().all()


class Wrapped(L.LightningModule):
    """How Hugging Face models live in Lightning: batches are dictionaries with labels among them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return self.model(**batch)

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def validation_step(self, batch, index):
        self.log("val/loss", self.model(**batch).loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:saliency maps failed")
def test_the_callback_takes_batches_of_keyword_arguments(bert, encoded, tmp_path):
    rows = [
        {"input_ids": encoded["input_ids"][k], "attention_mask": encoded["attention_mask"][k], "labels": k % 3}
        for k in range(6)
    ]
    callback = SaliencySanityCallback(["gradient"], probe=6, trials=1, max_steps=2, on_error="raise")
    trainer = L.Trainer(
        max_steps=1, callbacks=[callback], accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(Wrapped(copy.deepcopy(bert).train()), DataLoader(rows, 6), DataLoader(rows, 6))
    assert callback.result.settings["explained"] == "input_ids"
    assert ("gradient", "cosine_signed") in callback.result.curves
    assert resolve("gradient").name in callback.result.verdicts
