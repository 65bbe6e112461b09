// One token of every running sequence through a whole decoder, on a CPU with AVX-512, in f32.
//
// Weights are packed once per policy into panels of 32 output columns, so that a product reads them in
// order. Everything between two products (norms, rotation, cache, gating, residuals) runs beside them in
// the same threads. Each output is the sum over its inputs in their order: it depends neither on the
// other sequences of the batch nor on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "attend.h"
#include "parallel.h"
#include "status.h"
#include "tensors.h"
#include "vector.h"

using namespace g2rl;

namespace {

// Output columns of a panel, and rows of a register tile.
constexpr int64_t kPanel = 2 * kWidth;
constexpr int kRows = 8;

struct Free {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  void* p = ::operator new(static_cast<size_t>(floats) * sizeof(float), std::align_val_t{64});
  return Buffer(static_cast<float*>(p));
}

// [panels, inputs, kPanel]: `columns` outputs, the last panel padded with zeros.
struct Packed {
  Buffer data;
  int64_t columns, inputs, panels;
};

// The source row of each column of a panel, -1 for padding.
template <typename Source>
Packed pack(const at::Tensor& weights, int64_t columns, int64_t panels, const Source& source) {
  const int64_t inputs = weights.size(1);
  Packed packed{allocate(panels * inputs * kPanel), columns, inputs, panels};
  const float* from = weights.const_data_ptr<float>();
  float* to = packed.data.get();
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t column = 0; column < kPanel; ++column) {
        const int64_t row = source(panel, column);
        for (int64_t i = 0; i < inputs; ++i) {
          to[(panel * inputs + i) * kPanel + column] = row < 0 ? 0.0f : from[row * inputs + i];
        }
      }
    }
  });
  return packed;
}

Packed pack_plain(const at::Tensor& weights) {
  const int64_t rows = weights.size(0);
  return pack(weights, rows, (rows + kPanel - 1) / kPanel, [=](int64_t panel, int64_t column) {
    const int64_t row = panel * kPanel + column;
    return row < rows ? row : -1;
  });
}

// Sixteen gates and the sixteen values they act on side by side.
Packed pack_gated(const at::Tensor& weights) {
  const int64_t inner = weights.size(0) / 2;
  return pack(weights, inner, (inner + kWidth - 1) / kWidth, [=](int64_t panel, int64_t column) {
    const int64_t row = panel * kWidth + column % kWidth;
    return row >= inner ? -1 : column < kWidth ? row : inner + row;
  });
}

enum class Then { store, add, gate };

// Where a product goes: [rows, stride].
struct Target {
  float* data;
  int64_t stride;
  const float* bias;
};

G2RL_INLINE void put(float* to, Floats value, int64_t count) {
  if (count >= kWidth) {
    store(to, value);
  } else if (count > 0) {
    std::memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
  }
}

G2RL_INLINE Floats take(const float* from, int64_t count) {
  return count >= kWidth ? load(from) : load_part(from, count > 0 ? count : 0, 0.0f);
}

