// The k best of scored keys that arrive in any order. Plain C++: kernels and tests share it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#include "host_device.h"

namespace cl {

template <class T>
struct Packing;

template <>
struct Packing<float> {
  using Bits = int32_t;
  using Index = uint32_t;
  using Packed = int64_t;
  using Unsigned = uint64_t;
};

template <>
struct Packing<double> {
  using Bits = int64_t;
  using Index = uint64_t;
  using Packed = __int128;
  using Unsigned = unsigned __int128;
};

// A score and the index of its key as one signed integer: the larger the better, by score first,
// then by smaller index. -0 counts as +0. All pairs of a row differ. A NaN must not be packed.
template <class T>
using Packed = typename Packing<T>::Packed;

template <class T>
constexpr int kScoreBits = 8 * sizeof(T);

// No pair: below every pair.
template <class T>
constexpr Packed<T> kEmpty = static_cast<Packed<T>>(static_cast<typename Packing<T>::Unsigned>(1)
                                                    << (2 * kScoreBits<T> - 1));

template <class T>
CL_HOST_DEVICE inline Packed<T> pack(T score, int64_t index) {
  using P = Packing<T>;
  if (score == 0) score = 0;  // -0 too; a sum could be fused away with the product before it
  typename P::Bits bits;
  memcpy(&bits, &score, sizeof bits);
  // Negative floats are in the wrong order among themselves: flip all but the sign.
  bits ^= (bits >> (kScoreBits<T> - 1)) & ~(typename P::Bits(1) << (kScoreBits<T> - 1));
  const auto low = static_cast<typename P::Index>(~index);
  return static_cast<Packed<T>>(static_cast<typename P::Unsigned>(bits) << kScoreBits<T> | low);
}

template <class T>
CL_HOST_DEVICE inline T score_of(Packed<T> packed) {
  using Bits = typename Packing<T>::Bits;
  Bits bits = static_cast<Bits>(packed >> kScoreBits<T>);
  bits ^= (bits >> (kScoreBits<T> - 1)) & ~(Bits(1) << (kScoreBits<T> - 1));
  T score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

template <class T>
CL_HOST_DEVICE inline int64_t index_of(Packed<T> packed) {
  return static_cast<int64_t>(static_cast<typename Packing<T>::Index>(~packed));
}

// Finds the k-th largest of n >= k different packed pairs, a digit at a time from the top. Until
// done(): count, for each digit, the pairs that match() and have it, then narrow() by the counts.
// Then the k best are the pairs with packed >= threshold().
template <class T = float>
class RadixSelect {
 public:
  static constexpr int kBits = 8, kDigits = 1 << kBits;

  CL_HOST_DEVICE explicit RadixSelect(int64_t k) : rank_(k) {}

  // Spares the digits that all pairs share, if the smallest and the largest pair are known.
  CL_HOST_DEVICE RadixSelect(int64_t k, Packed<T> smallest, Packed<T> largest) : rank_(k) {
    const Ordered differing = ordered(smallest) ^ ordered(largest);
    for (shift_ = 0; differing >> shift_ >= kDigits;) ++shift_;
    if (shift_ + kBits == kWidth) return;
    known_ = shift_ + kBits;
    prefix_ = ordered(largest) >> known_ << known_;
  }

  CL_HOST_DEVICE bool done() const { return shift_ < 0; }

  // Whether the pair has the digits found so far.
  CL_HOST_DEVICE bool matches(Packed<T> packed) const {
    return known_ == kWidth || (ordered(packed) ^ prefix_) >> known_ == 0;
  }

  CL_HOST_DEVICE int digit(Packed<T> packed) const {
    return static_cast<int>(ordered(packed) >> shift_) & (kDigits - 1);
  }

  template <class Count>
  CL_HOST_DEVICE void narrow(const Count* counts) {
    int digit = kDigits - 1;
    int64_t larger = 0;
    for (; larger + counts[digit] < rank_; --digit) larger += counts[digit];
    narrow(digit, larger, counts[digit]);
  }

  // The same by a digit found elsewhere: how many matching pairs have a larger one, and this one.
  CL_HOST_DEVICE void narrow(int digit, int64_t larger, int64_t same) {
    rank_ -= larger;
    prefix_ |= static_cast<Ordered>(digit) << shift_;
    known_ = shift_;
    if (same == rank_ || shift_ == 0)
      shift_ = -1;  // where every pair with the digit is wanted, lower digits do not matter
    else
      shift_ = shift_ > kBits ? shift_ - kBits : 0;
  }

  CL_HOST_DEVICE int64_t rank() const { return rank_; }  // of the pair among those that match
  CL_HOST_DEVICE Packed<T> threshold() const { return static_cast<Packed<T>>(prefix_ ^ kSign); }

 private:
  using Ordered = typename Packing<T>::Unsigned;  // unsigned in the order of the signed pairs
  static constexpr int kWidth = 2 * kScoreBits<T>;
  static constexpr Ordered kSign = Ordered(1) << (kWidth - 1);

  CL_HOST_DEVICE static Ordered ordered(Packed<T> packed) {
    return static_cast<Ordered>(packed) ^ kSign;
  }

  int64_t rank_;
  Ordered prefix_ = 0;
  int shift_ = kWidth - kBits, known_ = kWidth;  // the digit looked for; the bits known begin here
};

// Moves the k best of count >= k different pairs to the front; returns the worst of them.
template <class T>
Packed<T> keep_best(Packed<T>* pairs, int64_t count, int64_t k) {
  Packed<T> smallest = pairs[0], largest = pairs[0];
  for (int64_t i = 1; i < count; ++i) {
    smallest = std::min(smallest, pairs[i]);
    largest = std::max(largest, pairs[i]);
  }
  RadixSelect<T> select(k, smallest, largest);
  while (!select.done()) {
    uint32_t counts[RadixSelect<T>::kDigits] = {};
    for (int64_t i = 0; i < count; ++i)
      if (select.matches(pairs[i])) ++counts[select.digit(pairs[i])];
    select.narrow(counts);
  }
  const Packed<T> threshold = select.threshold();
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Packed<T> pair = pairs[i];
    pairs[kept] = pair;
    kept += pair >= threshold;  // no branch, which nothing could predict
  }
  return *std::min_element(pairs, pairs + k);
}

// The k best pairs of those pushed, and a few more, in borrowed storage. When that is full it
// tightens: the k best stay, and the worst of them is the bound that later pairs must beat.
// Nothing is sorted before the end.
template <class T>
class Reservoir {
 public:
  // See reservoir_capacity(). Pairs must beat the bound from the beginning.
  Reservoir(Packed<T>* storage, int64_t capacity, int64_t k, Packed<T> bound)
      : pairs_(storage), capacity_(capacity), k_(k), bound_(bound) {}

