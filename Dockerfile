# One file for CPU and for CUDA: torch's packages bring CUDA's libraries, so the host needs its driver and Docker's GPU support only.
#   docker build -t vlm-robust .                      without CUDA, 2 GB
#   docker build -t vlm-robust --build-arg TORCH= .   with it, 7 GB; then docker run --gpus all …
#   docker run --rm -v "$PWD/results:/vlm-robust/results" vlm-robust make reproduce
#   docker run --rm -v "$PWD:/mine" -w /mine vlm-robust vlm-robust judge --out judged
FROM python:3.13-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
# uv knows where torch's builds without CUDA are.
RUN pip install --no-cache-dir uv==0.13.8

WORKDIR /vlm-robust
COPY . .
ARG TORCH=cpu
RUN --mount=type=cache,target=/root/.cache/uv make setup TORCH=$TORCH
# The command and `import vlm_robust`, from any folder.
RUN uv pip install --python .venv --no-deps --no-build-isolation --editable .

ENV PATH=/vlm-robust/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["make"]
