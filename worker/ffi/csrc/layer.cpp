// Norm, rotation and gating over packed tokens and their gradients, on a CPU, in f32 or bf16.
//
// Gradients of weights are summed over blocks of rows and the blocks' sums in their order, so that they
// do not depend on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <vector>

#include "rows.h"
#include "status.h"

using namespace g2rl;

namespace {

// Rows whose weight gradients are summed together.
constexpr int64_t kBlock = 64;

bool is_bf16(const at::Tensor& t) {
  return t.scalar_type() == at::kBFloat16;
}

void require_rows(const at::Tensor& t, const char* name) {
  const auto kind = t.scalar_type();
  if (!t.device().is_cpu() || !t.is_contiguous() || (kind != at::kFloat && kind != at::kBFloat16)) {
    invalid(std::string(name) + " must be contiguous f32 or bf16 on the CPU");
  }
}

void require_like(const at::Tensor& t, const at::Tensor& like, at::IntArrayRef sizes, const char* name) {
  require_rows(t, name);
  if (t.scalar_type() != like.scalar_type() || t.sizes() != sizes) {
    invalid(std::string(name) + " has another kind or shape than it should");
  }
}

void require_sums(const at::Tensor& t, int64_t size, const char* name) {
  if (!t.device().is_cpu() || !t.is_contiguous() || t.scalar_type() != at::kFloat || t.numel() != size) {
    invalid(std::string(name) + " must be contiguous f32 [" + std::to_string(size) + "] on the CPU");
  }
}

template <typename T>
T* data(const at::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

template <typename Body>
void rows(int64_t count, const Body& body) {
  at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) { body(begin, end); });
}

// Runs body(first row, end, sums of this block [size]) over blocks of rows and adds all sums to `total`.
template <typename Body>
void summed_blocks(int64_t count, int64_t size, float* total, const Body& body) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<float> sums(static_cast<size_t>(blocks * size));
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      body(block * kBlock, std::min((block + 1) * kBlock, count), sums.data() + block * size);
    }
  });
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < size; ++i) {
      total[i] += sums[static_cast<size_t>(block * size + i)];
    }
  }
}

// Each kernel once for f32 and once for bf16; `begin` and `end` are rows.
#define BOTH_KINDS(name, parameters, arguments)                       \
  G2RL_CLONES void name##_f32 parameters { name<float> arguments; }   \
  G2RL_CLONES void name##_bf16 parameters { name<uint16_t> arguments; }

struct Norm {
  const void *x, *weight, *dy, *residual;
  void* out;
  int64_t size;
  float eps;
};

template <typename T>
G2RL_INLINE void norm_rows(const Norm& n, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    norm_row(static_cast<const T*>(n.x) + row * n.size, static_cast<const T*>(n.weight),
             static_cast<T*>(n.out) + row * n.size, n.size, n.eps);
  }
}
BOTH_KINDS(norm_rows, (const Norm& n, int64_t begin, int64_t end), (n, begin, end))

template <typename T>
G2RL_INLINE void norm_rows_backward(const Norm& n, int64_t begin, int64_t end, float* sums) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * n.size;
    const T* residual = n.residual == nullptr ? nullptr : static_cast<const T*>(n.residual) + at;
    norm_row_backward(static_cast<const T*>(n.dy) + at, static_cast<const T*>(n.x) + at,
                      static_cast<const T*>(n.weight), residual, static_cast<T*>(n.out) + at, sums, n.size, n.eps);
  }
}
BOTH_KINDS(norm_rows_backward, (const Norm& n, int64_t begin, int64_t end, float* sums), (n, begin, end, sums))

// Queries, keys and values of packed tokens `[tokens, heads + 2 kv_heads, dim]`, and queries and keys
// after norm and rotation `[tokens, heads + kv_heads, dim]`.
struct Rotary {
  const void *qkv, *query_norm, *key_norm, *cos, *sin;
  void *turned, *dqkv;
  int64_t heads, kv_heads, dim;
  float eps;
};

