// Attention of one new token per row over itself and two extents of a pool, its prompt's and its own, as one softmax.
// The token's own keys and values come into the pool.
//
// HEAD_DIM is given by the build, which compiles this file once for each width.
//
// A block attends for the query heads of one key head of one row. A token's keys are D / 8 lanes of 16 bytes, so a
// warp's load holds 32 / (D / 8) tokens; warps and splits take turns along the extents. Every part keeps its own
// maximum, sum and weighted values in f32, and they are merged at the end.
#include "common.cuh"

namespace {

constexpr int WARPS = 4;

// Below every score, yet finite: the maximum of no scores.
constexpr float NO_SCORE = -1e30f;

// The places of the rows' numbers, [rows] each.
struct Rows {
  const long long* prompt_start;
  const long long* prompt_length;
  const long long* own_start;
  // Tokens of the own extent before the new one.
  const long long* own_length;
  // 0 for rows that read nothing and return 0.
  const long long* alive;
};

// The new token of each row: [rows, heads, D] in rows of a stride of their own.
struct Token {
  const bf16* __restrict__ query;
  long long query_stride;
  const bf16* __restrict__ key;
  long long key_stride;
  const bf16* __restrict__ value;
  long long value_stride;
};

// What a part of an extent adds up to: the maximum of its scores in powers of two, and relative to it the sum of the
// weights and of the weighted values.
template <int G>
struct Sums {
  float largest[G];
  float weight[G];
  float values[G][8];
};

// The product of 8 numbers a lane, summed over LANES lanes that are all in `mask`.
template <int LANES>
__device__ float dot(const float* a, const float* b, unsigned mask) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    sum = fmaf(a[i], b[i], sum);
  }
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(mask, sum, offset);
  }
  return sum;
}

template <int D, int G>
__device__ void attend(
    Token token,
    bf16* keys,
    bf16* values,
    Rows rows,
    bf16* __restrict__ output,
    float* __restrict__ partial,
    float scale) {
  constexpr int LANES = D / 8;
  constexpr int TOKENS = 32 / LANES;
  constexpr int UNROLL = G > 4 ? 2 : 4;
  const int kv_head = blockIdx.x, row = blockIdx.y, split = blockIdx.z;
  const int kv_heads = gridDim.x, splits = gridDim.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = lane / LANES, element = lane % LANES * 8;

  // 1. Queries, scaled for powers of two.
  float q[G][8];
  for (int g = 0; g < G; ++g) {
    unpack(load(token.query + row * token.query_stride + (kv_head * G + g) * D + element), q[g]);
    for (int i = 0; i < 8; ++i) {
      q[g][i] *= scale * 1.4426950408889634f;
    }
  }

  // 2. Both extents, a few tokens at a time.
  Sums<G> sums;
  for (int g = 0; g < G; ++g) {
    sums.largest[g] = NO_SCORE;
    sums.weight[g] = 0.0f;
    for (int i = 0; i < 8; ++i) {
      sums.values[g][i] = 0.0f;
    }
  }
  const bool alive = rows.alive[row] != 0;
  if (alive && split == 0 && warp == 0 && part == 0) {
    const uint4 k = load(token.key + row * token.key_stride + kv_head * D + element);
    const uint4 v = load(token.value + row * token.value_stride + kv_head * D + element);
    const long long at = ((rows.own_start[row] + rows.own_length[row]) * kv_heads + kv_head) * D + element;
    *reinterpret_cast<uint4*>(keys + at) = k;
    *reinterpret_cast<uint4*>(values + at) = v;
    float key[8], value[8];
    unpack(k, key);
    unpack(v, value);
    for (int g = 0; g < G; ++g) {
      sums.largest[g] = dot<LANES>(q[g], key, (1ull << LANES) - 1);
      sums.weight[g] = 1.0f;
      for (int i = 0; i < 8; ++i) {
        sums.values[g][i] = value[i];
      }
    }
  }
  for (int extent = 0; extent < 2; ++extent) {
    const long long start = extent == 0 ? rows.prompt_start[row] : rows.own_start[row];
    const int count = !alive ? 0 : static_cast<int>(extent == 0 ? rows.prompt_length[row] : rows.own_length[row]);
    constexpr int STRIDE = TOKENS * UNROLL;
    for (int base = (split * WARPS + warp) * STRIDE; base < count; base += splits * WARPS * STRIDE) {
      uint4 k[UNROLL], v[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const int token = min(base + u * TOKENS + part, count - 1);
        const long long at = ((start + token) * kv_heads + kv_head) * D + element;
        k[u] = load(keys + at);
        v[u] = load(values + at);
      }
      float score[UNROLL][G];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        float key[8];
        unpack(k[u], key);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          score[u][g] = dot<LANES>(q[g], key, ~0u);
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g) {
        float largest = sums.largest[g];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          largest = base + u * TOKENS + part < count ? fmaxf(largest, score[u][g]) : largest;
        }
        const float shrink = exp2f(sums.largest[g] - largest);
        sums.largest[g] = largest;
        sums.weight[g] *= shrink;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          sums.values[g][i] *= shrink;
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          score[u][g] = base + u * TOKENS + part < count ? exp2f(score[u][g] - largest) : 0.0f;
          sums.weight[g] += score[u][g];
        }
      }
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        float value[8];
        unpack(v[u], value);
