// What a decoder does between its products, forward and backward, one pass over the rows each.
//
// Everything is computed in f32 from bf16 and rounded once. Sums over rows (gradients by norms' weights) are kept
// by block and added up by the caller, so that they do not depend on the order in which blocks run.
#include "common.cuh"

namespace {

__device__ float sum_over_warp(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(~0u, value, offset);
  }
  return value;
}

// Over all threads of a block of at most 1024; everybody gets it.
__device__ float sum_over_block(float value) {
  __shared__ float sums[32];
  value = sum_over_warp(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32] = value;
  }
  __syncthreads();
  float sum = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
    sum += sums[warp];
  }
  return sum;
}

__device__ float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}

// Pairs of a head's numbers in a lane's registers: a head is at most 256 wide.
constexpr int PAIRS = 4;

} // namespace

// Norm and rotation of queries and keys. `qkv` [rows, (heads + 2 kv_heads) width], `turned` [rows, heads + kv_heads,
// width], `cos` and `sin` [rows, width / 2], norms [width] or null. A warp takes a head. Block: 128.
extern "C" __global__ void turn(
    const bf16* __restrict__ qkv,
    const bf16* __restrict__ query_norm,
    const bf16* __restrict__ key_norm,
    const bf16* __restrict__ cos,
    const bf16* __restrict__ sin,
    bf16* __restrict__ turned,
    long long rows,
    int heads,
    int kv_heads,
    int width,
    float eps) {
  const int lane = threadIdx.x % 32, half = width / 2, count = heads + kv_heads;
  const long long item = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (item >= rows * count) {
    return;
  }
  const long long row = item / count;
  const int head = item % count;
  const bf16* from = qkv + (row * (heads + 2 * kv_heads) + head) * width;
  const bf16* norm = head < heads ? query_norm : key_norm;
  float a[PAIRS], b[PAIRS], square = 0.0f;
  for (int j = 0, i = lane; i < half; ++j, i += 32) {
    a[j] = __bfloat162float(from[i]);
    b[j] = __bfloat162float(from[i + half]);
    square += a[j] * a[j] + b[j] * b[j];
  }
  const float scale = norm == nullptr ? 1.0f : rsqrtf(sum_over_warp(square) / width + eps);
  for (int j = 0, i = lane; i < half; ++j, i += 32) {
    if (norm != nullptr) {
      a[j] *= scale * __bfloat162float(norm[i]);
      b[j] *= scale * __bfloat162float(norm[i + half]);
    }
    const float c = __bfloat162float(cos[row * half + i]), s = __bfloat162float(sin[row * half + i]);
    turned[item * width + i] = __float2bfloat16(a[j] * c - b[j] * s);
    turned[item * width + i + half] = __float2bfloat16(b[j] * c + a[j] * s);
  }
}

// The gradient of `turn`: into the queries' and keys' part of `dqkv`, and by block and warp that by the norms into
// `dnorms` [blocks * 4, 2, width] f32, which may be null without norms. Block: 128.
extern "C" __global__ void turn_backward(
    const bf16* __restrict__ qkv,
    const bf16* __restrict__ query_norm,
    const bf16* __restrict__ key_norm,
    const bf16* __restrict__ cos,
    const bf16* __restrict__ sin,
    const bf16* __restrict__ dturned,
    bf16* __restrict__ dqkv,
    float* __restrict__ dnorms,
    long long rows,
    int heads,
    int kv_heads,
    int width,
    float eps) {
  const int lane = threadIdx.x % 32, half = width / 2, count = heads + kv_heads;
  const long long warps = static_cast<long long>(gridDim.x) * (blockDim.x / 32);
  const long long warp = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  float da_norm[2][PAIRS] = {}, db_norm[2][PAIRS] = {};
  for (long long item = warp; item < rows * count; item += warps) {
    const long long row = item / count;
    const int head = item % count;
    const long long at = (row * (heads + 2 * kv_heads) + head) * width;
    const bf16* norm = head < heads ? query_norm : key_norm;
    float a[PAIRS], b[PAIRS], da[PAIRS], db[PAIRS], square = 0.0f;
    for (int j = 0, i = lane; i < half; ++j, i += 32) {
      a[j] = __bfloat162float(qkv[at + i]);
      b[j] = __bfloat162float(qkv[at + i + half]);
      square += a[j] * a[j] + b[j] * b[j];
      const float c = __bfloat162float(cos[row * half + i]), s = __bfloat162float(sin[row * half + i]);
      const float dy = __bfloat162float(dturned[item * width + i]);
      const float dz = __bfloat162float(dturned[item * width + i + half]);
      da[j] = dy * c + dz * s;
      db[j] = dz * c - dy * s;
    }
    if (norm != nullptr) {
      const float scale = rsqrtf(sum_over_warp(square) / width + eps);
      const bool key = head >= heads;
      float along = 0.0f;
      for (int j = 0, i = lane; i < half; ++j, i += 32) {
        a[j] *= scale;
        b[j] *= scale;
        const float ga = da[j] * a[j], gb = db[j] * b[j];
        da_norm[0][j] += key ? 0.0f : ga;
        db_norm[0][j] += key ? 0.0f : gb;
        da_norm[1][j] += key ? ga : 0.0f;
        db_norm[1][j] += key ? gb : 0.0f;
        da[j] *= __bfloat162float(norm[i]);
        db[j] *= __bfloat162float(norm[i + half]);
        along += da[j] * a[j] + db[j] * b[j];
      }
      along = sum_over_warp(along) / width;
      for (int j = 0, i = lane; i < half; ++j, i += 32) {
        da[j] = scale * (da[j] - a[j] * along);
        db[j] = scale * (db[j] - b[j] * along);
      }
    }
    for (int j = 0, i = lane; i < half; ++j, i += 32) {
      dqkv[at + i] = __float2bfloat16(da[j]);
      dqkv[at + i + half] = __float2bfloat16(db[j]);
    }
  }
  if (dnorms != nullptr) {
    for (int kind = 0; kind < 2; ++kind) {
      for (int j = 0, i = lane; i < half; ++j, i += 32) {
        dnorms[(warp * 2 + kind) * width + i] = da_norm[kind][j];
        dnorms[(warp * 2 + kind) * width + i + half] = db_norm[kind][j];
      }
    }
  }
}

