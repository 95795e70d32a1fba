"""Denoisers: the Gaussian one against simulation, U-Nets in every kind of file, and what is refused."""

import json

import pytest
import torch

from shared.diffusion import GaussianDenoiser, Schedule, UNetDenoiser, open_denoiser
from shared.diffusion.weights import CONFIGS, build, from_diffusers, random_denoiser, read_denoiser, save_denoiser
from shared.errors import UserError
from tests.accuracy import assert_within_rounding

UNET = 9 * 32  # terms of the longest sum in the tiny U-Net, a convolution


def batch(n=3, size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=generator, dtype=dtype), torch.tensor([1, 100, 1000])[:n]


# ---- Gaussian --------------------------------------------------------------------------------------------------------------


def test_the_gaussian_posterior_mean_is_the_regression_of_x_on_x_t():
    """E[x | x_t] is the best linear prediction: its two coefficients, estimated from 200,000 pairs."""
    schedule, generator = Schedule.linear(), torch.Generator().manual_seed(0)
    x = 0.3 + 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    for t in (30, 300):
        x_t = schedule.diffuse(x, t, torch.randn(200_000, generator=generator, dtype=torch.float64))
        slope = ((x - x.mean()) * (x_t - x_t.mean())).mean() / x_t.var()
        given = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 3, 8, 8)
        expected = x.mean() + slope * (given - x_t.mean())
        mean = GaussianDenoiser(0.3, 0.5, schedule).posterior_mean(given, torch.full((3,), t))
        assert (mean - expected).abs().max() < 0.01  # of an estimate


def test_the_gaussian_limits():
    """Without noise the image itself, in pure noise the mean of the data; a deterministic picture is always known."""
    x, _ = batch(2, dtype=torch.float64)
    picture = torch.rand(3, 8, 8, dtype=torch.float64)
    denoiser = GaussianDenoiser(picture, 0.5)
    assert_within_rounding(denoiser.posterior_mean(x, torch.tensor([0, 0])), x, terms=UNET)
    assert (denoiser.posterior_mean(x, torch.tensor([1000, 1000])) - picture).abs().max() < 0.02
    assert_within_rounding(
        GaussianDenoiser(picture, 0.0).posterior_mean(x, torch.tensor([3, 700])), picture.expand(2, 3, 8, 8), terms=UNET
    )


def test_a_diagonal_covariance_treats_pixels_apart():
    x, t = batch(dtype=torch.float64)
    std = torch.rand(3, 8, 8, dtype=torch.float64)
    eps = GaussianDenoiser(0.1, std)(x, t).eps
    for c, i, j in ((0, 0, 0), (2, 7, 3)):
        assert_within_rounding(eps[:, c, i, j], GaussianDenoiser(0.1, std[c, i, j])(x, t).eps[:, c, i, j], terms=UNET)


# ---- U-Nets ----------------------------------------------------------------------------------------------------------------


def test_the_network_is_called_with_the_index_below_the_time():
    x, t = batch()
    denoiser = random_denoiser("tiny")
    with torch.no_grad():
        assert_within_rounding(denoiser(x, t).eps, denoiser.unet(x, t - 1).sample, terms=UNET)
        assert denoiser(x, t).v is None and (denoiser(x, t).eps - denoiser.unet(x, t).sample).abs().max() > 1e-4


def test_the_second_half_of_the_channels_is_the_variance():
    x, t = batch()
    denoiser = random_denoiser("tiny-learned-variance")
    with torch.no_grad():
        out, prediction = denoiser.unet(x, t - 1).sample, denoiser(x, t)
    assert_within_rounding(torch.cat((prediction.eps, 2 * prediction.v - 1), 1), out, terms=UNET)


def test_a_network_that_predicts_v():
    """v = α ε − σ x and x_t = α x + σ ε are a rotation: whatever the network says, α x_t − σ v is x̂₀ and σ x_t + α v is ε̂."""
    x_t, t = batch()
    denoiser = UNetDenoiser(random_denoiser("tiny").unet, Schedule.linear(), 8, predicts="v_prediction")
    alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    v = denoiser.unet(x_t, t - 1).sample
    assert_within_rounding(denoiser(x_t, t).eps, sigma * x_t + alpha * v, terms=UNET)
    assert_within_rounding(denoiser.posterior_mean(x_t, t)[:2], (alpha * x_t - sigma * v)[:2], terms=UNET)


