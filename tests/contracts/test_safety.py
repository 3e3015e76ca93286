"""What could run a stranger's code: unpickling, evaluating text, a shell. Where it is needed, it is named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.source import ROOT

FILES = sorted(path.relative_to(ROOT) for folder in ("sam_ds", "kernels") for path in (ROOT / folder).rglob("*.py"))
# Unpickling what this very training pickled a moment ago, in another process; and what the user trusts aloud.
ALLOWED = {
    "sam_ds/data/workers.py": {"pickle.loads"},
    "sam_ds/modeling/convert.py": {"torch.load"},
}
FORBIDDEN = {
    *(f"pickle.{name}" for name in ("load", "loads", "Unpickler")),
    *(
        f"{module}.{name}"
        for module in ("dill", "cloudpickle", "joblib", "marshal", "shelve")
        for name in ("load", "open")
    ),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "compile", "__import__"),
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """A keyword's constant value; None if it is not given."""
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def faults(text: str) -> list[str]:
    found = []
    for name, call in calls(ast.parse(text)):
        if (
            name in FORBIDDEN
            or (name == "torch.load" and keyword(call, "weights_only") is not True)
            or (name.endswith("np.load") and keyword(call, "allow_pickle"))
        ):
            found.append(name)
        elif any(k.arg == "shell" for k in call.keywords):
            found.append(f"{name}(shell=…)")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_code_of_others_is_run(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert set(faults(text)) <= ALLOWED.get(path.as_posix(), set())
    assert not any(
        alias.name == "*" or alias.name in {"load", "loads", "system"}
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "os", "torch", "yaml", "subprocess"}
        for alias in node.names
    )


def test_torch_loads_what_it_should_not_in_one_place() -> None:
    text = (ROOT / "sam_ds/modeling/convert.py").read_text(encoding="utf-8")
    assert faults(text) == ["torch.load"]


@pytest.mark.parametrize(
    "text",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_it_would_be_seen(text: str) -> None:
    assert faults(text)
