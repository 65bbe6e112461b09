// Attention of one new token per sequence over its cache, on the CPU.
//
// A cache extent holds keys as [rows, kv_heads, head_dim, capacity] (a key is a column, so that the
// scores of 64 keys are computed side by side without horizontal sums) and values as
// [rows, kv_heads, capacity, head_dim]. A sequence reads two extents: the prompt's, shared by its
// group, then its own.
//
// Each (sequence, kv head) is computed by one thread in a fixed order: the result does not depend on
// the batch or the number of threads.

#include "shim.h"
#include "simd.h"

#include <cmath>
#include <vector>

#include <ATen/Parallel.h>

namespace {

constexpr int64_t kBlock = 64; // keys scored together; capacities are multiples of it
constexpr int kQueries = 4;    // query heads that share a pass over the cache

template <typename T>
struct Extent {
  const T* keys;   // [head_dim, capacity]
  const T* values; // [capacity, head_dim]
  int64_t capacity;
  int64_t length;
};

// scores[q][j] = scale * query[q] . key[j]
template <typename T, int Q>
G2RL_INLINE void score(
    const float* query, int64_t head_dim, const Extent<T>& extent, float scale, float* scores, int64_t stride) {
  for (int64_t start = 0; start < extent.length; start += kBlock) {
    float acc[Q][kBlock] = {};
    for (int64_t i = 0; i < head_dim; ++i) {
      const T* row = extent.keys + i * extent.capacity + start;
      float key[kBlock];
      for (int64_t j = 0; j < kBlock; ++j) {
        key[j] = g2rl::to_float(row[j]);
      }
      for (int q = 0; q < Q; ++q) {
        const float value = query[q * head_dim + i];
        for (int64_t j = 0; j < kBlock; ++j) {
          acc[q][j] += value * key[j];
        }
      }
    }
    const int64_t live = extent.length - start < kBlock ? extent.length - start : kBlock;
    for (int q = 0; q < Q; ++q) {
      for (int64_t j = 0; j < live; ++j) {
        scores[q * stride + start + j] = scale * acc[q][j];
      }
    }
  }
}

// out[q] += sum_j weight[q][j] value[j]
template <typename T, int Q>
G2RL_INLINE void mix(
    const float* weights, int64_t stride, const Extent<T>& extent, int64_t head_dim, float* out) {
  constexpr int64_t kColumns = 16;
  int64_t i = 0;
  for (; i + kColumns <= head_dim; i += kColumns) {
    float acc[Q][kColumns];
    for (int q = 0; q < Q; ++q) {
      for (int64_t c = 0; c < kColumns; ++c) {
        acc[q][c] = out[q * head_dim + i + c];
      }
    }
    for (int64_t j = 0; j < extent.length; ++j) {
      const T* row = extent.values + j * head_dim + i;
      float value[kColumns];
      for (int64_t c = 0; c < kColumns; ++c) {
        value[c] = g2rl::to_float(row[c]);
      }
      for (int q = 0; q < Q; ++q) {
        const float weight = weights[q * stride + j];
        for (int64_t c = 0; c < kColumns; ++c) {
          acc[q][c] += weight * value[c];
        }
      }
    }
    for (int q = 0; q < Q; ++q) {
      for (int64_t c = 0; c < kColumns; ++c) {
        out[q * head_dim + i + c] = acc[q][c];
      }
    }
  }
  for (; i < head_dim; ++i) {
    for (int q = 0; q < Q; ++q) {
      float acc = out[q * head_dim + i];
      for (int64_t j = 0; j < extent.length; ++j) {
        acc += weights[q * stride + j] * g2rl::to_float(extent.values[j * head_dim + i]);
      }
      out[q * head_dim + i] = acc;
    }
  }
}

template <typename T, int Q>
G2RL_INLINE void attend_queries(
    const float* query, int64_t head_dim, const Extent<T>& prompt, const Extent<T>& own, float scale, float* scores,
    float* out) {
  const int64_t total = prompt.length + own.length;
  score<T, Q>(query, head_dim, prompt, scale, scores, total);
  score<T, Q>(query, head_dim, own, scale, scores + prompt.length, total);
  for (int q = 0; q < Q; ++q) {
    float* row = scores + q * total;
    float largest = row[0];
    for (int64_t j = 1; j < total; ++j) {
      largest = row[j] > largest ? row[j] : largest;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < total; ++j) {
      row[j] = g2rl::exp_nonpositive(row[j] - largest);
      sum += row[j];
    }
    const float inverse = 1.0f / sum;
    for (int64_t j = 0; j < total; ++j) {
      row[j] *= inverse;
    }
    for (int64_t i = 0; i < head_dim; ++i) {
      out[q * head_dim + i] = 0;
    }
  }
  mix<T, Q>(scores, total, prompt, head_dim, out);
  mix<T, Q>(scores + prompt.length, total, own, head_dim, out);
}

template <typename T>
G2RL_INLINE void attend(
    const float* query, int64_t queries, int64_t head_dim, const Extent<T>& prompt, const Extent<T>& own, float scale,
    float* scores, float* out) {
  int64_t q = 0;
  for (; q + kQueries <= queries; q += kQueries) {
    attend_queries<T, kQueries>(query + q * head_dim, head_dim, prompt, own, scale, scores, out + q * head_dim);
  }
  for (; q + 2 <= queries; q += 2) {
    attend_queries<T, 2>(query + q * head_dim, head_dim, prompt, own, scale, scores, out + q * head_dim);
  }
  for (; q < queries; ++q) {
    attend_queries<T, 1>(query + q * head_dim, head_dim, prompt, own, scale, scores, out + q * head_dim);
  }
}

G2RL_CLONES void attend_f32(
    const float* query, int64_t queries, int64_t head_dim, const Extent<float>& prompt, const Extent<float>& own,
    float scale, float* scores, float* out) {
  attend<float>(query, queries, head_dim, prompt, own, scale, scores, out);
}

G2RL_CLONES void attend_bf16(
    const float* query, int64_t queries, int64_t head_dim, const Extent<uint16_t>& prompt,
    const Extent<uint16_t>& own, float scale, float* scores, float* out) {
  attend<uint16_t>(query, queries, head_dim, prompt, own, scale, scores, out);
}

void attend_row(
    const float* query, int64_t queries, int64_t head_dim, const Extent<float>& prompt, const Extent<float>& own,
    float scale, float* scores, float* out) {
  attend_f32(query, queries, head_dim, prompt, own, scale, scores, out);
}

void attend_row(
    const float* query, int64_t queries, int64_t head_dim, const Extent<uint16_t>& prompt,
    const Extent<uint16_t>& own, float scale, float* scores, float* out) {
  attend_bf16(query, queries, head_dim, prompt, own, scale, scores, out);
}

struct Caches {
  at::Tensor prompt_keys, prompt_values, keys, values;
};

template <typename T>
void run(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const Caches& caches,
    const int64_t* rows, at::Tensor& out) {
  const int64_t batch = query.size(0), heads = query.size(1), head_dim = query.size(2);
  const int64_t kv_heads = caches.keys.size(1), queries = heads / kv_heads;
  const int64_t prompt_capacity = caches.prompt_keys.size(3), capacity = caches.keys.size(3);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const auto* prompt_keys = static_cast<const T*>(caches.prompt_keys.data_ptr());
  const auto* prompt_values = static_cast<const T*>(caches.prompt_values.data_ptr());
  auto* keys = static_cast<T*>(caches.keys.data_ptr());
  auto* values = static_cast<T*>(caches.values.data_ptr());
  const auto* new_keys = static_cast<const T*>(key.data_ptr());
  const auto* new_values = static_cast<const T*>(value.data_ptr());
  const auto* query_data = static_cast<const T*>(query.data_ptr());
  auto* out_data = static_cast<T*>(out.data_ptr());
  at::parallel_for(0, batch * kv_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scores, buffer(static_cast<size_t>(2 * queries * head_dim));
    for (int64_t index = begin; index < end; ++index) {
      const int64_t b = index / kv_heads, head = index % kv_heads;
      const int64_t* row = rows + 4 * b; // prompt row, prompt length, slot, own length
      const int64_t prompt_row = row[0] * kv_heads + head, own_row = row[2] * kv_heads + head;
      T* own_keys = keys + own_row * head_dim * capacity;
      T* own_values = values + own_row * capacity * head_dim;
      // 1. The new token joins its own extent.
      for (int64_t i = 0; i < head_dim; ++i) {
        own_keys[i * capacity + row[3]] = new_keys[index * head_dim + i];
        own_values[row[3] * head_dim + i] = new_values[index * head_dim + i];
      }
      // 2. It attends to everything up to itself.
      const Extent<T> prompt{
          prompt_keys + prompt_row * head_dim * prompt_capacity, prompt_values + prompt_row * prompt_capacity * head_dim,
          prompt_capacity, row[1]};
      const Extent<T> own{own_keys, own_values, capacity, row[3] + 1};
      scores.resize(static_cast<size_t>(kQueries * (prompt.length + own.length)));
      float* in = buffer.data();
      float* result = buffer.data() + queries * head_dim;
      const int64_t first = (b * heads + head * queries) * head_dim;
      for (int64_t i = 0; i < queries * head_dim; ++i) {
        in[i] = g2rl::to_float(query_data[first + i]);
      }
      attend_row(in, queries, head_dim, prompt, own, scale, scores.data(), result);
      for (int64_t i = 0; i < queries * head_dim; ++i) {
        g2rl::from_float(result[i], out_data[first + i]);
      }
    }
  });
}

