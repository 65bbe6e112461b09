// Attention of one new token per sequence over a prompt extent, which sequences may share, and the
// sequence's own extent. One task computes all query heads that share a key head of one sequence.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "attend.h"
#include "parallel.h"
#include "status.h"
#include "vector.h"

using namespace g2rl;

namespace {

// Rows as f32 with a stride that is a multiple of kWidth: in place where they are that already.
template <typename T>
G2RL_INLINE const float* rows_as_f32(const T* rows, int64_t count, const AttendTask& t) {
  if constexpr (std::is_same_v<T, float>) {
    if (t.dim == t.padded) {
      return rows;
    }
    for (int64_t row = 0; row < count; ++row) {
      std::memcpy(t.staging + row * t.padded, rows + row * t.dim, static_cast<size_t>(t.dim) * sizeof(float));
    }
  } else {
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t i = 0; i < t.dim; i += kWidth) {
        store(t.staging + row * t.padded + i, take(rows + row * t.dim + i, t.dim - i));
      }
    }
  }
  return t.staging;
}

// Sixteen rows at a time: their sums come out of the registers together.
template <int heads>
G2RL_INLINE void dot_rows(const float* keys, int64_t count, const AttendTask& t, int64_t head, int64_t first) {
  for (int h = 0; h < heads; ++h) {
    const float* query = t.query + (head + h) * t.padded;
    float* scores = t.scores + (head + h) * t.tokens + first;
    int64_t row = 0;
    for (; row + kWidth <= count; row += kWidth) {
      Floats sums[kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) {
        const float* key = keys + (row + r) * t.padded;
        Floats total = load(query) * load(key);
        for (int64_t i = kWidth; i < t.padded; i += kWidth) {
          total += load(query + i) * load(key + i);
        }
        sums[r] = total;
      }
      store(scores + row, sum_each(sums));
    }
    for (; row < count; ++row) {
      const float* key = keys + row * t.padded;
      Floats total = load(query) * load(key);
      for (int64_t i = kWidth; i < t.padded; i += kWidth) {
        total += load(query + i) * load(key + i);
      }
      scores[row] = sum(total);
    }
  }
}

template <int heads>
G2RL_INLINE void add_rows(const float* values, int64_t count, const AttendTask& t, int64_t head, int64_t first) {
  for (int64_t i = 0; i < t.padded; i += kWidth) {
    Floats sums[heads];
    for (int h = 0; h < heads; ++h) {
      sums[h] = load(t.out + (head + h) * t.padded + i);
    }
    for (int64_t row = 0; row < count; ++row) {
      const Floats v = load(values + row * t.padded + i);
      for (int h = 0; h < heads; ++h) {
        sums[h] += splat(t.scores[(head + h) * t.tokens + first + row]) * v;
      }
    }
    for (int h = 0; h < heads; ++h) {
      store(t.out + (head + h) * t.padded + i, sums[h]);
    }
  }
}

// Calls step(heads, first head) for all heads of the group, four at a time.
#define FOR_HEADS(function, rows, count, t, first)                          \
  do {                                                                      \
    int64_t head = 0;                                                       \
    for (; head + kHeads <= (t).group; head += kHeads) {                    \
      function<kHeads>(rows, count, t, head, first);                        \
    }                                                                       \
    for (; head + 2 <= (t).group; head += 2) {                              \
      function<2>(rows, count, t, head, first);                             \
    }                                                                       \
    for (; head < (t).group; ++head) {                                      \
      function<1>(rows, count, t, head, first);                             \
    }                                                                       \
  } while (false)

// Asks for rows that are read soon: the extents of a head are too short for the processor to see the
// pattern in time.
template <typename T>
G2RL_INLINE void ask_for(const T* rows, int64_t count, int64_t dim) {
  const char* from = reinterpret_cast<const char*>(rows);
  const int64_t bytes = count * dim * static_cast<int64_t>(sizeof(T));
  for (int64_t at = 0; at < bytes; at += 64) {
    __builtin_prefetch(from + at, 0, 3);
  }
}

// Asks for the values meanwhile.
template <typename T>
G2RL_INLINE void score_extent(const T* keys, const T* values, int64_t length, int64_t first, const AttendTask& t) {
  for (int64_t row = 0; row < length; row += kTokens) {
    const int64_t count = length - row < kTokens ? length - row : kTokens;
    ask_for(values + row * t.dim, count, t.dim);
    const float* rows = rows_as_f32(keys + row * t.dim, count, t);
    FOR_HEADS(dot_rows, rows, count, t, first + row);
  }
}

template <typename T>
G2RL_INLINE void gather_extent(const T* values, int64_t length, int64_t first, const AttendTask& t) {
  for (int64_t row = 0; row < length; row += kTokens) {
    const int64_t count = length - row < kTokens ? length - row : kTokens;
    const float* rows = rows_as_f32(values + row * t.dim, count, t);
    FOR_HEADS(add_rows, rows, count, t, first + row);
  }
}

