// One token of every running sequence through a whole decoder, on a CPU with AVX-512, in f32 or bf16.
//
// Weights are packed once per policy. Everything between two products (norms, rotation, cache, gating,
// residuals) runs beside them in the same threads. The residual stream is f32; what goes into a product
// and into the cache has the weights' kind. A sequence's result depends neither on the other sequences of
// the batch nor on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <omp.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "attend.h"
#include "packed.h"
#include "parallel.h"
#include "rows.h"
#include "status.h"
#include "tensors.h"

using namespace g2rl;

namespace {

G2RL_CLONES void norm(const float* x, const float* weight, float* out, int64_t size, float eps) {
  norm_row(x, weight, out, size, eps);
}
G2RL_CLONES void norm(const float* x, const uint16_t* weight, uint16_t* out, int64_t size, float eps) {
  norm_row(x, weight, out, size, eps);
}
G2RL_CLONES void norm(const float* x, const uint16_t* weight, float* out, int64_t size, float eps) {
  norm_row(x, weight, out, size, eps);
}
G2RL_CLONES void rotate(const float* head, const float* cos, const float* sin, float* out, int64_t half, float scale) {
  rotate_row(head, cos, sin, out, half, scale, 1.0f);
}
G2RL_CLONES void rotate(const float* head, const uint16_t* cos, const uint16_t* sin, float* out, int64_t half, float scale) {
  rotate_row(head, cos, sin, out, half, scale, 1.0f);
}
G2RL_CLONES void rotate(const float* head, const uint16_t* cos, const uint16_t* sin, uint16_t* out, int64_t half, float scale) {
  rotate_row(head, cos, sin, out, half, scale, 1.0f);
}
G2RL_CLONES void copy(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) put(to + i, take(from + i, count - i), count - i);
}
G2RL_CLONES void copy(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) put(to + i, take(from + i, count - i), count - i);
}
G2RL_CLONES void copy(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) put(to + i, take(from + i, count - i), count - i);
}

struct Layer {
  Packed qkv, output, gate_up, down;
  at::Tensor bias, input_norm, post_norm, query_norm, key_norm;
};

