#include "packed.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define G2RL_WIDE __attribute__((target("arch=x86-64-v4")))
#define G2RL_WIDE_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define G2RL_HAS_WIDE 1
#else
#define G2RL_WIDE
#define G2RL_HAS_WIDE 0
#endif

#include "panel.h"
#include "status.h"
#include "vector.h"

using namespace g2rl;

namespace {

// Rows of a register tile.
constexpr int kRows = 12;

// Where the value of (panel, input, column) lies.
int64_t place(bool bf16, int64_t inputs, int64_t panel, int64_t input, int64_t column) {
  return bf16 ? ((panel * (inputs / 2) + input / 2) * kPanel + column) * 2 + input % 2
              : (panel * inputs + input) * kPanel + column;
}

// `source(panel, column)` is the row of the weights that a column of a panel holds, -1 for padding.
template <typename T, typename Source>
void copy_panels(const at::Tensor& weights, const Packed& packed, const Source& source) {
  const T* from = static_cast<const T*>(weights.const_data_ptr());
  T* to = static_cast<T*>(packed.data.get());
  const int64_t inputs = packed.inputs;
  at::parallel_for(0, packed.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t column = 0; column < kPanel; ++column) {
        const int64_t row = source(panel, column);
        for (int64_t i = 0; i < inputs; ++i) {
          to[place(packed.bf16, inputs, panel, i, column)] = row < 0 ? T{} : from[row * inputs + i];
        }
      }
    }
  });
}

template <typename Source>
Packed pack(const at::Tensor& weights, int64_t columns, int64_t panels, const Source& source) {
  const int64_t inputs = weights.size(1);
  const bool bf16 = weights.scalar_type() == at::kBFloat16;
  if (bf16 && inputs % 2 != 0) {
    invalid("products in bf16 need an even number of inputs");
  }
  const size_t bytes = static_cast<size_t>(panels * inputs * kPanel) * weights.element_size();
  Packed packed{{}, columns, inputs, panels, bf16};
  packed.data.reset(::operator new(bytes, std::align_val_t{64}));
  if (bf16) {
    copy_panels<uint16_t>(weights, packed, source);
  } else {
    copy_panels<float>(weights, packed, source);
  }
  return packed;
}

template <int rows>
G2RL_INLINE Sums<rows> multiply(const float* x, int64_t inputs, const float* panel) {
  Sums<rows> sums = {};
  for (int64_t i = 0; i < inputs; ++i) {
    const Floats a = load(panel + i * kPanel), b = load(panel + i * kPanel + kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const Floats v = splat(x[r * inputs + i]);
      sums.low[r] += v * a;
      sums.high[r] += v * b;
    }
  }
  return sums;
}

template <Then then, int rows>
G2RL_INLINE void tile(const float* x, const Packed& w, int64_t p, const Target& to, int64_t row, int64_t column) {
  const float* panel = static_cast<const float*>(w.data.get()) + p * w.inputs * kPanel;
  finish<then, float>(multiply<rows>(x + row * w.inputs, w.inputs, panel), to, row, column, w.columns);
}

#if G2RL_HAS_WIDE
// Two neighbouring inputs of a row in all lanes, against sixteen columns' weights for them.
template <int rows>
G2RL_WIDE_BF16 G2RL_INLINE Sums<rows> multiply(const uint16_t* x, int64_t inputs, const uint16_t* panel) {
  __m512 low[rows], high[rows];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    low[r] = high[r] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < inputs; i += 2) {
    const __m512bh a = (__m512bh)_mm512_loadu_si512(panel + i * kPanel);
    const __m512bh b = (__m512bh)_mm512_loadu_si512(panel + i * kPanel + kPanel);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      int32_t pair;
      std::memcpy(&pair, x + r * inputs + i, sizeof pair);
      const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
      low[r] = _mm512_dpbf16_ps(low[r], v, a);
      high[r] = _mm512_dpbf16_ps(high[r], v, b);
    }
  }
  Sums<rows> sums;
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    sums.low[r] = (Floats)low[r];
    sums.high[r] = (Floats)high[r];
  }
  return sums;
}

