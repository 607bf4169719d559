FROM python:3.12.8-slim-bookworm
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY callsheet ./callsheet
# Of the package's extras, those that your agents need: docker build --build-arg EXTRAS=mcp,anthropic -t callsheet .
ARG EXTRAS=""
RUN pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}" && useradd --create-home --uid 1000 callsheet
USER callsheet
# Your agents: mount or copy them here, and name their modules in CALLSHEET_MODULES.
ENV PYTHONPATH=/app
