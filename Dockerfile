# mcdi on the CPU, with the server. Other extras: --build-arg EXTRAS='[lora,serve]'
FROM python:3.11-slim AS wheel
WORKDIR /src
RUN pip install --no-cache-dir "build>=1.2"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m build --wheel --outdir /dist

FROM python:3.11-slim
ARG EXTRAS="[serve]"
# The index of CPU builds provides only torch; what it depends on comes with mcdi.
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0"
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)$EXTRAS" && useradd --create-home mcdi && install -d -o mcdi /work
USER mcdi
WORKDIR /work
HEALTHCHECK --interval=1m --timeout=30s CMD ["mcdi", "--version"]
ENTRYPOINT ["mcdi"]
CMD ["--help"]
