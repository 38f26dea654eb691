"""A small companion site for tests: scenes, a classifier and an L-MAC that learnt nothing, a few other methods."""
import functools
from pathlib import Path

from lmac_piq.baselines import GradCAM, Saliency, nulls
from lmac_piq.classifier import AudioClassifier
from lmac_piq.companion import Ask, Built, Exhibit, Voice, build_site
from lmac_piq.decoder import LightDecoder
from lmac_piq.experiment import get_plan, scene_clips
from lmac_piq.lmac import LMAC
from lmac_piq.metrics import evaluate
from lmac_piq.training import seeded

N = 12
HOSTILE = '<img src=x onerror="boom()">\'&amp; siren'   # a class that would be markup if it were not shown as text

@functools.cache
def exhibit() -> Exhibit:
    "An exhibit of N scenes and eight methods"
    clips = scene_clips(get_plan("tiny", "scenes"), N, 3)
    clips.classes = [HOSTILE, *clips.classes[1:]]
    with seeded(0): model = AudioClassifier(clips.classes, width=0.0625); lmac = LMAC(LightDecoder(model.network.channels, width=8))
    methods = [lmac, Saliency(), GradCAM(), *nulls(lmac)]
    forms = {m.name: ("soft",) if m.name in ("constant", "all ones", "all zeros") else ("soft", "topk") for m in methods}
    rows = evaluate(model, methods, clips, forms, lmac).assign(protocol="corrected", dataset="scenes", condition="clean", split="test", seed=0)
    return Exhibit("scenes-clean", "Scenes", "clean", rows, "L-MAC", model.classes, lambda: Voice(model, methods, lmac, clips))

def small_site(folder: Path) -> Built:
    "The exhibit as a site with few sounds"
    [built] = build_site([exhibit()], folder, "a test", Ask(same=1, disagreements=1, failures=1))
    return built
