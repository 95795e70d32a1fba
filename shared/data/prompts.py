"""Class names and prompts of the named sets, as the released code of PMG-AFT (and TeCoA before it) words them, and
corrected.

Two wordings of the same classes:
  released   what the code feeds CLIP, oddities included: a typo in the first PCAM sentence, "Boeing" put before the 7xx aircraft only,
             cars without their year, "colts foot", trailing spaces in two flower names, Caltech-256 names that keep
             "-101".
  corrected  the data set's own names: no typo, no manufacturer, cars with their year, flower names as torchvision spells them (less a
             stray question mark), no "-101".
In both, Caltech-101 is what its loader was meant to give (as released it crashes, and would cut four letters off every
name), and names that occur twice (crane, maillot and, once in lower case, cardigan in ImageNet) stay:
`LabelledImages.duplicates` lists them.

Sources: the facts in papers/pmg_aft (§4, §5.2); the templates of Flowers-102, Caltech-101/256 and Stanford Cars, the
EuroSAT phrases and the PCAM sentences were read in the two projects' data-set files. CIFAR, STL-10, SUN397, ImageNet
and TinyImageNet have no template there and use the default.
"""

from collections.abc import Sequence

from shared.errors import UserError

DEFAULT_TEMPLATE = "This is a photo of a {}"
TEMPLATES = {
    "Food101": "A photo of {}, a type of food.",
    "OxfordPets": "A photo of a {}, a type of pet.",
    "Flowers102": "A photo of a {}, a type of flower.",
    "DTD": "A surface with a {} texture.",
    "EuroSAT": "A centered satellite photo of {}.",
    "FGVC-Aircraft": "A photo of a {}, a type of aircraft.",
    "Caltech101": "A photo of a {}.",
    "Caltech256": "A photo of a {}.",
    "StanfordCars": "A photo of a {}.",
}
WORDINGS = ("released", "corrected")

_EUROSAT = {
    "AnnualCrop": "annual crop land",
    "Forest": "a forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "a highway or a road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings",
    "River": "a river",
    "SeaLake": "a sea or a lake",
}
_FLOWERS_RELEASED = {"colt's foot": "colts foot", "cyclamen": "cyclamen ", "hippeastrum": "hippeastrum "}
_PCAM = ("healthy lymph node tissue", "lymph node tumor tissue")


def clean(name: str) -> str:
    """Lower case, with spaces for `_`, `-` and `/`."""
    return name.lower().translate(str.maketrans("_-/", "   "))


def fill(template: str, names: Sequence[str]) -> tuple[str, ...]:
    """One prompt per name. Raises UserError if the template has no place for a name."""
    if template.count("{}") != 1:
        raise UserError(f"the prompt template {template!r} must hold {{}} once, where the class name goes.")
    return tuple(template.replace("{}", name) for name in names)


def class_names(data_set: str, raw: Sequence[str], wording: str) -> tuple[str, ...]:
    """Names as they stand in the prompts, from the names that torchvision or the folders carry."""
    released = wording == "released"
    if wording not in WORDINGS:
        raise UserError(f"wording {wording!r} is not known; use {' or '.join(WORDINGS)}.")
    if data_set == "EuroSAT":
        return tuple(_EUROSAT.get(name, clean(name)) for name in raw)
    if data_set == "PCAM":
        return _PCAM
    if data_set == "FGVC-Aircraft":  # hyphens are part of a type's name, e.g. 737-800
        return tuple((f"Boeing {n}" if released and n.startswith("7") else n).lower().replace("_", " ") for n in raw)
    if data_set == "Flowers102":
        raw = [_FLOWERS_RELEASED.get(n, n) if released else n.rstrip("?") for n in raw]
    elif data_set == "StanfordCars":  # "AM General Hummer SUV 2000"
        return tuple((n[:-5] if released else n).lower().replace("_", " ").replace("-", " ") for n in raw)
    elif data_set == "Caltech256":  # "251.airplanes-101"
        raw = [n[4:] if released else n[4:].removesuffix("-101") for n in raw]
        return tuple(clean(n).strip() for n in raw)
    return tuple(clean(n) for n in raw)


def prompts(data_set: str, names: Sequence[str], wording: str) -> tuple[str, ...]:
    """The prompts of a named set for the names that `class_names` gave."""
    if data_set == "PCAM":
        first = "Tthis is a photo of {}." if wording == "released" else "This is a photo of {}."
        return first.format(names[0]), f"This is a photo of {names[1]}."
    return fill(TEMPLATES.get(data_set, DEFAULT_TEMPLATE), names)
