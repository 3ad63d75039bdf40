"""The structure is a promise: import direction, no torch in the torch-free half, a quick --help, a true __all__."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bert_miniatures
from bert_miniatures.cli import COMMANDS

PACKAGE = Path(bert_miniatures.__file__).parent

# A module imports only from layers before its own; imports inside functions count too.
LAYERS = [
    {"errors"},
    {"files", "horizon", "zoo", "machine", "outputs", "watch", "pool", "report.markup", "serve.failures", "serve.limits",
     "data.on_demand"},
    {"config", "metrics", "archive", "leveldb", "transfer", "vocabulary", "pool_worker", "ray_cluster", "word_start", "data.lines",
     "data.mixture", "data.sentences", "data.tasks", "choose.timing"},
    {"distill_config", "tokenizer", "tf_bundle", "names", "hub", "predictions", "results", "traps", "memory",
     "data.columns", "data.corpus", "data.glue_parquet", "data.labels", "data.tables", "choose.picking"},
    {"checkpoint", "engine", "onnx_graph", "choice", "trackers", "pieces", "download", "submission", "plan", "soft_labels", "data.glue",
     "data.glue_hub", "data.stream", "data.encoding", "data.masking", "choose.plot"},
    {"card", "predict_onnx", "models", "table", "eta", "budget", "keeping", "sweep_folder", "serve.connection", "serve.scores",
     "data.examples", "data.glue_find", "report.facts",
     "data.instances", "data.probabilities", "data.teacher_texts"},
    {"predict", "answer_file", "quantise", "forecast", "serve.asked", "serve.meters", "data.teacher_store", "report.figures", "bundle", "push",
     "choose.baseline", "choose.profile", "choose.worker", "doctor.subject"},
    # ------------------------------------- torch starts here (serve needs none: tests/test_serve_command.py)
    {"serve.batching", "serve.guard", "choose.measuring", "doctor.data", "doctor.folder", "doctor.machine", "doctor.packages",
     "doctor.places",
     "noise", "compiling", "initial", "masked_loss", "places", "beside", "state", "distributed", "data.batches", "data.pretraining",
     "data.pairs"},
    {"kernels", "fused_ends"},
    {"fused"},
    {"serve.served", "choose.survey", "model", "optim", "data.teaching", "auto_teacher"},
    {"serve.explain", "serve.v2", "objectives", "loading", "teacher", "recipes.teachers"},
    {"serve.documents", "train", "evaluation", "soft_objectives", "teacher_pass", "recipes.loading", "recipes.method", "recipes.text_loading",
     "recipes.course", "recipes.filling", "recipes.label"},
    {"serve.app", "predict_torch", "check_data", "recipes.running", "recipes.lessons", "recipes.augmenting", "report.texts",
     "doctor.probe"},
    {"serve.running", "exporting", "recipes.finetune", "recipes.comparison", "recipes.soft_loading", "recipes.pace", "recipes.answering",
     "recipes.sweep_checks", "recipes.adaptive", "recipes.guide", "doctor.plan", "estimator_input", "report.parts"},
    {"recipes.scoring", "recipes.distill", "recipes.pretrain", "recipes.schedule", "doctor.checks", "estimators", "report.page"},
    {"recipes.worker"},
    {"recipes.ray_engine"},
    {"recipes.ray_processes", "recipes.sweep"},
]  # fmt: skip
TORCH_STARTS = 7
WITHOUT_LAYER = ("cli", "__main__", "__init__")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path
    return {name: path for name, path in found.items() if name and not name.startswith(WITHOUT_LAYER)}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def layer_of(name: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


def test_every_module_has_a_layer():
    packages = {"choose", "data", "doctor", "recipes", "report", "serve"}
    assert set(modules()) - packages == set().union(*LAYERS)


def test_no_module_hides_a_public_name():
    """Whoever imports a module puts it into its package under its name, in the place of a function called so."""
    assert {name for name in modules() if "." not in name} & set(bert_miniatures.__all__) == set()


@pytest.mark.parametrize("name", sorted(set().union(*LAYERS)))
def test_a_module_imports_only_from_lower_layers(name):
    own = layer_of(name)
    assert own is not None
    for imported in imports(modules()[name]):
        if imported.startswith("bert_miniatures."):
            other = layer_of(imported.removeprefix("bert_miniatures."))
            assert other is None or other < own, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(set().union(*LAYERS[:TORCH_STARTS])))
def test_the_lower_half_has_torch_nowhere_at_import(name):
    """checkpoint reads pytorch_model.bin with torch, inside the function that does so; nothing else may."""
    code = f"import sys, bert_miniatures.{name}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_without_torch(command):
    code = (
        "import sys; sys.argv = ['miniatures', *sys.argv[1:]]\n"
        "from bert_miniatures.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pyarrow', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    arguments = [*([command] if command else []), "--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: miniatures" in done.stdout


def test_all_is_sorted_and_true():
    for name in bert_miniatures.__all__:
        assert getattr(bert_miniatures, name) is not None
    upper = [name for name in bert_miniatures.__all__ if name.isupper()]
    assert bert_miniatures.__all__ == sorted(upper) + sorted(set(bert_miniatures.__all__) - set(upper))


def test_files_stay_short():
    for name, path in modules().items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, name