  Packed<T> bound() const { return bound_; }
  int64_t size() const { return size_; }  // at most k after tighten()

  // True if the bound has changed.
  bool push(Packed<T> pair) {
    if (pair <= bound_) return false;
    pairs_[size_++] = pair;
    if (size_ < capacity_) return false;
    tighten();
    return true;
  }

  void tighten() {
    if (size_ <= k_) return;
    bound_ = keep_best<T>(pairs_, size_, k_);
    size_ = k_;
  }

  // The k best, best first; returns how many there are.
  int64_t finish() {
    tighten();
    std::sort(pairs_, pairs_ + size_, std::greater<>());
    return size_;
  }

 private:
  Packed<T>* pairs_;
  int64_t capacity_, k_, size_ = 0;
  Packed<T> bound_;
};

// Enough room for pairs to come between two tightenings, and none for more pairs than there are.
inline int64_t reservoir_capacity(int64_t k, int64_t count) {
  return std::clamp<int64_t>(count, 1, std::max(2 * k, k + 32));
}

// Writes pairs that are sorted, best first; places without one get -inf and index -1.
template <class T>
void write_best(const Packed<T>* pairs, int64_t count, int64_t k, T* values, int64_t* indices) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = score_of<T>(pairs[i]);
    indices[i] = index_of<T>(pairs[i]);
  }
  std::fill(values + count, values + k, -std::numeric_limits<T>::infinity());
  std::fill(indices + count, indices + k, int64_t(-1));
}

}  // namespace cl
