#pragma once
#include <cstdint>

namespace cl::cpu {

// Rows [i0, i0 + m) and columns [j0, j0 + n).
struct TileRange {
  int64_t i0, m, j0, n;
};

}  // namespace cl::cpu
