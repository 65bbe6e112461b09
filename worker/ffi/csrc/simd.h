// Loops that the compiler vectorises, compiled once for each generation of x86-64 and chosen at
// run time. A function marked G2RL_CLONES gets the clones; what it calls must be always inlined to
// be part of them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define G2RL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define G2RL_CLONES
#endif
#define G2RL_INLINE inline __attribute__((always_inline))

namespace g2rl {

// exp for x <= 0, relative error below 2e-7; 0 below -87.3 where f32 would be denormal.
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor polynomial of degree 7.
G2RL_INLINE float exp_nonpositive(float x) {
  const float clamped = x < -87.3f ? -87.3f : x;
  const float n = __builtin_floorf(clamped * 1.44269504f + 0.5f);
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9841270e-4f;
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < -87.3f ? 0.0f : p * scale;
}

G2RL_INLINE float to_float(float value) {
  return value;
}

// bfloat16 as its bits.
G2RL_INLINE float to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

G2RL_INLINE void from_float(float value, float& out) {
  out = value;
}

// Round to nearest even.
G2RL_INLINE void from_float(float value, uint16_t& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  out = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

} // namespace g2rl
