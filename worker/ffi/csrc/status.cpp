#include "status.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>

#ifdef G2RL_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace g2rl {

static G2rlStatus status(int32_t code, const char* message, int64_t detail = 0) noexcept {
  char* copy = strdup(message);
  return {code, detail, copy};
}

// c10d and gloo have no type of their own for a timeout.
static int32_t classify(const char* message) noexcept {
  for (const char* part : {"imed out", "imeout"}) {
    if (std::strstr(message, part) != nullptr) {
      return G2RL_TIMEOUT;
    }
  }
  return G2RL_FAILED;
}

G2rlStatus status_of_current_exception() noexcept {
  try {
    throw;
  } catch (const Failure& failure) {
    return status(failure.code, failure.what(), failure.detail);
  } catch (const c10::Error& error) {
    const char* message = error.what_without_backtrace();
    return status(classify(message), message);
  } catch (const std::exception& error) {
    return status(classify(error.what()), error.what());
  } catch (...) {
    return status(G2RL_FAILED, "an exception that is no std::exception");
  }
}

} // namespace g2rl

extern "C" void g2rl_message_free(char* message) {
  std::free(message);
}

#ifdef G2RL_CUDA
// Without a reference the linker drops the CUDA libraries from the binary (as-needed), and CUDA is
// silently not there. Constructors are kept by every linker, and this file by every user of the
// shim.
__attribute__((constructor, used)) static void keep_cuda_libraries() {
  using DeviceCount = c10::DeviceIndex (*)() noexcept;
  volatile DeviceCount from_c10_cuda = &c10::cuda::device_count;
  using PoolHandle = at::cuda::MempoolId_t (*)();
  volatile PoolHandle from_torch_cuda = &at::cuda::graph_pool_handle;
  (void)from_c10_cuda;
  (void)from_torch_cuda;
}
#endif
