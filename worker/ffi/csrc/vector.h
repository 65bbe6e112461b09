// Sixteen floats at a time, with the compiler's vector types: one zmm register, two ymm or four
// xmm. The order of every sum is written out, so a result depends on the instruction set at most
// by fused multiply-adds, and never on the number of threads or on neighbours in the batch.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

// Compiles a function once for each instruction set; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define G2RL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define G2RL_CLONES
#endif
// Helpers must be part of the clone that calls them.
#define G2RL_INLINE static inline __attribute__((always_inline))

namespace g2rl {

constexpr int64_t kWidth = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef double Doubles8 __attribute__((vector_size(64)));

G2RL_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

G2RL_INLINE void store(float* p, Floats v) {
  std::memcpy(p, &v, sizeof v);
}

// The first `count` floats at p, then `fill`.
G2RL_INLINE Floats load_part(const float* p, int64_t count, float fill) {
  Floats v = fill - Floats{};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(float));
  return v;
}

G2RL_INLINE Floats splat(float x) {
  return x - Floats{};
}

// Halves are added to halves, in registers.
G2RL_INLINE float sum(Floats v) {
  const Floats8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
      __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const Floats4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}

G2RL_INLINE float largest(Floats v) {
  float out = v[0];
  for (int i = 1; i < kWidth; ++i) out = v[i] > out ? v[i] : out;
  return out;
}

G2RL_INLINE Floats larger(Floats a, Floats b) {
  return a > b ? a : b;
}

// Adds sixteen floats to eight doubles.
G2RL_INLINE void add_to(Doubles8& total, Floats v) {
  const Floats8 low = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  const Floats8 high = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  total += __builtin_convertvector(low, Doubles8) + __builtin_convertvector(high, Doubles8);
}

G2RL_INLINE double sum(Doubles8 v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// e^x for x <= 88; 0 below -87.3, where the result would be subnormal. Relative error below 2e-7:
// x = n ln 2 + r with |r| <= ln(2)/2, the polynomial of Cephes' expf for e^r, and 2^n by exponent.
G2RL_INLINE Floats exponential(Floats x) {
  const Floats lowest = splat(-87.3f);
  const Ints keep = x >= lowest;
  x = keep ? x : lowest;
  // Adding and taking away 1.5 * 2^23 rounds to an integer, whose value is in the low bits.
  const Floats magic = splat(12582912.0f);
  const Floats shifted = x * splat(1.44269504088896341f) + magic;
  const Floats n = shifted - magic;
  const Ints exponent = __builtin_convertvector(n, Ints);
  Floats r = x - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  Floats p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  const Ints bits = (exponent + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return keep ? p * scale : Floats{};
}

} // namespace g2rl