template <typename T>
G2RL_INLINE void rotary_rows(const Rotary& r, float* scratch, int64_t begin, int64_t end) {
  const int64_t half = r.dim / 2, turned = r.heads + r.kv_heads;
  for (int64_t row = begin; row < end; ++row) {
    const T *cos = static_cast<const T*>(r.cos) + row * half, *sin = static_cast<const T*>(r.sin) + row * half;
    for (int64_t head = 0; head < turned; ++head) {
      const T* from = static_cast<const T*>(r.qkv) + (row * (turned + r.kv_heads) + head) * r.dim;
      T* to = static_cast<T*>(r.turned) + (row * turned + head) * r.dim;
      const void* norm = head < r.heads ? r.query_norm : r.key_norm;
      if (norm == nullptr) {
        rotate_row(from, cos, sin, to, half, 1.0f, 1.0f);
      } else {
        norm_row(from, static_cast<const T*>(norm), scratch, r.dim, r.eps);
        rotate_row(scratch, cos, sin, to, half, 1.0f, 1.0f);
      }
    }
  }
}
BOTH_KINDS(rotary_rows, (const Rotary& r, float* scratch, int64_t begin, int64_t end), (r, scratch, begin, end))

// `turned` holds the gradients; `sums` those of the query norm and of the key norm.
template <typename T>
G2RL_INLINE void rotary_rows_backward(const Rotary& r, float* scratch, int64_t begin, int64_t end, float* sums) {
  const int64_t half = r.dim / 2, turned = r.heads + r.kv_heads;
  for (int64_t row = begin; row < end; ++row) {
    const T *cos = static_cast<const T*>(r.cos) + row * half, *sin = static_cast<const T*>(r.sin) + row * half;
    for (int64_t head = 0; head < turned; ++head) {
      const int64_t at = (row * (turned + r.kv_heads) + head) * r.dim;
      const T* gradient = static_cast<const T*>(r.turned) + (row * turned + head) * r.dim;
      T* to = static_cast<T*>(r.dqkv) + at;
      const bool query = head < r.heads;
      const void* norm = query ? r.query_norm : r.key_norm;
      if (norm == nullptr) {
        rotate_row(gradient, cos, sin, to, half, 1.0f, -1.0f);
      } else {
        rotate_row(gradient, cos, sin, scratch, half, 1.0f, -1.0f);
        norm_row_backward(scratch, static_cast<const T*>(r.qkv) + at, static_cast<const T*>(norm),
                          static_cast<const T*>(nullptr), to, sums + (query ? 0 : r.dim), r.dim, r.eps);
      }
    }
  }
}
BOTH_KINDS(rotary_rows_backward, (const Rotary& r, float* scratch, int64_t begin, int64_t end, float* sums),
           (r, scratch, begin, end, sums))

struct Gate {
  const void *gate_up, *d;
  void *out, *dgate_up;
  int64_t inner;
};

template <typename T>
G2RL_INLINE void gate_rows(const Gate& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    gate_row(static_cast<const T*>(g.gate_up) + row * 2 * g.inner, static_cast<T*>(g.out) + row * g.inner, g.inner);
  }
}
BOTH_KINDS(gate_rows, (const Gate& g, int64_t begin, int64_t end), (g, begin, end))

template <typename T>
G2RL_INLINE void gate_rows_backward(const Gate& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    gate_row_backward(static_cast<const T*>(g.d) + row * g.inner, static_cast<const T*>(g.gate_up) + row * 2 * g.inner,
                      static_cast<T*>(g.dgate_up) + row * 2 * g.inner, static_cast<T*>(g.out) + row * g.inner, g.inner);
  }
}
BOTH_KINDS(gate_rows_backward, (const Gate& g, int64_t begin, int64_t end), (g, begin, end))

const void* pointer(const at::Tensor* t) {
  return t == nullptr ? nullptr : t->const_data_ptr();
}

