// Causal attention over packed segments, forward and backward, on a CPU, in f32 or bf16.
//
// A segment attends to itself causally and before that to all of its prefix, an earlier segment: the
// answers of a group are segments whose prefix is their common prompt, which stands there once. One task
// is a family (a segment and those that have it as prefix) and a key head with its query heads. Sums run
// in a fixed order, so results do not depend on the number of threads.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <vector>

#include "parallel.h"
#include "status.h"
#include "vector.h"

using namespace g2rl;

namespace {

// Columns of a panel; heads are padded to a multiple of it.
constexpr int64_t kPanel = 2 * kWidth;
// Query rows whose scores exist at once.
constexpr int64_t kQueries = 32;

int64_t padded(int64_t size) {
  return (size + kPanel - 1) / kPanel * kPanel;
}

// A product's right side: `inner` rows of 32 columns with distance `ld`, panels `step` apart.
struct Right {
  const float* data;
  int64_t ld, step, inner, panels;
};

template <int count, bool transposed, bool add>
G2RL_INLINE void tile(const float* a, int64_t lda, const Right& b, const float* panel, float* c, int64_t ldc) {
  Floats low[count] = {}, high[count] = {};
  for (int64_t i = 0; i < b.inner; ++i) {
    const Floats left = load(panel + i * b.ld), right = load(panel + i * b.ld + kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) {
      const Floats v = splat(transposed ? a[i * lda + r] : a[r * lda + i]);
      low[r] += v * left;
      high[r] += v * right;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) {
    float* out = c + r * ldc;
    store(out, add ? load(out) + low[r] : low[r]);
    store(out + kWidth, add ? load(out + kWidth) + high[r] : high[r]);
  }
}

template <bool transposed, bool add>
G2RL_INLINE void product(const float* a, int64_t lda, int64_t rows, const Right& b, float* c, int64_t ldc) {
  for (int64_t p = 0; p < b.panels; ++p) {
    const float* panel = b.data + p * b.step;
    float* out = c + p * kPanel;
    int64_t row = 0;
    for (; row + 8 <= rows; row += 8) {
      tile<8, transposed, add>(transposed ? a + row : a + row * lda, lda, b, panel, out + row * ldc, ldc);
    }
    for (; row < rows; ++row) {
      tile<1, transposed, add>(transposed ? a + row : a + row * lda, lda, b, panel, out + row * ldc, ldc);
    }
  }
}

// C = A B, and C += A^T B with A [inner, rows].
G2RL_CLONES void multiply(const float* a, int64_t lda, int64_t rows, const Right& b, float* c, int64_t ldc) {
  product<false, false>(a, lda, rows, b, c, ldc);
}
G2RL_CLONES void add_transposed(const float* a, int64_t lda, int64_t rows, const Right& b, float* c, int64_t ldc) {
  product<true, true>(a, lda, rows, b, c, ldc);
}

// [count, width] to panels [width, 32] of 32 rows each; columns from `count` on are zero.
G2RL_CLONES void pack_transposed(const float* from, int64_t count, int64_t width, float* to) {
  for (int64_t panel = 0; panel * kPanel < count; ++panel) {
    float* out = to + panel * width * kPanel;
    const int64_t columns = std::min(kPanel, count - panel * kPanel);
    for (int64_t column = 0; column < kPanel; ++column) {
      const float* row = from + (panel * kPanel + column) * width;
      for (int64_t i = 0; i < width; ++i) {
        out[i * kPanel + column] = column < columns ? row[i] : 0.0f;
      }
    }
  }
}

template <typename T>
G2RL_INLINE void copy_in_rows(const void* from, int64_t stride, int64_t rows, int64_t dim, float scale, float* to) {
  const int64_t width = (dim + kPanel - 1) / kPanel * kPanel;
  const Floats factor = splat(scale);
  for (int64_t row = 0; row < rows; ++row) {
    const T* source = static_cast<const T*>(from) + row * stride;
    for (int64_t i = 0; i < width; i += kWidth) {
      store(to + row * width + i, take(source + i, dim - i) * factor);
    }
  }
}

template <typename T>
G2RL_INLINE void copy_out_rows(const float* from, int64_t rows, int64_t dim, float scale, void* to, int64_t stride) {
  const int64_t width = (dim + kPanel - 1) / kPanel * kPanel;
  const Floats factor = splat(scale);
  for (int64_t row = 0; row < rows; ++row) {
    T* target = static_cast<T*>(to) + row * stride;
    for (int64_t i = 0; i < dim; i += kWidth) {
      put(target + i, load(from + row * width + i) * factor, dim - i);
    }
  }
}

G2RL_CLONES void copy_in_f32(const void* from, int64_t stride, int64_t rows, int64_t dim, float scale, float* to) {
  copy_in_rows<float>(from, stride, rows, dim, scale, to);
}
G2RL_CLONES void copy_in_bf16(const void* from, int64_t stride, int64_t rows, int64_t dim, float scale, float* to) {
  copy_in_rows<uint16_t>(from, stride, rows, dim, scale, to);
}
G2RL_CLONES void copy_out_f32(const float* from, int64_t rows, int64_t dim, float scale, void* to, int64_t stride) {
  copy_out_rows<float>(from, rows, dim, scale, to, stride);
}
G2RL_CLONES void copy_out_bf16(const float* from, int64_t rows, int64_t dim, float scale, void* to, int64_t stride) {
  copy_out_rows<uint16_t>(from, rows, dim, scale, to, stride);
}

// Scores of `visible` keys to weights that sum to one; zeros up to `width`. Returns the log of the sum of
// the scores' exponentials.
G2RL_CLONES float softmax(float* scores, int64_t visible, int64_t width) {
  Floats top = splat(-FLT_MAX);
  for (int64_t i = 0; i < visible; i += kWidth) {
    const int64_t left = visible - i;
    top = larger(top, left >= kWidth ? load(scores + i) : load_part(scores + i, left, -FLT_MAX));
  }
  const float maximum = largest(top);
  Floats total = {};
  for (int64_t i = 0; i < width; i += kWidth) {
    const int64_t left = visible - i;
    const Floats score = left >= kWidth ? load(scores + i) : load_part(scores + i, left > 0 ? left : 0, -FLT_MAX);
    // What is below -87 is zero, so also the padding, unless every score is as low.
    const Floats e = exponential(score - splat(maximum));
    store(scores + i, e);
    total += e;
  }
  const float all = sum(total);
  const Floats scale = splat(1.0f / all);
  for (int64_t i = 0; i < width; i += kWidth) {
    store(scores + i, load(scores + i) * scale);
  }
  return maximum + std::log(all);
}

// Scores become weights P = e^(score - normalizer), and `gradients` dLoss/dP becomes dLoss/dscore,
// P (dP - mean), for `visible` keys; zeros up to `width`.
G2RL_CLONES void softmax_backward(
    float* scores, float* gradients, int64_t visible, int64_t width, float normalizer, float mean) {
  for (int64_t i = 0; i < width; i += kWidth) {
    const int64_t left = visible - i;
    const Floats score = left >= kWidth ? load(scores + i) : load_part(scores + i, left > 0 ? left : 0, -FLT_MAX);
    const Floats weight = exponential(score - splat(normalizer));
    store(scores + i, weight);
    store(gradients + i, weight * (load(gradients + i) - splat(mean)));
  }
}

G2RL_CLONES float dot(const float* a, const float* b, int64_t size) {
  Floats total = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    total += load(a + i) * load(b + i);
  }
  return sum(total);
}

struct Segment {
  int64_t start, length, prefix_start, prefix_length;
};

// Rows of one head of a tensor [tokens, heads, dim].
struct Heads {
  char* data;
  int64_t stride, dim, element;
  bool bf16;

