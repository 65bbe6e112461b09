// A borrowed list of tensors, as Rust passes it.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace g2rl {

struct TensorSlice {
  at::Tensor* const* tensors;
  size_t count;

  std::vector<at::Tensor> vec() const {
    std::vector<at::Tensor> out;
    out.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      out.push_back(*tensors[i]);
    }
    return out;
  }
};

} // namespace g2rl