float* scratch(int64_t size) {
  thread_local std::vector<float> memory;
  if (memory.size() < static_cast<size_t>(size)) {
    memory.resize(static_cast<size_t>(size));
  }
  return memory.data();
}

} // namespace

extern "C" G2rlStatus g2rl_rms_norm(const at::Tensor* x, const at::Tensor* weight, double eps, at::Tensor** result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    require_rows(*x, "x");
    const int64_t size = x->size(-1);
    require_like(*weight, *x, {size}, "the norm's weight");
    at::Tensor out = at::empty_like(*x);
    const Norm n{pointer(x), pointer(weight), nullptr, nullptr, out.data_ptr(), size, static_cast<float>(eps)};
    auto run = is_bf16(*x) ? norm_rows_bf16 : norm_rows_f32;
    rows(x->numel() / size, [&](int64_t begin, int64_t end) { run(n, begin, end); });
    *result = new at::Tensor(std::move(out));
  });
}

extern "C" struct G2rlNormBackward {
  // `residual` may be null. `dweight` f32 is added to.
  const at::Tensor *dy, *x, *weight, *residual, *dweight;
  double eps;
};

extern "C" G2rlStatus g2rl_rms_norm_backward(const G2rlNormBackward* a, at::Tensor** result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const at::Tensor& x = *a->x;
    require_rows(x, "x");
    const int64_t size = x.size(-1);
    require_like(*a->dy, x, x.sizes(), "dy");
    require_like(*a->weight, x, {size}, "the norm's weight");
    if (a->residual != nullptr) {
      require_like(*a->residual, x, x.sizes(), "the residual");
    }
    require_sums(*a->dweight, size, "the weight's gradient");
    at::Tensor dx = at::empty_like(x);
    const Norm n{pointer(a->x), pointer(a->weight), pointer(a->dy), pointer(a->residual), dx.data_ptr(), size,
                 static_cast<float>(a->eps)};
    auto run = is_bf16(x) ? norm_rows_backward_bf16 : norm_rows_backward_f32;
    summed_blocks(x.numel() / size, size, data<float>(*a->dweight),
                  [&](int64_t begin, int64_t end, float* sums) { run(n, begin, end, sums); });
    *result = new at::Tensor(std::move(dx));
  });
}

extern "C" struct G2rlRotary {
  // [tokens, (heads + 2 kv_heads) dim]
  const at::Tensor* qkv;
  // [dim], or null.
  const at::Tensor *query_norm, *key_norm;
  // [tokens, dim / 2]
  const at::Tensor *cos, *sin;
  int64_t heads, kv_heads, dim;
  double eps;
};

namespace {

Rotary checked(const G2rlRotary& a) {
  const at::Tensor& qkv = *a.qkv;
  require_rows(qkv, "qkv");
  if (a.heads <= 0 || a.kv_heads <= 0 || a.dim <= 0 || a.dim % 2 != 0) {
    invalid("heads must be positive and their width even");
  }
  const int64_t tokens = qkv.size(0);
  require_like(qkv, qkv, {tokens, (a.heads + 2 * a.kv_heads) * a.dim}, "qkv");
  require_like(*a.cos, qkv, {tokens, a.dim / 2}, "cos");
  require_like(*a.sin, qkv, {tokens, a.dim / 2}, "sin");
  if ((a.query_norm == nullptr) != (a.key_norm == nullptr)) {
    invalid("queries and keys are both normed or neither");
  }
  for (const at::Tensor* norm : {a.query_norm, a.key_norm}) {
    if (norm != nullptr) {
      require_like(*norm, qkv, {a.dim}, "a head's norm");
    }
  }
  return Rotary{pointer(a.qkv), pointer(a.query_norm), pointer(a.key_norm), pointer(a.cos), pointer(a.sin), nullptr,
                nullptr, a.heads, a.kv_heads, a.dim, static_cast<float>(a.eps)};
}

} // namespace