  Heads(const at::Tensor& t, int64_t heads, int64_t dim, int64_t first)
      : data(nullptr), stride(heads * dim), dim(dim), element(static_cast<int64_t>(t.element_size())),
        bf16(t.scalar_type() == at::kBFloat16) {
    data = static_cast<char*>(t.data_ptr()) + first * dim * element;
  }

  char* at(int64_t token, int64_t head) const { return data + (token * stride + head * dim) * element; }

  void read(int64_t token, int64_t head, int64_t rows, float scale, float* to) const {
    (bf16 ? copy_in_bf16 : copy_in_f32)(at(token, head), stride, rows, dim, scale, to);
  }

  void write(const float* from, int64_t rows, float scale, int64_t token, int64_t head) const {
    (bf16 ? copy_out_bf16 : copy_out_f32)(from, rows, dim, scale, at(token, head), stride);
  }
};

// One scratch memory per thread, given out piece by piece.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    if (memory().size() < static_cast<size_t>(floats)) {
      memory().resize(static_cast<size_t>(floats));
    }
  }
  float* take(int64_t floats) {
    float* piece = memory().data() + used_;
    used_ += floats;
    return piece;
  }

 private:
  static std::vector<float>& memory() {
    thread_local std::vector<float> floats;
    return floats;
  }
  int64_t used_ = 0;
};

