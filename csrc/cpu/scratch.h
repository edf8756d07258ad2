// Uninitialised memory that begins at a cache line.
#pragma once
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace cl::cpu {

// What small problems need is kept for the thread's next one: at every call malloc would split such
// blocks off its heap and merge them again, which takes longer than batches of 16.
class Scratch {
 public:
  Scratch() = default;

  explicit Scratch(size_t bytes) {
    std::vector<Block>& spare = spare_blocks();
    for (Block& block : spare)
      if (block.size >= bytes) {
        block_ = std::exchange(block, spare.back());
        spare.pop_back();
        return;
      }
    block_ = {static_cast<std::byte*>(::operator new(bytes, kAlignment)), bytes};
  }

  Scratch(Scratch&& other) noexcept : block_(std::exchange(other.block_, {})) {}
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Scratch() {
    std::vector<Block>& spare = spare_blocks();
    if (block_.memory && block_.size <= kMostBytes && spare.size() < kMostBlocks)
      spare.push_back(block_);
    else
      release(block_);
  }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(block_.memory);
  }

 private:
  struct Block {
    std::byte* memory = nullptr;
    size_t size = 0;
  };

  struct SpareBlocks {
    std::vector<Block> blocks;
    SpareBlocks() { blocks.reserve(kMostBlocks); }
    ~SpareBlocks() {
      for (const Block& block : blocks) release(block);
    }
  };

  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kMostBytes = 1 << 20, kMostBlocks = 4;  // that a thread keeps

  static void release(const Block& block) { ::operator delete(block.memory, kAlignment); }

  static std::vector<Block>& spare_blocks() {
    thread_local SpareBlocks spare;
    return spare.blocks;
  }

  Block block_;
};

}  // namespace cl::cpu
