"""Causal language models of transformers: labels that they shift themselves, label tokens, and biases of tokens."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import finecal
from finecal import Positions
from finecal.integrations.transformers import CalibrationCallback
from finecal.sequences import label_token_ids, label_token_samples, logit_bias
from pages import blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of PEFT
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
]
WORDS = ["<pad>", "<unk>", "a", "b", "c", "d", "e", ":", "yes", "no", "maybe", "never"]
CHOICES = ["yes", "no", "maybe", "never"]
MASK = torch.tensor([True, True, False, False])
SEEN_TOKENS = torch.arange(len(WORDS)) < 9
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id"))


def llama():
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, **NO_TOKENS, **size))


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, pad_token_id=0, **NO_TOKENS)
    )


@pytest.fixture(params=[llama, gpt2])
def model(request):
    torch.manual_seed(0)
    found = request.param().eval()
    for parameter in found.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return found


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")


def texts(n=32, length=6):
    return torch.randint(2, 9, (n, length), generator=torch.Generator().manual_seed(0))


def test_labels_of_next_tokens(model):
    ids = texts()
    loader = DataLoader([{"input_ids": row, "labels": row} for row in ids], 8)
    options = {"is_held_out": True, "seen_mask": SEEN_TOKENS, "seen_share": 0.5, "verbose": False}
    for causal in (model, get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))):
        with pytest.raises(ValueError, match=r"labels are the inputs of .*Positions\(-1, shift=1\)"):
            finecal.calibrate_model(causal, loader, positions=Positions(-1), **options)
        samples = finecal.collect_logits(causal, loader, positions=Positions(-1, shift=1), progress=False)
        loss = causal(input_ids=ids, labels=ids).loss  # shifted by the model
        torch.testing.assert_close(torch.nn.functional.cross_entropy(samples.logits, samples.labels), loss.detach())
        other = [{"input_ids": ids, "labels": ids.flip(1)}]
        with pytest.raises(ValueError, match="gives logits for the next token"):
            finecal.collect_logits(causal, other, positions=Positions(-1), progress=False)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument", "ignore::finecal.FinecalWarning")
def test_the_callback_pairs_each_position_with_the_next_token(tokenizer, tmp_path):
    torch.manual_seed(0)
    train, test = ([{"input_ids": row, "labels": row} for row in ids] for ids in (texts(), texts(8, 5) + 3))
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "num_train_epochs": 1}
    trainer = Trainer(llama(), TrainingArguments(str(tmp_path), **quiet), train_dataset=train, eval_dataset=test)
    positions = Positions(-1, shift=1)
    callback = CalibrationCallback(trainer, SEEN_TOKENS, positions=positions)
    trainer.add_callback(callback)
    trainer.train()
    samples, others = (
        finecal.collect_logits(trainer.model, DataLoader(of, 8), positions=positions, progress=False)
        for of in (train, test)
    )
    assert samples.labels.tolist() == texts()[:, 1:].flatten().tolist()
    assert callback.estimate.n == 32 * 5
    expected = finecal.estimate_gamma(SEEN_TOKENS, train=samples)
    assert callback.estimate.gamma == pytest.approx(expected.gamma, abs=1e-4)
    for found, gamma in zip(callback.accuracies["eval"], (0.0, callback.estimate), strict=True):
        report = finecal.evaluate(others, SEEN_TOKENS, gamma)
        assert (found.n_seen + found.n_absent, found.acc_all) == (8 * 4, pytest.approx(report.acc_all))
    trainer.remove_callback(callback)
    trainer.add_callback(CalibrationCallback(trainer, SEEN_TOKENS, positions=Positions(-1)))
    with pytest.raises(ValueError, match=r"labels are the inputs of .*Positions\(-1, shift=1\)"):
        trainer.train()


def test_a_masked_language_model_is_taken_as_it_is():
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, ids = BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **size)), texts()
    labels = torch.where(torch.arange(6) % 3 == 0, ids, -100)
    masked = ids.masked_fill(labels >= 0, 1)
    samples = finecal.collect_logits(
        model,
        [{"input_ids": masked, "labels": labels}],
        positions=Positions(-1, ignore_index=-100),
        progress=False,
    )
    assert torch.equal(samples.labels, labels[labels >= 0])


def prompts():
    letters = texts(24, 4).remainder(5) + 2
    found = [" ".join(WORDS[i] for i in row) + " :" for row in letters.tolist()]
    return [text if number % 2 else text[2:] for number, text in enumerate(found)]


def test_generate_with_the_biases_answers_as_calibrated_logits_do(model, tokenizer, tmp_path):
    answers = [CHOICES[i % 4] for i in range(24)]
    choices = [f" {choice}" for choice in CHOICES]
    samples = label_token_samples(
        model, tokenizer, prompts(), [f" {answer}" for answer in answers], choices=choices, progress=False
    )
    assert samples.labels.tolist() == [i % 4 for i in range(24)]
    ids = label_token_ids(tokenizer, choices, prompt=prompts()[0])
    assert ids == (8, 9, 10, 11)
    for text, row in zip(prompts(), samples.logits, strict=True):
        alone = model(**inputs_of(tokenizer, text)).logits[0, -1, 8:]
        torch.testing.assert_close(row, alone.detach(), rtol=1e-4, atol=1e-5)
    gamma = float(samples.margins(MASK).margin.median())
    calibrator = finecal.AdditiveBias(MASK, gamma)
    expected = [ids[i] for i in finecal.predict(samples.logits, MASK, gamma).tolist()]
    assert len(set(expected)) > 1
    biases = [[[token], bias] for token, bias in logit_bias(calibrator, ids, offset=50).items()]
    assert answers_of(model, tokenizer, sequence_bias=biases) == expected
    model.generation_config.sequence_bias = biases
    model.save_pretrained(tmp_path)
    assert answers_of(AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer) == expected


def inputs_of(tokenizer, text):
    inputs = tokenizer(text, return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def answers_of(model, tokenizer, **options):
    settings = {"max_new_tokens": 1, "do_sample": False, **options}
    return [int(model.generate(**inputs_of(tokenizer, text), **settings)[0, -1]) for text in prompts()]


def test_the_guide_runs(tokenizer, capsys):
    *first, second = blocks("docs/how-to/language-models.md", "python")
    torch.manual_seed(0)
    model, choices = llama().eval(), [" yes", " no"]
    names = {"model": model, "tokenizer": tokenizer, "prompts": prompts() * 4}
    names["answers"] = [choices[i % 2] for i in range(96)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        for block in first:
            exec(block, names)
        assert "gamma = " in capsys.readouterr().out
        assert names["token_ids"] == (8, 9, 10, 11)
        assert min(names["biases"].values()) >= 49
        ids = texts()
        names |= {"causal_model": model, "seen_tokens": SEEN_TOKENS}
        names["token_loader"] = [{"input_ids": ids, "labels": ids}]
        exec(second, names)
    assert isinstance(names["calibrated"], finecal.CalibratedModel)


def test_the_page_on_serving_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net, x = torch.nn.Linear(4, 3, bias=False), torch.randn(5, 4)
    calibrator = finecal.AdditiveBias([True, True, False], 1.5)
    names = {"model": torch.nn.Sequential(net), "other_model": copy.deepcopy(net), "calibrator": calibrator, "x": x}
    expected = calibrator(net(x)).detach()
    with pytest.warns(finecal.FinecalWarning, match="one key more"):
        exec(blocks("docs/how-to/serving.md", "python")[0], names)
    exec(blocks("docs/how-to/serving.md", "python")[1], names)
    server = torch.nn.Sequential(torch.nn.Linear(4, 3))
    server.load_state_dict(torch.load("weights.pt"))
    torch.testing.assert_close(server(x).detach(), expected)
    torch.testing.assert_close(torch.export.load("model.pt2").module()(x).detach(), expected)