template <Then then, int rows>
G2RL_WIDE_BF16 G2RL_INLINE void tile(
    const uint16_t* x, const Packed& w, int64_t p, const Target& to, int64_t row, int64_t column) {
  const uint16_t* panel = static_cast<const uint16_t*>(w.data.get()) + p * w.inputs * kPanel;
  finish<then, uint16_t>(multiply<rows>(x + row * w.inputs, w.inputs, panel), to, row, column, w.columns);
}
#endif

#define G2RL_PANELS(name, T, then, target)                                                                     \
  target void name(const void* rows_of_x, int64_t rows, const Packed& w, const Target& to, int64_t p) {        \
    const T* x = static_cast<const T*>(rows_of_x);                                                             \
    const int64_t column = p * (then == Then::gate ? kWidth : kPanel);                                         \
    int64_t row = 0;                                                                                           \
    for (; row + kRows <= rows; row += kRows) tile<then, kRows>(x, w, p, to, row, column);                     \
    for (; row + 8 <= rows; row += 8) tile<then, 8>(x, w, p, to, row, column);                                 \
    for (; row + 4 <= rows; row += 4) tile<then, 4>(x, w, p, to, row, column);                                 \
    for (; row < rows; ++row) tile<then, 1>(x, w, p, to, row, column);                                         \
  }
G2RL_PANELS(store_f32, float, Then::store, G2RL_WIDE)
G2RL_PANELS(add_f32, float, Then::add, G2RL_WIDE)
G2RL_PANELS(gate_f32, float, Then::gate, G2RL_WIDE)
#if G2RL_HAS_WIDE
G2RL_PANELS(store_bf16, uint16_t, Then::store, G2RL_WIDE_BF16)
G2RL_PANELS(add_bf16, uint16_t, Then::add, G2RL_WIDE_BF16)
G2RL_PANELS(gate_bf16, uint16_t, Then::gate, G2RL_WIDE_BF16)
#endif

// The same for all rows of a product: a row's result may not depend on how many there are.
Panel panel_function(const Packed& weights, Then then) {
#if G2RL_HAS_WIDE
  if (weights.bf16 && can_multiply_tiles(weights.inputs)) {
    return then == Then::store ? store_tiles : then == Then::add ? add_tiles : gate_tiles;
  }
  if (weights.bf16) {
    return then == Then::store ? store_bf16 : then == Then::add ? add_bf16 : gate_bf16;
  }
#endif
  return then == Then::store ? store_f32 : then == Then::add ? add_f32 : gate_f32;
}

} // namespace

namespace g2rl {

bool can_multiply_packed(bool bf16) {
#if G2RL_HAS_WIDE
  return __builtin_cpu_supports("x86-64-v4") && (!bf16 || __builtin_cpu_supports("avx512bf16"));
#else
  return false;
#endif
}

Packed pack_plain(const at::Tensor& weights) {
  const int64_t rows = weights.size(0);
  return pack(weights, rows, (rows + kPanel - 1) / kPanel, [=](int64_t panel, int64_t column) {
    const int64_t row = panel * kPanel + column;
    return row < rows ? row : -1;
  });
}

Packed pack_gated(const at::Tensor& weights) {
  const int64_t inner = weights.size(0) / 2;
  return pack(weights, inner, (inner + kWidth - 1) / kWidth, [=](int64_t panel, int64_t column) {
    const int64_t row = panel * kWidth + column % kWidth;
    return row >= inner ? -1 : column < kWidth ? row : inner + row;
  });
}

void product(const void* x, int64_t rows, const Packed& weights, const Target& to, Then then) {
  const Panel run = panel_function(weights, then);
  at::parallel_for(0, weights.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      run(x, rows, weights, to, p);
    }
  });
}

} // namespace g2rl
