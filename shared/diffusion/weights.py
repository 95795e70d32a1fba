"""Denoisers in files: those of our own (one .safetensors that says what it is), diffusers pipelines, and random ones to
rehearse with."""

import json
from dataclasses import fields
from pathlib import Path

import torch

from shared.diffusion.denoiser import UNetDenoiser
from shared.diffusion.schedule import Schedule
from shared.errors import UserError
from shared.models.clip import demand_fit, read_metadata, read_weights, save_tensors
from shared.models.hub import from_pretrained

# size, patch, predicts: of UNetDenoiser; the rest is a UNet2DModel's
# 300 images a second on one core, twice as many as networks of this size without patches
SCENES = {
    "size": 32,
    "patch": 2,
    "predicts": "v_prediction",
    "block_out_channels": (48, 64, 96),
    "layers_per_block": 1,
    "attention_head_dim": 16,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
TINY = {
    "size": 8,
    "patch": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CONFIGS = {
    "scenes": SCENES,
    "photos": {**SCENES, "block_out_channels": (64, 96, 128)},  # twice the weights, for photographs of CIFAR's size
    "tiny": TINY,
    "tiny-learned-variance": {**TINY, "out_channels": 6},
}


def build(config: dict, schedule: Schedule | None = None) -> UNetDenoiser:
    """A U-Net denoiser of a configuration like those in CONFIGS; initial weights from torch's global generator."""
    from diffusers import UNet2DModel

    config = dict(config)
    size, patch, predicts = config.pop("size"), config.pop("patch"), config.pop("predicts", "epsilon")
    channels = {"in_channels": 3 * patch**2, "out_channels": config.pop("out_channels", 3) * patch**2}
    return UNetDenoiser(
        UNet2DModel(sample_size=size // patch, **channels, **config),
        schedule or Schedule.linear(),
        size,
        patch,
        predicts,
    )


def random_denoiser(name: str, seed: int = 0) -> UNetDenoiser:
    """Random weights, a function of (name, seed); torch's global generator is left as it was. Raises UserError for an
    unknown name."""
    if name not in CONFIGS:
        raise UserError(f"there is no denoiser configuration {name!r}: choose one of {', '.join(CONFIGS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(CONFIGS[name])


def denoiser_facts(config: dict, schedule: Schedule) -> dict[str, str]:
    """What stands beside the tensors of a U-Net of `config`, so that `read_denoiser` knows what they are."""
    facts = {
        "schedule": {f.name: getattr(schedule, f.name) for f in fields(schedule) if f.init},
        "config": config,
    }
    return {"denoiser": json.dumps(facts, sort_keys=True)}


def save_denoiser(
    unet: torch.nn.Module, path: str | Path, config: dict, schedule: Schedule, metadata: dict[str, str] | None = None
) -> None:
    """Write a U-Net of `config` as .safetensors, atomically, with the configuration and the schedule beside
    `metadata`."""
    save_tensors(unet.state_dict(), path, {**(metadata or {}), **denoiser_facts(config, schedule)})


def read_denoiser(path: str | Path) -> UNetDenoiser:
    """What `save_denoiser` wrote. Raises UserError for another file."""
    tensors, metadata = read_weights(path), read_metadata(path)
    try:
        facts = json.loads(metadata["denoiser"])
        with torch.device("meta"):  # no time for random weights, no use of the global generator
            denoiser = build(facts["config"], Schedule(**facts["schedule"]))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"the file {path} is not a denoiser that this project wrote ({type(error).__name__}): get it again, or "
            "train it with `make zoo`."
        ) from error
    demand_fit(denoiser.unet.state_dict(), tensors, f"the file {path}", "get it again, or train it with `make zoo`")
    denoiser.unet.load_state_dict(tensors, assign=True)
    return UNetDenoiser(denoiser.unet, denoiser.schedule, denoiser.size, denoiser.patch, denoiser.predicts)


def from_diffusers(source: str) -> UNetDenoiser:
    """The U-Net of an unconditional diffusers pipeline, by folder or hub name, with the schedule of its scheduler.

    Both layouts are read: U-Net and scheduler in folders `unet` and `scheduler`, or everything in one. Raises UserError
    where it cannot be had, or is no `UNet2DModel` that predicts ε or v on a linear schedule.
    """
    from diffusers import UNet2DModel

    config, folder = _config(UNet2DModel, source, "unet")
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(
            f"{source} holds a {config.get('_class_name')}: only an unconditional UNet2DModel in pixel space can "
            "purify here."
        )
    schedule, predicts = read_scheduler(source)
    try:
        unet = from_pretrained(UNet2DModel, source, "diffusers", **folder)  # .safetensors, or .bin with weights_only
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the weights of {source} cannot be loaded ({type(error).__name__}): they are missing, damaged or of "
            "another U-Net; get them again."
        ) from error
    size = unet.config.sample_size
    if not isinstance(size, int):
        raise UserError(f"the U-Net of {source} is for images of size {size}: only square ones are purified here.")
    return UNetDenoiser(unet.float(), schedule, size, predicts=predicts)


def read_scheduler(source: str) -> tuple[Schedule, str]:
    """The schedule in a diffusers scheduler's configuration, and what the network predicts. Raises UserError unless
    they are linear, and ε or v."""
    from diffusers import DDPMScheduler

    found, _ = _config(DDPMScheduler, source, "scheduler")
    supported = {
        "beta_schedule": ("linear",),
        "prediction_type": ("epsilon", "v_prediction"),
        "trained_betas": (None,),
        "rescale_betas_zero_snr": (False,),
    }
    for key, values in supported.items():
        if found.get(key, values[0]) not in values:
            raise UserError(
                f"the scheduler of {source} has {key} = {found[key]!r}: only linear β and prediction of ε or v are "
                "supported; choose another model."
            )
    if not {"beta_start", "beta_end", "num_train_timesteps"} <= set(found):
        raise UserError(
            f"the scheduler of {source} ({found.get('_class_name')}) has no β: only linear β and prediction of ε or v "
            "are supported; choose another model."
        )
    steps = found["num_train_timesteps"]
    return Schedule.linear(found["beta_start"] * steps, found["beta_end"] * steps, steps), found.get(
        "prediction_type", "epsilon"
    )


def _config(cls, source: str, folder: str) -> tuple[dict, dict]:
    """The configuration of one part of a pipeline, and the arguments that say where it was found."""
    for where in ({"subfolder": folder}, {}):
        try:
            return cls.load_config(source, **where), where
        except Exception as error:  # whatever the hub client raises: no such file, no network
            reason = error
    raise UserError(
        f"there is no {folder} configuration at {source!r} ({type(reason).__name__}): give the folder of a diffusers "
        "pipeline, or a hub name on a machine with a network."
    ) from reason