@pytest.mark.parametrize("channels", [3, 6])
def test_patches_are_blocks_of_pixels_as_channels(channels):
    """Pixel (2i + a, 2j + b) of colour c is channel 4c + 2a + b of place (i, j), on both sides of the network."""
    with torch.random.fork_rng(devices=[]):
        denoiser = build({**CONFIGS["tiny"], "size": 16, "patch": 2, "out_channels": channels})
    x, t = batch(2, 16)
    blocks = x.reshape(2, 3, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 8, 8)
    with torch.no_grad():
        out = denoiser.unet(blocks, t - 1).sample
        eps, v = denoiser(x, t)
    for c, i, j, a, b in ((0, 0, 0, 0, 0), (1, 3, 5, 1, 0), (2, 7, 7, 0, 1)):
        assert_within_rounding(eps[:, c, 2 * i + a, 2 * j + b], out[:, 4 * c + 2 * a + b, i, j], terms=UNET)
        if channels == 6:
            assert_within_rounding(
                v[:, c, 2 * i + a, 2 * j + b], (out[:, 12 + 4 * c + 2 * a + b, i, j] + 1) / 2, terms=UNET
            )


def test_a_denoiser_is_frozen_and_treats_samples_apart(quiet_generator):
    x, t = batch()
    denoiser = random_denoiser("tiny")
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())
    whole = denoiser(x, t).eps
    for i in range(3):
        assert_within_rounding(denoiser(x[i : i + 1], t[i : i + 1]).eps, whole[i : i + 1], terms=UNET)


def test_attention_has_second_derivatives_and_the_same_values_without():
    x, t = batch(dtype=torch.float64)
    denoiser = random_denoiser("tiny").double()
    with torch.no_grad():
        plain = denoiser(x, t).eps
    x.requires_grad_()
    out = denoiser(x, t).eps
    assert_within_rounding(out.detach(), plain, terms=UNET)
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.abs().min() > 0


@pytest.mark.parametrize("change", [{"in_channels": 4}, {"out_channels": 4}, {"num_class_embeds": 10}])
def test_unsuitable_unets_are_refused(change):
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8,),
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "norm_num_groups": 4,
            **change,
        }
    )
    with pytest.raises(UserError, match="is no unconditional denoiser of RGB images"):
        UNetDenoiser(unet, Schedule.linear(), 8)


# ---- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_is_saved_is_read_again(tmp_path, name, quiet_generator):
    denoiser, schedule = random_denoiser(name), Schedule.linear(0.2, 10, 500)
    denoiser.schedule = schedule
    save_denoiser(denoiser.unet, tmp_path / "a.safetensors", CONFIGS[name], schedule)
    save_denoiser(denoiser.unet, tmp_path / "b.safetensors", CONFIGS[name], schedule)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    read = read_denoiser(tmp_path / "a.safetensors")
    assert read.schedule == schedule and (read.size, read.patch, read.predicts) == (
        denoiser.size,
        denoiser.patch,
        denoiser.predicts,
    )
    assert not any(p.requires_grad for p in read.parameters())
    x, t = batch(2)
    assert torch.equal(read(x, t).eps, denoiser(x, t).eps) and torch.equal(
        read.schedule.log_alpha_bar, schedule.log_alpha_bar
    )


def test_the_scenes_configuration_fits_the_zoo():
    denoiser = random_denoiser("scenes")
    assert 4 * sum(p.numel() for p in denoiser.parameters()) <= 8 * 2**20
    assert denoiser(torch.zeros(1, 3, 32, 32), torch.tensor([5])).eps.shape == (1, 3, 32, 32)


def test_random_denoisers_are_functions_of_name_and_seed(quiet_generator):
    x, t = batch()
    assert torch.equal(open_denoiser("random:tiny")(x, t).eps, random_denoiser("tiny")(x, t).eps)
    assert not torch.equal(random_denoiser("tiny", seed=1)(x, t).eps, random_denoiser("tiny")(x, t).eps)


@pytest.fixture(params=["folders", "flat"])
def pipeline(tmp_path, request):
    """A diffusers pipeline on disk, in either layout, and its scheduler's configuration file."""
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=500, beta_start=2e-4, beta_end=0.03, variance_type="fixed_large")
    unet = random_denoiser("tiny").unet
    if request.param == "folders":
        DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
        return tmp_path, unet, tmp_path / "scheduler" / "scheduler_config.json"
    unet.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    return tmp_path, unet, tmp_path / "scheduler_config.json"