struct Attention {
  Heads query, key, value;
  std::vector<Segment> segments;
  // First segment of each family, and the end.
  std::vector<size_t> families;
  int64_t heads, kv_heads, dim, width;
  float scale;

  int64_t group() const { return heads / kv_heads; }

  // Longest row of keys and longest own row of a family.
  std::pair<int64_t, int64_t> longest(size_t family) const {
    int64_t keys = 0, own = 0;
    for (size_t s = families[family]; s < families[family + 1]; ++s) {
      keys = std::max(keys, segments[s].prefix_length + segments[s].length);
      own = std::max(own, segments[s].length);
    }
    return {padded(keys), own};
  }

  void forward(size_t family, int64_t kv, const Heads& out, float* normalizers) const {
    const auto [most, own] = longest(family);
    Scratch scratch(most * width * 3 + own * width + kQueries * (most + width));
    float *keys = scratch.take(most * width), *values = scratch.take(most * width), *packed = scratch.take(most * width);
    float* queries = scratch.take(own * width);
    float *scores = scratch.take(kQueries * most), *result = scratch.take(kQueries * width);
    for (size_t index = families[family]; index < families[family + 1]; ++index) {
      const Segment& s = segments[index];
      const int64_t all = s.prefix_length + s.length;
      load_keys(s, kv, keys, values);
      pack_transposed(keys, all, width, packed);
      for (int64_t head = kv * group(); head < (kv + 1) * group(); ++head) {
        query.read(s.start, head, s.length, scale, queries);
        for (int64_t first = 0; first < s.length; first += kQueries) {
          const int64_t rows = std::min(kQueries, s.length - first);
          const int64_t visible = s.prefix_length + first + rows, columns = padded(visible);
          multiply(queries + first * width, width, rows, {packed, kPanel, width * kPanel, width, columns / kPanel}, scores, most);
          for (int64_t row = 0; row < rows; ++row) {
            const float normalizer = softmax(scores + row * most, s.prefix_length + first + row + 1, columns);
            normalizers[(s.start + first + row) * heads + head] = normalizer;
          }
          multiply(scores, most, rows, {values, width, kPanel, visible, width / kPanel}, result, width);
          out.write(result, rows, 1.0f, s.start + first, head);
        }
      }
    }
  }

  struct Gradients {
    Heads dout, out, dquery, dkey, dvalue;
    const float* normalizers;
  };

