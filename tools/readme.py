"""Write README.md from nbs/index.ipynb: hidden cells dropped, links turned from nbs/ to the repository's root."""
import re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]

def readme() -> str:
    "The text README.md must hold"
    hidden = Config({"RegexRemovePreprocessor": {"enabled": True, "patterns": [r"#\|\s*hide\b"]}})
    notebook = nbformat.read(ROOT/"nbs/index.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # cleaned away; it names the code fences
    text, resources = MarkdownExporter(config=hidden).from_notebook_node(notebook)
    if resources["outputs"]: raise ValueError("nbs/index.ipynb shows pictures; README.md is text only, so link to a committed figure instead")
    text = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", text).replace("](../", "](")
    text = re.sub(r"^#\|.*\n", "", text, flags=re.M)
    return "<!-- Generated from nbs/index.ipynb by `make readme`; edit the notebook. -->\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

if __name__ == "__main__": (ROOT/"README.md").write_text(readme(), encoding="utf8")
