// The softmax over a chunk of logits [rows, vocab] bf16: what the loss reads of it, and the gradient by the logits, in
// their memory. vocab is a multiple of 8.
#include "common.cuh"

namespace {

constexpr int THREADS = 512;

// Sums relative to the largest value: of exp(x - largest), and of that times x.
struct Mass {
  float largest;
  float sum;
  float product;
};

__device__ Mass merge(Mass a, Mass b) {
  const float largest = fmaxf(a.largest, b.largest);
  // Of nothing there is nothing, whatever its largest value.
  const float x = a.sum == 0.0f ? 0.0f : expf(a.largest - largest);
  const float y = b.sum == 0.0f ? 0.0f : expf(b.largest - largest);
  return {largest, a.sum * x + b.sum * y, a.product * x + b.product * y};
}

} // namespace

// The target's log-probability, the entropy and the logarithm of the sum of exp(x), [rows] f32 each, where x is a logit
// times `scale`. Grid: rows. Block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS) statistics(
    const bf16* __restrict__ logits,
    const long long* __restrict__ targets,
    int vocab,
    float scale,
    float* __restrict__ logprobs,
    float* __restrict__ entropies,
    float* __restrict__ normalizers) {
  const long long row = blockIdx.x;
  Mass mass{-__int_as_float(0x7f800000), 0.0f, 0.0f};
  for (int at = threadIdx.x * 8; at < vocab; at += THREADS * 8) {
    float x[8];
    unpack(load_cached(logits + row * vocab + at), x);
    float largest = mass.largest;
    for (int i = 0; i < 8; ++i) {
      x[i] *= scale;
      largest = fmaxf(largest, x[i]);
    }
    const float shrink = mass.sum == 0.0f ? 0.0f : expf(mass.largest - largest);
    float sum = 0.0f, product = 0.0f;
    for (int i = 0; i < 8; ++i) {
      const float e = expf(x[i] - largest);
      sum += e;
      product = fmaf(e, x[i], product);
    }
    mass = {largest, mass.sum * shrink + sum, mass.product * shrink + product};
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const Mass other{
        __shfl_xor_sync(~0u, mass.largest, offset),
        __shfl_xor_sync(~0u, mass.sum, offset),
        __shfl_xor_sync(~0u, mass.product, offset)};
    mass = merge(mass, other);
  }
  __shared__ Mass parts[THREADS / 32];
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = mass;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < THREADS / 32; ++warp) {
      mass = merge(mass, parts[warp]);
    }
    const float normalizer = mass.largest + logf(mass.sum);
    normalizers[row] = normalizer;
    entropies[row] = normalizer - mass.product / mass.sum;
    logprobs[row] = __bfloat162float(logits[row * vocab + targets[row]]) * scale - normalizer;
  }
}

// (g (onehot - p) + c p (log p + H)) scale, with g and c [rows] f32. Grid: blocks of a row, rows. A thread takes 8 numbers.
extern "C" __global__ void gradient(
    bf16* __restrict__ logits,
    const long long* __restrict__ targets,
    const float* __restrict__ entropies,
    const float* __restrict__ normalizers,
    const float* __restrict__ by_logprob,
    const float* __restrict__ by_entropy,
    int vocab,
    float scale) {
  const long long row = blockIdx.y;
  const int at = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (at >= vocab) {
    return;
  }
  const float g = by_logprob[row], c = by_entropy[row], normalizer = normalizers[row], entropy = entropies[row];
  const long long target = targets[row] - at;
  float x[8];
  unpack(load_cached(logits + row * vocab + at), x);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float log_p = x[i] * scale - normalizer, p = expf(log_p);
    x[i] = (g * ((target == i ? 1.0f : 0.0f) - p) + c * p * (log_p + entropy)) * scale;
  }
  store(logits + row * vocab + at, x);
}
