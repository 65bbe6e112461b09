// Drawing tokens from logits [rows, vocab] bf16, by the rules of csrc/sampling.cpp: the full softmax at the row's
// temperature, its inverse cumulative distribution in the order of token ids, and the sums of residuals.
//
// A row is cut into chunks of CHUNK tokens. `measure` sums each chunk, `draw` finds the chunk and in it the token, and
// `add_residuals` goes over the logits once more. vocab is a multiple of 8.
#include "common.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int CHUNK = THREADS * 8;

// The largest factor below 1 that keeps a product below the mass.
constexpr double BELOW_ONE = 1.0 - 2.220446049250313e-16;

template <class T, class Combine>
__device__ T over_block(T value, Combine combine) {
  __shared__ T parts[THREADS / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(~0u, value, offset));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32] = value;
  }
  __syncthreads();
  value = parts[0];
  for (int warp = 1; warp < THREADS / 32; ++warp) {
    value = combine(value, parts[warp]);
  }
  return value;
}

// A thread's 8 logits over the temperature; false beyond the end.
__device__ bool scaled(const bf16* logits, long long row, int token, int vocab, const double* temperature, float* x) {
  if (token >= vocab) {
    return false;
  }
  unpack(load(logits + row * vocab + token), x);
  const float t = static_cast<float>(temperature[row]);
  for (int i = 0; i < 8; ++i) {
    x[i] /= t;
  }
  return true;
}

} // namespace

// Of each chunk: its largest x and that one's first token, and of exp(x - largest) the sum and the sum times x,
// `[rows, chunks]` each. Grid: chunks, rows. Block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS) measure(
    const bf16* __restrict__ logits,
    const double* __restrict__ temperature,
    int vocab,
    float* __restrict__ largests,
    int* __restrict__ first,
    double* __restrict__ sums,
    double* __restrict__ weighted) {
  const long long row = blockIdx.y, out = row * gridDim.x + blockIdx.x;
  const int token = blockIdx.x * CHUNK + threadIdx.x * 8;
  float x[8];
  const bool inside = scaled(logits, row, token, vocab, temperature, x);
  float most = -__int_as_float(0x7f800000);
  int at = 0x7fffffff;
  for (int i = 0; inside && i < 8; ++i) {
    if (x[i] > most) {
      most = x[i];
      at = token + i;
    }
  }
  const float largest = over_block(most, [](float a, float b) { return fmaxf(a, b); });
  const int place = over_block(most == largest ? at : 0x7fffffff, [](int a, int b) { return min(a, b); });
  float sum = 0.0f, product = 0.0f;
  for (int i = 0; inside && i < 8; ++i) {
    const float e = expf(x[i] - largest);
    sum += e;
    product = fmaf(e, x[i], product);
  }
  const auto add = [](double a, double b) { return a + b; };
  const double total = over_block(static_cast<double>(sum), add);
  const double product_total = over_block(static_cast<double>(product), add);
  if (threadIdx.x == 0) {
    largests[out] = largest;
    first[out] = place;
    sums[out] = total;
    weighted[out] = product_total;
  }
}

