"""The shape of the code base: who may import whom, where each library is used, how long a piece may be.

Every check takes source text, so that each has a test with an offender. To add an arrow, change the table here in
the same commit and say why in docs/decisions.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "segpipe"
_PIPELINE = {"core", "data", "fingerprint", "networks", "plan", "prepare", "train", "predict", "evaluate", "compare"}
ALLOWED_IMPORTS: dict[str, set[str]] = {  # a part may always import itself
    "core": {"_version"},
    "data": {"core"},
    "fingerprint": {"core", "data"},
    "networks": {"core"},
    "plan": {"core", "fingerprint", "networks"},
    "prepare": {"core", "data", "fingerprint", "plan"},
    "train": {"core", "data", "networks", "plan", "prepare"},
    "predict": {"core", "data", "networks", "plan", "prepare", "train"},
    "analyse": {"core", "data", "networks", "plan", "prepare", "train"},
    "evaluate": {"core", "data"},
    "compare": {"core", "data", "evaluate"},
    "report": {"_version", "core", "data", "fingerprint", "plan", "evaluate", "compare"},
    "view": {"core", "data", "evaluate"},
    "bridge": _PIPELINE | {"report"},
    "pipeline": _PIPELINE | {"analyse", "bridge", "report", "_version"},  # `segpipe.run` ends with the report
    "cli": _PIPELINE | {"analyse", "_version", "report", "view", "bridge", "pipeline"},
    "_version": set(),
    "__init__": _PIPELINE | {"pipeline", "_version"},  # the lazy public API
    "__main__": {"cli"},
}
_TORCH_PARTS = ("networks/", "prepare/", "train/", "predict/", "analyse/")
HOMES: dict[str, tuple[str, ...]] = {  # a library: where alone it may be imported (file, or folder ending in /)
    "torch": (*_TORCH_PARTS, "bridge/"),  # foreign trainers take torch devices and seeds
    "safetensors": _TORCH_PARTS,
    "monai": _TORCH_PARTS,  # monai and the next import torch
    "dynamic_network_architectures": (),  # a second opinion in tests
    "nibabel": ("core/volume.py",),
    "SimpleITK": ("core/itk.py",),
    "PIL": ("core/pictures.py", "core/figures.py"),
    "nnunetv2": ("bridge/",),
    "batchgenerators": ("bridge/",),
    "batchgeneratorsv2": ("bridge/",),
    "click": ("cli/",),
}
MAY_CATCH_ALL = {
    # One odd image, which fails in segpipe or in a library in a way that was not foreseen, must not cost the masks of
    # all others: the fault is logged with its traceback, counted, and changes the exit code.
    ("predict/run.py", "noting_faults"),
}
_PRINTERS = ("cli/", "core/progress.py")
_UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
_UNSAFE_YAML = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}
_VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}
MAX_FILE_LINES = 500  # both are judged in review long before; these catch what nobody looked at
MAX_BODY_LINES = 60

Check = Callable[[str, str], list[str]]


def part_of(path: str) -> str:
    """`data/check.py` is in `data`, `fingerprint.py` in `fingerprint`."""
    return path.split("/")[0].removesuffix(".py")


def imported_modules(path: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that a file of segpipe imports, anywhere in it, and the lines.

    `from a import b` gives `a` and `a.b`: b may be a module. A call of `import_module` or `__import__` gives its
    string, of an f-string the part before the first brace.
    """
    package = ["segpipe", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node).split(".")[-1] in {"import_module", "__import__"}:
            yield from ((text, node.lineno) for text in _leading_text(node))


def _called(node: ast.Call) -> str:
    """Dotted name of what is called, e.g. `torch.load`; empty if it is no plain name."""
    names, current = [], node.func
    while isinstance(current, ast.Attribute):
        names.append(current.attr)
        current = current.value
    return ".".join([current.id, *names[::-1]]) if isinstance(current, ast.Name) else ""


def _leading_text(node: ast.Call) -> list[str]:
    first = node.args[0] if node.args else None
    if isinstance(first, ast.JoinedStr) and first.values:
        first = first.values[0]
    return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []


def forbidden_arrows(path: str, source: str) -> list[str]:
    """Imports of another part of segpipe that the table does not allow."""
    own, faults = part_of(path), []
    if own not in ALLOWED_IMPORTS:
        return [f"{path}: part {own!r} is not in the table of allowed imports"]
    for name, line in imported_modules(path, ast.parse(source)):
        other = part_of(name.removeprefix("segpipe.").replace(".", "/")) if name.startswith("segpipe.") else own
        if other in ALLOWED_IMPORTS and other != own and other not in ALLOWED_IMPORTS[own]:
            faults.append(f"{path}:{line}: {own} imports {name}, allowed: {sorted(ALLOWED_IMPORTS[own])}")
    return faults


