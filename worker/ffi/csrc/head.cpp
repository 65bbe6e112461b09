// Softmax statistics of logits and the loss's gradient by them, on a CPU, logits in f32 or bf16.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "status.h"
#include "vector.h"

using namespace g2rl;

namespace {

struct Rows {
  const void* logits;
  int64_t vocab;
  float inverse_temperature;
  const int64_t* targets;
};

struct Statistics {
  float *logprobs, *entropies, *normalizers;
};

// For each row z / T: log p(target), the entropy, and the log of the sum of exponentials.
template <typename T>
G2RL_INLINE void statistics(const Rows& rows, const Statistics& out, int64_t begin, int64_t end) {
  const Floats inverse = splat(rows.inverse_temperature);
  for (int64_t row = begin; row < end; ++row) {
    const T* z = static_cast<const T*>(rows.logits) + row * rows.vocab;
    const int64_t whole = rows.vocab / kWidth * kWidth;
    Floats top = splat(-FLT_MAX);
    for (int64_t i = 0; i < whole; i += kWidth) {
      top = larger(top, load(z + i) * inverse);
    }
    float rest[kWidth];
    store(rest, take(z + whole, rows.vocab - whole) * inverse);
    for (int64_t i = rows.vocab - whole; i < kWidth; ++i) {
      rest[i] = -FLT_MAX;
    }
    const Floats tail = load(rest);
    top = larger(top, tail);
    const float maximum = largest(top);
    const Floats shift = splat(maximum);
    // e^y and y e^y with y = z / T - maximum; sums of sixteen lanes in double.
    Doubles8 total = {}, weighted = {};
    for (int64_t i = 0; i <= whole; i += kWidth) {
      const Floats y = (i < whole ? load(z + i) * inverse : tail) - shift;
      const Floats e = exponential(y);
      add_to(total, e);
      // Where e is 0, y may be as low as -FLT_MAX.
      const Ints live = e > Floats{};
      add_to(weighted, live ? y * e : Floats{});
    }
    const double all = sum(total);
    const double log_all = std::log(all);
    const double normalizer = maximum + log_all;
    const T* target = z + rows.targets[row];
    float drawn;
    if constexpr (sizeof(T) == 4) {
      drawn = *target;
    } else {
      const uint32_t bits = static_cast<uint32_t>(*target) << 16;
      std::memcpy(&drawn, &bits, sizeof drawn);
    }
    out.logprobs[row] = static_cast<float>(static_cast<double>(drawn * rows.inverse_temperature) - normalizer);
    out.entropies[row] = static_cast<float>(log_all - sum(weighted) / all);
    out.normalizers[row] = static_cast<float>(normalizer);
  }
}

// What the gradient of a row is made from.
struct Coefficients {
  const float *normalizers, *entropies, *logprob_gradients, *entropy_weights;
};

// (g (onehot - p) + c p (log p + H)) / T
template <typename T>
G2RL_INLINE void gradient(const Rows& rows, const Coefficients& c, T* out, int64_t begin, int64_t end) {
  const Floats inverse = splat(rows.inverse_temperature);
  for (int64_t row = begin; row < end; ++row) {
    const T* z = static_cast<const T*>(rows.logits) + row * rows.vocab;
    T* to = out + row * rows.vocab;
    const Floats normalizer = splat(c.normalizers[row]);
    const float g = c.logprob_gradients[row] * rows.inverse_temperature;
    const float bonus = c.entropy_weights[row] * rows.inverse_temperature;
    const Floats constant = splat(bonus * c.entropies[row] - g), slope = splat(bonus);
    const int64_t target = rows.targets[row];
    // The target's own value before it may be overwritten: `out` may be the logits.
    const Floats around = take(z + target, 1) * inverse - normalizer;
    const Floats at_target = exponential(around) * (constant + slope * around) + splat(g);
    for (int64_t i = 0; i < rows.vocab; i += kWidth) {
      const int64_t left = rows.vocab - i;
      const Floats logprob = take(z + i, left) * inverse - normalizer;
      put(to + i, exponential(logprob) * (constant + slope * logprob), left);
    }
    put(to + target, at_target, 1);
  }
}

G2RL_CLONES void statistics_f32(const Rows& r, const Statistics& s, int64_t begin, int64_t end) {
  statistics<float>(r, s, begin, end);
}
G2RL_CLONES void statistics_bf16(const Rows& r, const Statistics& s, int64_t begin, int64_t end) {
  statistics<uint16_t>(r, s, begin, end);
}
G2RL_CLONES void gradient_f32(const Rows& r, const Coefficients& c, void* out, int64_t begin, int64_t end) {
  gradient<float>(r, c, static_cast<float*>(out), begin, end);
}
G2RL_CLONES void gradient_bf16(const Rows& r, const Coefficients& c, void* out, int64_t begin, int64_t end) {
  gradient<uint16_t>(r, c, static_cast<uint16_t*>(out), begin, end);
}

Rows checked(const at::Tensor& logits, double temperature, const int64_t* targets) {
  const auto kind = logits.scalar_type();
  if (logits.dim() != 2 || !logits.is_contiguous() || !logits.device().is_cpu() ||
      (kind != at::kFloat && kind != at::kBFloat16)) {
    invalid("logits must be contiguous f32 or bf16 [rows, vocab] on the CPU");
  }
  if (!(temperature > 0)) {
    invalid("the temperature must be positive");
  }
  for (int64_t row = 0; row < logits.size(0); ++row) {
    if (targets[row] < 0 || targets[row] >= logits.size(1)) {
      invalid("target " + std::to_string(targets[row]) + " of row " + std::to_string(row) + " is not in the vocabulary");
    }
  }
  return {logits.const_data_ptr(), logits.size(1), static_cast<float>(1.0 / temperature), targets};
}

} // namespace

// Writes [rows] values each.
extern "C" G2rlStatus g2rl_head_statistics(
    const at::Tensor* logits, double temperature, const int64_t* targets, float* logprobs, float* entropies,
    float* normalizers) {
  return guarded([&] {
    const Rows rows = checked(*logits, temperature, targets);
    const Statistics out{logprobs, entropies, normalizers};
    auto run = logits->scalar_type() == at::kFloat ? statistics_f32 : statistics_bf16;
    at::parallel_for(0, logits->size(0), 8, [&](int64_t begin, int64_t end) { run(rows, out, begin, end); });
  });
}

// Overwrites the logits with the loss's gradient by them.
extern "C" G2rlStatus g2rl_head_gradient(
    const at::Tensor* logits, double temperature, const int64_t* targets, const float* normalizers,
    const float* entropies, const float* logprob_gradients, const float* entropy_weights) {
  return guarded([&] {
    const Rows rows = checked(*logits, temperature, targets);
    const Coefficients c{normalizers, entropies, logprob_gradients, entropy_weights};
    void* out = logits->data_ptr();
    auto run = logits->scalar_type() == at::kFloat ? gradient_f32 : gradient_bf16;
    at::parallel_for(0, logits->size(0), 8, [&](int64_t begin, int64_t end) { run(rows, c, out, begin, end); });
  });
}