  void backward(size_t family, int64_t kv, const Gradients& g) const {
    const auto [most, own] = longest(family);
    Scratch scratch(most * width * 6 + own * width * 3 + kQueries * (2 * most + width));
    float *keys = scratch.take(most * width), *values = scratch.take(most * width);
    float *packed_keys = scratch.take(most * width), *packed_values = scratch.take(most * width);
    float *dkeys = scratch.take(most * width), *dvalues = scratch.take(most * width);
    float *queries = scratch.take(own * width), *douts = scratch.take(own * width), *outs = scratch.take(own * width);
    float *scores = scratch.take(kQueries * most), *dscores = scratch.take(kQueries * most);
    float* dqueries = scratch.take(kQueries * width);
    // The family's first segment is the others' prefix: its gradients are complete when all are done. They
    // stay in the first rows, where every other segment's keys have their prefix.
    const Segment& head_segment = segments[families[family]];
    const int64_t shared = head_segment.length;
    std::memset(dkeys, 0, static_cast<size_t>(shared * width) * sizeof(float));
    std::memset(dvalues, 0, static_cast<size_t>(shared * width) * sizeof(float));
    for (size_t index = families[family]; index < families[family + 1]; ++index) {
      const Segment& s = segments[index];
      const int64_t all = s.prefix_length + s.length;
      load_keys(s, kv, keys, values);
      pack_transposed(keys, all, width, packed_keys);
      pack_transposed(values, all, width, packed_values);
      if (index > families[family]) {
        std::memset(dkeys + s.prefix_length * width, 0, static_cast<size_t>(s.length * width) * sizeof(float));
        std::memset(dvalues + s.prefix_length * width, 0, static_cast<size_t>(s.length * width) * sizeof(float));
      }
      for (int64_t head = kv * group(); head < (kv + 1) * group(); ++head) {
        query.read(s.start, head, s.length, scale, queries);
        g.dout.read(s.start, head, s.length, 1.0f, douts);
        g.out.read(s.start, head, s.length, 1.0f, outs);
        for (int64_t first = 0; first < s.length; first += kQueries) {
          const int64_t rows = std::min(kQueries, s.length - first);
          const int64_t visible = s.prefix_length + first + rows, columns = padded(visible);
          const float *q = queries + first * width, *d = douts + first * width;
          multiply(q, width, rows, {packed_keys, kPanel, width * kPanel, width, columns / kPanel}, scores, most);
          multiply(d, width, rows, {packed_values, kPanel, width * kPanel, width, columns / kPanel}, dscores, most);
          for (int64_t row = 0; row < rows; ++row) {
            const float mean = dot(d + row * width, outs + (first + row) * width, width);
            const float normalizer = g.normalizers[(s.start + first + row) * heads + head];
            softmax_backward(scores + row * most, dscores + row * most, s.prefix_length + first + row + 1, columns, normalizer, mean);
          }
          add_transposed(scores, most, visible, {d, width, kPanel, rows, width / kPanel}, dvalues, width);
          add_transposed(dscores, most, visible, {q, width, kPanel, rows, width / kPanel}, dkeys, width);
          multiply(dscores, most, rows, {keys, width, kPanel, visible, width / kPanel}, dqueries, width);
          g.dquery.write(dqueries, rows, scale, s.start + first, head);
        }
      }
      if (index > families[family]) {
        g.dkey.write(dkeys + s.prefix_length * width, s.length, 1.0f, s.start, kv);
        g.dvalue.write(dvalues + s.prefix_length * width, s.length, 1.0f, s.start, kv);
      }
    }
    g.dkey.write(dkeys, shared, 1.0f, head_segment.start, kv);
    g.dvalue.write(dvalues, shared, 1.0f, head_segment.start, kv);
  }

  void load_keys(const Segment& s, int64_t kv, float* keys, float* values) const {
    key.read(s.prefix_start, kv, s.prefix_length, 1.0f, keys);
    value.read(s.prefix_start, kv, s.prefix_length, 1.0f, values);
    key.read(s.start, kv, s.length, 1.0f, keys + s.prefix_length * width);
    value.read(s.start, kv, s.length, 1.0f, values + s.prefix_length * width);
  }

  template <typename Task>
  void for_each(const Task& task) const {
    const int64_t count = static_cast<int64_t>(families.size() - 1);
    for_each_task(count * kv_heads, [&](int64_t i) { task(static_cast<size_t>(i / kv_heads), i % kv_heads); });
  }
};

void require(const at::Tensor& t, const at::Tensor& like, at::IntArrayRef sizes, const char* name) {
  if (!t.device().is_cpu() || !t.is_contiguous() || t.scalar_type() != like.scalar_type() || t.sizes() != sizes) {
    invalid(std::string(name) + " must be contiguous on the CPU, of one kind and of the right shape");
  }
}

} // namespace

extern "C" struct G2rlPackedAttention {
  // Queries and keys after rotation [tokens, heads + kv_heads, dim].
  const at::Tensor* turned;
  // Queries, keys and values before it [tokens, (heads + 2 kv_heads) dim]; the values are taken.
  const at::Tensor* qkv;
  int64_t heads, kv_heads, dim;
  double scale;
  // [segments] each; a prefix is the index of an earlier segment without prefix, or -1. Segments of one
  // prefix follow it.
  const int64_t *starts, *lengths, *prefixes;
  int64_t segments;
};

