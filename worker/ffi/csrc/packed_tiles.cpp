// Products in bf16 with the processor's tile registers (Intel AMX).
//
// A tile of weights is sixteen pairs of inputs times sixteen columns: half a panel's rows, as they lie.
// Every product over such weights uses tiles for all of its rows, so a row's result depends on the processor
// but not on the number of rows.
#include <algorithm>
#include <cstring>

#include "panel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define G2RL_TILES __attribute__((target("arch=x86-64-v4,avx512bf16,amx-tile,amx-bf16")))

namespace g2rl {

namespace {

// Rows and pairs of inputs of a tile, and its columns.
constexpr int64_t kTile = 16;
// Inputs of a tile.
constexpr int64_t kInputs = 2 * kTile;
// Bytes of a row of a tile.
constexpr int64_t kRowBytes = 64;

// The operand of `ldtilecfg`.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Tiles 0 to 3 are sums: upper and lower rows times left and right columns. 4 and 5 are upper and lower
  // rows of x, 6 and 7 left and right weights.
  explicit Shapes(int64_t upper, int64_t lower) {
    const int64_t heights[8] = {upper, upper, lower, lower, upper, lower, kTile, kTile};
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = kRowBytes;
      rows[tile] = static_cast<uint8_t>(heights[tile]);
    }
  }
};

// Asks Linux for the registers, once for the process.
bool granted() {
  constexpr unsigned long kRequest = 0x1023, kTileData = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool has_tiles() {
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBf16) != 0 && (d & kTiles) != 0 && granted();
}

template <Then then>
G2RL_TILES G2RL_INLINE void multiply_tiles(
    const void* rows_of_x, int64_t rows, const Packed& w, const Target& to, int64_t p) {
  const uint16_t* x = static_cast<const uint16_t*>(rows_of_x);
  const uint16_t* panel = static_cast<const uint16_t*>(w.data.get()) + p * w.inputs * kPanel;
  const int64_t column = p * (then == Then::gate ? kWidth : kPanel), stride = w.inputs * 2;
  alignas(64) float sums[2 * kTile * kPanel];
  int64_t shaped = 0;
  for (int64_t row = 0; row < rows; row += 2 * kTile) {
    const int64_t count = std::min(rows - row, 2 * kTile);
    if (count != shaped) {
      const Shapes shapes(std::min(count, kTile), std::max<int64_t>(count - kTile, 1));
      _tile_loadconfig(&shapes);
      shaped = count;
    }
    const bool lower = count > kTile;
    const uint16_t* upper_x = x + row * w.inputs;
    const uint16_t* lower_x = upper_x + kTile * w.inputs;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < w.inputs; i += kInputs) {
      const uint16_t* weights = panel + i * kPanel;
      _tile_loadd(6, weights, 2 * kRowBytes);
      _tile_loadd(7, weights + kInputs, 2 * kRowBytes);
      _tile_loadd(4, upper_x + i, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (lower) {
        _tile_loadd(5, lower_x + i, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums, kPanel * sizeof(float));
    _tile_stored(1, sums + kTile, kPanel * sizeof(float));
    if (lower) {
      _tile_stored(2, sums + kTile * kPanel, kPanel * sizeof(float));
      _tile_stored(3, sums + kTile * kPanel + kTile, kPanel * sizeof(float));
    }
    for (int64_t r = 0; r < count; ++r) {
      Sums<1> halves;
      halves.low[0] = load(sums + r * kPanel);
      halves.high[0] = load(sums + r * kPanel + kWidth);
      finish<then, uint16_t>(halves, to, row + r, column, w.columns);
    }
  }
  _tile_release();
}

} // namespace

bool can_multiply_tiles(int64_t inputs) {
  static const bool available = has_tiles();
  return available && inputs % kInputs == 0;
}

G2RL_TILES void store_tiles(const void* x, int64_t rows, const Packed& w, const Target& to, int64_t panel) {
  multiply_tiles<Then::store>(x, rows, w, to, panel);
}
G2RL_TILES void add_tiles(const void* x, int64_t rows, const Packed& w, const Target& to, int64_t panel) {
  multiply_tiles<Then::add>(x, rows, w, to, panel);
}
G2RL_TILES void gate_tiles(const void* x, int64_t rows, const Packed& w, const Target& to, int64_t panel) {
  multiply_tiles<Then::gate>(x, rows, w, to, panel);
}

} // namespace g2rl

#else

namespace g2rl {

bool can_multiply_tiles(int64_t) {
  return false;
}
void store_tiles(const void*, int64_t, const Packed&, const Target&, int64_t) {}
void add_tiles(const void*, int64_t, const Packed&, const Target&, int64_t) {}
void gate_tiles(const void*, int64_t, const Packed&, const Target&, int64_t) {}

} // namespace g2rl

#endif
