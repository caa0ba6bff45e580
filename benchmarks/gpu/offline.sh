#!/usr/bin/env bash
# Carry vLLM to a machine that reaches no package index but has torch, in two archives under build/gpu.
#
#   benchmarks/gpu/offline.sh pack              here: download, slim to one architecture, archive
#   . benchmarks/gpu/offline.sh unpack FOLDER   there: unpack what is in build/gpu, put it on PYTHONPATH
#
# The archives may go over one after the other: unpack takes what is there. Settings of pack, by environment:
# VLLM (release), PYTHON_VERSION (of that machine), ARCHITECTURE (90 for H100 and H200).
here=build/gpu

pack() (
  set -euo pipefail
  version=${VLLM:-0.26.0} python_version=${PYTHON_VERSION:-3.12}
  platforms=()
  for libc in 2_17 2_28 2_31 2_34 2_35; do platforms+=(--platform "manylinux_${libc}_x86_64"); done
  platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
  target=(--no-deps --only-binary=:all: --python-version "$python_version" "${platforms[@]}")
  mkdir -p "$here" && work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
  python3 -m pip download --quiet "${target[@]}" --dest "$work/wheel" "vllm==$version"
  others=()
  for minor in 10 11 12 13 14; do
    [ "3.$minor" = "$python_version" ] || others+=("cpython-3$minor")
  done
  python3 benchmarks/gpu/slim_wheel.py "$work"/wheel/vllm-*.whl --architecture "${ARCHITECTURE:-90}" \
    --output "$here/vllm.tar.xz" --skip _vllm_fa2_C "${others[@]}"
  python3 -m pip install --quiet "${target[@]}" --target "$work/site" -r benchmarks/gpu/offline_packages.txt
  find "$work/site" -name __pycache__ -prune -exec rm -rf {} +
  tar cJf "$here/packages.tar.xz" -C "$work/site" .
  ls -l "$here"
)

case "${1:-}" in
  pack) pack ;;
  unpack)
    mkdir -p "$2"
    for archive in "$here"/*.tar.xz; do tar xf "$archive" -C "$2"; done
    export PYTHONPATH="$2${PYTHONPATH:+:$PYTHONPATH}"
    ;;
  *) echo "usage: offline.sh pack, or . offline.sh unpack FOLDER" >&2 ;;
esac
