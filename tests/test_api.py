"""Every public name with its signature, as `data/api.txt` has it: who changes one says so in the changelog.

``python tests/test_api.py`` writes the file anew.
"""

import importlib
import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import finecal

SNAPSHOT = Path(__file__).parent / "data" / "api.txt"
MODULES = [
    "finecal",
    *(f"finecal.{name}" for name in ("calibrators", "dense", "distributed", "estimators", "logits", "plots")),
    *(f"finecal.{name}" for name in ("probabilities", "sequences", "sklearn", "streaming", "weights")),
]


def signature(thing):
    """Return names, kinds and defaults of the parameters: annotations may become more precise at any time."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return ""
    found = inspect.signature(thing)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    return re.sub(
        r" at 0x\w+", "", str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    )


def members(label, of):
    """Yield the fields of a record, and the public methods and properties that finecal has given a class."""
    if is_dataclass(of):
        yield f"{label}: {', '.join(field.name for field in fields(of) if not field.name.startswith('_'))}"
    for name in sorted(dir(of)):
        # What other libraries and Python itself bring is theirs.
        owner = next(base for base in of.__mro__ if name in vars(base)) if hasattr(of, name) else object
        member = inspect.getattr_static(of, name, None)
        if name.startswith("_") or not owner.__module__.startswith("finecal"):
            continue
        if isinstance(member, property):
            yield f"{label}.{name}"
        elif callable(getattr(of, name, None)):
            yield f"{label}.{name}{signature(getattr(of, name))}"


def public_api():
    lines = []
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing, label = getattr(module, name), f"{module.__name__}.{name}"
            lines.append(f"{label}{signature(thing)}" if callable(thing) else label)
            if inspect.isclass(thing):
                lines += members(label, thing)
    return "\n".join([*lines, ""])


def test_public_api_is_that_of_the_snapshot():
    """Removed or changed names break the code of users: run this file as a script, and say so in CHANGELOG.md."""
    before, now = SNAPSHOT.read_text(encoding="utf-8").splitlines(), public_api().splitlines()
    removed, added = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    assert (removed, added) == ([], []), "python tests/test_api.py writes the snapshot anew; CHANGELOG.md tells users"


def test_every_namespace_is_looked_at():
    listed = {path.stem for path in Path(finecal.__file__).parent.iterdir() if not path.stem.startswith("_")}
    assert {name.rpartition(".")[2] for name in MODULES[1:]} == listed - {"integrations", "py"}


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8", newline="\n")
