// Fused AdamW, products into f32, and the global norm.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>

#include <cmath>
#include <vector>

#include "status.h"
#include "tensors.h"

using g2rl::guarded;
using g2rl::TensorSlice;

namespace {

// Elements summed by one thread in a fixed order. The partial sums do not depend on the number of
// threads, so neither does the norm.
constexpr int64_t kBlock = 1 << 16;
constexpr int64_t kLanes = 8;
// Elements converted to double at once on a GPU.
constexpr int64_t kDeviceChunk = 1 << 24;

template <typename T>
double block_sum_of_squares(const T* data, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      double x = static_cast<double>(static_cast<float>(data[i + lane]));
      lanes[lane] += x * x;
    }
  }
  double sum = 0;
  for (; i < count; ++i) {
    double x = static_cast<double>(static_cast<float>(data[i]));
    sum += x * x;
  }
  for (double lane : lanes) {
    sum += lane;
  }
  return sum;
}

template <typename T>
double sum_of_squares_on_cpu(const at::Tensor& tensor) {
  const T* data = tensor.const_data_ptr<T>();
  const int64_t count = tensor.numel();
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> sums(static_cast<size_t>(blocks));
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = block * kBlock;
      sums[static_cast<size_t>(block)] = block_sum_of_squares(data + start, std::min(kBlock, count - start));
    }
  });
  double total = 0;
  for (double sum : sums) {
    total += sum;
  }
  return total;
}

double sum_of_squares(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().contiguous().view({-1});
  if (flat.numel() == 0) {
    return 0;
  }
  if (flat.device().is_cpu() && flat.scalar_type() == at::kFloat) {
    return sum_of_squares_on_cpu<float>(flat);
  }
  if (flat.device().is_cpu() && flat.scalar_type() == at::kBFloat16) {
    return sum_of_squares_on_cpu<at::BFloat16>(flat);
  }
  at::Tensor total = at::zeros({}, flat.options().dtype(at::kDouble));
  for (int64_t start = 0; start < flat.numel(); start += kDeviceChunk) {
    auto chunk = flat.narrow(0, start, std::min(kDeviceChunk, flat.numel() - start)).to(at::kDouble);
    total.add_(at::dot(chunk, chunk));
  }
  return total.item<double>();
}

} // namespace

extern "C" struct G2rlAdamW {
  TensorSlice params;
  TensorSlice grads;
  TensorSlice exp_avgs;
  TensorSlice exp_avg_sqs;
  // Number of this step, from 1.
  int64_t step;
  double lr, beta1, beta2, eps, weight_decay;
};

extern "C" G2rlStatus g2rl_fused_adamw(const G2rlAdamW* a) {
  return guarded([&] {
    if (a->params.count == 0) {
      return;
    }
    at::NoGradGuard no_grad;
    auto params = a->params.vec();
    // The counter lives where the parameters do; the kernel reads it as f32.
    auto step = at::full({}, static_cast<double>(a->step), params[0].options().dtype(at::kFloat));
    std::vector<at::Tensor> steps(params.size(), step);
    at::_fused_adamw_(
        params, a->grads.vec(), a->exp_avgs.vec(), a->exp_avg_sqs.vec(), /*max_exp_avg_sqs=*/{}, steps, a->lr,
        a->beta1, a->beta2, a->weight_decay, a->eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

extern "C" G2rlStatus g2rl_add_product(at::Tensor* sum, at::Tensor* left, at::Tensor* right) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    at::addmm_out(*sum, *sum, *left, *right, at::kFloat);
  });
}

extern "C" G2rlStatus g2rl_l2_norm(TensorSlice tensors, double* norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    double total = 0;
    for (size_t i = 0; i < tensors.count; ++i) {
      total += sum_of_squares(*tensors.tensors[i]);
    }
    *norm = std::sqrt(total);
  });
}
