"""Try the heavy packages and print what works as one line of JSON. `shared.setup.doctor` runs this in a process of its
own."""

import io
import json
import time


def try_torch(found: dict) -> None:
    """torch, torchvision, their compiled operators, and a computation on each GPU."""
    try:
        import torch

        found.update(torch=torch.__version__, threads=torch.get_num_threads(), cuda=torch.version.cuda)
        import torchvision

        found["torchvision"] = torchvision.__version__
        # The first thing to fail when the two were not built for each other.
        kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        found["operators"] = kept.tolist() == [0]
        found["gpus"] = (
            [_try_gpu(torch, index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        )
    except Exception as error:
        found["error"] = _reason(error)


def _try_gpu(torch, index: int) -> dict:
    properties = torch.cuda.get_device_properties(index)
    about = {"name": properties.name, "gib": properties.total_memory / 2**30}
    try:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        if (ones @ ones).sum().item() != 64**3:
            about["error"] = "a matrix product came out wrong"
    except Exception as error:
        about["error"] = _reason(error)
    return about


def try_launcher(found: dict) -> None:
    """accelerate, by which several processes work together."""
    try:
        import accelerate

        found["accelerate"] = accelerate.__version__
    except Exception as error:
        found["accelerate_error"] = _reason(error)


def try_kernel(found: dict) -> None:
    """The kernel that notebooks run on."""
    try:
        import ipykernel  # noqa: F401
        from jupyter_client.kernelspec import KernelSpecManager

        found["kernel"] = bool(KernelSpecManager().get_kernel_spec("python3").argv)
    except Exception as error:
        found["kernel_error"] = _reason(error)


def try_pictures(found: dict) -> None:
    """How many JPEGs of 500×375 one core reads in a second, to 224 pixels as most sets are."""
    try:
        from PIL import Image

        file = io.BytesIO()
        Image.radial_gradient("L").resize((500, 375)).convert("RGB").save(file, "JPEG", quality=92)
        began, n = time.thread_time(), 20
        for _ in range(n):
            Image.open(file).resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240)).load()
        found["pictures"] = n / (time.thread_time() - began)
    except Exception as error:
        found["pictures_error"] = _reason(error)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    found: dict = {}
    for attempt in (try_torch, try_launcher, try_kernel, try_pictures):
        attempt(found)
    print(json.dumps(found))
