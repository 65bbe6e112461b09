// One pass over a row of logits: softmax, draw, log-probability, entropy, residual. On the CPU.
//
// Each row is computed by one thread in a fixed order, so that it depends on nothing but itself.

#include "shim.h"
#include "simd.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <ATen/Parallel.h>

extern "C" {

// As declared in src/sample.rs.
struct G2rlRow {
  double temperature; // 0 takes the most likely token; probabilities are then those at 1
  double top_p;
  double min_p;
  double uniform;       // in [0, 1)
  int64_t top_k;        // 0 keeps all
  int64_t residual_row; // negative: none
  int64_t given;        // a token to score instead of drawing; negative: draw
  double weight;        // of the residual
};

} // extern "C"

namespace {

constexpr int64_t kBlock = 256; // values whose f32 sum is added to the f64 sum

struct Sums {
  double mass;  // sum of exp(x)
  double cross; // sum of exp(x) x
};

// x = (logit - largest) / T; weights become exp(x).
G2RL_CLONES Sums exponentials(const float* logits, int64_t size, float largest, float inverse, float* weights) {
  Sums sums{0, 0};
  for (int64_t start = 0; start < size; start += kBlock) {
    const int64_t end = start + kBlock < size ? start + kBlock : size;
    float mass = 0, cross = 0;
#pragma omp simd reduction(+ : mass, cross)
    for (int64_t i = start; i < end; ++i) {
      const float x = (logits[i] - largest) * inverse;
      const float e = g2rl::exp_nonpositive(x);
      weights[i] = e;
      mass += e;
      cross += e * x;
    }
    sums.mass += mass;
    sums.cross += cross;
  }
  return sums;
}

G2RL_CLONES float maximum(const float* values, int64_t size) {
  float largest = values[0];
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < size; ++i) {
    largest = values[i] > largest ? values[i] : largest;
  }
  return largest;
}

G2RL_CLONES void subtract_scaled(float* target, const float* values, int64_t size, float scale) {
  for (int64_t i = 0; i < size; ++i) {
    target[i] -= values[i] * scale;
  }
}

// Zeroes what the truncations drop and returns what is left of the mass. Order and rules are those of
// transformers: top-k keeps ties with the k-th; top-p keeps the smallest set of most likely tokens
// whose share of what top-k left reaches p; min-p compares with the most likely token.
double truncate(std::vector<float>& weights, const G2rlRow& row) {
  const auto size = static_cast<int64_t>(weights.size());
  if (row.top_k > 0 && row.top_k < size) {
    std::vector<float> copy(weights);
    std::nth_element(copy.begin(), copy.begin() + (row.top_k - 1), copy.end(), std::greater<float>());
    const float least = copy[row.top_k - 1];
    for (auto& weight : weights) {
      weight = weight < least ? 0.0f : weight;
    }
  }
  if (row.top_p < 1.0) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < size; ++i) {
      if (weights[i] > 0) {
        order.push_back(i);
      }
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return weights[a] > weights[b]; });
    double mass = 0, kept = 0;
    for (int64_t i : order) {
      mass += weights[i];
    }
    for (int64_t i : order) {
      if (kept >= row.top_p * mass) {
        weights[i] = 0;
      } else {
        kept += weights[i];
      }
    }
  }
  // The most likely token's weight is exp(0) = 1.
  if (row.min_p > 0) {
    for (auto& weight : weights) {
      weight = weight < row.min_p ? 0.0f : weight;
    }
  }
  return std::accumulate(weights.begin(), weights.end(), 0.0);
}

// Inverse of the cumulative distribution in token-id order.
int64_t draw(const std::vector<float>& weights, double mass, double uniform) {
  const double target = uniform * mass;
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(weights.size()); ++i) {
    if (weights[i] > 0) {
      sum += weights[i];
      last = i;
      if (sum > target) {
        return i;
      }
    }
  }
  return last; // rounding left the target at or above the sum
}

struct Outcome {
  int64_t token;
  float logprob, entropy;
};

// A row; an outcome with a negative token says that its logits are not finite.
Outcome sample(const float* logits, int64_t size, const G2rlRow& row, float* residual, std::vector<float>& weights) {
  const bool greedy = row.temperature == 0;
  const float inverse = greedy ? 1.0f : static_cast<float>(1.0 / row.temperature);
  const float largest = maximum(logits, size);
  weights.resize(static_cast<size_t>(size));
  const Sums sums = exponentials(logits, size, largest, inverse, weights.data());
  if (!std::isfinite(largest) || !std::isfinite(sums.mass) || !std::isfinite(sums.cross)) {
    return {-1, 0, 0};
  }
  if (residual) {
    subtract_scaled(residual, weights.data(), size, static_cast<float>(row.weight / sums.mass));
  }
  int64_t token = row.given;
  if (token < 0 && greedy) {
    token = std::find(logits, logits + size, largest) - logits;
  } else if (token < 0) {
    const bool all = row.top_k <= 0 && row.top_p >= 1.0 && row.min_p <= 0;
    const double mass = all ? sums.mass : truncate(weights, row);
    token = draw(weights, mass, row.uniform);
  }
  if (residual) {
    residual[token] += static_cast<float>(row.weight);
  }
  const double normalizer = std::log(sums.mass);
  const double x = (static_cast<double>(logits[token]) - largest) * inverse;
  return {token, static_cast<float>(x - normalizer), static_cast<float>(normalizer - sums.cross / sums.mass)};
}

} // namespace

extern "C" {

// logits [rows, vocab] f32 contiguous; residual [any, vocab] f32 contiguous or null.
char* g2rl_sample_rows(
    at::Tensor* logits, const G2rlRow* rows, at::Tensor* residual, int64_t* tokens, float* logprobs,
    float* entropies) {
  return g2rl::guarded([&] {
    TORCH_CHECK(
        logits->dim() == 2 && logits->scalar_type() == at::kFloat && logits->is_contiguous() && logits->is_cpu(),
        "logits are a contiguous [rows, vocab] f32 tensor on the CPU");
    const int64_t count = logits->size(0), size = logits->size(1);
    TORCH_CHECK(size > 0, "the vocabulary is empty");
    if (residual) {
      TORCH_CHECK(
          residual->dim() == 2 && residual->scalar_type() == at::kFloat && residual->is_contiguous() &&
              residual->is_cpu() && residual->size(1) == size,
          "residuals are a contiguous [slots, vocab] f32 tensor on the CPU");
    }
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK(rows[i].given < size, "row ", i, ": token ", rows[i].given, " is not below ", size);
      TORCH_CHECK(
          rows[i].residual_row < 0 || (residual && rows[i].residual_row < residual->size(0)), "row ", i,
          ": there is no residual row ", rows[i].residual_row);
    }
    const float* values = logits->const_data_ptr<float>();
    float* sums = residual ? residual->mutable_data_ptr<float>() : nullptr;
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> weights;
      for (int64_t i = begin; i < end; ++i) {
        float* target = rows[i].residual_row < 0 ? nullptr : sums + rows[i].residual_row * size;
        const Outcome outcome = sample(values + i * size, size, rows[i], target, weights);
        tokens[i] = outcome.token;
        logprobs[i] = outcome.logprob;
        entropies[i] = outcome.entropy;
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK(tokens[i] >= 0, "row ", i, " of the logits is not finite");
    }
  });
}

} // extern "C"
