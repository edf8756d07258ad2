// Threads that take tiles from a schedule and add to shared blocks in turn.
#pragma once
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "../stable.h"
#include "schedule.h"

namespace cl::cpu {

// Set once a thread fails, so that nobody waits for its turns.
using Abort = std::atomic<bool>;

// Whose turn it is at every block.
class Turns {
 public:
  Turns(int64_t blocks, const Abort& abort)
      : next_(std::make_unique<std::atomic<int64_t>[]>(blocks)), abort_(abort) {
    for (int64_t b = 0; b < blocks; ++b) next_[b] = 0;
  }

  // Runs add() in its turn at the block.
  template <class Add>
  void in_turn(int64_t block, int64_t turn, const Add& add) {
    while (next_[block].load(std::memory_order_acquire) != turn) {
      if (abort_) return;
      std::this_thread::yield();
    }
    add();
    next_[block].store(turn + 1, std::memory_order_release);
  }

 private:
  std::unique_ptr<std::atomic<int64_t>[]> next_;
  const Abort& abort_;
};

// Calls work(tile, workspace) for every tile of the schedule; each thread makes one workspace.
// Threads take tiles in order, and a tile waits for earlier ones only: nothing can deadlock.
template <class Schedule, class MakeWorkspace, class Work>
void for_each_tile(const Schedule& schedule, bool parallel, Abort& abort,
                   const MakeWorkspace& make_workspace, const Work& work) {
  if (!parallel) {
    auto workspace = make_workspace();
    ScheduledTile tile;
    for (int64_t index = 0; index < schedule.size(); ++index)
      if (schedule.tile(index, tile)) work(tile, workspace);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    try {
      if (next >= schedule.size()) return;
      auto workspace = make_workspace();
      ScheduledTile tile;
      for (int64_t index; (index = next++) < schedule.size() && !abort;)
        if (schedule.tile(index, tile)) work(tile, workspace);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      failure = std::current_exception();
      abort = true;
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cl::cpu
