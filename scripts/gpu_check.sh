#!/usr/bin/env bash
# Checks and measures g2rl-worker on a GPU, and prints one table in Markdown.
#
#   scripts/gpu_check.sh [BIN_DIR]
#
# BIN_DIR (default: target/release) holds g2rl-worker and, if they are to run, the binaries of the GPU tests
# (cuda-*, gpu-* and process_group-* of g2rl-ffi, device-* and update-* of g2rl-worker, there or in BIN_DIR/deps).
# python3 with torch 2.11 gives libtorch's folder unless LD_LIBRARY_PATH is set, and measures the device's limits; with
# transformers installed its `generate` is measured too. A part that fails is a line of the table, and the exit status
# is 1.
#
# PYTHON=python3  DEVICE=cuda:0  SHAPES="1.7b 4b"  BATCHES="1 16 256"  REPETITIONS=3  PEERS=on  OFFLOAD=off
# OFFLOAD=on keeps optimizer state in host memory; SHAPES=8b with 80 GB needs it.
# DEVICE=cpu SHAPES=tiny BATCHES="1 8" runs all of it small, without a GPU.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${1:-$root/target/release}
python=${PYTHON:-python3}
device=${DEVICE:-cuda:0}
shapes=${SHAPES:-1.7b 4b}
batches=${BATCHES:-1 16 256}
repetitions=${REPETITIONS:-3}
offload=()
[ "${OFFLOAD:-off}" = on ] && offload=(--offload)
worker=$bin/g2rl-worker
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
table=$work/table.md
failed=0

say() { printf '\n== %s\n' "$*" >&2; }
# A line of the table, shown at once.
row() { printf '| %s | %s | %s | %s |\n' "$@" | tee -a "$table" >&2; }
# Runs a command with its output in a file; a failure becomes a line of the table.
try() {
  local name=$1 out=$2
  shift 2
  say "$name"
  if "$@" >"$out" 2>"$out.log"; then return 0; fi
  tail -n 5 "$out" "$out.log" >&2
  row "$name" "FAILED: $(tail -n 1 "$out.log" | tr '|' '/')" "" ""
  failed=1
  return 1
}
# A number of a JSON file.
field() { "$python" -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }
calc() { awk "BEGIN { printf \"$1\", ($2) }"; }

[ -x "$worker" ] || { echo "there is no $worker; build it with: cargo build --release -p g2rl-worker" >&2; exit 1; }
if [ -z "${LD_LIBRARY_PATH:-}" ]; then
  lib=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))') && export LD_LIBRARY_PATH=$lib
fi

# Layers, hidden size, query heads, head width, inner size, vocabulary, tied embedding; Qwen3's shapes.
architecture() {
  case $1 in
  1.7b) set -- 28 2048 16 128 6144 151936 true ;;
  4b) set -- 36 2560 32 128 9728 151936 true ;;
  8b) set -- 36 4096 32 128 12288 151936 false ;;
  tiny) set -- 2 128 8 16 256 4096 true ;;
  *) echo "unknown shape $1" >&2; return 1 ;;
  esac
  cat <<JSON
{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "num_hidden_layers": $1,
 "hidden_size": $2, "num_attention_heads": $3, "num_key_value_heads": 8, "head_dim": $4, "intermediate_size": $5,
 "vocab_size": $6, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 4096,
 "tie_word_embeddings": $7, "attention_bias": false}
JSON
}
prompt=512 new=1024 dtype=bf16
# Updates: groups of 8 responses, which share their prompt's tokens; a response's last token is not computed.
update_sequences=32 update_prompt=512 update_new=448
case $shapes in
*tiny*) prompt=16 new=32 dtype=f32 update_sequences=8 update_prompt=64 update_new=57 ;;
esac
update_tokens=$((update_sequences / 8 * update_prompt + update_sequences * (update_new - 1)))
for shape in $shapes; do architecture "$shape" >"$work/$shape.json" || exit 1; done

