# lowrank-bench with vLLM and the code sandbox, for NVIDIA GPUs; see docs/containers.md. Versions are those of constraints.txt.
FROM python:3.11-slim-bookworm

# Debian takes old versions off its mirrors, so a pinned one would cease to exist; bookworm has bubblewrap 0.8.
# A compiler is what torch.compile and Triton call.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap g++ \
    && rm -rf /var/lib/apt/lists/*

# What NVIDIA's container toolkit reads: which GPUs and which of the driver's parts the container gets.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1

COPY . /opt/lowrank-bench
# The package first, with the tested versions; then vLLM's GPU build, which pins some of its requirements otherwise.
RUN python -m pip install -c /opt/lowrank-bench/constraints.txt torch==2.13.0 \
    && python -m pip install -c /opt/lowrank-bench/constraints.txt "/opt/lowrank-bench[harness,peft]" \
    && python -m pip install torch==2.13.0 vllm==0.32.0 \
    && useradd --create-home --uid 1000 bench \
    && install --directory --owner=bench /work

USER 1000
WORKDIR /work
ENTRYPOINT ["bench"]
CMD ["doctor"]