extern "C" G2rlStatus g2rl_rotary(const G2rlRotary* a, at::Tensor** result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    Rotary r = checked(*a);
    const int64_t tokens = a->qkv->size(0);
    at::Tensor turned = at::empty({tokens, r.heads + r.kv_heads, r.dim}, a->qkv->options());
    r.turned = turned.data_ptr();
    auto run = is_bf16(turned) ? rotary_rows_bf16 : rotary_rows_f32;
    rows(tokens, [&](int64_t begin, int64_t end) { run(r, scratch(r.dim), begin, end); });
    *result = new at::Tensor(std::move(turned));
  });
}

// Writes the gradients by queries and keys to `dqkv`, adds those by the norms to the f32 sums.
extern "C" G2rlStatus g2rl_rotary_backward(
    const G2rlRotary* a, const at::Tensor* dturned, const at::Tensor* dqkv, const at::Tensor* dquery_norm,
    const at::Tensor* dkey_norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    Rotary r = checked(*a);
    const int64_t tokens = a->qkv->size(0);
    require_like(*dturned, *a->qkv, {tokens, r.heads + r.kv_heads, r.dim}, "the gradient");
    require_like(*dqkv, *a->qkv, a->qkv->sizes(), "the result");
    r.turned = dturned->data_ptr();
    r.dqkv = dqkv->data_ptr();
    auto run = is_bf16(*dturned) ? rotary_rows_backward_bf16 : rotary_rows_backward_f32;
    std::vector<float> norms(static_cast<size_t>(2 * r.dim));
    summed_blocks(tokens, 2 * r.dim, norms.data(),
                  [&](int64_t begin, int64_t end, float* sums) { run(r, scratch(r.dim), begin, end, sums); });
    if (r.query_norm != nullptr) {
      if (dquery_norm == nullptr || dkey_norm == nullptr) {
        invalid("the norms' gradients need a place");
      }
      require_sums(*dquery_norm, r.dim, "the query norm's gradient");
      require_sums(*dkey_norm, r.dim, "the key norm's gradient");
      for (int64_t i = 0; i < r.dim; ++i) {
        data<float>(*dquery_norm)[i] += norms[static_cast<size_t>(i)];
        data<float>(*dkey_norm)[i] += norms[static_cast<size_t>(r.dim + i)];
      }
    }
  });
}

// silu(gate) up: [tokens, 2 inner] to [tokens, inner].
extern "C" G2rlStatus g2rl_gate(const at::Tensor* gate_up, at::Tensor** result) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    require_rows(*gate_up, "gate_up");
    const int64_t tokens = gate_up->size(0), inner = gate_up->size(1) / 2;
    at::Tensor out = at::empty({tokens, inner}, gate_up->options());
    const Gate g{pointer(gate_up), nullptr, out.data_ptr(), nullptr, inner};
    auto run = is_bf16(out) ? gate_rows_bf16 : gate_rows_f32;
    rows(tokens, [&](int64_t begin, int64_t end) { run(g, begin, end); });
    *result = new at::Tensor(std::move(out));
  });
}

// The gradient [tokens, 2 inner], and the gated values [tokens, inner] once more.
extern "C" G2rlStatus g2rl_gate_backward(
    const at::Tensor* d, const at::Tensor* gate_up, at::Tensor** dgate_up, at::Tensor** gated) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    require_rows(*gate_up, "gate_up");
    const int64_t tokens = gate_up->size(0), inner = gate_up->size(1) / 2;
    require_like(*d, *gate_up, {tokens, inner}, "the gradient");
    at::Tensor gradient = at::empty_like(*gate_up), out = at::empty_like(*d);
    const Gate g{pointer(gate_up), pointer(d), out.data_ptr(), gradient.data_ptr(), inner};
    auto run = is_bf16(out) ? gate_rows_backward_bf16 : gate_rows_backward_f32;
    rows(tokens, [&](int64_t begin, int64_t end) { run(g, begin, end); });
    *dgate_up = new at::Tensor(std::move(gradient));
    *gated = new at::Tensor(std::move(out));
  });
}
