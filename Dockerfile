# An image of the wheel with all extras: `make wheel`, then docs/install.md.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# For GPUs "gcc libc6-dev": Triton compiles its launchers. Nothing for CPUs.
ARG PACKAGES=""
RUN if [ -n "${PACKAGES}" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*; \
    fi

# For CPUs "--extra-index-url URL" with the address of PyTorch's CPU wheels. Nothing for GPUs.
ARG PIP_ARGS=""
COPY constraints.txt dist/*.whl /tmp/wheel/
RUN python3 -m venv /opt/mvit_video \
    && /opt/mvit_video/bin/pip install --no-cache-dir ${PIP_ARGS} --constraint /tmp/wheel/constraints.txt \
        "$(ls /tmp/wheel/*.whl)[all]" \
    && rm -r /tmp/wheel

# Any user may write to /tmp: "docker run --user" names one that the image does not know.
ENV PATH=/opt/mvit_video/bin:${PATH} HOME=/tmp
USER nobody
WORKDIR /data
ENTRYPOINT ["mvit-video"]
