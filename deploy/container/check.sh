#!/bin/sh
# Without a container engine: a clean Debian as the runtime stage has it, what build.sh laid out on top, and in it, as the
# image's user, two steps of the demo.
#
#   deploy/container/check.sh IMAGE_DIRECTORY ROOT_DIRECTORY
#
# Needs root and debootstrap. ROOT_DIRECTORY must not exist, and stays.
set -eu
image=${1:?usage: check.sh IMAGE_DIRECTORY ROOT_DIRECTORY}
root=${2:?usage: check.sh IMAGE_DIRECTORY ROOT_DIRECTORY}
[ ! -e "$root" ] || { echo "check.sh: $root exists" >&2; exit 2; }

debootstrap --variant=minbase --include=ca-certificates,libstdc++6 bookworm "$root"
chroot "$root" useradd --uid 10001 --user-group --home-dir /srv/g2rl --no-create-home g2rl
install -d -o 10001 -g 10001 "$root/srv/g2rl/data"
cp -R "$image/." "$root/"
du -sh "$root"

inside() {
    chroot --userspec=10001:10001 "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/srv/g2rl \
        LD_LIBRARY_PATH=/usr/local/lib/g2rl OMP_NUM_THREADS=1 "$@"
}
# A chroot has neither; a container has both.
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
trap 'umount "$root/proc" "$root/dev"' EXIT

inside g2rl-coordinator data countdown --distinct --count 64 --split train --out /srv/g2rl/data/train.jsonl
cat >"$root/srv/g2rl/data/run.toml" <<'END'
[run]
name = "check"
dir = "/srv/g2rl/data/run"
steps = 2
[model]
path = "/srv/g2rl/demo/model"
[data]
train = "/srv/g2rl/data/train.jsonl"
[rollout]
prompts_per_step = 4
group_size = 4
max_new_tokens = 24
[reward]
kind = "countdown"
[objective]
kl_coef = 0.0
END
inside g2rl-coordinator train --config /srv/g2rl/data/run.toml --local-workers 2
inside test -e /srv/g2rl/data/run/checkpoints/step-000002/model.safetensors
echo "check.sh: passed"