// silu(gate) up: `gate_up` [rows, 2 inner], gates first, to [rows, inner]. A thread takes 8 numbers.
extern "C" __global__ void gate(
    const bf16* __restrict__ gate_up, bf16* __restrict__ gated, long long count, int inner) {
  const long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (at >= count) {
    return;
  }
  const long long from = at / inner * 2 * inner + at % inner;
  float g[8], u[8];
  unpack(load(gate_up + from), g);
  unpack(load(gate_up + from + inner), u);
  for (int i = 0; i < 8; ++i) {
    g[i] = g[i] * sigmoid(g[i]) * u[i];
  }
  store(gated + at, g);
}

// The gradient of `gate`, and its result once more.
extern "C" __global__ void gate_backward(
    const bf16* __restrict__ dgated,
    const bf16* __restrict__ gate_up,
    bf16* __restrict__ dgate_up,
    bf16* __restrict__ gated,
    long long count,
    int inner) {
  const long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (at >= count) {
    return;
  }
  const long long from = at / inner * 2 * inner + at % inner;
  float d[8], g[8], u[8], dg[8], du[8], y[8];
  unpack(load(dgated + at), d);
  unpack(load(gate_up + from), g);
  unpack(load(gate_up + from + inner), u);
  for (int i = 0; i < 8; ++i) {
    const float s = sigmoid(g[i]), silu = g[i] * s;
    y[i] = silu * u[i];
    du[i] = d[i] * silu;
    dg[i] = d[i] * u[i] * s * (1.0f + g[i] * (1.0f - s));
  }
  store(gated + at, y);
  store(dgate_up + from, dg);
  store(dgate_up + from + inner, du);
}

// The gradient of x / rms(x) weight by x, plus `residual` if that is not null, `[rows, width]`; by block that by the
// weight into `dweight` [blocks, width] f32. Shared memory: width f32.
extern "C" __global__ void norm_backward(
    const bf16* __restrict__ dy,
    const bf16* __restrict__ x,
    const bf16* __restrict__ weight,
    const bf16* __restrict__ residual,
    bf16* __restrict__ dx,
    float* __restrict__ dweight,
    long long rows,
    int width,
    float eps) {
  extern __shared__ float sums[];
  const int step = blockDim.x * 8;
  for (int i = threadIdx.x * 8; i < width; i += step) {
    for (int j = 0; j < 8; ++j) {
      sums[i + j] = 0.0f;
    }
  }
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    float square = 0.0f, along = 0.0f;
    for (int i = threadIdx.x * 8; i < width; i += step) {
      float a[8], d[8], w[8];
      unpack(load_cached(x + row * width + i), a);
      unpack(load_cached(dy + row * width + i), d);
      unpack(load_cached(weight + i), w);
      for (int j = 0; j < 8; ++j) {
        square += a[j] * a[j];
        along += a[j] * d[j] * w[j];
      }
    }
    const float scale = rsqrtf(sum_over_block(square) / width + eps);
    along = sum_over_block(along) / width * scale * scale * scale;
    for (int i = threadIdx.x * 8; i < width; i += step) {
      float a[8], d[8], w[8], r[8] = {};
      unpack(load_cached(x + row * width + i), a);
      unpack(load_cached(dy + row * width + i), d);
      unpack(load_cached(weight + i), w);
      if (residual != nullptr) {
        unpack(load(residual + row * width + i), r);
      }
      for (int j = 0; j < 8; ++j) {
        sums[i + j] += d[j] * a[j] * scale;
        r[j] += d[j] * w[j] * scale - a[j] * along;
      }
      store(dx + row * width + i, r);
    }
  }
  for (int i = threadIdx.x * 8; i < width; i += step) {
    for (int j = 0; j < 8; ++j) {
      dweight[static_cast<long long>(blockIdx.x) * width + i + j] = sums[i + j];
    }
  }
}
