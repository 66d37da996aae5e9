"""Every option of every command is read where the work is done, not only where it is checked."""

import argparse
import ast
import inspect
import sys
import textwrap

import pytest

from finecal._cli import arguments
from finecal._cli.commands import check_output
from finecal._cli.fold import fold

COMMANDS = next(
    action.choices for action in arguments._parser()._actions if isinstance(action, argparse._SubParsersAction)
)


def options_of(name):
    return {action.dest for action in COMMANDS[name]._actions} - {"help"}


def tree_of(function):
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def named(nodes):
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def reads_of(function):
    """What a function takes from ``args``: by attribute, or under names that are texts in it or in its module."""
    nodes = list(ast.walk(tree_of(function)))
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
    by_name = [call for call in calls if named([call.func]) & {"getattr", "paths_of"} and named(call.args) & {"args"}]
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute) and named([node.value]) == {"args"}}
    if by_name:
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        constants = [vars(sys.modules[function.__module__]).get(name) for name in named(nodes)]
        found |= {key for constant in constants if isinstance(constant, (tuple, dict)) for key in constant}
    return found


def calls_of(function):
    """The functions of the command line that a function calls, but for checks."""
    called = {name for node in ast.walk(tree_of(function)) if isinstance(node, ast.Call) for name in named([node.func])}
    found = [vars(sys.modules[function.__module__]).get(name) for name in called]
    return {
        other
        for other in found
        if inspect.isfunction(other)
        and other.__module__.startswith("finecal._cli.")
        and not other.__name__.lstrip("_").startswith("check")
    }


def used_by(function):
    """What a function reads, and those that it calls."""
    met, todo = set(), {function}
    while todo:
        met |= todo
        todo = set().union(*map(calls_of, todo)) - met
    return set().union(*map(reads_of, met))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_ignored(name):
    assert options_of(name) - used_by(COMMANDS[name].get_default("run")) == set()


def ignores_one(args, sentences):
    check_output(args, ())
    print(args.json)


def test_an_option_that_is_only_checked_is_found():
    assert reads_of(ignores_one) == used_by(ignores_one) == {"json"}
    assert options_of("evaluate") <= used_by(COMMANDS["evaluate"].get_default("run"))
    assert "engine" not in used_by(COMMANDS["evaluate"].get_default("run"))
    assert {"max_length", "out"} <= used_by(fold)
