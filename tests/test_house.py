"""The rules of the house: pins in one place, imports that only go down, and files that a reader of the repository can rely on."""
import ast, json, re, subprocess, sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
import pytest, yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT/"tools"))

FLOORS = [  # a module imports only from floors below its own
    {"audio", "spectral", "training", "decoder", "codebook", "stats", "engine"},
    {"data", "scenes", "classifier", "style"},
    {"explanation", "own_classifier"},
    {"annotation", "lmac", "piq", "baselines", "l2i", "metrics", "listen"},
    {"player"},
    {"sanity", "overlap", "explorer", "study", "experiment", "defects", "recording", "codes", "own_lmac"},
    {"evidence"},
    {"bottleneck"},
    {"report", "published", "piq_report", "bench"},
    {"decoder_choice", "companion", "units", "profiling"},
    {"cli", "scale"},
    {"all"},
]
BESIDE = {("baselines", "metrics"), ("decoder", "spectral"), ("l2i", "lmac"), ("piq", "lmac"), ("l2i", "piq"), ("published", "report"), ("piq_report", "report"), ("explorer", "codes"), ("training", "audio")}  # (importer, imported) on one floor, each a decision: the light decoder draws on the mel grid, and every file has one kind of temporary name
FLOOR = {module: number for number, modules in enumerate(FLOORS, 1) for module in modules}
MODULES = {path.stem: path for path in sorted((ROOT/"lmac_piq").glob("[!_]*.py"))}

def settings() -> dict[str, str]:
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT/"settings.ini", encoding="utf8")
    return dict(ini["DEFAULT"])

def tracked(pattern: str = "") -> list[Path]:
    "The files git tracks, or would: new ones that are not ignored count too"
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip("not a git checkout, so which files are tracked is unknown")
    return [ROOT/name for name in sorted(set(listed.stdout.split("\0"))) if name and (ROOT/name).is_file() and re.search(pattern, name)]

def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf8"))["cells"] if cell["cell_type"] == kind]

def source(cell: dict) -> str: return "".join(cell["source"])

# ---- one place for every pin

def conda_specs() -> tuple[list[str], list[str]]:
    "What environment.yml asks conda for, and what it asks pip for"
    specs = yaml.safe_load((ROOT/"environment.yml").read_text())["dependencies"]
    return [s for s in specs if isinstance(s, str)], next(s["pip"] for s in specs if isinstance(s, dict))

def test_environment_has_the_pins_of_settings():
    asked = settings()["requirements"].split() + settings()["dev_requirements"].split()
    _, pip = conda_specs()
    assert pip[-1] == "-e .", "environment.yml ends by installing the checkout itself"
    assert sorted(pip[:-1]) == sorted(asked), f"only in one of settings.ini and environment.yml: {sorted(set(pip[:-1]) ^ set(asked))}"

def test_every_spec_parses_and_stands_once():
    conda, pip = conda_specs()
    assert [re.match(r"[a-z]+", spec)[0] for spec in conda] == ["python", "pip", "libsndfile"]
    assert all(re.fullmatch(r"[a-z]+(=\d+(\.\d+)*)?", spec) for spec in conda), conda
    names = [Requirement(spec).name.lower() for spec in pip[:-1]]
    assert len(set(names)) == len(names), f"named twice: {sorted(n for n in names if names.count(n) > 1)}"

def test_settings_keep_the_tags_that_papermill_needs():
    assert settings()["allowed_cell_metadata_keys"].split() == ["tags"]

# ---- the library

def imported(path: Path) -> Iterator[str]:
    "Modules of the package that a module imports, at any depth of its code"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            base = ("lmac_piq." if node.level else "") + (node.module or "")
            names = [base] if base.rstrip(".") != "lmac_piq" else [f"lmac_piq.{name}" for name in names]
        yield from (part[1] for part in (name.split(".") for name in names) if part[0] == "lmac_piq" and part[1:] and part[1] in MODULES)

@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module: str):
    assert module in FLOOR, f"{module} has no floor yet: add it to FLOORS"
    up = {name for name in imported(MODULES[module]) if FLOOR[name] >= FLOOR[module] and (module, name) not in BESIDE}
    assert not up, f"{module} (floor {FLOOR[module]}) imports {sorted(up)}, on its own floor or above"

def test_no_import_cycle():
    left = {module: set(imported(path)) for module, path in MODULES.items()}
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left, f"these modules import one another in a circle: {sorted(left)}"

def test_all_brings_in_every_module():
    assert set(imported(MODULES["all"])) == MODULES.keys() - {"all"}, "nbs/90_all.ipynb imports every module of the package"

