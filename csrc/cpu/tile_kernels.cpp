#include "tile_kernels.h"

#include <cstdlib>
#include <string_view>

namespace cl::cpu {

namespace baseline {
extern const TileKernels<float> of_float;
extern const TileKernels<double> of_double;
}  // namespace baseline
#ifdef CL_X86_64
namespace avx2 {
extern const TileKernels<float> of_float;
extern const TileKernels<double> of_double;
}  // namespace avx2
namespace avx512 {
extern const TileKernels<float> of_float;
extern const TileKernels<double> of_double;
}  // namespace avx512
#endif

namespace {

enum class Isa { baseline, avx2, avx512 };

Isa detect() {
#ifdef CL_X86_64
  const char* forced = std::getenv("CL_KERNELS_ISA");
  const std::string_view limit = forced ? forced : "";
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && limit != "avx2" && limit != "baseline") return Isa::avx512;
  if (has_avx2 && limit != "baseline") return Isa::avx2;
#endif
  return Isa::baseline;
}

template <class T>
const TileKernels<T>& pick(const TileKernels<T>& baseline,
                           [[maybe_unused]] const TileKernels<T>& avx2,
                           [[maybe_unused]] const TileKernels<T>& avx512) {
  static const Isa isa = detect();
  return isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : baseline;
}

}  // namespace

#ifdef CL_X86_64
template <>
const TileKernels<float>& tile_kernels<float>() {
  return pick(baseline::of_float, avx2::of_float, avx512::of_float);
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return pick(baseline::of_double, avx2::of_double, avx512::of_double);
}
#else
template <>
const TileKernels<float>& tile_kernels<float>() {
  return baseline::of_float;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return baseline::of_double;
}
#endif

}  // namespace cl::cpu