// Scores to weights that sum to one.
G2RL_INLINE void softmax(float* scores, int64_t count) {
  const int64_t whole = count / kWidth * kWidth;
  const int64_t rest = count - whole;
  Floats top = splat(-FLT_MAX);
  for (int64_t i = 0; i < whole; i += kWidth) {
    top = larger(top, load(scores + i));
  }
  if (rest > 0) {
    top = larger(top, load_part(scores + whole, rest, -FLT_MAX));
  }
  const Floats maximum = splat(largest(top));
  Doubles8 total = {};
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Floats e = exponential(load(scores + i) - maximum);
    store(scores + i, e);
    add_to(total, e);
  }
  if (rest > 0) {
    // Padding lanes are so low that they add nothing.
    const Floats e = exponential(load_part(scores + whole, rest, -FLT_MAX) - maximum);
    std::memcpy(scores + whole, &e, static_cast<size_t>(rest) * sizeof(float));
    add_to(total, e);
  }
  const Floats scale = splat(static_cast<float>(1.0 / sum(total)));
  for (int64_t i = 0; i < whole; i += kWidth) {
    store(scores + i, load(scores + i) * scale);
  }
  for (int64_t i = whole; i < count; ++i) {
    scores[i] *= scale[0];
  }
}

template <typename T>
G2RL_INLINE void attend_rows(Extent pk, Extent pv, Extent k, Extent v, const AttendTask& t) {
  ask_for(static_cast<const T*>(k.data), k.length, t.dim);
  score_extent(static_cast<const T*>(pk.data), static_cast<const T*>(pv.data), pk.length, 0, t);
  score_extent(static_cast<const T*>(k.data), static_cast<const T*>(v.data), k.length, pk.length, t);
  for (int64_t head = 0; head < t.group; ++head) {
    softmax(t.scores + head * t.tokens, t.tokens);
  }
  gather_extent(static_cast<const T*>(pv.data), pv.length, 0, t);
  gather_extent(static_cast<const T*>(v.data), v.length, pv.length, t);
}

G2RL_CLONES void attend_f32(Extent pk, Extent pv, Extent k, Extent v, const AttendTask& t) {
  attend_rows<float>(pk, pv, k, v, t);
}

G2RL_CLONES void attend_bf16(Extent pk, Extent pv, Extent k, Extent v, const AttendTask& t) {
  attend_rows<uint16_t>(pk, pv, k, v, t);
}

} // namespace

void g2rl::attend(Extent pk, Extent pv, Extent k, Extent v, const AttendTask& t, bool bf16) {
  if (bf16) {
    attend_bf16(pk, pv, k, v, t);
  } else {
    attend_f32(pk, pv, k, v, t);
  }
}

namespace {

// One kind of extent: [rows, kv_heads, capacity, dim] and each sequence's row and length in it.
struct Cache {
  const char* keys;
  const char* values;
  int64_t rows, capacity;
  const int64_t* row;
  const int64_t* length;

  Extent extent(const char* base, int64_t sequence, int64_t head, int64_t heads, int64_t row_bytes) const {
    const int64_t live = length[sequence];
    const int64_t offset = live == 0 ? 0 : (row[sequence] * heads + head) * capacity * row_bytes;
    return {base + offset, live};
  }
};

void require(bool condition, const char* message) {
  if (!condition) {
    invalid(message);
  }
}

Cache checked_cache(
    const at::Tensor& keys, const at::Tensor& values, const at::Tensor& row, const at::Tensor& length,
    const at::Tensor& query, const char* name) {
  const std::string which(name);
  auto check = [&](bool condition, const char* what) { require(condition, (which + ": " + what).c_str()); };
  check(keys.dim() == 4 && values.sizes() == keys.sizes(), "keys and values must be [rows, kv_heads, capacity, d]");
  check(keys.is_contiguous() && values.is_contiguous(), "keys and values must be contiguous");
  check(keys.scalar_type() == values.scalar_type(), "keys and values must be of one kind");
  check(keys.device().is_cpu() && values.device().is_cpu(), "keys and values must be on the CPU");
  check(keys.size(3) == query.size(2), "the head size differs from the query's");
  for (const at::Tensor* index : {&row, &length}) {
    check(index->scalar_type() == at::kLong && index->dim() == 1 && index->is_contiguous() &&
              index->device().is_cpu() && index->size(0) == query.size(0),
          "rows and lengths must be contiguous i64 [b] on the CPU");
  }
  Cache cache{
      static_cast<const char*>(keys.const_data_ptr()), static_cast<const char*>(values.const_data_ptr()),
      keys.size(0), keys.size(2), row.const_data_ptr<int64_t>(), length.const_data_ptr<int64_t>()};
  for (int64_t i = 0; i < query.size(0); ++i) {
    if (cache.length[i] < 0 || cache.length[i] > cache.capacity) {
      invalid(which + ": sequence " + std::to_string(i) + " has length " + std::to_string(cache.length[i]) +
              ", the capacity is " + std::to_string(cache.capacity));
    }
    if (cache.length[i] > 0 && (cache.row[i] < 0 || cache.row[i] >= cache.rows)) {
      invalid(which + ": sequence " + std::to_string(i) + " names row " + std::to_string(cache.row[i]) + " of " +
              std::to_string(cache.rows));
    }
  }
  return cache;
}

} // namespace

