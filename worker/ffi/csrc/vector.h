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
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

G2RL_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

G2RL_INLINE void store(float* p, Floats v) {
  std::memcpy(p, &v, sizeof v);
}

// As a shuffle: GCC makes one broadcast of it, but sixteen masked ones of `x - Floats{}` in a clone.
G2RL_INLINE Floats splat(float x) {
  const Floats v = {x};
  return __builtin_shufflevector(v, v, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
}

// The first `count` floats at p, then `fill`.
G2RL_INLINE Floats load_part(const float* p, int64_t count, float fill) {
  Floats v = splat(fill);
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(float));
  return v;
}

// Sixteen bf16, as f32.
G2RL_INLINE Floats load(const uint16_t* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  const Bits bits = __builtin_convertvector(halves, Bits) << 16;
  Floats v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// Rounds to the nearest bf16, ties to even.
G2RL_INLINE void store(uint16_t* p, Floats v) {
  Bits bits;
  std::memcpy(&bits, &v, sizeof bits);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Ints number = v == v;
  const Halves halves = __builtin_convertvector(number ? rounded : Bits{} + 0x7fc0, Halves);
  std::memcpy(p, &halves, sizeof halves);
}

// The first `count` values at p, at most sixteen, then zeros.
template <typename T>
G2RL_INLINE Floats take(const T* p, int64_t count) {
  if (count >= kWidth) {
    return load(p);
  }
  T part[kWidth] = {};
  std::memcpy(part, p, static_cast<size_t>(count > 0 ? count : 0) * sizeof(T));
  return load(part);
}

// Writes the first `count` lanes, at most sixteen.
template <typename T>
G2RL_INLINE void put(T* p, Floats v, int64_t count) {
  if (count >= kWidth) {
    store(p, v);
  } else if (count > 0) {
    T part[kWidth];
    store(part, v);
    std::memcpy(p, part, static_cast<size_t>(count) * sizeof(T));
  }
}

// Halves are added to halves, in registers.
G2RL_INLINE float sum(Floats v) {
  const Floats8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
      __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const Floats4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}

// The sums of sixteen vectors, each by the additions of sum(): halves, quarters, eighths, pairs.
G2RL_INLINE Floats sum_each(const Floats* v) {
  Floats a[8];
  // Lanes 0-7 of a[i] are the eight partial sums of v[2 i], lanes 8-15 those of v[2 i + 1].
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const Floats x = v[2 * i], y = v[2 * i + 1];
    a[i] = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
        __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  // Four lanes of each of v[4 i] .. v[4 i + 3].
  Floats b[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Floats x = a[2 * i], y = a[2 * i + 1];
    b[i] = __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
        __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  // (0 + 2) and (1 + 3) of each four.
  Floats c[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Floats x = b[2 * i], y = b[2 * i + 1];
    c[i] = __builtin_shufflevector(x, y, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
        __builtin_shufflevector(x, y, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  return __builtin_shufflevector(c[0], c[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
      __builtin_shufflevector(c[0], c[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
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
