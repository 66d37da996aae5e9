import sys
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import finecal
from finecal._models.collect import collect_logits
from finecal._models.positions import Rows
from finecal.streaming import ClassSums, GapSums, MarginRows, ProbabilitySums

MASK = torch.tensor([True, True, False, False])
Output = namedtuple("Output", "loss logits")


@pytest.fixture
def data(device):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(23, 6, generator=generator), torch.randint(2, (23,), generator=generator)


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).to(device).train()


def expected(model, inputs):
    device = next(model.parameters()).device
    copy = nn.Sequential(*model).to("cpu")
    flags = [module.training for module in copy.modules()]
    with torch.no_grad():
        logits = copy.eval()(inputs)
    for module, flag in zip(copy.modules(), flags, strict=True):
        module.training = flag
    model.to(device)
    return logits


class Named(nn.Module):
    """Takes its inputs by name and counts, as models of Hugging Face do."""

    def __init__(self, model, wrap=lambda logits: {"logits": logits}):
        super().__init__()
        self.model, self.wrap = model, wrap

    def forward(self, x, scale=None, nested=None):
        if nested is not None:
            x = nested["deep"][0][0]
        return self.wrap(self.model(x if scale is None else x * scale))


def batched(inputs, labels, make):
    return [make(x, y) for x, y in zip(inputs.split(5), labels.split(5), strict=True)]


BATCHES = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "numpy labels": lambda x, y: (x, y.numpy()),
    "int32 labels": lambda x, y: (x, y.int()),
    "list of labels": lambda x, y: (x, y.tolist()),
    "mapping": lambda x, y: {"x": x, "labels": y},
    "other key": lambda x, y: {"x": x, "label": y},
    "third key": lambda x, y: {"x": x, "targets": y},
    "UserDict": lambda x, y: UserDict(x=x, labels=y),
    "pair with a mapping": lambda x, y: ({"x": x}, y),
    "by position": lambda x, y: ((x / 2, torch.full_like(x, 2)), y),
    "nested": lambda x, y: {"x": None, "nested": {"deep": [(x, "text", None)]}, "labels": y},
}


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_takes_batches_of_every_form(model, data, make):
    samples = collect_logits(Named(model), batched(*data, make), progress=False)
    torch.testing.assert_close(samples.logits, expected(model, data[0]), rtol=1e-5, atol=1e-6)
    assert torch.equal(samples.labels, data[1])
    assert samples.labels.dtype == torch.int64
    assert samples.logits.device.type == samples.labels.device.type == "cpu"
    assert samples.features is samples.groups is None


UNLABELLED = {
    "bare": lambda x, y: x,
    "one item": lambda x, y: (x,),
    "None": lambda x, y: (x, None),
    "mapping": lambda x, y: {"x": x},
}


@pytest.mark.parametrize("make", UNLABELLED.values(), ids=UNLABELLED)
def test_labels_may_be_missing(model, data, make):
    samples = collect_logits(Named(model), batched(*data, make), progress=False)
    torch.testing.assert_close(samples.logits, expected(model, data[0]), rtol=1e-5, atol=1e-6)
    assert samples.labels is None


OUTPUTS = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits.sum(), logits, logits[:, :2]),
    "namedtuple": lambda logits: Output(logits.sum(), logits),
    "mapping": lambda logits: UserDict(loss=logits.sum(), logits=logits),
}


@pytest.mark.parametrize("wrap", OUTPUTS.values(), ids=OUTPUTS)
def test_takes_outputs_of_every_form(model, data, wrap):
    logits = collect_logits(Named(model, wrap), DataLoader(TensorDataset(*data), 5), progress=False).logits
    torch.testing.assert_close(logits, expected(model, data[0]), rtol=1e-5, atol=1e-6)


def test_samples_cannot_be_unpacked(model, data):
    with pytest.raises(TypeError, match="'Samples' object is not iterable"):
        _logits, _labels = collect_logits(model, [data], progress=False)


def test_the_tensors_are_ordinary_ones_of_their_own(model, data):
    for batches in ([data], batched(*data, BATCHES["pair"])):
        samples = collect_logits(model, batches, with_features=True, progress=False)
        logits, labels, features = samples.logits, samples.labels, samples.features
        assert not any(tensor.is_inference() for tensor in (logits, labels, features))
        (logits * nn.Parameter(torch.ones(4))).sum().backward()  # fails on inference tensors
        labels += 1
        assert int(data[1].max()) == 1


def test_a_model_may_reuse_the_memory_of_its_output(data):
    class Reusing(nn.Module):
        def forward(self, x):
            return self.buffer[: len(x)].copy_(x)

    model = Reusing()
    model.buffer = torch.empty(5, 6)
    logits = collect_logits(model, batched(*data, BATCHES["pair"]), progress=False).logits
    assert torch.equal(logits, data[0])


