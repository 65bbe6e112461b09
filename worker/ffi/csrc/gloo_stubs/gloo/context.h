// Stands in for gloo's header of this name, which PyTorch's wheel lacks. Non-virtual members that
// libtorch_cpu exports; objects are only ever made inside libtorch.
#pragma once

#include <chrono>
#include <memory>

namespace gloo {
namespace transport {
class Pair;
}

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
  std::unique_ptr<transport::Pair>& getPair(int rank);
};
} // namespace gloo
