// How the shim reports failure. Every C function returns a status by value and never throws.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

// Values are mirrored in src/error.rs.
enum G2rlCode : int32_t {
  G2RL_OK = 0,
  G2RL_FAILED = 1,
  G2RL_TIMEOUT = 2,
  G2RL_ABORTED = 3,
  G2RL_INVALID = 4,
  G2RL_NOT_FINITE = 5,
  G2RL_NO_CUDA = 6,
};

extern "C" struct G2rlStatus {
  int32_t code;
  // The row for G2RL_NOT_FINITE, else 0.
  int64_t detail;
  // Null for G2RL_OK, else to be given to g2rl_message_free.
  char* message;
};

namespace g2rl {

// An error with a code of its own.
struct Failure : std::runtime_error {
  Failure(G2rlCode code, const std::string& message, int64_t detail = 0)
      : std::runtime_error(message), code(code), detail(detail) {}
  G2rlCode code;
  int64_t detail;
};

[[noreturn]] inline void invalid(const std::string& message) {
  throw Failure(G2RL_INVALID, message);
}

// The status of the exception that is being handled; call it in a catch block only.
G2rlStatus status_of_current_exception() noexcept;

// Runs `body` and turns whatever it throws into a status.
template <typename Body>
G2rlStatus guarded(Body&& body) noexcept {
  try {
    body();
    return {G2RL_OK, 0, nullptr};
  } catch (...) {
    return status_of_current_exception();
  }
}

} // namespace g2rl