class Watching(nn.Module):
    """Says in which modes it runs, and fails when told to."""

    def __init__(self, fail=False):
        super().__init__()
        self.fail, self.seen = fail, []

    def forward(self, x):
        self.seen.append((self.training, torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        if self.fail:
            raise RuntimeError("out of memory")
        return x


@pytest.mark.parametrize("fail", [False, True])
def test_runs_in_eval_mode_and_restores_every_flag(data, fail):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(6).eval(), nn.Dropout()), Watching(fail)).train()
    model[1][0].eval()
    model[1].training = False  # while its second child is in training mode
    before = [module.training for module in model.modules()]
    statistics = {name: value.clone() for name, value in model.state_dict().items()}
    if fail:
        with pytest.raises(RuntimeError, match="out of memory"):
            collect_logits(model, [data], progress=False)
    else:
        collect_logits(model, [data], progress=False)
    assert model[2].seen == [(False, True, False)]
    assert [module.training for module in model.modules()] == before == [True, True, False, False, True, True]
    assert all(torch.equal(value, statistics[name]) for name, value in model.state_dict().items())
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("training", [False, True])
def test_eval_with_side_effects_is_undone(data, training):
    class Merging(nn.Module):  # as LoRA layers that merge their weights in eval mode
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

        def forward(self, x):
            assert self.merged
            return x

    model = nn.Sequential(Merging()).train(training)
    collect_logits(model, [data], progress=False)
    assert model[0].merged is not training


def test_failing_states_restore_the_flags_too(model, data):
    with pytest.raises(ValueError, match="seen_mask has 2 entries for logits of 4 classes"):
        collect_logits(model, [data], into=MarginRows(MASK[1:3]), progress=False)
    assert model.training


class Precise:
    """A state that says in which modes it is updated."""

    def update(self, logits, labels):
        assert labels.device == logits.device
        assert not torch.is_inference_mode_enabled()
        self.dtype = (logits.float() @ logits.float().T).dtype


def test_honours_autocast_only_where_the_model_runs(model, data):
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
        samples = collect_logits(model, [data], with_features=True, progress=False)
        state = collect_logits(model, [data], into=Precise(), progress=False)
    assert samples.logits.dtype == torch.bfloat16
    torch.testing.assert_close(samples.logits.float(), expected(model, data[0]), rtol=0.05, atol=0.05)
    assert samples.features.shape == (23, 8)
    assert state.dtype == torch.float32


@pytest.mark.parametrize("make_state", [MarginRows, GapSums, ClassSums, ProbabilitySums])
def test_feeds_a_state_as_its_update_does(model, data, make_state):
    loader = DataLoader(TensorDataset(*data), 5)
    state = make_state(MASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "append", None)  # nothing else is kept
        assert collect_logits(model, loader, into=state, progress=False) is state
    logits = expected(model, data[0])
    reference = make_state(MASK)
    for rows, labels in zip(logits.split(5), data[1].split(5), strict=True):
        reference.update(rows, labels)
    own, other = state.state_dict(), reference.state_dict()
    assert not any(value.is_inference() for value in own.values())
    for name in own:
        torch.testing.assert_close(own[name], other[name], rtol=1e-5, atol=1e-5)
    state.update(logits, data[1])  # states go on outside