def test_a_pipeline_is_opened_with_its_schedule(pipeline):
    path, unet, _ = pipeline
    denoiser, (x, t) = open_denoiser(f"diffusers:{path}"), batch(2)
    assert denoiser.size == 8 and denoiser.schedule.steps == 500
    assert_within_rounding(denoiser.schedule.betas, torch.linspace(2e-4, 0.03, 500, dtype=torch.float64), terms=UNET)
    assert_within_rounding(denoiser(x, t).eps, unet(x, t - 1).sample, terms=UNET)  # laid out otherwise in memory


def test_what_a_pipeline_predicts_is_read_too(pipeline):
    path, unet, scheduler = pipeline
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    denoiser, (x, t) = from_diffusers(str(path)), batch(2)
    expected = UNetDenoiser(unet, denoiser.schedule, 8, predicts="v_prediction")(x, t).eps
    assert_within_rounding(denoiser(x, t).eps, expected, terms=UNET)


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "sample"},
        {"trained_betas": [0.1, 0.2]},
        {"beta_schedule": "scaled_linear"},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_other_schedules_are_refused(pipeline, change):
    path, _, scheduler = pipeline
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), **change}))
    ((key, value),) = change.items()
    with pytest.raises(UserError, match="only linear β and prediction of ε or v are supported") as error:
        from_diffusers(str(path))
    assert f"{key} = {value!r}" in str(error.value)


def test_a_scheduler_without_betas_is_refused(pipeline):
    path, _, scheduler = pipeline
    scheduler.write_text(
        json.dumps({"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000, "sigma_max": 1348})
    )
    with pytest.raises(UserError, match=r"\(ScoreSdeVeScheduler\) has no β"):
        from_diffusers(str(path))


def test_damaged_and_missing_pipelines_are_sentences(pipeline):
    path, _, scheduler = pipeline
    (weights,) = path.rglob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"the weights of .* cannot be loaded"):
        from_diffusers(str(path))
    weights.unlink()
    with pytest.raises(UserError, match=r"the weights of .* cannot be loaded"):
        from_diffusers(str(path))
    scheduler.unlink()
    with pytest.raises(UserError, match="no scheduler configuration at"):
        from_diffusers(str(path))
    config = weights.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="holds a UNet2DConditionModel"):
        from_diffusers(str(path))


@pytest.mark.parametrize(
    "source, sentence",
    [
        (
            "scenes",
            "there is no denoiser 'scenes': write zoo:NAME, diffusers:PATH_OR_NAME, guided:PATH, improved:PATH or random:NAME",
        ),
        ("zoo:", "there is no denoiser 'zoo:'"),
        ("hub:x", "there is no denoiser 'hub:x'"),
        ("zoo:huge", "there is no zoo model named 'huge'"),
        (
            "random:huge",
            "there is no denoiser configuration 'huge': choose one of scenes, photos, tiny, tiny-learned-variance",
        ),
        ("diffusers:/nowhere", "no unet configuration at '/nowhere'"),
        ("diffusers:nobody/nothing", "no unet configuration at 'nobody/nothing'"),
        ("zoo:scenes-vit-s8", "is not a denoiser that this project wrote"),
    ],
)
def test_mistakes_are_one_sentence(source, sentence):
    with pytest.raises(UserError) as error:
        open_denoiser(source)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_file_with_other_metadata_is_refused(tmp_path):
    from shared.models.clip import save_tensors

    denoiser = random_denoiser("tiny")
    for metadata in (None, {"denoiser": "{"}, {"denoiser": "[]"}, {"denoiser": '{"config": {}, "schedule": {}}'}):
        save_tensors(denoiser.unet.state_dict(), tmp_path / "m.safetensors", metadata)
        with pytest.raises(UserError, match="is not a denoiser that this project wrote"):
            read_denoiser(tmp_path / "m.safetensors")
    save_denoiser(denoiser.unet, tmp_path / "m.safetensors", CONFIGS["tiny-learned-variance"], Schedule.linear())
    with pytest.raises(
        UserError,
        match=r"does not fit this model: 2 tensors differ, the first is 'conv_out.weight', which is of another shape",
    ):
        read_denoiser(tmp_path / "m.safetensors")