template <int rows, Then then>
G2RL_INLINE void tile(const float* x, int64_t inputs, const float* panel, const Target& to, int64_t row, int64_t column, int64_t columns) {
  Floats low[rows] = {}, high[rows] = {};
  for (int64_t i = 0; i < inputs; ++i) {
    const Floats a = load(panel + i * kPanel), b = load(panel + i * kPanel + kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Floats v = splat(x[r * inputs + i]);
      low[r] += v * a;
      high[r] += v * b;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    float* out = to.data + (row + r) * to.stride + column;
    const int64_t left = columns - column;
    if constexpr (then == Then::gate) {
      // silu(g) u
      const Floats gated = low[r] / (splat(1.0f) + exponential(-low[r])) * high[r];
      put(out, gated, left);
    } else {
      Floats first = low[r], second = high[r];
      if (then == Then::add) {
        first += take(out, left);
        second += take(out + kWidth, left - kWidth);
      } else if (to.bias != nullptr) {
        first += take(to.bias + column, left);
        second += take(to.bias + column + kWidth, left - kWidth);
      }
      put(out, first, left);
      put(out + kWidth, second, left - kWidth);
    }
  }
}

template <Then then>
G2RL_INLINE void panels(const float* x, int64_t rows, const Packed& w, const Target& to, int64_t begin, int64_t end) {
  const int64_t width = then == Then::gate ? kWidth : kPanel;
  for (int64_t p = begin; p < end; ++p) {
    const float* panel = w.data.get() + p * w.inputs * kPanel;
    const int64_t column = p * width;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      tile<kRows, then>(x + row * w.inputs, w.inputs, panel, to, row, column, w.columns);
    }
    for (; row + 4 <= rows; row += 4) {
      tile<4, then>(x + row * w.inputs, w.inputs, panel, to, row, column, w.columns);
    }
    for (; row < rows; ++row) {
      tile<1, then>(x + row * w.inputs, w.inputs, panel, to, row, column, w.columns);
    }
  }
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define G2RL_WIDE __attribute__((target("arch=x86-64-v4")))
#else
#define G2RL_WIDE
#endif

G2RL_WIDE void panels_store(const float* x, int64_t rows, const Packed& w, const Target& to, int64_t begin, int64_t end) {
  panels<Then::store>(x, rows, w, to, begin, end);
}
G2RL_WIDE void panels_add(const float* x, int64_t rows, const Packed& w, const Target& to, int64_t begin, int64_t end) {
  panels<Then::add>(x, rows, w, to, begin, end);
}
G2RL_WIDE void panels_gate(const float* x, int64_t rows, const Packed& w, const Target& to, int64_t begin, int64_t end) {
  panels<Then::gate>(x, rows, w, to, begin, end);
}

// x W^T for x [rows, inputs].
void product(const float* x, int64_t rows, const Packed& w, const Target& to, Then then) {
  auto run = then == Then::store ? panels_store : then == Then::add ? panels_add : panels_gate;
  at::parallel_for(0, w.panels, 1, [&](int64_t begin, int64_t end) { run(x, rows, w, to, begin, end); });
}

// x / sqrt(mean(x^2) + eps) * weight
G2RL_CLONES void norm_row(const float* x, const float* weight, float* out, int64_t size, float eps) {
  Floats squares = {};
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const Floats v = load(x + i);
    squares += v * v;
  }
  float total = sum(squares);
  for (; i < size; ++i) {
    total += x[i] * x[i];
  }
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(size) + eps);
  for (i = 0; i + kWidth <= size; i += kWidth) {
    store(out + i, load(x + i) * splat(scale) * load(weight + i));
  }
  for (; i < size; ++i) {
    out[i] = x[i] * scale * weight[i];
  }
}

// a cos - b sin, b cos + a sin for the halves a, b of a head, times `scale`.
G2RL_CLONES void rotate(const float* head, const float* cos, const float* sin, float* out, int64_t half, float scale) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    out[i] = (a * cos[i] - b * sin[i]) * scale;
    out[i + half] = (b * cos[i] + a * sin[i]) * scale;
  }
}

struct Layer {
  Packed qkv, output, gate_up, down;
  at::Tensor bias, input_norm, post_norm, query_norm, key_norm;
};

const float* floats(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

} // namespace

extern "C" struct G2rlDecoderWeights {
  // One tensor for each layer; biases and head norms are empty lists where the model has none.
  TensorSlice qkv, bias, output, gate_up, down, input_norm, post_norm, query_norm, key_norm;
  at::Tensor *embedding, *final_norm, *head, *cos, *sin;
  int64_t heads, kv_heads, head_dim;
  double eps;
};

extern "C" struct G2rlDecodeStep {
  // [batch] each; `length` counts the new token.
  const int64_t *tokens, *positions, *prompt_row, *prompt_length, *slot, *length;
  int64_t batch;
  // [rows, kv_heads, capacity, head_dim] for each layer.
  TensorSlice prompt_keys, prompt_values, keys, values;
};