def test_features_are_what_enters_the_head(model, data):
    samples = collect_logits(model, DataLoader(TensorDataset(*data), 5), with_features=True, progress=False)
    head = model[-1].cpu()
    torch.testing.assert_close(head(samples.features), samples.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(samples.features, expected(nn.Sequential(*model[:-1]), data[0]), rtol=1e-5, atol=1e-6)
    assert torch.equal(samples.labels, data[1])
    assert not head._forward_pre_hooks


def test_the_hook_is_removed_on_errors(model):
    with pytest.raises(RuntimeError):
        collect_logits(model, [torch.ones(2, 5)], with_features=True, progress=False)
    assert not model[-1]._forward_pre_hooks


class Tokens(nn.Module):
    """Applies its head to all tokens, or to each in a call of its own."""

    def __init__(self, repeat):
        super().__init__()
        self.score, self.repeat = nn.Linear(6, 4), repeat

    def forward(self, x):
        if self.repeat:
            return self.score(x) + self.score(input=x)
        return self.score(torch.stack([x, x], 1))[:, -1]


def test_features_that_are_not_one_row_per_sample_are_refused(data):
    with pytest.raises(ValueError, match=r"features have shape \(23, 2, 6\); expected \(23, D\)"):
        collect_logits(Tokens(False), [data], with_features=True, progress=False)
    with pytest.raises(ValueError, match="final linear layer ran 2 times for one batch"):
        collect_logits(Tokens(True), [data], with_features=True, progress=False)


def test_features_of_another_layer_are_warned_of(data):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return 100 * self.head(x)

    with pytest.warns(finecal.FinecalWarning, match="^collect_logits: head applied to features does not give logits"):
        collect_logits(Scaled(), [data], with_features=True, progress=False)


def test_two_heads_have_no_one_row_of_features(data):
    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.head_dist = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return (self.head(x) + self.head_dist(x)) / 2

    with pytest.raises(ValueError, match="averages the logits of head and head_dist"):
        collect_logits(Distilled(), [data], with_features=True, progress=False)


def test_a_named_tuple_is_one_argument(data):
    class Summing(nn.Module):
        def forward(self, pair):
            assert type(pair) is Output
            return pair.loss + pair.logits

    samples = collect_logits(Summing(), [(Output(data[0], data[0]), data[1])], device="cpu", progress=False)
    assert torch.equal(samples.logits, 2 * data[0])


def test_moves_inputs_to_the_device_given():
    class Nowhere(nn.Module):
        def forward(self, x):
            assert x.device.type == "meta"
            return torch.ones(len(x), 3)

    samples = collect_logits(Nowhere(), [torch.ones(2, 3)], device="meta", progress=False)
    assert samples.logits.shape == (2, 3)


def test_devices_without_autocast():
    assert not torch.amp.autocast_mode.is_autocast_available("meta")
    state = collect_logits(nn.Linear(6, 4, device="meta"), [(X, Y)], into=Precise(), device="meta", progress=False)
    assert state.dtype == torch.float32


def test_iterable_datasets_have_no_length(model, data):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*data, strict=True))

    class Batches(Stream):
        def __iter__(self):
            return iter(batched(*data, BATCHES["pair"]))

    for loader in (DataLoader(Stream(), 5), Batches()):
        samples = collect_logits(model, loader, progress=True)
        torch.testing.assert_close(samples.logits, expected(model, data[0]), rtol=1e-5, atol=1e-6)
        assert torch.equal(samples.labels, data[1])