template <typename T>
const T* values(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
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

// Seconds of one step: products, attention with all that is done by head, and norms by row.
extern "C" struct G2rlDecodeTimes {
  double products, attention, rows;
};

// The weights and the shape, and a step in the kind of the weights.
struct G2rlDecoder {
  std::vector<Layer> layers;
  Packed head;
  at::Tensor embedding, final_norm, cos, sin;
  int64_t hidden, heads, kv_heads, dim, inner;
  float eps;

  virtual ~G2rlDecoder() = default;
  virtual at::Tensor step(const G2rlDecodeStep& s, G2rlDecodeTimes& times) = 0;

  void check(const G2rlDecodeStep& s) const {
    for (const TensorSlice* caches : {&s.prompt_keys, &s.prompt_values, &s.keys, &s.values}) {
      if (caches->count != layers.size()) invalid("there must be caches for each layer");
      for (const at::Tensor& t : caches->vec()) {
        if (t.dim() != 4 || t.size(1) != kv_heads || t.size(3) != dim || !t.is_contiguous() ||
            t.scalar_type() != embedding.scalar_type() || !t.device().is_cpu()) {
          invalid("caches must be contiguous, of the weights' kind, [rows, kv_heads, capacity, head_dim] on the CPU");
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
};

namespace {

// T is the kind of weights and caches, `uint16_t` for bf16.
template <typename T>
struct Decoder final : G2rlDecoder {
  // The residual stream, queries, keys and values, and what goes into products.
  std::vector<float> x, qkv;
  std::vector<T> normed, attended, gated;

  void norm_rows(const at::Tensor& weight, int64_t batch) {
    const T* w = values<T>(weight);
    at::parallel_for(0, batch, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        norm(x.data() + row * hidden, w, normed.data() + row * hidden, hidden, eps);
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
    const float* row = qkv.data() + sequence * (heads + 2 * kv_heads) * dim;
    const T* c = values<T>(cos) + s.positions[sequence] * half;
    const T* d = values<T>(sin) + s.positions[sequence] * half;
    auto normed_head = [&](const float* head, const at::Tensor& weight) {
      if (!weight.defined()) {
        return head;
      }
      norm(head, values<T>(weight), head_norm, dim, eps);
      return static_cast<const float*>(head_norm);
    };
    at::Tensor &keys = *s.keys.tensors[index], &cached_values = *s.values.tensors[index];
    const at::Tensor &prompt_keys = *s.prompt_keys.tensors[index], &prompt_values = *s.prompt_values.tensors[index];
    const int64_t capacity = keys.size(2), prompt_capacity = prompt_keys.size(2);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      const int64_t own = (s.slot[sequence] * kv_heads + kv) * capacity * dim;
      const int64_t last = own + (s.length[sequence] - 1) * dim;
      rotate(normed_head(row + (heads + kv) * dim, layer.key_norm), c, d, static_cast<T*>(keys.data_ptr()) + last, half, 1.0f);
      copy(row + (heads + kv_heads + kv) * dim, static_cast<T*>(cached_values.data_ptr()) + last, dim);
      // The padding of query and rows must be zero, the sums start at zero.
      std::memset(query, 0, static_cast<size_t>(2 * group * padded + kTokens * padded) * sizeof(float));
      for (int64_t h = 0; h < group; ++h) {
        rotate(normed_head(row + (kv * group + h) * dim, layer.query_norm), c, d, query + h * padded, half, scale);
      }
      const int64_t prompt = s.prompt_length[sequence] == 0 ? 0 : (s.prompt_row[sequence] * kv_heads + kv) * prompt_capacity * dim;
      const AttendTask task{query, scores, out, staging, group, padded, dim, tokens};
      attend({values<T>(prompt_keys) + prompt, s.prompt_length[sequence]}, {values<T>(prompt_values) + prompt, s.prompt_length[sequence]},
             {values<T>(keys) + own, s.length[sequence]}, {values<T>(cached_values) + own, s.length[sequence]}, task, sizeof(T) == 2);
      for (int64_t h = 0; h < group; ++h) {
        copy(out + h * padded, attended.data() + (sequence * heads + kv * group + h) * dim, dim);
      }
    }
  }

  at::Tensor step(const G2rlDecodeStep& s, G2rlDecodeTimes& times) override {
    check(s);
    double last = omp_get_wtime();
    auto spent_on = [&last](double& part) {
      const double now = omp_get_wtime();
      part += now - last;
      last = now;
    };
    const int64_t batch = s.batch, wide = (heads + 2 * kv_heads) * dim;
    x.resize(static_cast<size_t>(batch * hidden));
    normed.resize(x.size());
    qkv.resize(static_cast<size_t>(batch * wide));
    gated.resize(static_cast<size_t>(batch * inner));
    attended.resize(static_cast<size_t>(batch * heads * dim));
    for (int64_t i = 0; i < batch; ++i) {
      copy(values<T>(embedding) + s.tokens[i] * hidden, x.data() + i * hidden, hidden);
    }
    // Sequences of one prompt run one after another, so that its rows stay in the cache.
    std::vector<int64_t> order(static_cast<size_t>(batch));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s.prompt_row[a] < s.prompt_row[b]; });
    for (size_t index = 0; index < layers.size(); ++index) {
      const Layer& layer = layers[index];
      // 1. Attention: norm, queries, keys and values, cache, softmax, output projection.
      norm_rows(layer.input_norm, batch);
      spent_on(times.rows);
      const float* bias = layer.bias.defined() ? layer.bias.const_data_ptr<float>() : nullptr;
      product(normed.data(), batch, layer.qkv, {qkv.data(), wide, bias}, Then::store);
      spent_on(times.products);
      for_each_task(batch, [&](int64_t i) { attend_sequence(layer, s, index, order[static_cast<size_t>(i)]); });
      spent_on(times.attention);
      product(attended.data(), batch, layer.output, {x.data(), hidden, nullptr}, Then::add);
      spent_on(times.products);
      // 2. Gated feed-forward.
      norm_rows(layer.post_norm, batch);
      spent_on(times.rows);
      product(normed.data(), batch, layer.gate_up, {gated.data(), inner, nullptr}, Then::gate);
      product(gated.data(), batch, layer.down, {x.data(), hidden, nullptr}, Then::add);
      spent_on(times.products);
    }
    norm_rows(final_norm, batch);
    spent_on(times.rows);
    at::Tensor logits = at::empty({batch, head.columns}, embedding.options().dtype(at::kFloat));
    product(normed.data(), batch, head, {logits.mutable_data_ptr<float>(), head.columns, nullptr}, Then::store);
    spent_on(times.products);
    return logits;
  }
};

} // namespace

namespace {

void check_weights(const G2rlDecoderWeights& w) {
  const auto kind = w.embedding->scalar_type();
  if (kind != at::kFloat && kind != at::kBFloat16) invalid("the weights must be f32 or bf16");
  auto check = [&](const at::Tensor& t, const char* name) {
    if (t.scalar_type() != kind || !t.device().is_cpu() || !t.is_contiguous()) {
      invalid(std::string(name) + " must be contiguous, of one kind, on the CPU");
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

extern "C" bool g2rl_decoder_supported(bool bf16) {
  return can_multiply_packed(bf16);
}

extern "C" G2rlStatus g2rl_decoder_new(const G2rlDecoderWeights* w, G2rlDecoder** result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    check_weights(*w);
    std::unique_ptr<G2rlDecoder> decoder;
    if (w->embedding->scalar_type() == at::kFloat) {
      decoder = std::make_unique<Decoder<float>>();
    } else {
      decoder = std::make_unique<Decoder<uint16_t>>();
    }
    auto copy = [](const TensorSlice& list, size_t i) { return list.count == 0 ? at::Tensor() : list.tensors[i]->clone(); };
    auto bias = [&](size_t i) { return w->bias.count == 0 ? at::Tensor() : w->bias.tensors[i]->to(at::kFloat, false, true); };
    for (size_t i = 0; i < w->qkv.count; ++i) {
      decoder->layers.push_back(Layer{
          pack_plain(*w->qkv.tensors[i]), pack_plain(*w->output.tensors[i]), pack_gated(*w->gate_up.tensors[i]),
          pack_plain(*w->down.tensors[i]), bias(i), copy(w->input_norm, i), copy(w->post_norm, i),
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

extern "C" G2rlStatus g2rl_decoder_step(
    G2rlDecoder* decoder, const G2rlDecodeStep* step, at::Tensor** logits, G2rlDecodeTimes* times) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    *times = {};
    *logits = new at::Tensor(decoder->step(*step, *times));
  });
}
