"""What the tests share: the finder of real data, the order of the run, and the notebooks' times at its end."""
import os, sys
from collections.abc import Callable
from pathlib import Path
import hypothesis, pytest

# The same examples in every run, so that a run that passed passes again; HYPOTHESIS_PROFILE=explore looks for new ones
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("explore", print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one thread per worker
os.environ.setdefault("MPLBACKEND", "agg")

@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    "`real_data('esc50')` is that set's folder. LMAC_PIQ_DATA unset: the test skips; set, but the folder missing: it fails."
    def folder(name: str) -> Path:
        root = os.environ.get("LMAC_PIQ_DATA")
        if not root: pytest.skip(f"LMAC_PIQ_DATA is not set, so {name} is not at hand")
        path = Path(root)/name
        if not path.is_dir(): pytest.fail(f"LMAC_PIQ_DATA={root} is set, but {path} is not a folder")
        return path
    return folder

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "The two long files, notebooks and graph, go first; every file stays on one worker (`--dist loadfile`), so that its fixtures are made once"
    # Once SpeechBrain is imported, its stand-ins for old module names raise at any look, and hypothesis looks at every module
    for name in [name for name, module in sys.modules.items() if type(module).__name__ == "DeprecatedModuleRedirect"]: del sys.modules[name]
    first = ["test_notebooks.py", "test_paper.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))

def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    "One line per notebook: seconds on the clock and seconds of one processor"
    rows = [dict(report.user_properties) for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")]
    rows = [row for row in rows if "notebook" in row]
    if not rows: return
    terminalreporter.section("time of every notebook")
    for row in sorted(rows, key=lambda row: -row["seconds"]):
        terminalreporter.line(f"{row['seconds']:6.1f} s  {row['cpu']:6.1f} s CPU  {row['notebook']}")
    terminalreporter.line(f"{sum(row['seconds'] for row in rows):6.1f} s  {sum(row['cpu'] for row in rows):6.1f} s CPU  together")
