// Threads that take tiles from a schedule and add to shared blocks in turn, until a signal ends it.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "../stable.h"
#include "interrupt.h"
#include "schedule.h"

namespace cl::cpu {

// Whether work should end early: a thread has failed, or a signal's handler has raised.
class Abort {
 public:
  void set() { set_ = true; }

  // To be asked between pieces of work that take well under a second, and while waiting.
  bool requested() {
    if (!set_ && hears_signals() && Clock::now() >= next_) {
      interrupted_ = signal_handler_raised();
      if (interrupted_) set();
      next_ = Clock::now() + kInterval;
    }
    return set_;
  }

  void throw_if_interrupted() const {
    if (interrupted_) throw std::runtime_error("cl_kernels: interrupted by a signal");
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kInterval{200};  // a busy Python may keep us waiting

  std::atomic<bool> set_{false};
  bool interrupted_ = false;  // like next_ of the one thread that hears signals
  Clock::time_point next_ = Clock::now() + kInterval;
};

// Whose turn it is at every block.
class Turns {
 public:
  Turns(int64_t blocks, Abort& abort)
      : next_(std::make_unique<std::atomic<int64_t>[]>(blocks)), abort_(abort) {
    for (int64_t b = 0; b < blocks; ++b) next_[b] = 0;
  }

  // Runs add() in its turn at the block.
  template <class Add>
  void in_turn(int64_t block, int64_t turn, const Add& add) {
    while (next_[block].load(std::memory_order_acquire) != turn) {
      if (abort_.requested()) return;
      std::this_thread::yield();
    }
    add();
    next_[block].store(turn + 1, std::memory_order_release);
  }

 private:
  std::unique_ptr<std::atomic<int64_t>[]> next_;
  Abort& abort_;
};

// Calls work(index, workspace) for every index in [0, size), which threads take in order; each
// thread makes one workspace.
template <class MakeWorkspace, class Work>
void for_each_index(int64_t size, Abort& abort, const MakeWorkspace& make_workspace,
                    const Work& work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  // Two at least, where there are as many: in a parallel region BLAS keeps to one thread.
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(size, 2));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    try {
      if (next >= size) return;
      auto workspace = make_workspace();
      for (int64_t index; !abort.requested() && (index = next++) < size;) work(index, workspace);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      failure = std::current_exception();
      abort.set();
    }
  });
  if (failure) std::rethrow_exception(failure);
  abort.throw_if_interrupted();
}

// Calls work(tile, workspace) for every tile of the schedule. A tile waits for earlier ones only:
// nothing can deadlock.
template <class Schedule, class MakeWorkspace, class Work>
void for_each_tile(const Schedule& schedule, bool parallel, Abort& abort,
                   const MakeWorkspace& make_workspace, const Work& work) {
  const auto work_at = [&](int64_t index, auto& workspace) {
    ScheduledTile tile;
    if (schedule.tile(index, tile)) work(tile, workspace);
  };
  if (parallel) {
    for_each_index(schedule.size(), abort, make_workspace, work_at);
    return;
  }
  auto workspace = make_workspace();
  for (int64_t index = 0; index < schedule.size(); ++index) work_at(index, workspace);
}

// Calls work(begin, end) for ranges of at most grain that make up [0, count).
template <class Work>
void for_each_range(int64_t count, int64_t grain, const Work& work) {
  if (count <= grain) {
    if (count > 0) work(int64_t(0), count);
    return;
  }
  Abort abort;
  const auto nothing = [] { return nullptr; };
  for_each_index((count + grain - 1) / grain, abort, nothing, [&](int64_t range, auto&) {
    work(range * grain, std::min(count, (range + 1) * grain));
  });
}

}  // namespace cl::cpu
