#!/usr/bin/env bash
# Build llama.cpp's tools for this machine out of llama-cpp-python's source distribution, into the folder given.
set -euo pipefail
out=$(mkdir -p "${1:?usage: llama_cpp.sh FOLDER}" && cd "$1" && pwd)
cd "$out"
python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python
tar xzf llama_cpp_python-*.tar.gz
cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TESTS=OFF
cmake --build build --parallel 2 --target llama-bench llama-batched-bench llama-quantize llama-server
ln -sf build/bin/llama-* "$out"