void check_cache(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& query, const char* name) {
  TORCH_CHECK(keys.dim() == 4 && values.dim() == 4, name, " caches have four dimensions");
  TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), name, " caches are contiguous");
  TORCH_CHECK(keys.scalar_type() == query.scalar_type() && values.scalar_type() == query.scalar_type(), name, " caches have the query's kind");
  TORCH_CHECK(keys.size(2) == query.size(2) && values.size(3) == query.size(2), name, " caches have the query's head size");
  TORCH_CHECK(keys.size(3) == values.size(2) && keys.size(3) % kBlock == 0, name, " capacity is a multiple of ", kBlock);
  TORCH_CHECK(query.size(1) % keys.size(1) == 0, "query heads are a multiple of the key heads");
}

} // namespace

extern "C" {

// query [b, heads, head_dim], key and value [b, kv_heads, head_dim]; caches as above; rows [b][4] =
// prompt row, prompt length, slot, own length before this token. Returns [b, heads, head_dim].
char* g2rl_decode_attention(
    at::Tensor* query, at::Tensor* key, at::Tensor* value, at::Tensor* const* caches, const int64_t* rows,
    at::Tensor** out) {
  return g2rl::guarded([&] {
    at::NoGradGuard guard;
    const Caches all{*caches[0], *caches[1], *caches[2], *caches[3]};
    TORCH_CHECK(query->dim() == 3, "the query is [batch, heads, head size]");
    check_cache(all.prompt_keys, all.prompt_values, *query, "prompt");
    check_cache(all.keys, all.values, *query, "own");
    const int64_t batch = query->size(0);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t* row = rows + 4 * b;
      TORCH_CHECK(
          row[0] >= 0 && row[0] < all.prompt_keys.size(0) && row[1] >= 0 && row[1] <= all.prompt_keys.size(3),
          "sequence ", b, ": prompt row ", row[0], " with ", row[1], " tokens is outside the cache");
      TORCH_CHECK(
          row[2] >= 0 && row[2] < all.keys.size(0) && row[3] >= 0 && row[3] < all.keys.size(3), "sequence ", b,
          ": slot ", row[2], " with ", row[3], " tokens has no room for one more");
    }
    const auto q = query->contiguous(), k = key->contiguous(), v = value->contiguous();
    auto result = at::empty_like(q);
    if (q.scalar_type() == at::kFloat) {
      run<float>(q, k, v, all, rows, result);
    } else {
      TORCH_CHECK(q.scalar_type() == at::kBFloat16, "the query is f32 or bf16");
      run<uint16_t>(q, k, v, all, rows, result);
    }
    *out = new at::Tensor(std::move(result));
  });
}

} // extern "C"
