"""How large the public sets are, for plans that are made before anything is downloaded (`shared.experiment.planned`).

From the sets' own descriptions and torchvision's; where the data are there, they are counted instead. Sides are those
of `shared.data.named`: native for three, else 224 pixels.
"""

PUBLIC: dict[str, tuple[int, int, int, int]] = {  # name -> classes, side, test pictures, training pictures
    "cifar10": (10, 32, 10_000, 50_000),
    "cifar100": (100, 32, 10_000, 50_000),
    "STL10": (10, 96, 8_000, 5_000),
    "SUN397": (397, 224, 108_754, 108_754),
    "Food101": (101, 224, 25_250, 75_750),
    "OxfordPets": (37, 224, 3_669, 3_680),
    "Flowers102": (102, 224, 6_149, 1_020),
    "DTD": (47, 224, 1_880, 1_880),
    "EuroSAT": (10, 224, 27_000, 27_000),
    "FGVC-Aircraft": (100, 224, 3_333, 3_334),
    "TinyImageNet": (200, 224, 10_000, 100_000),
    "ImageNet": (1000, 224, 50_000, 1_281_167),
    "Caltech101": (101, 224, 8_677, 8_677),
    "Caltech256": (257, 224, 30_607, 30_607),
    "StanfordCars": (196, 224, 8_041, 8_144),
    "PCAM": (2, 224, 32_768, 262_144),
    "ImageNet30": (30, 224, 3_000, 39_000),
    "ImageNetV2": (1000, 224, 10_000, 10_000),
    "ImageNetA": (200, 224, 7_500, 7_500),
    "ImageNetR": (200, 224, 30_000, 30_000),
    "ImageNetSketch": (1000, 224, 50_889, 50_889),
    "Caltech101Split": (101, 224, 2_603, 6_074),
    "Caltech101CoOp": (100, 224, 2_465, 4_128),
}
TEXTS: dict[str, int] = {  # name -> pictures of the test split, questions where there are several of a picture
    "coco": 5_000,
    "flickr30k": 1_000,
    "vqav2": 214_354,
    "textvqa": 5_000,
}
