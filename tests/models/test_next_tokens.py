"""Models of next tokens without transformers: a table of logits by token stands for one."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import finecal
from finecal import Positions

V, L = 5, 7
SEEN = torch.tensor([True, True, True, False, False])


class Table(nn.Module):
    """A language model that looks at the last token alone."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Embedding(V, V)
        with torch.no_grad():
            self.logits.weight.copy_(6 * torch.eye(V).roll(1, 1) + 3 * SEEN + torch.randn(V, V))

    def forward(self, input_ids, attention_mask=None):
        return self.logits(input_ids)


class TableForCausalLM(Table):
    def can_generate(self):
        return True


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def texts(n=40, classes=3):
    """Mostly 0 1 2 0 1 2 ..., which the table has learned."""
    ids = (torch.arange(L) + torch.randint(classes, (n, 1))) % classes
    noise = torch.rand(n, L) < 0.2
    return torch.where(noise, torch.randint(classes, (n, L)), ids)


def unshifted(ids, masked=0):
    """Batches as Hugging Face's collator makes them: labels are the inputs, -100 in the prompt."""
    labels = ids.clone()
    labels[:, :masked] = -100
    return DataLoader([{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)], 16)


def expected(model, ids, masked=0):
    logits = model(ids)[:, :-1].reshape(-1, V).detach()
    labels = ids[:, 1:].clone()
    labels[:, : max(masked - 1, 0)] = -100
    kept = labels.flatten() != -100
    return finecal.Samples(logits[kept], labels.flatten()[kept])


@pytest.mark.parametrize("masked", [0, 3])
@pytest.mark.parametrize("kind", [Table, TableForCausalLM])
def test_labels_that_are_the_inputs_are_refused_without_a_shift(kind, masked):
    model, ids = kind(), texts()
    loader = unshifted(ids, masked)
    whole = Positions(-1, ignore_index=-100)
    for function in (
        lambda: finecal.collect_logits(model, loader, positions=whole, progress=False),
        lambda: finecal.collect_logits(
            model,
            loader,
            into=finecal.streaming.MarginRows(SEEN, ignore_index=-100),
            positions=Positions(-1),
            progress=False,
        ),
        lambda: finecal.calibrate_model(
            model, loader, positions=whole, is_held_out=True, seen_mask=SEEN, verbose=False
        ),
    ):
        with pytest.raises(ValueError, match=r"are the inputs of Table.*Positions\(-1, shift=1, ignore_index=-100\)"):
            function()


@pytest.mark.parametrize("masked", [0, 3])
def test_the_shift_pairs_each_position_with_the_next_token(masked):
    model, ids = TableForCausalLM(), texts()
    loader, want = unshifted(ids, masked), expected(model, ids, masked)
    positions = Positions(-1, ignore_index=-100, shift=1)
    samples = finecal.collect_logits(model, loader, positions=positions, progress=False)
    assert torch.equal(samples.logits, want.logits)
    assert torch.equal(samples.labels, want.labels)
    assert len(samples.groups.unique()) == len(ids)
    state = finecal.streaming.MarginRows(SEEN, ignore_index=-100)
    finecal.collect_logits(model, loader, into=state, positions=Positions(-1, shift=1), progress=False)
    assert torch.equal(state.compute().margin, want.margins(SEEN).margin)
    calibrated = finecal.calibrate_model(
        model, loader, positions=positions, is_held_out=True, seen_mask=SEEN, seen_share=0.5, verbose=False
    )
    estimate = finecal.estimate_gamma(SEEN, held_out=samples, seen_share=0.5)
    assert calibrated.calibrator.estimate == estimate


def test_classes_along_another_dimension():
    model, batches = Table(), unshifted(texts())
    samples = finecal.collect_logits(model, batches, positions=Positions(-1, shift=1), progress=False)
    model.register_forward_hook(lambda module, args, output: output.movedim(-1, 1))
    with pytest.raises(ValueError, match="are the inputs of Table"):
        finecal.collect_logits(model, batches, positions=Positions(1), progress=False)
    again = finecal.collect_logits(model, batches, positions=Positions(1, shift=1), progress=False)
    assert torch.equal(again.logits, samples.logits)
    assert torch.equal(again.labels, samples.labels)


def test_labels_that_are_shifted_already_are_taken_as_they_are():
    model, ids = TableForCausalLM(), texts()
    want = expected(model, ids)
    batches = [(ids[:, :-1], ids[:, 1:])]
    for positions in (Positions(-1), Positions(-1, shift=0)):
        samples = finecal.collect_logits(model, batches, positions=positions, progress=False)
        assert torch.equal(samples.logits, want.logits)
        assert torch.equal(samples.labels, want.labels)


def test_a_causal_model_asks_where_it_cannot_be_told():
    model, ids = TableForCausalLM(), texts()
    batches = [(ids, (ids + 1) % 3)]
    with pytest.raises(ValueError, match=r"TableForCausalLM gives logits for the next token.*\(40, 7\).*shift=0 for"):
        finecal.collect_logits(model, batches, positions=Positions(-1), progress=False)
    finecal.collect_logits(model, batches, positions=Positions(-1, shift=0), progress=False)
    finecal.collect_logits(Table(), batches, positions=Positions(-1), progress=False)  # a tagger
    encoder_decoder = TableForCausalLM()
    encoder_decoder.config = type("Config", (), {"is_encoder_decoder": True})()
    finecal.collect_logits(encoder_decoder, batches, positions=Positions(-1), progress=False)


@pytest.mark.filterwarnings("ignore:estimate_gamma. gamma is 0")
def test_tokens_without_labels_need_no_shift():
    model, ids = TableForCausalLM(), texts()
    samples = finecal.collect_logits(model, [ids], positions=Positions(-1), progress=False)
    assert len(samples) == ids.numel()
    samples = finecal.collect_logits(model, [ids], positions=Positions(-1, shift=1), progress=False)
    assert len(samples) == ids[:, 1:].numel()
    calibrated = finecal.calibrate_model(
        model,
        unshifted(ids),
        unlabelled_loader=unshifted(texts(classes=5)),
        positions=Positions(-1, shift=1),
        is_held_out=True,
        seen_mask=SEEN,
        verbose=False,
    )
    assert calibrated.calibrator.estimate.seen_share is not None


def test_a_shift_needs_a_sequence():
    with pytest.raises(ValueError, match=r"shift=1, which is for sequences.*\(4, 5\)"):
        finecal.collect_logits(nn.Linear(3, 5), [torch.ones(4, 3)], positions=Positions(-1, shift=1), progress=False)
    with pytest.raises(ValueError, match="shift is -1"):
        Positions(-1, shift=-1)


def test_pictures_are_not_looked_at():
    model, pictures = nn.Conv2d(3, V, 1), torch.randn(2, 3, 4, 4)
    samples = finecal.collect_logits(
        model, [(pictures, torch.zeros(2, 4, 4, dtype=torch.int64))], positions=Positions(1), progress=False
    )
    assert len(samples) == 32