def foreign_libraries(path: str, source: str) -> list[str]:
    """Libraries imported outside their home."""
    faults = []
    for name, line in imported_modules(path, ast.parse(source)):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None and not path.startswith(homes):
            faults.append(f"{path}:{line}: imports {name}, allowed only in {', '.join(homes) or 'tests'}")
    return faults


def unsafe_reading(path: str, source: str) -> list[str]:
    """Whatever could run code that stands in a file."""
    tree, faults = ast.parse(source), []
    for name, line in imported_modules(path, tree):
        if name.split(".")[0] in _UNSAFE_MODULES:
            faults.append(f"{path}:{line}: imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, keywords = _called(node), {k.arg: k.value for k in node.keywords}
        module, _, function = called.rpartition(".")
        bad = (
            called in {"eval", "exec"}
            or (module == "yaml" and function in _UNSAFE_YAML)
            or (called == "torch.load" and not _is_true(keywords.get("weights_only")))
            or ("allow_pickle" in keywords and not _is_false(keywords["allow_pickle"]))
        )
        if bad:
            faults.append(f"{path}:{node.lineno}: calls {called} in a way that can run code from a file")
    return faults


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def too_long(path: str, source: str) -> list[str]:
    """Files and functions beyond the limits; a function counts without its signature and docstring."""
    n_lines = len(source.splitlines())
    faults = [f"{path}: {n_lines} lines, allowed {MAX_FILE_LINES}"] if n_lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > MAX_BODY_LINES:
                faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines, allowed {MAX_BODY_LINES}")
    return faults


def stray_prints(path: str, source: str) -> list[str]:
    """`print` outside the command line and core/progress.py."""
    if path.startswith(_PRINTERS):
        return []
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and _called(n) == "print"]
    return [f"{path}:{node.lineno}: prints; use segpipe.core.progress.say or return the text" for node in calls]


def swallowed_errors(path: str, source: str) -> list[str]:
    """Handlers that catch everything and go on; `except BaseException` must raise again.

    `MAY_CATCH_ALL` names the functions that may: each once, with its reason.
    """
    faults, tree = [], ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and (path, n.name) in MAY_CATCH_ALL]
    excused = {
        handler: function.name
        for function in functions
        for handler in [n for n in ast.walk(function) if isinstance(n, ast.ExceptHandler)]
        if isinstance(handler.type, ast.Name) and handler.type.id == "Exception"
    }
    if len(excused) > 1:
        faults.append(f"{path}: catches every error in {len(excused)} places, allowed in one")
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler) or node in excused:
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
        raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        if node.type is None or "Exception" in names or ("BaseException" in names and not raises):
            faults.append(f"{path}:{node.lineno}: catches every error; name the ones that can happen")
    return faults


def vague_names(path: str, source: str) -> list[str]:  # noqa: ARG001 (every check takes path and source)
    """Modules named after nothing in particular."""
    names = {word for step in path.removesuffix(".py").split("/") for word in step.split("_")}
    return [f"{path}: {name!r} says nothing" for name in sorted(names & _VAGUE_NAMES)]


