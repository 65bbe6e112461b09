// What the kernels of packed products share.
#pragma once

#include <cstdint>

#include "packed.h"
#include "vector.h"

namespace g2rl {

// Output columns of a panel.
constexpr int64_t kPanel = 2 * kWidth;

// One panel's columns for all rows of x.
using Panel = void (*)(const void* x, int64_t rows, const Packed& weights, const Target& to, int64_t panel);

// Whether this machine has tile registers for bf16 (Intel AMX), and they fit a product over so many inputs.
bool can_multiply_tiles(int64_t inputs);

void store_tiles(const void* x, int64_t rows, const Packed& weights, const Target& to, int64_t panel);
void add_tiles(const void* x, int64_t rows, const Packed& weights, const Target& to, int64_t panel);
void gate_tiles(const void* x, int64_t rows, const Packed& weights, const Target& to, int64_t panel);

// The two halves of a panel for some rows.
template <int rows>
struct Sums {
  Floats low[rows], high[rows];
};

template <Then then, typename Out, int rows>
G2RL_INLINE void finish(const Sums<rows>& sums, const Target& to, int64_t row, int64_t column, int64_t columns) {
  const int64_t left = columns - column;
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    Floats first = sums.low[r], second = sums.high[r];
    if constexpr (then == Then::gate) {
      // silu(g) u
      Out* out = static_cast<Out*>(to.data) + (row + r) * to.stride + column;
      put(out, first / (splat(1.0f) + exponential(-first)) * second, left);
    } else {
      float* out = static_cast<float*>(to.data) + (row + r) * to.stride + column;
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

} // namespace g2rl