# 1. Tests.
for kind in cuda gpu device update process_group; do
  # The newest build of each; they look for their models in the worker's folder.
  test=$(find "$bin" "$bin/deps" -maxdepth 1 -type f -executable -name "$kind-*" -printf '%T@ %p\n' 2>/dev/null |
    sort -rn | head -n 1 | cut -d ' ' -f 2-)
  [ -n "$test" ] || continue
  name="GPU tests: $kind"
  filter=()
  case $kind in device | update | process_group) filter=(gpu) ;; esac
  if try "$name" "$work/tests" env CARGO_MANIFEST_DIR="$root/worker" "$test" --test-threads 1 --nocapture "${filter[@]}"; then
    row "$name" "$(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1 passed/p' "$work/tests"), $(grep -c 'skipped: no GPU' "$work/tests") skipped" "" ""
  fi
done

# 2. The same numbers on CPU and device.
rm -rf "$work/model"
if try "random model" "$work/init" "$worker" init --architecture "$root/configs/demo/architecture.json" \
  --tokenizer "$root/configs/demo/tokenizer" --out "$work/model"; then
  echo '{"id":1,"tokens":[14,7,17,9,14,1,20,31,5,44,60,2],"prompt_tokens":4}' >"$work/sequences.jsonl"
  printf '{"id":"%s","prompt":"4,7,%s>30:"}\n' 1 2 2 5 3 8 >"$work/prompts.jsonl"
  for where in cpu "$device"; do
    try "score on $where" "$work/score-$where" "$worker" score --model "$work/model" \
      --input "$work/sequences.jsonl" --device "$where"
    try "generate on $where" "$work/generate-$where" "$worker" generate --model "$work/model" \
      --input "$work/prompts.jsonl" --samples 4 --max-new-tokens 40 --temperature 0 --device "$where"
  done
  "$python" - "$work" "$device" >>"$table" <<'PY' || failed=1
import json, sys
work, device = sys.argv[1:]
def rows(name, where):
    return [json.loads(line) for line in open(f"{work}/{name}-{where}")]
def largest(name, keys):
    pairs = zip(rows(name, "cpu"), rows(name, device))
    return max(abs(x - y) for a, b in pairs for key in keys for x, y in zip(a[key], b[key]))
print(f"| score, f32: largest difference to the CPU | {largest('score', ['logprobs', 'entropy', 'feature']):.1e} | 1e-4 | |")
a, b = rows("generate", "cpu"), rows("generate", device)
same = sum(x["tokens"] == y["tokens"] for x, y in zip(a, b))
print(f"| generate, f32, greedy: answers equal to the CPU's | {same} | {len(a)} | {same / len(a):.2f} |")
PY
fi

# 3. What the device can do: bytes per second of a copy, operations per second of a product.
limits() {
  "$python" - "$device" "$dtype" <<'PY'
import json, sys, time, torch
device, dtype = torch.device(sys.argv[1]), {"bf16": torch.bfloat16, "f32": torch.float32}[sys.argv[2]]
wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
def seconds(body, count=20):
    body(); wait()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(count):
            body()
        wait()
        best = min(best, (time.perf_counter() - start) / count)
    return best
size, side = (1 << 30, 8192) if device.type == "cuda" else (1 << 26, 1024)
source = torch.ones(size, dtype=torch.uint8, device=device)
target = torch.empty_like(source)
a = torch.randn(side, side, device=device).to(dtype)
print(json.dumps({"bandwidth": 2 * size / seconds(lambda: target.copy_(source)),
                  "flops": 2 * side**3 / seconds(lambda: a @ a)}))
PY
}
bandwidth=0 flops=0
if try "device limits" "$work/limits" limits; then
  bandwidth=$(field "$work/limits" bandwidth) flops=$(field "$work/limits" flops)
  row "copy, GB/s" "$(calc %.0f "$bandwidth / 1e9")" "" ""
  row "product in $dtype, TFLOP/s" "$(calc %.1f "$flops / 1e12")" "" ""
fi

# Parameters of the layers and of the head, bytes of all weights, and of keys and values of a token.
sizes() {
  "$python" - "$work/$1.json" "$dtype" <<'PY'
import json, sys
c, element = json.load(open(sys.argv[1])), {"bf16": 2, "f32": 4}[sys.argv[2]]
h, d, kv = c["hidden_size"], c["head_dim"], c["num_key_value_heads"]
layer = h * d * (2 * c["num_attention_heads"] + 2 * kv) + 3 * h * c["intermediate_size"]
layers, head = c["num_hidden_layers"] * layer, c["vocab_size"] * h
print(layers, head, element * (layers + head), element * 2 * kv * d * c["num_hidden_layers"])
PY
}

