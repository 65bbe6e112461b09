// One new token per sequence over extents of a pool, by the flash attention that libtorch brings. Without
// CUDA every call says so.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_flash_attention_forward.h>

#include "status.h"

#ifdef G2RL_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

using namespace g2rl;

extern "C" struct G2rlFlashAttention {
  at::Tensor* query;
  at::Tensor* keys;
  at::Tensor* values;
  at::Tensor* query_starts;
  at::Tensor* starts;
  at::Tensor* lengths;
  int64_t longest;
  double scale;
};

namespace {

// What the kernel reads through without looking. Only shapes, kinds and devices: the values of `starts` and
// `lengths` are on the GPU, and reading them would make the caller wait.
[[maybe_unused]] void check_tensors(const G2rlFlashAttention& a) {
  for (const at::Tensor* t : {a.query, a.keys, a.values, a.query_starts, a.starts, a.lengths}) {
    if (!t->is_cuda() || t->get_device() != a.query->get_device()) {
      invalid("all tensors must be on one GPU");
    }
  }
  if (a.query->dim() != 3 || a.keys->dim() != 3 || a.values->sizes() != a.keys->sizes()) {
    invalid("query must be [rows, heads, d], keys and values [tokens, kv_heads, d]");
  }
  const int64_t rows = a.query->size(0);
  const int64_t kv_heads = a.keys->size(1);
  if (rows == 0 || kv_heads == 0 || a.query->size(1) % kv_heads != 0 || a.query->size(2) != a.keys->size(2)) {
    invalid("heads must be a multiple of kv_heads, of the same width");
  }
  if (a.keys->size(0) > INT32_MAX || a.longest < 1 || a.longest > INT32_MAX) {
    invalid("tokens and the longest length must fit 32 bits");
  }
  for (const at::Tensor* t : {a.query_starts, a.starts, a.lengths}) {
    const int64_t count = t == a.lengths ? rows : rows + 1;
    if (t->scalar_type() != at::kInt || t->dim() != 1 || t->size(0) != count || !t->is_contiguous()) {
      invalid("starts must be [rows + 1] i32 and lengths [rows] i32");
    }
  }
}

} // namespace

extern "C" G2rlStatus g2rl_flash_attention(
    const G2rlFlashAttention* a,
    at::Tensor** output,
    at::Tensor** normalizers) {
  return guarded([&] {
#ifdef G2RL_CUDA
    if (c10::cuda::device_count() == 0) {
      throw Failure(G2RL_NO_CUDA, "there is no GPU");
    }
    check_tensors(*a);
    at::NoGradGuard no_grad;
    auto result = at::_flash_attention_forward(
        *a->query,
        *a->keys,
        *a->values,
        *a->query_starts,
        *a->starts,
        /*max_q=*/1,
        /*max_k=*/a->longest,
        /*dropout_p=*/0.0,
        /*is_causal=*/false,
        /*return_debug_mask=*/false,
        a->scale,
        /*window_size_left=*/std::nullopt,
        /*window_size_right=*/std::nullopt,
        /*seqused_k=*/*a->lengths);
    *output = new at::Tensor(std::move(std::get<0>(result)));
    *normalizers = new at::Tensor(std::move(std::get<1>(result)));
#else
    (void)a;
    (void)output;
    (void)normalizers;
    throw Failure(G2RL_NO_CUDA, "built without CUDA");
#endif
  });
}