def test_shows_a_bar_if_it_can(model, data, capsys, monkeypatch):
    collect_logits(model, [data], progress=True)
    assert "collect_logits: 100%" in capsys.readouterr().err
    collect_logits(model, [data], progress=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    collect_logits(model, [data], progress=True)
    assert capsys.readouterr().err == ""


def test_batches_may_be_empty_but_not_the_loader(model, data):
    samples = collect_logits(model, [(data[0][:0], data[1][:0])], progress=False)
    assert samples.logits.shape == (0, 4)
    assert samples.labels.shape == (0,)
    assert collect_logits(model, [data[0][:0]], with_features=True, progress=False).features.shape == (0, 8)
    used = iter([data])
    collect_logits(model, used, progress=False)
    for loader in ([], used):
        with pytest.raises(ValueError, match="loader gave no batch"):
            collect_logits(model, loader, progress=False)


X, Y = torch.ones(2, 6), torch.tensor([0, 1])
WRONG = {
    "no model": ({"model": lambda x: x}, TypeError, "model is a function; pass a torch.nn.Module"),
    "dataset": ({"loader": TensorDataset(X, Y)}, TypeError, "loader is a TensorDataset; pass something that gives"),
    "tensor": ({"loader": X}, TypeError, "loader is a Tensor; pass something that gives batches"),
    "number": ({"loader": 3}, TypeError, "loader is a int; pass something"),
    "mask as a state": ({"into": MASK}, TypeError, "into is a Tensor; pass a state of finecal.streaming"),
    "class": ({"into": MarginRows}, TypeError, "into is a type; pass a state"),
    "both": (
        {"into": MarginRows(MASK), "with_features": True},
        ValueError,
        "with_features=True keeps a row per sample",
    ),
    "three items": ({"loader": [(X, Y, Y)]}, TypeError, r"expected batches of the form \(inputs, labels\)"),
    "two keys": ({"loader": [{"label": Y, "labels": Y}]}, ValueError, "under 'labels' and 'label'; keep one"),
    "one-hot": ({"loader": [(X, torch.eye(4)[Y].long())]}, ValueError, "for one-hot labels use labels.argmax"),
    "soft": ({"loader": [(X, torch.rand(2))]}, TypeError, "labels have dtype float32; expected integer"),
    "words": ({"loader": [(X, ["a", "b"])]}, TypeError, "labels hold class names, such as 'a'"),
    "too few": ({"loader": [(X, Y[:1])]}, ValueError, r"labels have shape \(1,\) for 2 rows of logits"),
    "ignored": ({"loader": [(X, Y - 100)]}, ValueError, r"labels contain -100, outside \[0, 4\)"),
    "some labels": ({"loader": [(X, Y), X]}, ValueError, "some batches have labels and some have none"),
    "later labels": ({"loader": [X, (X, Y)]}, ValueError, "some batches have labels and some have none"),
    "no labels": ({"loader": [X], "into": MarginRows(MASK)}, TypeError, "logits has no labels"),
}


@pytest.mark.parametrize(("given", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_named(given, error, message):
    arguments = {"model": nn.Linear(6, 4), "loader": [(X, Y)], "progress": False} | given
    with pytest.raises(error, match=message):
        collect_logits(arguments.pop("model"), arguments.pop("loader"), **arguments)


class Returning(nn.Module):
    def __init__(self, *outputs):
        super().__init__()
        self.outputs = list(outputs)

    def forward(self, x):
        return self.outputs.pop(0)


OUTPUTS_REFUSED = {
    "tokens": ([torch.ones(2, 5, 4)], ValueError, r"logits has shape \(2, 5, 4\); expected \(N, C\)"),
    "classes": ([torch.ones(2, 4, dtype=torch.long)], TypeError, "logits has dtype int64"),
    "nothing": ([{"scores": X}], TypeError, "finecal finds no logits"),
    "other width": (
        [torch.ones(2, 4), torch.ones(2, 5)],
        ValueError,
        r"rows of logits have shape \(4,\) and dtype torch.float32 in the first batches, then \(5,\) and torch.float32",
    ),
    "other dtype": ([torch.ones(2, 4), torch.ones(2, 4).half()], ValueError, "must be of one model in one setting"),
}


@pytest.mark.parametrize(("outputs", "error", "message"), OUTPUTS_REFUSED.values(), ids=OUTPUTS_REFUSED)
def test_wrong_output_is_named(outputs, error, message):
    with pytest.raises(error, match=message):
        collect_logits(Returning(*outputs), [X] * len(outputs), progress=False)


def test_keeps_the_dtype(device, dtype):
    model = nn.Linear(6, 4).to(device, dtype)
    logits = collect_logits(model, [(X.to(dtype), Y)], progress=False).logits
    with torch.no_grad():
        assert torch.equal(logits, model(X.to(device, dtype)).cpu())


class Images(nn.Module):
    def forward(self, images, size=1):
        return images.flatten(1).repeat(1, size)


UNFIT = {
    "array": (X.numpy(), "the inputs of a batch are a NumPy array in place of tensors, which Images does not take"),
    "array and labels": ((X.numpy(), Y), "are a NumPy array in place of tensors"),
    "arrays by name": (
        {"images": X.numpy()},
        r"a dict with the keys \['images'\] with NumPy arrays in place of tensors",
    ),
    "arrays in a list": ([[X.numpy(), 2], Y], r"are a list of \['ndarray', 'int'\] with NumPy arrays in place of"),
    "other names": (
        {"images": X, "y": Y},
        r"a dict with the keys \['images', 'y'\], which are passed to Images by name, and it failed .* argument 'y'\); "
        r"labels are taken from under 'labels', 'label', 'targets' or 'target', .* "
        r"as in batch=lambda b: \(b\['images'\], b\['y'\]\)",
    ),
}


@pytest.mark.parametrize(("batch", "message"), UNFIT.values(), ids=UNFIT)
def test_inputs_that_the_model_does_not_take_are_described(batch, message):
    with pytest.raises(TypeError, match=message):
        collect_logits(Images(), [batch], progress=False)


def test_models_may_take_arrays():
    class Converting(nn.Module):
        def forward(self, array):
            return torch.from_numpy(array)

    assert torch.equal(collect_logits(Converting(), [X.numpy()], progress=False).logits, X)


def test_logits_of_boxes_are_not_samples(model, data):
    """A detector of transformers gives a row for each box, of which only some are of an object."""
    boxes = torch.rand(5, 3, 4)
    detector = Named(model, lambda logits: {"logits": logits[:, None].expand(-1, 3, -1), "pred_boxes": boxes})
    batches = [({"x": data[0][:5]}, data[1][:5])]
    message = r"pred_boxes, and logits of shape \(5, 3, 4\).*match_boxes"
    with pytest.raises(ValueError, match=message):
        collect_logits(detector, batches, progress=False)
    with pytest.raises(ValueError, match=message):
        finecal.calibrate_model(detector, batches, is_held_out=True, seen_mask=MASK, verbose=False)