#pragma unroll
        for (int g = 0; g < G; ++g) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            sums.values[g][i] = fmaf(score[u][g], value[i], sums.values[g][i]);
          }
        }
      }
    }
  }

  // 3. The parts of a warp.
#pragma unroll
  for (int offset = LANES; offset < 32; offset *= 2) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const float other = __shfl_xor_sync(~0u, sums.largest[g], offset);
      const float largest = fmaxf(sums.largest[g], other);
      const float mine = exp2f(sums.largest[g] - largest), theirs = exp2f(other - largest);
      sums.largest[g] = largest;
      sums.weight[g] = sums.weight[g] * mine + __shfl_xor_sync(~0u, sums.weight[g], offset) * theirs;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sums.values[g][i] = sums.values[g][i] * mine + __shfl_xor_sync(~0u, sums.values[g][i], offset) * theirs;
      }
    }
  }

  // 4. The warps of the block.
  __shared__ float largests[WARPS][G], weights[WARPS][G], sum[WARPS][G][D];
  if (part == 0) {
    for (int g = 0; g < G; ++g) {
      largests[warp][g] = sums.largest[g];
      weights[warp][g] = sums.weight[g];
      for (int i = 0; i < 8; ++i) {
        sum[warp][g][element + i] = sums.values[g][i];
      }
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < G * D; at += WARPS * 32) {
    const int g = at / D, i = at % D;
    float largest = NO_SCORE, weight = 0.0f, value = 0.0f;
    for (int w = 0; w < WARPS; ++w) {
      largest = fmaxf(largest, largests[w][g]);
    }
    for (int w = 0; w < WARPS; ++w) {
      const float share = exp2f(largests[w][g] - largest);
      weight += weights[w][g] * share;
      value += sum[w][g][i] * share;
    }
    const long long head = static_cast<long long>(row) * kv_heads * G + kv_head * G + g;
    if (splits == 1) {
      output[head * D + i] = __float2bfloat16(weight > 0.0f ? value / weight : 0.0f);
    } else {
      float* to = partial + (head * splits + split) * (D + 2);
      to[i] = value;
      if (i == 0) {
        to[D] = largest;
        to[D + 1] = weight;
      }
    }
  }
}

} // namespace

// `partial` [rows, heads, splits, D + 2] f32 is written instead of `output` [rows, heads, D] if there are several splits.
// Grid: key heads, rows, splits. Block: 128.
#define ATTEND(G)                                                                                 \
  extern "C" __global__ void __launch_bounds__(128) attend_##G(                                   \
      const bf16* query, long long query_stride, const bf16* key, long long key_stride,           \
      const bf16* value, long long value_stride, bf16* keys, bf16* values,                        \
      const long long* prompt_start, const long long* prompt_length, const long long* own_start,  \
      const long long* own_length, const long long* alive, bf16* output, float* partial, float scale) { \
    const Token token{query, query_stride, key, key_stride, value, value_stride};                 \
    const Rows rows{prompt_start, prompt_length, own_start, own_length, alive};                   \
    attend<HEAD_DIM, G>(token, keys, values, rows, output, partial, scale);                       \
  }
ATTEND(1)
ATTEND(2)
ATTEND(3)
ATTEND(4)
ATTEND(5)
ATTEND(6)
ATTEND(7)
ATTEND(8)

// Merges the splits. Grid: heads of all rows. Block: HEAD_DIM.
extern "C" __global__ void merge_splits(const float* __restrict__ partial, bf16* __restrict__ output, int splits) {
  constexpr int D = HEAD_DIM;
  const float* from = partial + static_cast<long long>(blockIdx.x) * splits * (D + 2);
  float largest = NO_SCORE, weight = 0.0f, value = 0.0f;
  for (int s = 0; s < splits; ++s) {
    largest = fmaxf(largest, from[s * (D + 2) + D]);
  }
  for (int s = 0; s < splits; ++s) {
    const float share = exp2f(from[s * (D + 2) + D] - largest);
    weight += from[s * (D + 2) + D + 1] * share;
    value += from[s * (D + 2) + threadIdx.x] * share;
  }
  output[static_cast<long long>(blockIdx.x) * D + threadIdx.x] = __float2bfloat16(weight > 0.0f ? value / weight : 0.0f);
}
