// What a decoder does to one row of a tensor between two products: norm, rotation, gating, and their
// gradients. Rows are f32 or bf16 (`uint16_t`); the arithmetic is f32.
#pragma once

#include <cmath>

#include "vector.h"

namespace g2rl {

// 1 / sqrt(mean(x^2) + eps)
template <typename T>
G2RL_INLINE float inverse_rms(const T* x, int64_t size, float eps) {
  Floats squares = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Floats v = take(x + i, size - i);
    squares += v * v;
  }
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
}

// x / rms(x) * weight
template <typename T, typename W, typename Out>
G2RL_INLINE void norm_row(const T* x, const W* weight, Out* out, int64_t size, float eps) {
  const Floats scale = splat(inverse_rms(x, size, eps));
  for (int64_t i = 0; i < size; i += kWidth) {
    put(out + i, take(x + i, size - i) * scale * take(weight + i, size - i), size - i);
  }
}

// The gradient by x, plus `residual` where given; adds the gradient by the weight.
//
// With n = x / rms(x) and g = dy weight: dx = (g - n mean(g n)) / rms(x), dweight = dy n.
template <typename D, typename T, typename Out>
G2RL_INLINE void norm_row_backward(
    const D* dy, const T* x, const T* weight, const Out* residual, Out* dx, float* dweight, int64_t size, float eps) {
  const float inverse = inverse_rms(x, size, eps);
  const Floats scale = splat(inverse);
  Floats products = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const int64_t left = size - i;
    const Floats d = take(dy + i, left), n = take(x + i, left) * scale;
    products += d * take(weight + i, left) * n;
    put(dweight + i, take(dweight + i, left) + d * n, left);
  }
  const Floats mean = splat(sum(products) / static_cast<float>(size));
  for (int64_t i = 0; i < size; i += kWidth) {
    const int64_t left = size - i;
    const Floats g = take(dy + i, left) * take(weight + i, left);
    Floats d = (g - take(x + i, left) * scale * mean) * scale;
    if (residual != nullptr) {
      d += take(residual + i, left);
    }
    put(dx + i, d, left);
  }
}

// a cos - b sin, b cos + a sin for the halves a, b of a head, times `scale`. With -sin it turns back.
template <typename T, typename R, typename Out>
G2RL_INLINE void rotate_row(const T* head, const R* cos, const R* sin, Out* out, int64_t half, float scale, float sign) {
  const Floats factor = splat(scale), turn = splat(sign);
  for (int64_t i = 0; i < half; i += kWidth) {
    const int64_t left = half - i;
    const Floats a = take(head + i, left), b = take(head + half + i, left);
    const Floats c = take(cos + i, left), s = take(sin + i, left) * turn;
    put(out + i, (a * c - b * s) * factor, left);
    put(out + half + i, (b * c + a * s) * factor, left);
  }
}

// silu(gate) up
template <typename T>
G2RL_INLINE void gate_row(const T* gate_up, T* out, int64_t inner) {
  for (int64_t i = 0; i < inner; i += kWidth) {
    const int64_t left = inner - i;
    const Floats g = take(gate_up + i, left), u = take(gate_up + inner + i, left);
    put(out + i, g / (splat(1.0f) + exponential(-g)) * u, left);
  }
}

// The gradients by gate and up, and silu(gate) up once more.
template <typename T>
G2RL_INLINE void gate_row_backward(const T* d, const T* gate_up, T* dgate_up, T* out, int64_t inner) {
  const Floats one = splat(1.0f);
  for (int64_t i = 0; i < inner; i += kWidth) {
    const int64_t left = inner - i;
    const Floats g = take(gate_up + i, left), u = take(gate_up + inner + i, left), dy = take(d + i, left);
    const Floats sigmoid = one / (one + exponential(-g));
    const Floats silu = g * sigmoid;
    put(out + i, silu * u, left);
    put(dgate_up + i, dy * u * sigmoid * (one + g * (one - sigmoid)), left);
    put(dgate_up + inner + i, dy * silu, left);
  }
}

} // namespace g2rl
