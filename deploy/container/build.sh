#!/bin/sh
# Compiles the programs and lays out what an image adds to its base:
#
#   deploy/container/build.sh cpu|cuda DIRECTORY [PROFILE]
#
#   DIRECTORY/usr/local/bin        g2rl-coordinator, g2rl-worker
#   DIRECTORY/usr/local/lib/g2rl   the libraries that they load, but for those of every Debian
#   DIRECTORY/srv/g2rl/demo        the demo's model
#
# The Dockerfile runs it, and so does whoever has no container engine (check.sh). PROFILE is release, or dev for a quick
# look.
set -eu
flavour=${1:?usage: build.sh cpu|cuda DIRECTORY [PROFILE]}
image=${2:?usage: build.sh cpu|cuda DIRECTORY [PROFILE]}
profile=${3:-release}
cd "$(dirname "$0")/../.."

eval "$(cargo xtask env)"
packages=$(dirname "$LIBTORCH")
case $flavour in
cuda) ;;
cpu)
    # The wheel without its CUDA parts. The program links libtorch_cpu.so; libtorch.so only names it together with
    # libtorch_cuda.so.
    plain=$(cd "$packages/../../.." && pwd)/cpu
    rm -rf "$plain"
    mkdir -p "$plain/lib"
    ln -s "$LIBTORCH/include" "$plain/include"
    cp "$LIBTORCH/version.py" "$plain/"
    for library in libtorch_cpu.so libc10.so libgomp.so.1; do
        ln -s "$LIBTORCH/lib/$library" "$plain/lib/$library"
    done
    ln -s libtorch_cpu.so "$plain/lib/libtorch.so"
    # What libtorch_cpu.so needs, and what it never calls without a GPU.
    for library in libcupti.so.13 libcudart.so.13; do
        ln -s "$packages/nvidia/cu13/lib/$library" "$plain/lib/$library"
    done
    LIBTORCH=$plain
    export LIBTORCH
    ;;
*)
    echo "build.sh: cpu or cuda, not $flavour" >&2
    exit 2
    ;;
esac

cargo build --locked --profile "$profile" --package g2rl-coordinator --package g2rl-worker
built=${CARGO_TARGET_DIR:-target}/$profile
[ "$profile" != dev ] || built=${CARGO_TARGET_DIR:-target}/debug

install -d "$image/usr/local/bin" "$image/usr/local/lib/g2rl" "$image/srv/g2rl"
for program in g2rl-coordinator g2rl-worker; do
    install -s "$built/$program" "$image/usr/local/bin/"
done
# Libraries of the wheels, wherever they lie among them.
LD_LIBRARY_PATH=$LIBTORCH/lib ldd "$built/g2rl-worker" | awk '$2 == "=>" { print $3 }' | while read -r library; do
    case $library in
    "$packages"/* | "$LIBTORCH"/*) install -m 644 "$library" "$image/usr/local/lib/g2rl/" ;;
    not) echo "build.sh: a library of g2rl-worker is not found" >&2; exit 1 ;;
    esac
done
cp -R configs/demo "$image/srv/g2rl/demo"
du -sh "$image"
