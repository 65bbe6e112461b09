// Ending Gloo operations early, which c10d does not offer (its abort does nothing for Gloo).
#include <gloo/transport/tcp/pair.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstring>
#include <typeinfo>

#include "process_group.h"

namespace {

// A class derived from ProcessGroupGloo may name its protected member.
struct Contexts : c10d::ProcessGroupGloo {
  static const std::vector<std::shared_ptr<gloo::Context>>& of(c10d::ProcessGroupGloo& group) {
    return group.*(&Contexts::contexts_);
  }
};

// typeid of the stub's class is a weak symbol that may or may not be libtorch's, so compare names.
bool is_tcp(const gloo::transport::Pair& pair) {
  return std::strcmp(typeid(pair).name(), "N4gloo9transport3tcp4PairE") == 0;
}

} // namespace

namespace g2rl {

void abort_gloo(c10d::Backend& backend, const char* reason) {
  auto& group = dynamic_cast<c10d::ProcessGroupGloo&>(backend);
  for (const auto& context : Contexts::of(group)) {
    for (int rank = 0; rank < group.getSize(); ++rank) {
      // The pairs were all connected when the group was made, so this only looks them up.
      gloo::transport::Pair* pair = rank == group.getRank() ? nullptr : context->getPair(rank).get();
      if (pair != nullptr && is_tcp(*pair)) {
        static_cast<gloo::transport::tcp::Pair*>(pair)->signalExceptionExternal(reason);
      }
    }
  }
}

} // namespace g2rl
