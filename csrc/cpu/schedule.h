// The order of the tiles, such that threads can add to shared rows without locks or copies and
// every sum is taken in the same order whatever the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>

namespace cl::cpu {

// A tile of two blocks. Before anything is added to a block, the tiles with smaller turns at it
// must have been added.
struct ScheduledTile {
  int64_t row, col;
  int64_t row_turn, col_turn;
};

// Every pair of blocks of a symmetric matrix once, the diagonal first, then a round-robin
// tournament (circle method): the tiles of one round touch different blocks.
class Tournament {
 public:
  explicit Tournament(int64_t blocks) : blocks_(blocks), players_(blocks + blocks % 2) {}

  // Indices in [0, size()); tile() says false for a bye.
  int64_t size() const { return blocks_ + (players_ - 1) * (players_ / 2); }

  bool tile(int64_t index, ScheduledTile& out) const {
    if (index < blocks_) {
      out = {index, index, 0, 0};
      return true;
    }
    const int64_t round = (index - blocks_) / (players_ / 2);
    const int64_t seat = (index - blocks_) % (players_ / 2), circle = players_ - 1;
    int64_t a = seat == 0 ? circle : (round + seat) % circle;
    int64_t b = seat == 0 ? round : (round - seat + circle) % circle;
    if (a >= blocks_ || b >= blocks_) return false;
    if (a > b) std::swap(a, b);
    out = {a, b, turn(a, round), turn(b, round)};
    return true;
  }

 private:
  // With an odd number of blocks, block b sits out round b.
  int64_t turn(int64_t block, int64_t round) const {
    return 1 + round - (blocks_ % 2 == 1 && block < round ? 1 : 0);
  }

  int64_t blocks_, players_;
};

// Every tile of a rectangle once, in diagonals that wrap around: those of one touch different
// blocks.
class LatinSquare {
 public:
  LatinSquare(int64_t rows, int64_t cols)
      : short_(std::min(rows, cols)), long_(std::max(rows, cols)), wide_(rows <= cols) {}

  int64_t size() const { return short_ * long_; }

  bool tile(int64_t index, ScheduledTile& out) const {
    const int64_t round = index / short_, a = index % short_, b = (a + round) % long_;
    const int64_t b_turn = earlier_visits(b, round);
    out = wide_ ? ScheduledTile{a, b, round, b_turn} : ScheduledTile{b, a, b_turn, round};
    return true;
  }

 private:
  // How many of the rounds before this one visit block b of the longer side: those t for which
  // (b - t) mod long is a block of the shorter one.
  int64_t earlier_visits(int64_t b, int64_t round) const {
    if (round <= b) return std::max<int64_t>(0, std::min(b, short_ - 1) - (b - round));
    const int64_t wrapped = long_ - (round - b - 1);  // the lowest block after wrapping around
    return std::min(b + 1, short_) + std::max<int64_t>(0, short_ - wrapped);
  }

  int64_t short_, long_;
  bool wide_;
};

}  // namespace cl::cpu
