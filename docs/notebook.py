# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first model
#
# This notebook trains an annotator on drawn scenes, in less than a minute on two CPU cores, and uses it. It needs
# `pip install '.[annotate,offline]'`, and no internet access. What you see is of the run that built this page.
#
# ## Scenes, and what people say of them
#
# A scene has two to seven kinds of objects. Three simulated people name them, the most important first: what is large,
# central and stands out, people and animals before things. They do not agree, and leave out what is negligible.

# %%
import base64
import io
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from IPython.display import HTML

from tagrank.data.scenes import draw_scene, write_scenes

temporary = TemporaryDirectory()
folder = Path(temporary.name)
manifest = write_scenes(folder, 600, size=96)


def show(captions: dict[int, list[str]]) -> HTML:
    """Scenes by their numbers, with lines below them."""
    figures = []
    for number, lines in captions.items():
        file = io.BytesIO()
        draw_scene(number, size=192).image.save(file, "png")
        picture = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        text = "<br>".join(map(escape, lines))
        figures.append(f'<figure><img alt="scene {number}" src="{picture}"><figcaption>{text}</figcaption></figure>')
    return HTML(f'<div class="scenes">{"".join(figures)}</div>')


show({i: [f"{n}: {', '.join(tags)}" for n, tags in enumerate(draw_scene(i).lists, start=1)] for i in range(3)})

# %% [markdown]
# The manifest has a line for each picture: its lists, and what the picture is for. Manifests of photographs are like it
# ([data sets](data-sets.md)).

# %%
print(manifest.read_text().splitlines()[0])

# %% [markdown]
# ## Training
#
# The features are those of EfficientNet-Lite0, which knows photographs, and has never seen a drawn scene
# ([backbones](backbones.md)). The preset is the default one. Of the 600 scenes, 60 are for validation and 60 for the
# test.

# %%
from tagrank.training.run import train

annotator = train(manifest, folder / "model", backbone="efficientnet_lite0", progress=False)
annotator

# %% [markdown]
# How good is it on the scenes of the test? NDCG@5 compares its lists with people's lists, and early tags count more
# ([lists](lists.md)). The baseline gives each scene the same list: the tags that people name early most often.

# %%
from tagrank.data.manifest import read_manifest
from tagrank.evaluation.baselines import FrequencyPrior
from tagrank.evaluation.judgement import judge
from tagrank.features.labelled import load_labelled
from tagrank.metrics import evaluate_rankings

scenes, backbone, vocabulary = read_manifest(manifest), annotator.backbone(), annotator.vocabulary
learn, test = (load_labelled(scenes.select(split), backbone=backbone, progress=False) for split in ("train", "test"))
baseline = FrequencyPrior()
baseline.fit(learn.inputs, learn.lists(vocabulary), len(vocabulary))
measures = {
    "model": judge(annotator, test).per_image,
    "baseline": evaluate_rankings(baseline.rank(test.inputs, 10), test.references(vocabulary)),
}
for name, of in measures.items():
    print(f"{name}: NDCG@5 {of['ndcg@5'].mean():.3f}, the first tag is right for {of['first_tag'].mean():.0%}")

# %% [markdown]
# ## Ranked tags
#
# Four scenes of the test. A tag's score is the probability that it is on a person's list at all; the order is that of
# importance. Below them is what people said, merged into one list.

# %%
images = {i: draw_scene(i, size=96).image for i in range(540, 544)}
captions = {}
for i, image in images.items():
    captions[i] = [f"{tag.rank}. {tag.tag} {tag.score:.0%}" for tag in annotator.annotate(image, top_k=3)]
    captions[i] += ["", f"people: {', '.join(draw_scene(i).tags)}"]
show(captions)

# %% [markdown]
# ## A list that a person began
#
# A second model, trained beside the first, reads the tags that are given. It says what comes next, how likely the list
# ends here, and how it goes on.

# %%
for given in ([], ["umbrella"], ["umbrella", "tree"]):
    suggestion = annotator.suggest(images[540], given)
    following = ", ".join(f"{tag} {probability:.0%}" for tag, probability in suggestion.next[:3])
    print(f"{given}: next {following}; the end {suggestion.end:.0%}; the rest {[tag.tag for tag in suggestion]}")

# %% [markdown]
# ## Search
#
# An index keeps the model's distributions. A query is a list: photographs come first if people's lists are most likely
# to begin like it ([search](search.md)).

# %%
import torch

from tagrank.features.extraction import extract_features
from tagrank.retrieval import IndexWriter, open_index

numbers = range(480, 600)
features = torch.stack([row for _, row in extract_features(backbone, [draw_scene(i, size=96).image for i in numbers])])
with IndexWriter(folder / "index", annotator) as index:
    index.add([str(i) for i in numbers], annotator.probabilities(features))

found = open_index(folder / "index").search(["person", "tree"], top_k=4)
show({int(match.image): [f"{match.rank}. probability {match.score:.2f}"] for match in found})

# %% [markdown]
# The pictures, the model and the index were in a temporary folder.

# %%
temporary.cleanup()

# %% [markdown]
# The command line has the same as `tagrank train`, `evaluate`, `annotate`, `annotate --given`, `index` and `search`.