struct G2rlDecoder {
  std::vector<Layer> layers;
  Packed head;
  at::Tensor embedding, final_norm, cos, sin;
  int64_t hidden, heads, kv_heads, dim, inner;
  float eps;
  std::vector<float> x, normed, wide, attended;

  void norm(const at::Tensor& weight, int64_t batch) {
    const float* w = floats(weight);
    at::parallel_for(0, batch, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        norm_row(x.data() + row * hidden, w, normed.data() + row * hidden, hidden, eps);
      }
    });
  }

  // Norms, rotates and stores one sequence's heads and attends with them.
  void attend_sequence(const Layer& layer, const G2rlDecodeStep& s, size_t index, int64_t sequence) {
    const int64_t half = dim / 2, group = heads / kv_heads;
    const int64_t padded = (dim + kWidth - 1) / kWidth * kWidth;
    const int64_t tokens = s.prompt_length[sequence] + s.length[sequence];
    thread_local std::vector<float> scratch;
    const size_t needed = static_cast<size_t>(AttendTask::scratch(group, padded, tokens) + dim);
    if (scratch.size() < needed) {
      scratch.resize(needed);
    }
    float* query = scratch.data();
    float* out = query + group * padded;
    float* staging = out + group * padded;
    float* scores = staging + kTokens * padded;
    float* head_norm = scores + group * tokens;
    const float* row = wide.data() + sequence * (heads + 2 * kv_heads) * dim;
    const float* c = floats(cos) + s.positions[sequence] * half;
    const float* d = floats(sin) + s.positions[sequence] * half;
    auto turned = [&](const float* head, const at::Tensor& norm, float* to, float scale) {
      if (norm.defined()) {
        norm_row(head, floats(norm), head_norm, dim, eps);
        head = head_norm;
      }
      rotate(head, c, d, to, half, scale);
    };
    at::Tensor &keys = *s.keys.tensors[index], &values = *s.values.tensors[index];
    const at::Tensor &prompt_keys = *s.prompt_keys.tensors[index], &prompt_values = *s.prompt_values.tensors[index];
    const int64_t capacity = keys.size(2), prompt_capacity = prompt_keys.size(2);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      const int64_t own = (s.slot[sequence] * kv_heads + kv) * capacity * dim;
      const int64_t last = own + (s.length[sequence] - 1) * dim;
      turned(row + (heads + kv) * dim, layer.key_norm, keys.mutable_data_ptr<float>() + last, 1.0f);
      std::memcpy(values.mutable_data_ptr<float>() + last, row + (heads + kv_heads + kv) * dim, static_cast<size_t>(dim) * 4);
      // The padding of query and rows must be zero, the sums start at zero.
      std::memset(query, 0, static_cast<size_t>(2 * group * padded + kTokens * padded) * sizeof(float));
      for (int64_t h = 0; h < group; ++h) {
        turned(row + (kv * group + h) * dim, layer.query_norm, query + h * padded, scale);
      }
      const int64_t prompt = s.prompt_length[sequence] == 0 ? 0 : (s.prompt_row[sequence] * kv_heads + kv) * prompt_capacity * dim;
      const AttendTask task{query, scores, out, staging, group, padded, dim, tokens};
      attend({floats(prompt_keys) + prompt, s.prompt_length[sequence]}, {floats(prompt_values) + prompt, s.prompt_length[sequence]},
             {floats(keys) + own, s.length[sequence]}, {floats(values) + own, s.length[sequence]}, task, false);
      for (int64_t h = 0; h < group; ++h) {
        float* to = attended.data() + (sequence * heads + kv * group + h) * dim;
        std::memcpy(to, out + h * padded, static_cast<size_t>(dim) * sizeof(float));
      }
    }
  }

  void check(const G2rlDecodeStep& s) const {
    for (const TensorSlice* caches : {&s.prompt_keys, &s.prompt_values, &s.keys, &s.values}) {
      if (caches->count != layers.size()) invalid("there must be caches for each layer");
      for (const at::Tensor& t : caches->vec()) {
        if (t.dim() != 4 || t.size(1) != kv_heads || t.size(3) != dim || !t.is_contiguous() ||
            t.scalar_type() != at::kFloat || !t.device().is_cpu()) {
          invalid("caches must be contiguous f32 [rows, kv_heads, capacity, head_dim] on the CPU");
        }
      }
    }
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      if (s.keys.tensors[layer]->sizes() != s.values.tensors[layer]->sizes() ||
          s.prompt_keys.tensors[layer]->sizes() != s.prompt_values.tensors[layer]->sizes() ||
          s.keys.tensors[layer]->sizes() != s.keys.tensors[0]->sizes() ||
          s.prompt_keys.tensors[layer]->sizes() != s.prompt_keys.tensors[0]->sizes()) {
        invalid("the caches of all layers must have one shape");
      }
    }
    const at::Tensor &own = *s.keys.tensors[0], &prompt = *s.prompt_keys.tensors[0];
    for (int64_t i = 0; i < s.batch; ++i) {
      const bool token = s.tokens[i] >= 0 && s.tokens[i] < embedding.size(0);
      const bool position = s.positions[i] >= 0 && s.positions[i] < cos.size(0);
      const bool slot = s.slot[i] >= 0 && s.slot[i] < own.size(0) && s.length[i] > 0 && s.length[i] <= own.size(2);
      const bool shared = s.prompt_length[i] == 0 ||
          (s.prompt_length[i] > 0 && s.prompt_length[i] <= prompt.size(2) && s.prompt_row[i] >= 0 && s.prompt_row[i] < prompt.size(0));
      if (!token || !position || !slot || !shared) {
        invalid("sequence " + std::to_string(i) + " has a token, position, row or length out of range");
      }
    }
  }

  at::Tensor step(const G2rlDecodeStep& s) {
    check(s);
    const int64_t batch = s.batch, qkv = (heads + 2 * kv_heads) * dim;
    x.resize(static_cast<size_t>(batch * hidden));
    normed.resize(x.size());
    wide.resize(static_cast<size_t>(batch * std::max(qkv, inner)));
    attended.resize(static_cast<size_t>(batch * heads * dim));
    for (int64_t i = 0; i < batch; ++i) {
      const float* from = floats(embedding) + s.tokens[i] * hidden;
      std::memcpy(x.data() + i * hidden, from, static_cast<size_t>(hidden) * sizeof(float));
    }
    // Sequences of one prompt run one after another, so that its rows stay in the cache.
    std::vector<int64_t> order(static_cast<size_t>(batch));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s.prompt_row[a] < s.prompt_row[b]; });
    for (size_t index = 0; index < layers.size(); ++index) {
      const Layer& layer = layers[index];
      // 1. Attention: norm, queries, keys and values, cache, softmax, output projection.
      norm(layer.input_norm, batch);
      product(normed.data(), batch, layer.qkv, {wide.data(), qkv, floats(layer.bias)}, Then::store);
      for_each_task(batch, [&](int64_t i) { attend_sequence(layer, s, index, order[static_cast<size_t>(i)]); });
      product(attended.data(), batch, layer.output, {x.data(), hidden, nullptr}, Then::add);
      // 2. Gated feed-forward.
      norm(layer.post_norm, batch);
      product(normed.data(), batch, layer.gate_up, {wide.data(), inner, nullptr}, Then::gate);
      product(wide.data(), batch, layer.down, {x.data(), hidden, nullptr}, Then::add);
    }
    norm(final_norm, batch);
    at::Tensor logits = at::empty({batch, head.columns}, embedding.options());
    product(normed.data(), batch, head, {logits.mutable_data_ptr<float>(), head.columns, nullptr}, Then::store);
    return logits;
  }
};

