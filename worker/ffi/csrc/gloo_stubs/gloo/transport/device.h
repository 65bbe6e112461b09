// Stands in for gloo's header of this name, which PyTorch's wheel lacks. c10d holds these types
// behind pointers only.
#pragma once

namespace gloo {
namespace transport {
class Device;
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};
} // namespace transport
} // namespace gloo
