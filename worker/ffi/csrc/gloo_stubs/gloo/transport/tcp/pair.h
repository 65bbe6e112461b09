// The part of gloo's TCP pair that ending a collective early needs. Declarations as in the gloo
// that torch 2.11 contains; the definitions are exported by libtorch_cpu.
#pragma once

#include <exception>
#include <string>

namespace gloo {
namespace transport {

class Pair {
 public:
  // Polymorphic, as the real class is, so that typeid tells the transport.
  virtual ~Pair() = 0;
};

namespace tcp {
class Pair : public ::gloo::transport::Pair {
 public:
  std::exception_ptr signalExceptionExternal(const std::string& message);
};
} // namespace tcp

} // namespace transport
} // namespace gloo