# 4. Rollouts against the time in which weights, keys and values can be read once for every sequence, and updates against
#    6 operations for each parameter of the layers and packed token, and of the head and response token.
for shape in $shapes; do
  read -r layers head weights token < <(sizes "$shape")
  for batch in $batches; do
    group=$((batch % 8 == 0 ? 8 : 1))
    for features in on off; do
      name="rollout $shape $dtype, batch $batch, features $features, tokens/s"
      try "$name" "$work/bench" "$worker" bench rollout --json --architecture "$work/$shape.json" --device "$device" \
        --dtype "$dtype" --batch "$batch" --group-size "$group" --prompt-tokens "$prompt" --new-tokens "$new" \
        --features "$features" --kl-coef 0 --repetitions "$repetitions" || continue
      rate=$(field "$work/bench" tokens_per_s)
      limit=$(calc %.9g "$bandwidth * $batch / ($weights + $batch * $token * ($prompt + $new / 2))")
      row "$name" "$(calc %.0f "$rate")" "$(calc %.0f "$limit") (bandwidth)" "$(calc %.2f "$limit > 0 ? $rate / $limit : 0")"
      [ "$features" = off ] && echo "$rate" >"$work/rate-$shape-$batch"
    done
  done
  name="update $shape $dtype, $update_tokens packed tokens"
  try "$name" "$work/bench" "$worker" bench update --json --architecture "$work/$shape.json" --device "$device" \
    --dtype "$dtype" --sequences "$update_sequences" --group-size 8 --prompt-tokens "$update_prompt" \
    --new-tokens "$update_new" --tokens-per-microbatch 16384 --kl-coef 0 "${offload[@]}" --repetitions "$repetitions" || continue
  seconds=$(field "$work/bench" seconds)
  operations=$(calc %.9g "6 * ($layers * $update_tokens + $head * $update_sequences * $update_new)")
  row "$name, TFLOP/s" "$(calc %.1f "$operations / $seconds / 1e12")" "$(calc %.1f "$flops / 1e12") (products)" \
    "$(calc %.2f "$flops > 0 ? $operations / $seconds / $flops : 0")"
  row "$name, tokens/s of whole sequences" "$(field "$work/bench" tokens_per_s | cut -d. -f1)" "" ""
  peak=$(field "$work/bench" peak_device_bytes 2>/dev/null) && row "$name, peak memory, GB" "$(calc %.1f "$peak / 1e9")" \
    "$(calc %.1f "$(field "$work/bench" planned_peak_bytes) / 1e9") (plan)" ""
done

# 5. transformers, with random weights of the first shape.
peer() {
  "$python" - "$1" "$2" "$prompt" "$new" "$device" "$dtype" <<'PY'
import json, sys, time, torch
from transformers import AutoConfig, AutoModelForCausalLM
file, batch, prompt, new, device = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
config = AutoConfig.for_model(**json.load(open(file)))
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[sys.argv[6]]
with torch.device(device):
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
ids = torch.randint(config.vocab_size, (batch, prompt), device=device)
def run(count):
    start = time.perf_counter()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=count,
                         min_new_tokens=count, pad_token_id=0, eos_token_id=None)
    assert out.shape[1] == prompt + count
    out.cpu()
    return time.perf_counter() - start
with torch.no_grad():
    run(16)
    print(json.dumps({"tokens_per_s": batch * new / run(new)}))
PY
}
shape=${shapes%% *}
if [ "${PEERS:-on}" = on ] && "$python" -c 'import transformers' 2>/dev/null; then
  for batch in $batches; do
    name="transformers generate $shape $dtype, batch $batch, tokens/s"
    try "$name" "$work/peer" peer "$work/$shape.json" "$batch" || continue
    rate=$(field "$work/peer" tokens_per_s)
    own=$(cat "$work/rate-$shape-$batch" 2>/dev/null || echo 0)
    row "$name" "$(calc %.0f "$rate")" "$(calc %.0f "$own") (this worker)" "$(calc %.2f "$own / $rate")"
  done
else
  row "transformers generate" "not run" "" ""
fi

printf '\n| what | measured | limit or other | ratio |\n|---|---|---|---|\n'
cat "$table"
exit "$failed"