namespace {

void check_weights(const G2rlDecoderWeights& w) {
  auto check = [](const at::Tensor& t, const char* name) {
    if (t.scalar_type() != at::kFloat || !t.device().is_cpu() || !t.is_contiguous()) {
      invalid(std::string(name) + " must be contiguous f32 on the CPU");
    }
  };
  for (const TensorSlice* list : {&w.qkv, &w.bias, &w.output, &w.gate_up, &w.down, &w.input_norm, &w.post_norm,
                                  &w.query_norm, &w.key_norm}) {
    for (const at::Tensor& t : list->vec()) check(t, "a layer's weights");
    const bool optional = list == &w.bias || list == &w.query_norm || list == &w.key_norm;
    if (list->count != w.qkv.count && !(optional && list->count == 0)) invalid("each layer needs all weights");
  }
  for (const at::Tensor* t : {w.embedding, w.final_norm, w.head, w.cos, w.sin}) check(*t, "a weight");
  const int64_t hidden = w.embedding->size(1), qkv = (w.heads + 2 * w.kv_heads) * w.head_dim;
  if (w.kv_heads <= 0 || w.heads % w.kv_heads != 0 || w.head_dim % 2 != 0) invalid("the heads do not fit");
  if (w.cos->size(1) * 2 != w.head_dim || w.sin->sizes() != w.cos->sizes()) invalid("the rotary table does not fit");
  for (size_t i = 0; i < w.qkv.count; ++i) {
    const int64_t inner = w.down.tensors[i]->size(1);
    const bool fits = w.qkv.tensors[i]->sizes() == at::IntArrayRef({qkv, hidden}) &&
        w.output.tensors[i]->sizes() == at::IntArrayRef({hidden, w.heads * w.head_dim}) &&
        w.gate_up.tensors[i]->sizes() == at::IntArrayRef({2 * inner, hidden}) &&
        w.down.tensors[i]->sizes() == at::IntArrayRef({hidden, inner});
    if (!fits) invalid("the weights of layer " + std::to_string(i) + " do not fit");
  }
}

} // namespace

