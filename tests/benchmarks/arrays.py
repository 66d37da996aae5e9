"""Run the guide "Any library that gives arrays": ``python tests/benchmarks/arrays.py xgboost Keras`` prints two rows.

Handwritten digits, standardised: a model of each library learns all ten classes, then five of them alone. Its block on
the page gives scores and calibrated scores. Libraries that are not installed are left out.
"""

import re
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import finecal

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "arrays.md"
CLASSES, SEEN = 10, 5


def digits():
    """Inputs and labels: of all classes, of the seen ones, held-out ones of these, and test samples of all."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16 - 0.3).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    parts = {"all": slice(0, 300), "seen": slice(300, 900), "held_out": slice(900, 1300), "test": slice(1300, None)}
    data = {name: (x[rows], y[rows]) for name, rows in parts.items()}
    return {
        name: (a[b < SEEN], b[b < SEEN]) if name in ("seen", "held_out") else (a, b) for name, (a, b) in data.items()
    }


def train_torch(model, data, steps=(150, 150), forward=None):
    for name, count in zip(("all", "seen"), steps, strict=True):
        x, y = map(torch.tensor, data[name])
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(count):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy((forward or model)(x), y.long()).backward()
            optimizer.step()
    return model.eval()


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, CLASSES))


def xgboost(data):
    import xgboost

    model = None
    options = {"objective": "multi:softprob", "num_class": CLASSES, "max_depth": 3, "nthread": 1}
    for name, rounds in (("all", 20), ("seen", 10)):
        model = xgboost.train(options, xgboost.DMatrix(*data[name]), rounds, xgb_model=model)
    return {"model": model}


def lightgbm(data):
    import lightgbm

    model = None
    options = {"objective": "multiclass", "num_class": CLASSES, "num_leaves": 8, "verbose": -1, "num_threads": 1}
    for name, rounds in (("all", 20), ("seen", 3)):
        model = lightgbm.train(options, lightgbm.Dataset(*data[name]), rounds, init_model=model)
    return {"model": model}


def catboost(data):
    import catboost

    parts = [data["all"], data["seen"]]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    options = {"iterations": 60, "depth": 4, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    return {"model": catboost.CatBoostClassifier(loss_function="MultiClass", **options).fit(x, y)}


def keras(data):
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(CLASSES, "softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    for name in ("all", "seen"):
        model.fit(*data[name], epochs=25, batch_size=64, verbose=0)
    return {"model": model}


def jax(data):
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0))
    params = {"w1": jax.random.normal(keys[0], (64, 32)) / 8, "b1": jnp.zeros(32)}
    params |= {"w2": jax.random.normal(keys[1], (32, CLASSES)) / 6, "b2": jnp.zeros(CLASSES)}

    def apply(params, x):
        return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]

    def loss(params, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(apply(params, x)), y[:, None], 1).mean()

    step = jax.jit(lambda params, x, y: jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params, x, y)))
    for name in ("all", "seen"):
        for _ in range(300):
            params = step(params, *map(jnp.asarray, data[name]))
    return {"apply": apply, "params": params}


def flax(data):
    import jax
    import jax.numpy as jnp
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.body, self.head = nnx.Linear(64, 32, rngs=rngs), nnx.Linear(32, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.head(jax.nn.relu(self.body(x)))

    def loss(model, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(model(x)), y[:, None], 1).mean()

    @nnx.jit
    def step(model, x, y):
        gradients = nnx.grad(loss)(model, x, y)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.5 * g, nnx.state(model, nnx.Param), gradients))

    model = Network(nnx.Rngs(0))
    for name in ("all", "seen"):
        for _ in range(300):
            step(model, *map(jnp.asarray, data[name]))
    return {"model": model}


def fastai(data):
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from torch.utils.data import TensorDataset

    def loader(part):
        from fastai.data.load import DataLoader

        return DataLoader(TensorDataset(*map(torch.tensor, part)), bs=64)

    dls = DataLoaders(loader(data["seen"]), loader(data["held_out"]))
    learner = Learner(dls, train_torch(network(), data), loss_func=torch.nn.CrossEntropyLoss())
    return {"learn": learner, "loader": lambda x: loader((x, np.zeros(len(x), dtype=np.int64)))}


def torch_geometric(data):
    from torch_geometric.nn import GCNConv

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = GCNConv(64, 32), GCNConv(32, CLASSES)

        def forward(self, x, edges):
            return self.conv2(self.conv1(x, edges).relu(), edges)

    torch.manual_seed(0)
    model, edges = Network(), torch.empty(2, 0, dtype=torch.int64)  # no edges but the loops that the layers add
    return {"model": train_torch(model, data, forward=lambda x: model(x, edges)), "edges": edges}


def onnxruntime(data):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes, names = {"x": {0: "n"}}, {"input_names": ["x"], "output_names": ["logits"]}
        model = train_torch(network(), data)
        torch.onnx.export(model, (torch.zeros(1, 64),), "model.onnx", dynamic_axes=axes, dynamo=False, **names)
    return {}


def spacy(data):
    """Each pixel that is dark is a word."""
    import spacy

    def texts(x):
        return [" ".join(f"p{pixel}" for pixel in np.flatnonzero(row > 0.2)) for row in x]

    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy.TextCatBOW.v3", "ngram_size": 1, "exclusive_classes": True}
    textcat = nlp.add_pipe("textcat", config={"model": {**model, "no_output_layer": False}})
    names = [f"digit {label}" for label in range(CLASSES)]
    for name in names:
        textcat.add_label(name)

    def examples(x, y):
        for text, label in zip(texts(x), y, strict=True):
            cats = {"cats": {name: float(name == names[label]) for name in names}}
            yield spacy.training.Example.from_dict(nlp.make_doc(text), cats)

    optimizer = nlp.initialize(lambda: examples(*data["all"]))
    for name, epochs in (("all", 8), ("seen", 3)):
        for _ in range(epochs):
            for batch in spacy.util.minibatch(examples(*data[name]), 32):
                nlp.update(batch, sgd=optimizer)
    return {"nlp": nlp, "names": names, "texts_of": texts}


LIBRARIES = {
    "xgboost": (xgboost, "xgboost"),
    "LightGBM": (lightgbm, "lightgbm"),
    "CatBoost": (catboost, "catboost"),
    "Keras": (keras, "keras"),
    "JAX": (jax, "jax"),
    "Flax": (flax, "flax"),
    "fastai": (fastai, "fastai"),
    "spaCy": (spacy, "spacy"),
    "PyTorch Geometric": (torch_geometric, "torch_geometric"),
    "ONNX Runtime": (onnxruntime, "onnxruntime"),
}


def block_of(library):
    """Return the code of the page under the name of a library."""
    return re.search(rf"^## {library}\n.*?^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]


def run(library):
    """Train, run the block of the page, and return its names; `uncalibrated` are the scores before gamma was put in."""
    make, _ = LIBRARIES[library]
    data = digits()
    x_held_out, y_held_out = data["held_out"]
    x_test, y_test = data["test"]
    seen_mask = np.arange(CLASSES) < SEEN
    names = {**make(data), "np": np, "torch": torch, "finecal": finecal, "x_held_out": x_held_out, "x_test": x_test}

    def shift_by(scores):
        names["uncalibrated"] = np.array(scores(x_test))
        gamma = finecal.estimate_gamma(seen_mask, held_out=(scores(x_held_out), y_held_out))
        return np.where(seen_mask, 0.0, float(gamma)).astype(np.float32)

    names["shift_by"] = shift_by
    exec(block_of(library), names)
    return names | {"y_test": y_test, "seen_mask": seen_mask}


def row(library):
    names = run(library)
    curve = finecal.tradeoff_curve(names["uncalibrated"], names["y_test"], names["seen_mask"])
    gammas = (0.0, float(names["shift"].max()), curve.best())
    return " → ".join(f"{100 * curve.at(gamma).acc_all:.1f}" for gamma in gammas)


if __name__ == "__main__":
    print("| library | gamma = 0 → estimate → best, % |\n| --- | --- |")
    for name in sys.argv[1:] or LIBRARIES:
        if find_spec(LIBRARIES[name][1]):
            package = "xgboost-cpu" if name == "xgboost" else LIBRARIES[name][1]
            print(f"| {name} {version(package)} | {row(name)} |", flush=True)