def import_ring(files: Mapping[str, str]) -> list[str]:
    """Files of a ring of imports, each importing the next, first and last the same; empty if there is none.

    An import inside a function counts. The package above a module, which Python imports too, does not.

    Args:
        files: Source text by path.
    """
    modules = {_module_of(path): path for path in files}
    graph = {
        path: {modules[name] for name, _ in imported_modules(path, ast.parse(source)) if name in modules}
        for path, source in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        return list(fault.args[1])
    return []


def _module_of(path: str) -> str:
    """`core/grid.py` is segpipe.core.grid, `core/__init__.py` segpipe.core.

    Example:
        >>> _module_of("__init__.py"), _module_of("core/grid.py")
        ('segpipe', 'segpipe.core.grid')
    """
    return ".".join(part for part in ["segpipe", *path.removesuffix(".py").split("/")] if part != "__init__")


_CLAUSES = {"Of", "What", "Whose", "Whether", "That", "How", "As", "Those", "Whatever", "Who", "Where", "When"}


def clause_docstrings(path: str, source: str) -> list[str]:
    """Docstrings that begin with a clause instead of a verb or the noun that is returned."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    pieces = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    openings = {node: (ast.get_docstring(node) or "-").split()[0] for node in pieces}
    return [
        f"{path}: the docstring of {getattr(node, 'name', 'the file')} begins with {word!r}, expected a verb or a noun"
        for node, word in openings.items()
        if word in _CLAUSES
    ]


_PARTICIPLE = re.compile(
    r"\w{2,}ed|\w{2,}ing|begun|bound|brought|broken|built|caught|chosen|done|drawn|driven|felt|forgotten|found|frozen|given|gone|"
    r"grown|held|hidden|kept|known|laid|left|lost|made|meant|said|seen|sent|shown|sought|spent|spoken|taken|thought|thrown|"
    r"told|torn|understood|worn|written"
)
_NOUNS = re.compile(  # that only look like participles
    "coarsening|ending|finding|heading|mapping|mirroring|need|painting|planning|postprocessing|ranking|seed|spacing|speed|"
    "training|understanding"
)
_PARTICIPLES_ALLOWED = {
    ("cli/options.py", "shared"),  # a decorator: `@shared` above a command says what its options are
}


def bare_participles(path: str, source: str) -> list[str]:
    """Functions named by participles alone: `_described`. They are verbs, or the noun that they return."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (path, node.name) not in _PARTICIPLES_ALLOWED:
            words = [word for word in node.name.split("_") if word]
            if words and all(_PARTICIPLE.fullmatch(word) and not _NOUNS.fullmatch(word) for word in words):
                faults.append(f"{path}:{node.lineno}: {node.name} is a participle, expected a verb or a noun")
    return faults


CHECKS: dict[str, Check] = {
    "participles": bare_participles,
    "arrows": forbidden_arrows,
    "libraries": foreign_libraries,
    "unsafe": unsafe_reading,
    "length": too_long,
    "prints": stray_prints,
    "errors": swallowed_errors,
    "names": vague_names,
    "docstrings": clause_docstrings,
}


def package_files() -> dict[str, str]:
    """Source text of the package by path."""
    files = {p.relative_to(PACKAGE).as_posix(): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}
    assert len(files) > 10, "the package was not found"
    return files


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert not import_ring(package_files())


RINGS = {
    "two files": {"core/a.py": "from segpipe.core.b import x", "core/b.py": "from segpipe.core import a"},
    "inside a function": {
        "core/a.py": "def f():\n    import segpipe.core.b",
        "core/b.py": "if TYPE_CHECKING:\n    from segpipe.core.a import y",
    },
    "through the package": {
        "__init__.py": "def load():\n    from segpipe.cli.main import run",
        "cli/main.py": "from segpipe import __version__",
    },
}


@pytest.mark.parametrize("files", RINGS.values(), ids=RINGS)
def test_a_ring_is_found(files: dict[str, str]) -> None:
    ring = import_ring({"core/c.py": "from segpipe.core import a", **files})
    assert set(ring) == set(files) and ring[0] == ring[-1]


def test_a_chain_is_no_ring() -> None:
    assert not import_ring({"core/a.py": "from segpipe.core import b", "core/b.py": "", "core/__init__.py": ""})


@pytest.mark.parametrize("check", CHECKS)
def test_the_package_keeps_the_rules(check: str) -> None:
    files = package_files()
    faults = [fault for path, source in files.items() for fault in CHECKS[check](path, source)]
    assert not faults, "\n".join(["", *faults])


def repeated_classes(sources: dict[str, str]) -> list[str]:
    """Public classes of one name in several files: a reader cannot tell which one a message or a trace means."""
    homes: dict[str, list[str]] = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path)
    return [f"class {name} is in {', '.join(paths)}" for name, paths in homes.items() if len(paths) > 1]


def test_a_public_class_name_is_used_once() -> None:
    assert repeated_classes(package_files()) == []


def test_a_repeated_class_name_is_found() -> None:
    sources = {"a.py": "class Case: ...\nclass _Box: ...", "b.py": "class Case: ...\nclass _Box: ..."}
    assert repeated_classes(sources) == ["class Case is in a.py, b.py"]


def test_nothing_in_the_package_imports_tests_or_benchmarks() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        roots = {name.split(".")[0] for name, _ in imported_modules(path.relative_to(PACKAGE).as_posix(), tree)}
        assert not roots & {"tests", "benchmarks", "pytest", "hypothesis"}, path