extern "C" bool g2rl_decoder_supported() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  return __builtin_cpu_supports("x86-64-v4");
#else
  return false;
#endif
}

extern "C" G2rlStatus g2rl_decoder_new(const G2rlDecoderWeights* w, G2rlDecoder** result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    check_weights(*w);
    auto decoder = std::make_unique<G2rlDecoder>();
    auto copy = [](const TensorSlice& list, size_t i) { return list.count == 0 ? at::Tensor() : list.tensors[i]->clone(); };
    for (size_t i = 0; i < w->qkv.count; ++i) {
      decoder->layers.push_back(Layer{
          pack_plain(*w->qkv.tensors[i]), pack_plain(*w->output.tensors[i]), pack_gated(*w->gate_up.tensors[i]),
          pack_plain(*w->down.tensors[i]), copy(w->bias, i), copy(w->input_norm, i), copy(w->post_norm, i),
          copy(w->query_norm, i), copy(w->key_norm, i)});
    }
    decoder->head = pack_plain(*w->head);
    decoder->embedding = *w->embedding;
    decoder->final_norm = w->final_norm->clone();
    decoder->cos = *w->cos;
    decoder->sin = *w->sin;
    decoder->hidden = w->embedding->size(1);
    decoder->heads = w->heads;
    decoder->kv_heads = w->kv_heads;
    decoder->dim = w->head_dim;
    decoder->inner = w->down.count == 0 ? 0 : w->down.tensors[0]->size(1);
    decoder->eps = static_cast<float>(w->eps);
    *result = decoder.release();
  });
}

extern "C" void g2rl_decoder_free(G2rlDecoder* decoder) {
  delete decoder;
}

extern "C" G2rlStatus g2rl_decoder_step(G2rlDecoder* decoder, const G2rlDecodeStep* step, at::Tensor** logits) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    *logits = new at::Tensor(decoder->step(*step));
  });
}