def test_what_is_slow_to_import_waits_for_its_first_use():
    slow = ["scipy.stats", "scipy.signal", "sklearn", "triton", "pyloudnorm"]
    done = subprocess.run([sys.executable, "-c", f"import sys, lmac_piq.all; print([name for name in {slow} if name in sys.modules])"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]", f"`import lmac_piq.all` imports {done.stdout.strip()}: import them where they are used"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
SPECIAL = ("__init__", "__call__", "forward")  # typed like the rest, and described by their class

def public(path: Path) -> Iterator[tuple[str, Definition]]:
    "A module's public classes and functions, and the public or special methods of those classes"
    for node in ast.parse(path.read_text(encoding="utf8")).body:
        if not isinstance(node, Definition) or node.name[0] == "_": continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{m.name}", m) for m in node.body if isinstance(m, Definition) and (m.name[0] != "_" or m.name in SPECIAL))

def untyped(node: Definition) -> list[str]:
    "What a signature leaves without a type"
    if isinstance(node, ast.ClassDef): return []
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [arg.arg for arg in args if arg.annotation is None and arg.arg not in ("self", "cls")] + ["its result"] * (node.returns is None and node.name != "__init__")

@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_is_typed_and_described(module: str):
    bare = [name for name, node in public(MODULES[module]) if node.name not in SPECIAL and not ast.get_docstring(node)]
    loose = {name: untyped(node) for name, node in public(MODULES[module]) if untyped(node)}
    assert not bare, f"{module}: no docstring on {bare}"
    assert not loose, f"{module}: no type on {loose}"

# ---- the notebooks

LIBRARY_NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
PAPER_NOTEBOOKS = sorted((ROOT/"paper_figures").glob("*.ipynb"))
stem = lambda path: path.stem

@pytest.mark.parametrize("path", LIBRARY_NOTEBOOKS, ids=stem)
def test_exported_cells_are_short(path: Path):
    sizes = [len([line for line in source(c).splitlines() if line.strip() and not line.startswith("#|")])
             for c in cells(path) if re.search(r"^#\|\s*exports?\b", source(c), re.M)]
    assert max(sizes, default=0) <= 25, f"{path.name}: exported cells of {[s for s in sizes if s > 25]} lines; the limit is 25"

@pytest.mark.parametrize("path", LIBRARY_NOTEBOOKS + PAPER_NOTEBOOKS, ids=stem)
def test_notebook_is_light_and_shows_no_error(path: Path):
    assert path.stat().st_size <= 500_000, f"{path.name} has {path.stat().st_size/1000:.0f} kB; the limit is 500: fewer players, fewer pixels"
    errors = [out["ename"] for cell in cells(path) for out in cell["outputs"] if out["output_type"] == "error"]
    assert not errors, f"{path.name} was saved with {errors} in its outputs"

@pytest.mark.parametrize("path", PAPER_NOTEBOOKS, ids=stem)
def test_one_cell_of_flat_parameters(path: Path):
    tagged = [source(cell) for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"{path.name} has {len(tagged)} cells tagged `parameters`; without exactly one, papermill lets the defaults win"
    lines = ast.parse(tagged[0]).body
    assert all(isinstance(line, (ast.Assign, ast.AnnAssign)) for line in lines), f"{path.name}: the parameters cell holds more than assignments"

# ---- what is committed

TEXT = r"(\.(py|md|ini|toml|yml|yaml|cff|ipynb|csv|json|smk|sh|txt|svg|html)|Makefile|Snakefile|run|LICENSE|\.gitignore)$"
FOREIGN = {  # what means something only on the machine of whoever wrote it
    "a path of one machine": r"(?<![\w.])/(?:work|root|home/\w+|opt/(?:pypi|wheels)[\w-]*)/",
    "a folder outside the repository": r"(?<![\w./-])(?:\.\./)*shared[/]",
    "a plan that is not in the repository": r"\b(?:SP[E]C|DES[I]GN|ANCH[O]RS|CONTR[A]CTS)(?:\.md\b|[ \xa0]§?[A-Z]?\.?\d)",
}

@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_names_what_the_repository_does_not_hold(what: str):
    found = []
    for path in tracked(TEXT):
        name = path.relative_to(ROOT).as_posix()
        if name == ".ci/run" and "folder" in what: continue  # the one file that may look beside the checkout
        found += [f"{name}: ...{m[0]}..." for m in re.finditer(FOREIGN[what], path.read_text(encoding="utf8"))]
    assert not found, f"{what}: {found[:10]}"

def test_no_audio_and_no_photograph_is_committed():
    assert not (media := [p.name for p in tracked(r"(?i)\.(wav|flac|ogg|mp3|opus|m4a|jpe?g|npz|pt|safetensors)$")]), media

def test_readme_is_the_index_notebook():
    from readme import readme
    assert (ROOT/"README.md").read_text(encoding="utf8") == readme(), "README.md is not what nbs/index.ipynb gives: run `make readme`"

def test_the_overview_names_every_notebook_on_its_floor():
    rows = re.findall(r"^\| (\d+) \| \[(\w+)\]\(nbs/\2\.ipynb\)", (ROOT/"README.md").read_text(encoding="utf8"), re.M)
    module = lambda name: re.search(r"^#\|\s*default_exp (\w+)", "\n".join(map(source, cells(ROOT/f"nbs/{name}.ipynb"))), re.M)[1]
    there = {path.stem: FLOOR[module(path.stem)] for path in LIBRARY_NOTEBOOKS if path.stem not in ("index", "90_all")}
    assert {name: int(floor) for floor, name in rows} == there and len(rows) == len(there)

def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT/"README.md").read_text(encoding="utf8"))
    assert links and not (dead := [link for link in links if not (ROOT/link).exists()]), f"dead links in README.md: {dead}"

def test_licence_and_citation():
    assert "Apache License" in (ROOT/"LICENSE").read_text()
    titles = [work["title"] for work in yaml.safe_load((ROOT/"CITATION.cff").read_text())["references"]]
    assert titles == ["Listenable Maps for Audio Classifiers", "Posthoc Interpretation via Quantization"]
