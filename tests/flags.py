"""Which arguments of what is public are flags."""

import inspect

PHRASE = "is a str; pass True"


def flags_of(*modules):
    """Return "name(flag)" of each function, class and method that modules make public."""
    found = set()
    for name, value in {name: getattr(module, name) for module in modules for name in module.__all__}.items():
        if not callable(value) or (inspect.isclass(value) and issubclass(value, Warning)):
            continue
        methods = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
        for label, each in [(name, value), *((f"{name}.{method}", each) for method, each in methods)]:
            if each.__module__.startswith("finecal") and "._" not in label:
                found |= {f"{label}({flag})" for flag, of in inspect.signature(each).parameters.items() if _is_flag(of)}
    return found


def _is_flag(parameter):
    return isinstance(parameter.default, bool) or str(parameter.annotation).startswith(("bool", "<class 'bool'>"))