OFFENDERS = [  # check, path, source
    ("arrows", "evaluate/metrics.py", "from segpipe.predict.sliding_window import slide"),
    ("arrows", "evaluate/metrics.py", "def f():\n    import segpipe.predict"),
    ("arrows", "evaluate/metrics.py", "from segpipe import predict"),
    ("arrows", "evaluate/metrics.py", "from ..predict import window"),
    ("arrows", "evaluate/metrics.py", "from .. import predict"),
    ("arrows", "core/grid.py", "import importlib\nimportlib.import_module('segpipe.data.dataset')"),
    ("arrows", "core/grid.py", "from importlib import import_module\nimport_module(f'segpipe.cli.{name}')"),
    ("arrows", "core/grid.py", "__import__('segpipe.data')"),
    ("arrows", "data/check.py", "if TYPE_CHECKING:\n    from segpipe.fingerprint import Fingerprint"),
    ("arrows", "networks/unet.py", "from segpipe.plan import schema"),
    ("arrows", "fingerprint/record.py", "from segpipe.plan.schema import Plan"),
    ("arrows", "fresh/new.py", ""),
    ("libraries", "cli/train.py", "import torch"),
    ("libraries", "core/progress.py", "def f():\n    from torch import nn"),
    ("libraries", "plan/make.py", "import torch.nn as nn"),
    ("libraries", "evaluate/metrics.py", "from monai.metrics import compute_hausdorff_distance"),
    ("libraries", "data/check.py", "import nibabel as nib"),
    ("libraries", "core/grid.py", "from SimpleITK import ReadImage"),
    ("libraries", "plan/make.py", "importlib.import_module('nnunetv2.experiment_planning')"),
    ("libraries", "core/errors.py", "import click"),
    ("libraries", "networks/unet.py", "from dynamic_network_architectures.architectures.unet import PlainConvUNet"),
    ("unsafe", "train/checkpoint.py", "import pickle"),
    ("unsafe", "train/checkpoint.py", "torch.load(path)"),
    ("unsafe", "train/checkpoint.py", "torch.load(path, weights_only=False)"),
    ("unsafe", "core/records.py", "yaml.load(text, Loader=yaml.SafeLoader)"),
    ("unsafe", "core/records.py", "eval(text)"),
    ("unsafe", "prepare/store.py", "np.load(path, allow_pickle=True)"),
    ("length", "core/grid.py", "\n" * 501),
    ("length", "core/grid.py", "def f():\n" + "    x = 1\n" * 61),
    ("length", "core/grid.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 61),
    ("prints", "train/loop.py", "def f():\n    print('epoch')"),
    ("errors", "train/loop.py", "try:\n    f()\nexcept Exception:\n    g()"),
    ("errors", "train/loop.py", "try:\n    f()\nexcept (ValueError, Exception):\n    raise"),
    ("errors", "train/loop.py", "try:\n    f()\nexcept:\n    g()"),
    ("errors", "predict/run.py", "def predict():\n    try:\n        f()\n    except Exception:\n        g()"),
    (
        "errors",
        "predict/run.py",
        "def noting_faults():\n" + 2 * "    try:\n        f()\n    except Exception:\n        g()\n",
    ),
    ("errors", "train/loop.py", "try:\n    f()\nexcept BaseException:\n    g()"),
    ("docstrings", "core/grid.py", 'def f():\n    """Whether it is."""'),
    ("docstrings", "core/grid.py", '"""What a grid is."""'),
    ("participles", "core/grid.py", "def _described(): ..."),
    ("participles", "core/grid.py", "class A:\n    def listening(self): ..."),
    ("names", "core/utils.py", ""),
    ("names", "train/loss_helpers.py", ""),
]


@pytest.mark.parametrize(("check", "path", "source"), OFFENDERS)
def test_an_offender_is_found(check: str, path: str, source: str) -> None:
    assert CHECKS[check](path, source)


INNOCENTS = [
    ("arrows", "predict/run.py", "from segpipe.train.checkpoint import load\nfrom . import window\nimport numpy"),
    ("arrows", "core/volume.py", "from segpipe import __version__\nfrom segpipe.core.grid import Grid"),
    ("arrows", "cli/main.py", "importlib.import_module(f'segpipe.cli.{name}').command"),
    ("libraries", "core/volume.py", "import nibabel"),
    ("libraries", "predict/sliding_window.py", "import torch"),
    ("unsafe", "train/checkpoint.py", "torch.load(path, weights_only=True)\nnet.eval()\nyaml.safe_load(text)"),
    ("unsafe", "prepare/store.py", "np.save(path, array, allow_pickle=False)"),
    ("length", "core/grid.py", 'def f():\n    """' + "\n    more" * 50 + '"""\n' + "    x = 1\n" * 60),
    ("prints", "cli/train.py", "print('done')"),
    ("errors", "predict/run.py", "def noting_faults():\n    try:\n        f()\n    except Exception:\n        g()"),
    ("errors", "core/progress.py", "try:\n    f()\nexcept BaseException:\n    raise"),
    ("docstrings", "core/grid.py", '"""Grids."""\nclass A:\n    """A grid."""\n\n    def f(self): ...'),
    ("participles", "core/grid.py", "def spacing(): ...\ndef drawn_name(): ...\ndef is_kept(): ..."),
    ("participles", "cli/options.py", "def shared(): ..."),
    ("names", "train/loop.py", ""),
]


@pytest.mark.parametrize(("check", "path", "source"), INNOCENTS)
def test_what_is_allowed_passes(check: str, path: str, source: str) -> None:
    assert not CHECKS[check](path, source)
