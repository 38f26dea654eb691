"""JupyterLab and Voila start for real, run a notebook, and are silent on the console."""
import nbformat
from conftest import run_all

def notebook(folder, *cells):
    folder.mkdir(parents=True, exist_ok=True)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
    nbformat.write(nb, folder/"n.ipynb"); return folder

CELLS = ("import ipywidgets as w\nout = w.HTML('before')\nslider = w.IntSlider(description='strength')\nslider.observe(lambda c: setattr(out, 'value', f'now {c.new}'), 'value')\nw.VBox([slider, out])",)

def test_lab_runs_a_notebook_with_a_widget(serve, open_page, tmp_path):
    page = open_page(serve("lab", "n.ipynb", notebook(tmp_path/"lab", *CELLS)).url)
    run_all(page)
    page.get_by_role("slider").first.focus(); page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=now 1", timeout=90000)

def test_voila_serves_the_same(serve, open_page, tmp_path):
    page = open_page(serve("voila", "n.ipynb", notebook(tmp_path/"voila", *CELLS)).url)
    page.wait_for_selector("text=before", timeout=120000)
    page.get_by_role("slider").first.focus(); page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=now 1", timeout=90000)
