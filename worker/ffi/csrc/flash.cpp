// Attention of packed sequences and its gradient, by the flash attention that libtorch brings. Without CUDA every call
// says so.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>

#include "status.h"

#ifdef G2RL_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

using namespace g2rl;

extern "C" struct G2rlFlashAttention {
  at::Tensor* query;
  at::Tensor* key;
  at::Tensor* value;
  at::Tensor* query_starts;
  at::Tensor* key_starts;
  int64_t longest_query;
  int64_t longest_key;
  int32_t causal;
  double scale;
};

#ifdef G2RL_CUDA
namespace {

// What the kernel reads through without looking. The values of the starts are on the GPU and the caller's promise.
void check_tensors(const G2rlFlashAttention& a) {
  if (c10::cuda::device_count() == 0) {
    throw Failure(G2RL_NO_CUDA, "there is no GPU");
  }
  for (const at::Tensor* t : {a.query, a.key, a.value, a.query_starts, a.key_starts}) {
    if (!t->is_cuda() || t->get_device() != a.query->get_device()) {
      invalid("all tensors must be on one GPU");
    }
  }
  if (a.query->dim() != 3 || a.key->dim() != 3 || a.value->sizes() != a.key->sizes()) {
    invalid("query must be [tokens, heads, d], key and value [tokens, kv_heads, d]");
  }
  const int64_t kv_heads = a.key->size(1);
  if (kv_heads == 0 || a.query->size(1) % kv_heads != 0 || a.query->size(2) != a.key->size(2)) {
    invalid("heads must be a multiple of kv_heads, of the same width");
  }
  for (const at::Tensor* t : {a.query_starts, a.key_starts}) {
    if (t->scalar_type() != at::kInt || t->dim() != 1 || t->size(0) != a.query_starts->size(0) || !t->is_contiguous()) {
      invalid("starts must be [sequences + 1] i32");
    }
  }
}

} // namespace
#endif

extern "C" G2rlStatus g2rl_flash_forward(const G2rlFlashAttention* a, at::Tensor** output, at::Tensor** normalizers) {
  return guarded([&] {
#ifdef G2RL_CUDA
    check_tensors(*a);
    at::NoGradGuard no_grad;
    auto result = at::_flash_attention_forward(
        *a->query,
        *a->key,
        *a->value,
        *a->query_starts,
        *a->key_starts,
        a->longest_query,
        a->longest_key,
        /*dropout_p=*/0.0,
        a->causal != 0,
        /*return_debug_mask=*/false,
        a->scale);
    *output = new at::Tensor(std::move(std::get<0>(result)));
    *normalizers = new at::Tensor(std::move(std::get<1>(result)));
#else
    (void)a, (void)output, (void)normalizers;
    throw Failure(G2RL_NO_CUDA, "built without CUDA");
#endif
  });
}

// `gradients`: by query, key and value.
extern "C" G2rlStatus g2rl_flash_backward(
    const G2rlFlashAttention* a,
    at::Tensor* doutput,
    at::Tensor* output,
    at::Tensor* normalizers,
    at::Tensor** gradients) {
  return guarded([&] {
#ifdef G2RL_CUDA
    check_tensors(*a);
    at::NoGradGuard no_grad;
    // Without dropout nobody reads the state of its random numbers.
    const auto state = at::empty({2}, a->query_starts->options().dtype(at::kUInt64));
    auto result = at::_flash_attention_backward(
        *doutput,
        *a->query,
        *a->key,
        *a->value,
        *output,
        *normalizers,
        *a->query_starts,
        *a->key_starts,
        a->longest_query,
        a->longest_key,
        /*dropout_p=*/0.0,
        a->causal != 0,
        state,
        state,
        a->scale);
    gradients[0] = new at::Tensor(std::move(std::get<0>(result)));
    gradients[1] = new at::Tensor(std::move(std::get<1>(result)));
    gradients[2] = new at::Tensor(std::move(std::get<2>(result)));
#else
    (void)a, (void)doutput, (void)output, (void)normalizers, (void)gradients;
    throw Failure(G2RL_NO_CUDA, "built without CUDA");
#endif
  });
}
