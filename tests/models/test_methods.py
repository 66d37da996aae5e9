"""Methods of a model, called through its `CalibratedModel`, give calibrated results or are refused."""

import asyncio
import concurrent.futures
import inspect

import pytest
import torch
from torch import nn

import finecal
from finecal import CalibratedModel

MASK = torch.tensor([True, False, True, False, False])
GAMMA = float(torch.tensor(1.7))
INPUTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, GAMMA)


class Methods(nn.Module):
    """With the ways in which methods reach, or do not reach, what the model computes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.body(x))

    def predict(self, x):
        return self(x).argmax(dim=1)

    def predict_twice(self, x):
        return self.forward(x), self.predict(x)

    def predict_step_by_step(self, batches):
        received = []
        for batch in batches:
            received.append((yield self(batch)))
        return received

    async def predict_later(self, x):
        await asyncio.sleep(0)
        return self(x)

    def predict_recursively(self, x):
        return self(x) if len(x) == 1 else torch.cat([self.predict_recursively(row[None]) for row in x])

    def predict_with(self, function, x):
        return function(x)

    def features(self, x):
        return self.body(x)

    def head_alone(self, features):
        return self.fc(features)

    def freeze(self):
        return self.requires_grad_(False)

    def fail(self, x):
        raise RuntimeError("no logits today")

    def save(self, file):
        torch.save(self.state_dict(), file)

    def to_torchscript(self):
        return torch.jit.script(self)

    def export(self):
        return "the weights"


class Recursive(Methods):
    """Calls itself, as a model does that averages over crops."""

    def forward(self, x):
        return super().forward(x) if len(x) == 1 else torch.cat([self(row[None]) for row in x])


@pytest.fixture
def methods(calibrator):
    torch.manual_seed(0)
    return CalibratedModel(Methods().eval(), calibrator)


def is_restored(calibrated):
    return "forward" not in vars(calibrated.model)


@torch.no_grad()
def test_methods_give_calibrated_logits(methods):
    expected = methods(INPUTS)
    assert torch.equal(methods.predict(INPUTS), expected.argmax(dim=1))
    logits, classes = methods.predict_twice(INPUTS)
    assert torch.equal(logits, expected)
    assert torch.equal(classes, expected.argmax(dim=1))
    assert torch.allclose(methods.predict_recursively(INPUTS), expected)
    assert is_restored(methods)
    assert torch.equal(methods.model.predict(INPUTS), methods.model(INPUTS).argmax(dim=1))


@torch.no_grad()
def test_models_that_call_themselves_are_calibrated_once(calibrator):
    calibrated = CalibratedModel(Recursive().eval(), calibrator)
    assert torch.allclose(
        calibrated.predict_twice(INPUTS)[0], finecal.calibrate_logits(calibrated.model(INPUTS), MASK, GAMMA)
    )


@torch.no_grad()
def test_methods_that_call_the_wrapper_are_calibrated_once(methods):
    assert torch.equal(methods.predict_with(methods, INPUTS), methods(INPUTS))
    assert torch.equal(methods.predict_with(methods.predict, INPUTS), methods.predict(INPUTS))
    assert torch.equal(methods.predict_with(methods.model, INPUTS), methods(INPUTS))
    assert is_restored(methods)


@torch.no_grad()
def test_generators_are_calibrated_within_their_steps_alone(methods):
    expected, plain = methods(INPUTS), methods.model(INPUTS)
    steps = methods.predict_step_by_step([INPUTS, INPUTS])
    assert torch.equal(next(steps), expected)
    assert torch.equal(methods.model(INPUTS), plain)
    assert torch.equal(steps.send("first"), expected)
    with pytest.raises(StopIteration) as stop:
        steps.send("second")
    assert stop.value.value == ["first", "second"]
    assert is_restored(methods)
    left = methods.predict_step_by_step([INPUTS, INPUTS])
    next(left)
    left.close()
    assert is_restored(methods)


@torch.no_grad()
def test_coroutines_are_calibrated_beside_others(methods):
    async def both():
        async def plain():
            await asyncio.sleep(0)
            return methods.model(INPUTS)

        return await asyncio.gather(methods.predict_later(INPUTS), plain(), methods.predict_later(INPUTS))

    first, plain, second = asyncio.run(both())
    assert torch.equal(first, methods(INPUTS))
    assert torch.equal(second, methods(INPUTS))
    assert torch.equal(plain, methods.model(INPUTS))
    assert is_restored(methods)


@torch.no_grad()
def test_other_threads_call_the_model_as_it_is(methods):
    expected, plain = methods(INPUTS), methods.model(INPUTS)

    def in_another_thread(x):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(methods.model, x).result()

    assert torch.equal(methods.predict_with(in_another_thread, INPUTS), plain)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(methods.predict_twice, INPUTS) for _ in range(40)]
        others = [pool.submit(methods.model, INPUTS) for _ in range(40)]
        assert all(torch.equal(call.result()[0], expected) for call in calls)
        assert all(torch.equal(call.result(), plain) for call in others)
    assert is_restored(methods)


def test_forward_is_restored_after_an_error(methods, monkeypatch):
    with pytest.raises(RuntimeError, match="no logits today"):
        methods.fail(INPUTS)
    assert is_restored(methods)
    own = methods.model.forward
    monkeypatch.setattr(methods.model, "forward", lambda x: own(x) + 1)  # as a library patches instances
    patched = methods.model.forward
    assert torch.equal(methods.predict_twice(INPUTS)[0], methods(INPUTS))
    assert methods.model.forward is patched


@pytest.mark.parametrize(
    ("name", "argument"),
    [("head_alone", torch.ones(2, 4)), ("save", "model.pt"), ("to_torchscript", None), ("export", None)],
)
def test_what_cannot_be_calibrated_is_refused(methods, name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} .*calibrated\.fold\(inputs\), then call model\.{name}"):
        getattr(methods, name)(*([] if argument is None else [argument]))
    assert not any(tmp_path.iterdir())
    assert is_restored(methods)


def test_logits_are_known_by_their_classes_where_the_head_is_not(calibrator):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 3))

        def forward(self, x):
            return x @ self.weight.T

        def scores(self, x):
            return {"scores": x @ self.weight.T}

        def centred(self, x):
            return x - x.mean()

    calibrated = CalibratedModel(Functional(), calibrator)
    with pytest.raises(ValueError, match="scores of Functional does not call the model's forward"):
        calibrated.scores(INPUTS)
    assert calibrated.centred(INPUTS).shape == INPUTS.shape


def test_methods_that_give_no_logits_are_the_models(methods):
    assert torch.equal(methods.features(INPUTS), methods.model.body(INPUTS))
    assert methods.freeze() is methods
    assert methods.predict.__doc__ == methods.model.predict.__doc__
    assert inspect.signature(methods.predict) == inspect.signature(methods.model.predict)


@torch.no_grad()
def test_methods_of_models_with_prototypes(calibrator):
    torch.manual_seed(0)
    model = Methods().eval()
    prototypes = finecal.calibrators.Prototypes(MASK, GAMMA, torch.randn(5, 4), torch.randn(4))
    calibrated = CalibratedModel(model, prototypes)
    expected = calibrated(INPUTS)
    assert torch.equal(calibrated.predict_twice(INPUTS)[0], expected)
