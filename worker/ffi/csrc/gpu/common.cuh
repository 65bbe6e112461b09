// What the GPU's kernels share: bf16 in registers of 16 bytes.
#pragma once
#include <cuda_bf16.h>

using bf16 = __nv_bfloat16;

// 8 numbers that other blocks do not write.
__device__ inline uint4 load(const bf16* from) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(from));
  return value;
}

__device__ inline void unpack(uint4 packed, float* to) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ inline unsigned pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// The same of what will be read again soon.
__device__ inline uint4 load_cached(const bf16* from) {
  return *reinterpret_cast<const uint4*>(from);
}

__device__ inline void store(bf16* to, const float* from) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack(from[0], from[1]), pack(from[2], from[3]), pack(from[4], from[5]), pack(from[6], from[7]));
}