// Tokens [rows] i64, their log-probabilities [rows] f32, entropies [rows] f64, and the logarithms of the sums of
// exp(x) [rows] f32. `uniforms` [.., stride] f64 holds a line for each step, `done` says which. Shared memory: chunks
// f64. Grid: rows. Block: THREADS.
extern "C" __global__ void __launch_bounds__(THREADS) draw(
    const bf16* __restrict__ logits,
    const double* __restrict__ temperature,
    const double* __restrict__ uniforms,
    long long stride,
    const long long* __restrict__ done,
    const long long* __restrict__ greedy,
    int vocab,
    int chunks,
    const float* __restrict__ largests,
    const int* __restrict__ first,
    const double* __restrict__ sums,
    const double* __restrict__ weighted,
    long long* __restrict__ tokens,
    float* __restrict__ logprobs,
    double* __restrict__ entropies,
    float* __restrict__ normalizers) {
  extern __shared__ double masses[];
  const long long row = blockIdx.x;
  // 1. The whole row.
  float most = -__int_as_float(0x7f800000);
  for (int c = threadIdx.x; c < chunks; c += THREADS) {
    most = fmaxf(most, largests[row * chunks + c]);
  }
  const float largest = over_block(most, [](float a, float b) { return fmaxf(a, b); });
  int place = 0x7fffffff;
  double product = 0.0;
  for (int c = threadIdx.x; c < chunks; c += THREADS) {
    const long long at = row * chunks + c;
    const double share = exp(static_cast<double>(largests[at]) - largest);
    masses[c] = sums[at] * share;
    product += weighted[at] * share;
    if (largests[at] == largest) {
      place = min(place, first[at]);
    }
  }
  place = over_block(place, [](int a, int b) { return min(a, b); });
  product = over_block(product, [](double a, double b) { return a + b; });

  // 2. The chunk in which the sum passes the target.
  __shared__ double before, target, mass;
  __shared__ int chunk, passed, last;
  if (threadIdx.x == 0) {
    double sum = 0.0;
    for (int c = 0; c < chunks; ++c) {
      sum += masses[c];
    }
    mass = sum;
    target = fmin(uniforms[*done * stride + row], BELOW_ONE) * sum;
    double reached = 0.0;
    int found = 0;
    while (found + 1 < chunks && reached + masses[found] <= target) {
      reached += masses[found];
      ++found;
    }
    before = reached;
    chunk = found;
    passed = 0x7fffffff;
    last = 0;
  }
  __syncthreads();

  // 3. The token in it: the sums before each thread's tokens, then its own one after the other.
  const int token = chunk * CHUNK + threadIdx.x * 8;
  float x[8];
  const bool inside = scaled(logits, row, token, vocab, temperature, x);
  double own = 0.0;
  for (int i = 0; inside && i < 8; ++i) {
    own += expf(x[i] - largest);
  }
  double sum = own;
  for (int offset = 1; offset < 32; offset *= 2) {
    const double other = __shfl_up_sync(~0u, sum, offset);
    sum += threadIdx.x % 32 >= offset ? other : 0.0;
  }
  __shared__ double warps[THREADS / 32];
  if (threadIdx.x % 32 == 31) {
    warps[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  sum += before - own;
  for (int warp = 0; warp < threadIdx.x / 32; ++warp) {
    sum += warps[warp];
  }
  for (int i = 0; inside && i < 8; ++i) {
    const float e = expf(x[i] - largest);
    sum += e;
    if (sum > target) {
      atomicMin(&passed, token + i);
    }
    if (e > 0.0f) {
      atomicMax(&last, token + i);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    // Where rounding left the chunk's own sum below the target, its last token with a weight is the one.
    // A row that is not finite has none; the caller sees it by its log-probability.
    const int drawn = min(greedy[row] != 0 ? place : min(passed, last), vocab - 1);
    const double normalizer = largest + log(mass);
    const float own_x = __bfloat162float(logits[row * vocab + drawn]) / static_cast<float>(temperature[row]);
    tokens[row] = drawn;
    logprobs[row] = static_cast<float>(own_x - normalizer);
    entropies[row] = normalizer - product / mass;
    normalizers[row] = static_cast<float>(normalizer);
  }
}

// Adds weight (onehot(token) - p) to the rows of `residuals` [rows, vocab] f32 that are alive. Grid: chunks, rows.
extern "C" __global__ void __launch_bounds__(THREADS) add_residuals(
    const bf16* __restrict__ logits,
    const double* __restrict__ temperature,
    const double* __restrict__ weights,
    const long long* __restrict__ alive,
    const long long* __restrict__ tokens,
    const float* __restrict__ normalizers,
    int vocab,
    float* __restrict__ residuals) {
  const long long row = blockIdx.y;
  const float weight = alive[row] != 0 ? static_cast<float>(weights[row]) : 0.0f;
  const int token = blockIdx.x * CHUNK + threadIdx.x * 8;
  float x[8];
  if (weight == 0.0f || !scaled(logits, row, token, vocab, temperature, x)) {
    return;
  }
  const float normalizer = normalizers[row];
  const long long drawn = tokens[row] - token;
  float4* to = reinterpret_cast<float4*>(residuals + row * vocab + token);
  float4 low = to[0], high = to[1];
  float* values[8] = {&low.x, &low.y, &low.z, &low.w, &high.x, &high.y, &high.z, &high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    *values[i] += weight * ((drawn == i ? 1.0f : 0.0f) - expf(x[i] - normalizer));
  }
  to[0] = low;
  to[1] = high;
}
