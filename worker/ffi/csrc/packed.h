// Products with weights that lie in the order in which a product reads them, on CPUs with AVX-512.
//
// Weights are packed into panels of 32 output columns. Each output is the sum over its inputs in their
// order, in f32: it depends neither on the other rows nor on the number of threads. In bf16 two inputs are
// multiplied and added at once (AVX512-BF16).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <new>

namespace g2rl {

struct AlignedFree {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};

// [panels, inputs, 32] f32, or [panels, inputs / 2, 32, 2] bf16; the last panel is padded with zeros.
struct Packed {
  std::unique_ptr<void, AlignedFree> data;
  int64_t columns, inputs, panels;
  bool bf16;
};

// What a product does with its result: overwrite, add to what is there, or silu(gate) up of weights that
// `pack_gated` packed.
enum class Then { store, add, gate };

// Where a product goes: [rows, stride], f32 for `store` and `add`, the kind of the weights for `gate`.
struct Target {
  void* data;
  int64_t stride;
  const float* bias;
};

// Whether this machine can multiply with packed weights of that kind.
bool can_multiply_packed(bool bf16);

// Weights [columns, inputs], contiguous f32 or bf16.
Packed pack_plain(const at::Tensor& weights);

// Gates and the values they act on, [2 columns, inputs], side by side.
Packed pack_gated(const at::Tensor& weights);

// x W^T for x [rows, inputs] in the kind of the weights.
void product(const void* x, int64_t rows, const Packed& weights, const Target& to, Then then);

} // namespace g2rl