namespace {

Attention checked(const G2rlPackedAttention& a) {
  const at::Tensor &turned = *a.turned, &qkv = *a.qkv;
  if (turned.scalar_type() != at::kFloat && turned.scalar_type() != at::kBFloat16) {
    invalid("queries and keys must be f32 or bf16");
  }
  if (a.kv_heads <= 0 || a.heads <= 0 || a.heads % a.kv_heads != 0 || a.dim <= 0) {
    invalid("heads must be a multiple of kv_heads");
  }
  const int64_t tokens = turned.size(0), all = a.heads + a.kv_heads;
  require(turned, turned, {tokens, all, a.dim}, "queries and keys");
  require(qkv, turned, {tokens, (all + a.kv_heads) * a.dim}, "qkv");
  Attention attention{Heads(turned, all, a.dim, 0), Heads(turned, all, a.dim, a.heads),
                      Heads(qkv, all + a.kv_heads, a.dim, all), {}, {}, a.heads, a.kv_heads, a.dim,
                      padded(a.dim), static_cast<float>(a.scale)};
  int64_t next = 0, family = -1;
  for (int64_t i = 0; i < a.segments; ++i) {
    Segment s{a.starts[i], a.lengths[i], 0, 0};
    if (s.start != next || s.length <= 0 || s.start + s.length > tokens) {
      invalid("segment " + std::to_string(i) + " does not follow the one before or leaves the tokens");
    }
    next = s.start + s.length;
    const int64_t prefix = a.prefixes[i];
    if (prefix < 0) {
      family = i;
      attention.families.push_back(static_cast<size_t>(i));
    } else if (prefix == family) {
      s.prefix_start = a.starts[prefix];
      s.prefix_length = a.lengths[prefix];
    } else {
      invalid("segment " + std::to_string(i) + " does not stand with its prefix");
    }
    attention.segments.push_back(s);
  }
  if (next != tokens) {
    invalid("the segments do not cover the tokens");
  }
  attention.families.push_back(attention.segments.size());
  return attention;
}

} // namespace

// The attention's output [tokens, heads, dim] and, for the backward, the log of each softmax's sum
// [tokens, heads] f32.
extern "C" G2rlStatus g2rl_packed_attention(
    const G2rlPackedAttention* a, at::Tensor** result, at::Tensor** normalizers) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const Attention attention = checked(*a);
    const int64_t tokens = a->turned->size(0);
    at::Tensor out = at::empty({tokens, a->heads, a->dim}, a->turned->options());
    at::Tensor sums = at::empty({tokens, a->heads}, a->turned->options().dtype(at::kFloat));
    const Heads heads(out, a->heads, a->dim, 0);
    float* normalizer = sums.mutable_data_ptr<float>();
    attention.for_each([&](size_t family, int64_t kv) { attention.forward(family, kv, heads, normalizer); });
    *result = new at::Tensor(std::move(out));
    *normalizers = new at::Tensor(std::move(sums));
  });
}

// The gradients by queries and keys after rotation [tokens, heads + kv_heads, dim], and a tensor like qkv
// of which only the values' part is written.
extern "C" G2rlStatus g2rl_packed_attention_backward(
    const G2rlPackedAttention* a, const at::Tensor* dout, const at::Tensor* out, const at::Tensor* normalizers,
    at::Tensor** dturned, at::Tensor** dqkv) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const Attention attention = checked(*a);
    const int64_t tokens = a->turned->size(0), all = a->heads + a->kv_heads;
    require(*dout, *a->turned, {tokens, a->heads, a->dim}, "the gradient");
    require(*out, *a->turned, {tokens, a->heads, a->dim}, "the output");
    if (!normalizers->is_contiguous() || normalizers->scalar_type() != at::kFloat || normalizers->sizes() != at::IntArrayRef({tokens, a->heads})) {
      invalid("the normalizers must be contiguous f32 [tokens, heads]");
    }
    at::Tensor turned = at::empty_like(*a->turned), values = at::empty_like(*a->qkv);
    const Attention::Gradients gradients{
        Heads(*dout, a->heads, a->dim, 0), Heads(*out, a->heads, a->dim, 0), Heads(turned, all, a->dim, 0),
        Heads(turned, all, a->dim, a->heads), Heads(values, all + a->kv_heads, a->dim, all),
        normalizers->const_data_ptr<float>()};
    attention.for_each([&](size_t family, int64_t kv) { attention.backward(family, kv, gradients); });
    *dturned = new at::Tensor(std::move(turned));
    *dqkv = new at::Tensor(std::move(values));
  });
}