extern "C" struct G2rlDecodeAttention {
  at::Tensor* query;
  at::Tensor *prompt_keys, *prompt_values, *prompt_row, *prompt_length;
  at::Tensor *keys, *values, *slot, *length;
  double scale;
};

extern "C" G2rlStatus g2rl_decode_attention(const G2rlDecodeAttention* a, at::Tensor** result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const at::Tensor& query = *a->query;
    require(query.dim() == 3 && query.device().is_cpu(), "the query must be [b, heads, d] on the CPU");
    const Cache prompt =
        checked_cache(*a->prompt_keys, *a->prompt_values, *a->prompt_row, *a->prompt_length, query, "prompt");
    const Cache own = checked_cache(*a->keys, *a->values, *a->slot, *a->length, query, "own");
    const auto kind = a->keys->scalar_type();
    require(kind == at::kFloat || kind == at::kBFloat16, "the caches must be f32 or bf16");
    require(a->prompt_keys->scalar_type() == kind, "the caches must be of one kind");
    const int64_t batch = query.size(0), heads = query.size(1), dim = query.size(2);
    const int64_t kv_heads = a->keys->size(1);
    require(a->prompt_keys->size(1) == kv_heads, "the caches must have the same number of heads");
    require(kv_heads > 0 && heads % kv_heads == 0, "heads must be a multiple of kv_heads");
    const int64_t group = heads / kv_heads;
    const int64_t padded = (dim + kWidth - 1) / kWidth * kWidth;
    for (int64_t i = 0; i < batch; ++i) {
      if (prompt.length[i] + own.length[i] == 0) {
        invalid("sequence " + std::to_string(i) + " has no token to attend to");
      }
    }

    const at::Tensor scaled = query.to(at::kFloat).mul(a->scale).contiguous();
    at::Tensor output = at::empty({batch, heads, dim}, scaled.options());
    const float* queries = scaled.const_data_ptr<float>();
    float* outputs = output.mutable_data_ptr<float>();

    // Sequences of one prompt run one after another, so that its rows stay in the cache.
    std::vector<int64_t> order(static_cast<size_t>(batch));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return prompt.row[x] < prompt.row[y]; });
    const int64_t row_bytes = dim * static_cast<int64_t>(a->keys->element_size());

    for_each_task(batch * kv_heads, [&](int64_t index) {
      // A sequence's tasks for one key head follow each other within a prompt, not within a sequence:
      // all heads of a sequence are few, so plain order serves both.
      const int64_t sequence = order[static_cast<size_t>(index / kv_heads)];
      const int64_t head = index % kv_heads;
      const int64_t tokens = prompt.length[sequence] + own.length[sequence];
      thread_local std::vector<float> scratch;
      const size_t needed = static_cast<size_t>(AttendTask::scratch(group, padded, tokens));
      if (scratch.size() < needed) {
        scratch.resize(needed);
      }
      float* padded_query = scratch.data();
      float* out = padded_query + group * padded;
      float* staging = out + group * padded;
      // The padding of query and rows must be zero, the sums start at zero.
      std::memset(padded_query, 0, static_cast<size_t>(2 * group * padded + kTokens * padded) * sizeof(float));
      const int64_t first_head = sequence * heads + head * group;
      for (int64_t h = 0; h < group; ++h) {
        std::memcpy(padded_query + h * padded, queries + (first_head + h) * dim, static_cast<size_t>(dim) * 4);
      }
      const AttendTask task{padded_query, staging + kTokens * padded, out, staging, group, padded, dim, tokens};
      attend(prompt.extent(prompt.keys, sequence, head, kv_heads, row_bytes),
          prompt.extent(prompt.values, sequence, head, kv_heads, row_bytes),
          own.extent(own.keys, sequence, head, kv_heads, row_bytes),
          own.extent(own.values, sequence, head, kv_heads, row_bytes), task, kind == at::kBFloat16);
      for (int64_t h = 0; h < group; ++h) {
        std::memcpy(outputs + (first_head + h) * dim, out + h * padded, static_cast<size_t>(dim) * 4);
      }
    });
    *result = new at::Tensor(output.to(query.scalar_type()));
  });
}
