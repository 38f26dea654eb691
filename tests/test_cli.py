"""The command as a person uses it: what it makes, what it says, and that nothing ends in a traceback."""
import json, os, re, shlex, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest, soundfile as sf, torch

from lmac_piq.classifier import AudioClassifier, ImageClassifier
from lmac_piq.cli import find_models, load_explainer, main, make_page, make_parser, match_class, out_folders, parse_time, saved_items
from lmac_piq.decoder import LightDecoder
from lmac_piq.experiment import PRESETS
from lmac_piq.lmac import LMAC
from lmac_piq.training import seeded

ROOT, RATE = Path(__file__).resolve().parents[1], 16000
CLASSES = ["siren", "sea_waves", "dog", "Dog", "<b>bold</b>"]

def noise(seconds: float, seed: int = 0) -> torch.Tensor: return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    "A folder like that of a finished run"
    folder = tmp_path_factory.mktemp("runs") / "a run"
    with seeded(0): model = AudioClassifier(CLASSES, width=0.05).eval()
    model.save_pretrained(folder / "classifier")
    (folder / "classifier" / "manifest.json").write_text(json.dumps(dict(plan=dict(seconds=1.0))))
    for name, called, n in (("lmac-0", "L-MAC", 0), ("lmac-1", "L-MAC", 0), ("conditional", "L-MAC (class-conditional)", 5)):
        with seeded(1): LMAC(LightDecoder(model.network.channels, 8, n), name=called).save_pretrained(folder / name, model)
    (folder / "notebooks").mkdir(); (folder / "broken").mkdir(); (folder / "broken" / "config.json").write_text("{")
    return folder

@pytest.fixture
def sounds(tmp_path) -> dict[str, Path]:
    "One clip and one longer file, with names that need care"
    paths = dict(clip=tmp_path / "it's a \"dog\".wav", long=tmp_path / "long <i>&.flac")
    sf.write(paths["clip"], noise(0.9).numpy(), RATE); sf.write(paths["long"], torch.stack([noise(2.6), noise(2.6, 1)], 1).numpy(), 44100 // 2)
    return paths

@pytest.fixture
def say(capsys):
    "`say(*arguments)`: exit code, lines said, lines of complaint"
    def said(*args) -> tuple[int, list[str], list[str]]:
        code = main([str(a) for a in args]); got = capsys.readouterr()
        assert "Traceback" not in got.err
        return code, got.out.splitlines(), got.err.splitlines()
    return said

CLIP = {"original.wav", "kept.wav", "removed.wav", "spectrogram.png", "mask.png", "mask.safetensors", "explanation.json", "index.html"}
LONG = {"original.wav", "kept.wav", "removed.wav", "recording.json", "windows.csv", "levels.csv", "ribbon.png", "index.html"}

# ---- explain

def test_a_clip(run, sounds, say, tmp_path):
    code, out, err = say("explain", sounds["clip"], "--model", run, "--out", tmp_path / "out")
    assert code == 0 and not err and len(out) == 1 and str(sounds["clip"]) in out[0] and "explained by L-MAC;" in out[0]
    assert {p.name for p in (tmp_path / "out").iterdir()} == CLIP and sf.info(tmp_path / "out/kept.wav").frames == 14400
    page = (tmp_path / "out/index.html").read_text()
    assert "it&#x27;s a &quot;dog&quot;.wav" in page and "data-lmac-piq" in page

def test_a_long_file_goes_window_by_window_for_one_class(run, sounds, say, tmp_path):
    code, out, _ = say("explain", sounds["long"], "--model", run, "--out", tmp_path / "out", "--at", "0:01.2")
    record = json.loads((tmp_path / "out/recording.json").read_text())
    assert code == 0 and record["explainer"] == "L-MAC (class-conditional)" and record["target"] == record["predicted"] and record["layout"]["size"] == RATE and len(record["examples"]) == 1
    assert LONG <= {p.name for p in (tmp_path / "out").iterdir()} and "windows of 1 s" in out[0]

def test_per_window_uses_the_usual_explainer(run, sounds, say, tmp_path):
    assert say("explain", sounds["long"], "--model", run, "--out", tmp_path / "out", "--per-window", "--window", "0.8")[0] == 0
    record = json.loads((tmp_path / "out/recording.json").read_text())
    assert record["target"] is None and record["explainer"] == "L-MAC" and record["layout"]["size"] == 12800

@pytest.mark.parametrize("asked, name", [("Sea Waves", "sea_waves"), ("dog", "dog"), ("Dog", "Dog"), ("SIREN", "siren")])
def test_a_target(run, sounds, say, tmp_path, asked, name):
    assert say("explain", sounds["clip"], "--model", run, "--out", tmp_path / "out", "--target", asked)[0] == 0
    record = json.loads((tmp_path / "out/explanation.json").read_text()); assert record["target"] == name and record["explainer"] == "L-MAC (class-conditional)"

def test_many_files_a_folder_each_and_one_bad_one(run, sounds, say, tmp_path):
    bad = tmp_path / "new\nline.wav"; bad.write_text("not a sound")
    code, out, err = say("explain", sounds["clip"], bad, sounds["long"], tmp_path / "gone.wav", "--model", run, "--out", tmp_path / "out")
    assert code == 2 and len(out) == 2 and len(err) == 2 and "new\\nline.wav" in err[0] and "no such file" in err[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["it's a \"dog\"", "long <i>&"]

def test_a_folder_used_again_holds_the_latest_only(run, sounds, say, tmp_path):
    for file, kind in (("long", "recording"), ("clip", "explanation"), ("long", "recording")):
        assert say("explain", sounds[file], "--model", run, "--out", tmp_path / "out")[0] == 0
        assert [p.stem for p in (tmp_path / "out").glob("*.json")] == [kind] and saved_items(tmp_path / "out") == [tmp_path / "out"]

@pytest.mark.parametrize("args, word", [
    (["--target", "sirens"], "unknown class 'sirens': did you mean 'siren'?"), (["--target", "DOG"], "did you mean 'dog' or 'Dog'?"), (["--target", "xyz"], "its 5 classes are siren, sea_waves"),
    (["--explainer", "piq-0"], "there are lmac-0, lmac-1, conditional"), (["--at", "x"], "not a time"), (["--at", "99"], "1:39 is not in the recording, which ends at 1.9 s"), (["--window", "0.001"], "shorter than two frames"), (["--device", "tpu"], "tpu"),
    (["--explainer", "lmac-0", "--target", "dog"], "does not look at the class")])
def test_a_wrong_wish_is_one_line(run, sounds, say, tmp_path, args, word):
    code, out, err = say("explain", sounds["long"], "--model", run, "--out", tmp_path / "out", *args)
    assert code == 2 and not out and len(err) == 1 and word in err[0] and err[0].startswith("lmac-piq: ") and not (tmp_path / "out").exists()

@pytest.mark.parametrize("args", [[], ["dance"], ["explain"], ["explain", "x.wav"], ["page"], ["explain", "x.wav", "--model", "nowhere"], ["page", "nowhere"], ["paper", "--preset", "laptop"], ["publish", "--preset", "laptop"]])
def test_a_wrong_command_is_one_line(say, args):
    code, out, err = say(*args)
    assert code == 2 and not out and len(err) == 1 and err[0].startswith("lmac-piq: ")

@pytest.mark.parametrize("command", ["explain", "page", "paper", "publish"])
def test_help_shows_examples_that_are_understood(command, capsys):
    with pytest.raises(SystemExit) as end: main([command, "--help"])
    shown = capsys.readouterr().out
    examples = re.findall(r"^  lmac-piq (.*?)(?:  +\(.*\))?$", shown[shown.index("examples:"):], re.M)
    assert end.value.code == 0 and examples and all(e.split()[0] == command for e in examples)
    for example in examples: make_parser().parse_args(shlex.split(example))

def test_every_command_of_the_readme_is_understood():
    "In blocks and in lines of text; options in full, as argparse would also take their beginnings"
    text = (ROOT / "README.md").read_text(encoding="utf8").replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\$ )?lmac-piq (.+)$", "\n".join(re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)), re.M) + re.findall(r"(?<!`)`lmac-piq ([^`\n]+)`(?!`)", text)
    commands, wrong = next(a.choices for a in make_parser()._actions if a.dest == "command"), {}
    for line in lines:
        words = shlex.split(line, comments=True)
        try: asked = make_parser().parse_args(words)
        except ValueError as e: wrong[line] = str(e); continue
        known = [option for a in commands[words[0]]._actions for option in a.option_strings]
        if strange := [w for w in words if w.startswith("--") and w.split("=")[0] not in known]: wrong[line] = f"no option {strange}"
        if getattr(asked, "preset", "smoke") not in PRESETS: wrong[line] = f"no preset {asked.preset}"
    assert lines and not wrong, f"README.md shows what the command refuses: {wrong}"

def test_the_installed_command(run, sounds, tmp_path):
    "As the shell runs it: the entry point of settings.ini, a name with a byte that is no UTF-8, no progress bar in a pipe"
    ini = ConfigParser(delimiters=["="]); ini.read(ROOT / "settings.ini", encoding="utf8")
    module, function = ini["DEFAULT"]["console_scripts"].split("=")[1].split(":")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"); os.rename(sounds["long"], odd)
    done = subprocess.run([sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())", "explain", odd, "--model", run, "--out", tmp_path / "out"], capture_output=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and done.stdout.decode().startswith(f"{tmp_path}/caf\\udce9.wav: ") and not done.stderr, done.stderr
    assert json.loads((tmp_path / "out/recording.json").read_text())["source"] == "caf\ufffd.wav" and "caf" in (tmp_path / "out/index.html").read_text(encoding="utf8")

# ---- models

def test_every_way_to_name_the_models(run):
    for folder, there in ((run, ["lmac-0", "lmac-1", "conditional"]), (run / "classifier", ["lmac-0", "lmac-1", "conditional"]), (run / "lmac-1", ["lmac-1"])):
        models = find_models(folder); assert list(models.explainers) == there and models.seconds == 1.0 and models.folder == run / "classifier"
    assert load_explainer(find_models(run), conditional=True).class_conditional and not load_explainer(find_models(run)).class_conditional
    assert load_explainer(find_models(run / "lmac-1"), conditional=True).name == "L-MAC"     # there is no other

def test_a_folder_saved_by_hand(run, tmp_path):
    "A classifier in the folder itself, its explainer inside it, no manifest"
    model = AudioClassifier.from_pretrained(run / "classifier"); model.save_pretrained(tmp_path)
    LMAC.from_pretrained(run / "lmac-0", model).save_pretrained(tmp_path / "mine", model)
    models = find_models(tmp_path); assert list(models.explainers) == ["mine"] and models.seconds == 5.0

def test_what_is_no_model_is_said(run, tmp_path):
    with pytest.raises(ValueError, match="no such folder"): find_models(tmp_path / "none")
    with pytest.raises(ValueError, match="nothing written by save_pretrained"): find_models(tmp_path)
    ImageClassifier(["a", "b"]).save_pretrained(tmp_path / "images")
    with pytest.raises(ValueError, match="images is a ImageClassifier"): find_models(tmp_path)
    AudioClassifier(CLASSES, width=0.05).save_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="no explainer of its classifier one"): find_models(tmp_path)
    AudioClassifier(CLASSES, width=0.05).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="2 classifiers \\(one, two\\)"): find_models(tmp_path)

# ---- page

def test_a_page_of_everything_under_a_folder(run, sounds, say, tmp_path):
    out = tmp_path / "all & <more>"
    assert say("explain", sounds["clip"], sounds["long"], "--model", run, "--out", out)[0] == 0
    code, said, err = say("page", out, "--title", "<script>alert(1)</script>")
    page = (out / "index.html").read_text(encoding="utf8")
    assert code == 0 and not err and f"{out / 'index.html'}: " in said[0] and "<script>alert" not in page and "&lt;script&gt;alert" in page
    record = json.loads((out / "long <i>&" / "recording.json").read_text())
    assert page.count("data-lmac-piq>") == 1 + len(record["examples"]) and 'src="long%20%3Ci%3E%26/kept.wav"' in page and "long &lt;i&gt;&amp;" in page and "https://" not in page
    elsewhere = make_page(out, tmp_path / "sub" / "page.html"); assert 'src="../all%20%26%20%3Cmore%3E/long%20%3Ci%3E%26/kept.wav"' in elsewhere.read_text()

def test_a_damaged_explanation_is_named(run, sounds, say, tmp_path):
    assert say("explain", sounds["clip"], "--model", run, "--out", tmp_path / "out" / "a")[0] == 0
    (tmp_path / "out/a/explanation.json").write_text("{")
    code, _, err = say("page", tmp_path / "out"); assert code == 2 and len(err) == 1 and f"{tmp_path}/out/a" in err[0]
    code, _, err = say("page", run); assert code == 2 and "holds nothing explained" in err[0]

# ---- small things

def test_times_names_and_folders():
    assert [parse_time(t) for t in ("0", "12.5", "3:20", "1:02:03.5")] == [0, 12.5, 200, 3723.5]
    assert out_folders(["x/a.wav", "y/a.mp3", "...wav", "z/a.wav"], "o") == [Path("o/a"), Path("o/a-2"), Path("o/sound"), Path("o/a-3")]
    model = AudioClassifier(CLASSES, width=0.05); assert [match_class(model, n) for n in ("siren", " SEA waves", "Dog")] == [0, 1, 3]
